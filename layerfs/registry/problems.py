"""What goes wrong between us and a registry, each class of it as one message and what to do about it.

Nothing secret is written: no header, no query of a URL, and what a server says is cut, made printable and
cleared of the session's secrets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from layerfs.errors import (
    AuthenticationError,
    Interrupted,
    LayerfsError,
    NotFoundError,
    RateLimitError,
    RegistryError,
    UnreachableError,
)
from layerfs.registry.origin import shown

if TYPE_CHECKING:
    import ssl

__all__ = [
    "Asked", "Interrupted", "PlainHttpError", "RefusedError", "clean", "from_answer", "from_exception",
    "not_a_registry", "of_request", "retry_after",
]  # fmt: skip

_LONGEST: Final = 300
_PULL_AGAIN: Final = "try again; what was fetched already is kept"
_PUSH_AGAIN: Final = "try again; blobs that arrived whole are not sent again"
# OpenSSL's words, which tell apart what all are one exception.
_NOT_TLS: Final = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE")
# X509_V_ERR_* of openssl/x509_vfy.h.
_UNKNOWN_AUTHORITY: Final = frozenset({2, 18, 19, 20, 21, 27})
_NOT_YET: Final = 9
_EXPIRED: Final = 10
_WRONG_HOST: Final = frozenset({62, 63, 64})


class Asked(NamedTuple):
    """What was asked for, for messages: of whom, which repository and what in it, and to do what."""

    host: str
    repository: str = ""
    what: str = ""
    actions: tuple[str, ...] = ("pull",)
    signed_in: bool = False

    @property
    def name(self) -> str:
        """The repository with its host."""
        return f"{self.host}/{self.repository}" if self.repository else self.host


class PlainHttpError(UnreachableError):
    """A server that was asked for TLS and does not speak it."""


class RefusedError(UnreachableError):
    """A port on which nobody listens."""


# ---- no answer


def from_exception(error: Exception, host: str, *, proxy: str | None = None) -> UnreachableError:
    """Say why no answer came, or not all of it.

    Args:
        error: what urllib3, http.client or the system raised.
        host: whom we spoke with, as messages name it.
        proxy: the proxy's URL, if one stands between.
    """
    import http.client
    import socket
    import ssl

    from urllib3 import exceptions

    chain = list(_causes(error))
    for each in chain:
        if proxy is not None and (
            isinstance(each, exceptions.ProxyError) or "Tunnel connection failed" in str(each)
        ):
            return _proxy_problem(chain, host, shown(proxy))
    for each in chain:
        if isinstance(each, ssl.SSLCertVerificationError):
            return _certificate_problem(each, host)
    for each in chain:
        if isinstance(each, ssl.SSLError):
            return _tls_problem(each, host)
        if isinstance(each, socket.gaierror):
            return _name_problem(each, host)
        if isinstance(each, ConnectionRefusedError):
            return RefusedError(
                f"{host} refuses the connection",
                lasting=True,
                hint="is the registry running, and is the port the right one?",
            )
        if isinstance(each, exceptions.ConnectTimeoutError) and not isinstance(
            each, exceptions.NewConnectionError
        ):
            return UnreachableError(
                f"{host} does not answer: the connection timed out",
                lasting=True,
                hint="check the network and the firewalls on the way; HTTPS_PROXY names a proxy",
            )
        if isinstance(each, exceptions.ReadTimeoutError | TimeoutError):
            return Interrupted(
                f"{host} stopped sending: nothing came for too long",
                hint=_PULL_AGAIN,
            )
    for each in chain:
        # The words for the number of lines, or of interim answers, which have no class of their own.
        if isinstance(each, http.client.LineTooLong) or str(each).startswith("got more than"):
            return UnreachableError(f"{host} sends a head of an answer without end", lasting=True)
        if isinstance(each, http.client.BadStatusLine) and not isinstance(each, ConnectionError):
            return UnreachableError(
                f"{host} does not speak HTTP: something else than a registry answers there",
                lasting=True,
                hint="check host and port of the name: HOST[:PORT]/REPOSITORY[:TAG]",
            )
        if isinstance(each, OSError) and each.errno is not None and not isinstance(each, ConnectionError):
            return UnreachableError(
                f"{host} cannot be reached: {each.strerror or each}",
                lasting=True,
                hint="check the network between here and there",
            )
    return Interrupted(
        f"{host} cut the connection before its answer was complete",
        hint=_PULL_AGAIN,
    )


def of_request(error: UnreachableError, asked: Asked) -> UnreachableError:
    """Fit what `from_exception` says of a cut to what was asked for."""
    if error.hint == _PULL_AGAIN and "push" in asked.actions:
        error.hint = _PUSH_AGAIN
    return error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, what it wraps and what it came from, outermost first."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        each = waiting.pop(0)
        if isinstance(each, BaseException) and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [*each.args, getattr(each, "reason", None), each.__cause__, each.__context__]


def _proxy_problem(chain: list[BaseException], host: str, proxy: str) -> UnreachableError:
    found = (re.search(r"Tunnel connection failed: (\d+)", str(each)) for each in chain)
    status = next((match[1] for match in found if match), None)
    if status == "407":
        return UnreachableError(
            f"the proxy {proxy} wants a user name and a password, or other ones",
            lasting=True,
            hint="give them in the environment: HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT",
        )
    if status is not None:
        return UnreachableError(
            f"the proxy {proxy} refuses a connection to {host} (HTTP {status})",
            lasting=not status.startswith("5"),
            hint="ask whoever runs the proxy, or name the host in NO_PROXY to go around it",
        )
    return UnreachableError(
        f"the proxy {proxy}, on the way to {host}, cannot be reached",
        lasting=True,
        hint="correct HTTPS_PROXY or HTTP_PROXY in the environment, or name the host in NO_PROXY",
    )


def _certificate_problem(error: ssl.SSLCertVerificationError, host: str) -> UnreachableError:
    code, reason = error.verify_code, error.verify_message.removesuffix(".")
    if code in _UNKNOWN_AUTHORITY:
        return UnreachableError(
            f"the certificate of {host} is of an authority that is not known here",
            lasting=True,
            hint=f"put the authority's certificate into /etc/containers/certs.d/{host}/ca.crt, or name its"
            " directory with --cert-dir; --tls-verify=false does without verification",
        )
    if code in _WRONG_HOST:
        return UnreachableError(
            f"the certificate of {host} is for another host: {reason}",
            lasting=True,
            hint="use the name that the certificate is for",
        )
    if code in (_EXPIRED, _NOT_YET):
        word = "has expired" if code == _EXPIRED else "is not valid yet"
        return UnreachableError(
            f"the certificate of {host} {word}",
            lasting=True,
            hint="check this machine's clock; else the registry needs a new certificate",
        )
    return UnreachableError(f"the certificate of {host} is not accepted: {reason}", lasting=True)


def _tls_problem(error: ssl.SSLError, host: str) -> UnreachableError:
    reason = error.reason or ""
    said = f"{reason} {error}"
    if any(word in said for word in _NOT_TLS):
        return PlainHttpError(
            f"{host} does not speak HTTPS",
            lasting=True,
            hint="it may be a registry of plain HTTP: --tls-verify=false speaks that, which all on the way"
            " can read and change; or is the port the right one?",
        )
    if "CERTIFICATE_REQUIRED" in said or "HANDSHAKE_FAILURE" in said or "BAD_CERTIFICATE" in said:
        return UnreachableError(
            f"{host} wants a certificate of ours, or another one",
            lasting=True,
            hint=f"put NAME.cert and NAME.key into /etc/containers/certs.d/{host}, or name their directory"
            " with --cert-dir",
        )
    if "EOF" in said:
        return Interrupted(f"{host} cut the connection", hint="try again; is it a registry of HTTPS?")
    words = reason.replace("_", " ").lower() or "no reason is told"
    return UnreachableError(f"TLS with {host} failed: {words}", lasting=True)


def _name_problem(error: OSError, host: str) -> UnreachableError:
    import socket

    if error.errno == socket.EAI_AGAIN:
        return UnreachableError(
            f"no name server answers for {host}",
            hint="check the network, and the name servers in /etc/resolv.conf",
        )
    return UnreachableError(
        f"there is no host of the name {host}",
        lasting=True,
        hint="check the spelling; the name servers in /etc/resolv.conf were asked",
    )


# ---- an answer that is no success


def from_answer(
    status: int, headers: Mapping[str, str], data: bytes, asked: Asked, *, secrets: Collection[str] = ()
) -> LayerfsError:
    """Say what a registry's answer means that is no success (distribution-spec, "Error Codes").

    Args:
        status: of HTTP.
        headers: its header fields.
        data: the beginning of its body.
        asked: what was asked for.
        secrets: must not show, whatever the registry says.
    """
    codes, said = _errors(data, secrets)
    told = f": {said}" if said else ""
    host = asked.host
    if status == 401 and not asked.signed_in:
        return AuthenticationError(
            f"{asked.name} is not for everybody, or does not exist",
            status=status,
            codes=codes,
            hint=f"`layerfs login {host}` first",
        )
    if status == 429 or "TOOMANYREQUESTS" in codes:
        return _rate_limit(status, headers, host, codes)
    if status in (401, 403) or "DENIED" in codes:
        return _denied(status, codes, told, asked)
    if status == 404:
        return _missing(codes, told, asked)
    if status == 405 or "UNSUPPORTED" in codes:
        return RegistryError(
            f"{host} does not allow this{told}",
            status=status,
            codes=codes,
            hint="deletion is off in many registries: whoever runs it can allow it"
            if "delete" in asked.actions
            else None,
        )
    if status == 407:
        return RegistryError(
            "the proxy wants a user name and a password, or other ones",
            status=status,
            hint="give them in the environment: HTTP_PROXY=http://USER:PASSWORD@HOST:PORT",
        )
    if status == 413:
        return RegistryError(
            f"{host} takes no upload of this size (HTTP 413){told}",
            status=status,
            codes=codes,
            hint="a server before the registry limits it (client_max_body_size of nginx)",
        )
    if status == 400 and b"HTTP request to an HTTPS server" in data:
        return RegistryError(
            f"{host} speaks HTTPS, and was asked in plain HTTP",
            status=status,
            hint="leave --tls-verify=false out, or the `insecure` of registries.conf",
        )
    if status >= 500:
        return RegistryError(
            f"{host} failed (HTTP {status}){told}",
            status=status,
            codes=codes,
            hint="the fault is the registry's, or a server's before it: try again later",
        )
    about = f" about {asked.repository}" if asked.repository else ""
    return RegistryError(f"{host} refuses a request{about} (HTTP {status}){told}", status=status, codes=codes)


def not_a_registry(host: str, status: int) -> RegistryError:
    """Say that something else than a registry answered."""
    return RegistryError(
        f"{host} is a web server, but it seems no registry",
        status=status,
        hint="check host and port of the name: HOST[:PORT]/REPOSITORY[:TAG]",
    )


def _denied(status: int, codes: tuple[str, ...], told: str, asked: Asked) -> AuthenticationError:
    doing = {"push": "push to", "delete": "delete from"}
    verb = next((doing[action] for action in asked.actions if action in doing), "pull from")
    who = "with these credentials" if asked.signed_in else "without credentials"
    login = f"`layerfs login {asked.host}`"
    return AuthenticationError(
        f"{asked.host} does not let us {verb} {asked.repository or 'it'} {who}{told}",
        status=status,
        codes=codes,
        hint=f"check the name, and your rights there; {login} signs in as somebody else"
        if asked.signed_in
        else f"{login} first, and check the name",
    )


def _rate_limit(status: int, headers: Mapping[str, str], host: str, codes: tuple[str, ...]) -> RateLimitError:
    seconds = retry_after(headers)
    hint = "try again later" if seconds is None else f"try again in {_duration(seconds)}"
    if host == "docker.io":
        hint += "; `layerfs login docker.io` gives a higher limit"
    return RateLimitError(
        f"{host} was asked too often and refuses for now (HTTP {status})",
        status=status,
        codes=codes,
        seconds=seconds,
        hint=hint,
    )


def _missing(codes: tuple[str, ...], told: str, asked: Asked) -> LayerfsError:
    if "NAME_UNKNOWN" in codes:
        return NotFoundError(
            f"{asked.host} has no repository {asked.repository}",
            hint="check the spelling; what is not for everybody may need a login to be seen",
        )
    if "BLOB_UPLOAD_UNKNOWN" in codes:
        return RegistryError(
            f"{asked.host} has forgotten the upload to {asked.repository}",
            status=404,
            codes=codes,
            hint="push again",
        )
    kind, _, rest = asked.what.partition("/")
    if not codes and asked.what.startswith(("manifests/", "tags/")):
        # A registry's own answer has codes, or at least JSON.
        return NotFoundError(
            f"{asked.name} does not exist there{told}",
            hint="check the name; if the host is no registry at all, check HOST[:PORT] too",
        )
    if kind == "manifests":
        return NotFoundError(
            f"{asked.name} has no image {rest}", hint=f"`layerfs tags {asked.name}` lists what there is"
        )
    if kind == "blobs" and not rest.startswith("uploads"):
        return NotFoundError(
            f"{asked.name} lacks the blob {rest}", hint="the image is damaged there: push it again"
        )
    return NotFoundError(f"{asked.name} does not have what was asked for{told}")


def retry_after(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Read how many seconds a server wants to be left alone (RFC 9110 section 10.2.3), None if silent."""
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    if not text:
        return None
    import time
    from email.utils import parsedate_to_datetime

    try:
        moment = parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None
    return max(0.0, moment - (time.time() if now is None else now))


def clean(text: str, secrets: Collection[str] = ()) -> str:
    """Make a stranger's words fit for a message: one line, bounded, without secrets."""
    for secret in secrets:
        if len(secret) >= 3:
            text = text.replace(secret, "***")
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _errors(data: bytes, secrets: Collection[str]) -> tuple[tuple[str, ...], str]:
    """Read codes and words out of an error document; nothing comes of any other."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return (), ""
    if not isinstance(found, dict):
        return (), ""
    listed = found.get("errors")
    if not isinstance(listed, list):
        # What token servers (RFC 6749 section 5.2) and some proxies write.
        words = next((found[key] for key in ("error_description", "details", "message") if key in found), "")
        return (), clean(words, secrets) if isinstance(words, str) else ""
    each = [error for error in listed if isinstance(error, dict)][:5]
    codes = tuple(error["code"][:50] for error in each if isinstance(error.get("code"), str))
    words = "; ".join(error["message"] for error in each if isinstance(error.get("message"), str))
    return codes, clean(words, secrets)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.0f} hours"
