"""How one user is let in at one registry: no way, basic, or bearer tokens (distribution's auth/token.md)."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from urllib.parse import urlencode

from layerfs.errors import AuthenticationError, LayerfsError, RegistryError, UntrustedError
from layerfs.registry import problems
from layerfs.registry.challenge import Challenge
from layerfs.registry.credentials import Credentials
from layerfs.registry.origin import Origin, address, is_loopback, shown

if TYPE_CHECKING:
    from layerfs.registry.answer import Answer
    from layerfs.registry.connections import Trust

# auth/token.md: what an answer means that does not tell.
_LIFETIME: Final = 60.0
# A token is renewed before it ends, so that it does not on its way.
# Seconds for which a token is believed to be good, whatever its server says.
_LONGEST: Final = 86400.0
_MARGIN: Final = 10.0
_CLIENT: Final = "layerfs"
_MAXIMUM: Final = 1 << 20


class Fetch(Protocol):
    """Sends a request to a token server; it goes nowhere else than there."""

    def __call__(
        self, method: str, url: str, *, headers: Mapping[str, str], body: bytes | None = None
    ) -> Answer:
        """Give the answer, whatever its status."""
        ...


class _Token(NamedTuple):
    text: str
    until: float


class _Bearer(NamedTuple):
    realm: str
    service: str


class Doorkeeper:
    """The authorization of one user at one registry; thread-safe, and remembers what it was asked for."""

    def __init__(
        self,
        host: str,
        origin: Origin,
        credentials: Credentials | None,
        fetch: Fetch,
        *,
        trust: Trust,
        resolve: Callable[[str], Iterable[str]] | None = None,
    ) -> None:
        """Begin.

        Args:
            host: the registry as messages name it.
            origin: where it is.
            credentials: the user's, None for nobody.
            fetch: asks a token server.
            trust: how such a server proves itself.
            resolve: gives a name's addresses; None where only a proxy can know them.
        """
        self._host = host
        self.origin = origin
        self.trust = trust
        self.credentials = credentials
        self._fetch = fetch
        self._resolve = resolve
        self._lock = threading.Lock()
        self._basic = False
        self._bearer: _Bearer | None = None
        self._tokens: dict[frozenset[str], _Token] = {}

    def copy(self, fetch: Fetch) -> Doorkeeper:
        """Give one that knows the same, for a process that was forked."""
        made = Doorkeeper(
            self._host, self.origin, self.credentials, fetch, trust=self.trust, resolve=self._resolve
        )
        made._basic, made._bearer, made._tokens = self._basic, self._bearer, dict(self._tokens)
        return made

    @property
    def was_asked(self) -> bool:
        """Say whether the registry wanted to know who we are."""
        return self._basic or self._bearer is not None

    @property
    def secrets(self) -> set[str]:
        """What must not stand in any message."""
        own = self.credentials.secrets if self.credentials is not None else ()
        return {*own, *(token.text for token in list(self._tokens.values()))}

    def authorization(self, scopes: frozenset[str]) -> str | None:
        """Give the value of the header as far as it is known already; a token that ends is renewed.

        Raises:
            LayerfsError: the token server failed.
        """
        if self.credentials is not None and self.credentials.registry_token:
            return f"Bearer {self.credentials.registry_token}"
        if self._basic and self.credentials is not None:
            return self.credentials.basic()
        if self._bearer is None or not scopes:
            return None
        with self._lock:
            return f"Bearer {self._token(self._bearer, scopes)}"

    def answer(
        self, challenges: Sequence[Challenge], scopes: frozenset[str], used: str | None, problem: LayerfsError
    ) -> str:
        """Answer what a registry wants after it refused a request.

        Args:
            challenges: what it wants.
            scopes: what we want.
            used: the header's value that was refused, if there was one.
            problem: what the refusal means when there is nothing that could help.

        Raises:
            AuthenticationError: there is no answer that was not refused before.
            UntrustedError: the token server is one that gets nothing from us.
            LayerfsError: the token server failed.
        """
        for challenge in challenges:
            if challenge.scheme == "bearer" and challenge.parameters.get("realm"):
                return self._answer_bearer(challenge, scopes, used, problem)
        if any(challenge.scheme == "basic" for challenge in challenges):
            if self.credentials is None or not self.credentials.password:
                raise AuthenticationError(
                    f"{self._host} wants a user name and a password", status=401,
                    hint=f"`layerfs login {self._host}` first",
                )  # fmt: skip
            basic = self.credentials.basic()
            if used == basic:
                raise self._wrong(401)
            self._basic = True
            return basic
        kinds = ", ".join(sorted({problems.clean(each.scheme) for each in challenges})) or "none"
        raise RegistryError(
            f"{self._host} wants to be signed in to in a way that is not known here ({kinds})", status=401
        )

    def _answer_bearer(
        self, challenge: Challenge, scopes: frozenset[str], used: str | None, problem: LayerfsError
    ) -> str:
        realm = challenge.parameters["realm"]
        self._check_realm(realm)
        bearer = _Bearer(realm, challenge.parameters.get("service", ""))
        wanted = _joined([*scopes, *challenge.parameters.get("scope", "").split()])
        with self._lock:
            self._bearer = bearer
            for known, held in list(self._tokens.items()):
                if used == f"Bearer {held.text}":
                    del self._tokens[known]
            # Another thread may have been here before.
            held_now = self._tokens.get(scopes)
            fresh = held_now is not None and held_now.until > time.monotonic()
            token = self._token(bearer, scopes, wanted=None if fresh else wanted)
        if used == f"Bearer {token}":
            raise problem
        return f"Bearer {token}"

    def _token(self, bearer: _Bearer, scopes: frozenset[str], *, wanted: frozenset[str] | None = None) -> str:
        now = time.monotonic()
        if wanted is None:
            # A token for pushing pulls as well.
            for known, held in self._tokens.items():
                if held.until > now and _joined([*known, *scopes]) == known:
                    return held.text
        held = self._tokens[scopes] = self._ask(bearer, sorted(wanted or scopes))
        return held.text

    def _ask(self, bearer: _Bearer, scopes: Sequence[str]) -> _Token:
        server = Origin.of(bearer.realm)
        fields = [("service", bearer.service)] if bearer.service else []
        headers = {"Accept": "application/json"}
        body = None
        credentials = self.credentials
        if credentials is not None and credentials.identity_token:
            fields += [
                ("grant_type", "refresh_token"), ("refresh_token", credentials.identity_token),
                ("client_id", _CLIENT), ("scope", " ".join(scopes)),
            ]  # fmt: skip
            body = urlencode(fields).encode()
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            answer = self._fetch("POST", bearer.realm, headers=headers, body=body)
        else:
            fields += [("scope", scope) for scope in scopes]
            if credentials is not None and credentials.username:
                fields.append(("account", credentials.username))
                headers["Authorization"] = credentials.basic()
            mark = "&" if "?" in bearer.realm else "?"
            answer = self._fetch("GET", f"{bearer.realm}{mark}{urlencode(fields)}", headers=headers)
        with answer:
            data = answer.data(_MAXIMUM)
        if answer.status != 200:
            raise self._refused(answer, data, server)
        return _read_token(data, server)

    def _refused(self, answer: Answer, data: bytes, server: Origin) -> LayerfsError:
        status = answer.status
        if self.credentials is not None and status in (400, 401):
            return self._wrong(status)
        if self.credentials is not None and status == 403:
            return AuthenticationError(
                f"{self._host} does not let {self.credentials.username or 'us'} do this", status=status,
                hint=f"check the name, and your rights there; `layerfs login {self._host}` for another",
            )  # fmt: skip
        if status in (401, 403):
            return AuthenticationError(
                f"{self._host} lets nobody in here without a user name, or there is nothing of the name",
                status=status, hint=f"check the name, and `layerfs login {self._host}`",
            )  # fmt: skip
        found = problems.from_answer(
            status, answer.headers, data, problems.Asked(server.authority), secrets=self.secrets
        )
        if isinstance(found, RegistryError):
            return found
        return RegistryError(f"the token server of {self._host} failed: {found}", status=status)

    def _wrong(self, status: int) -> AuthenticationError:
        user = self.credentials.username if self.credentials is not None else ""
        return AuthenticationError(
            f"{self._host} does not accept the user name or the password" + (f" of {user}" if user else ""),
            status=status, hint=f"`layerfs login {self._host}` again",
        )  # fmt: skip

    def _check_realm(self, realm: str) -> None:
        """Refuse a token server that a registry must not send our password to.

        Raises:
            UntrustedError: it is one.
        """
        server = Origin.of(realm)
        if server.scheme != "https" and self.origin.scheme == "https":
            raise UntrustedError(
                f"{self._host} wants our credentials sent to {shown(realm)}, without TLS",
                hint="nothing was sent; the registry is set up wrongly, or somebody is in between",
            )
        if server.host == self.origin.host or (is_loopback(server.host) and is_loopback(self.origin.host)):
            return
        found = [server.host] if address(server.host) is not None or is_loopback(server.host) else []
        if found or self._leads_inside(server.host):
            raise UntrustedError(
                f"{self._host} wants our credentials sent to {server.authority}, which is "
                + ("an address, not a name" if found else "inside a private network"),
                hint="nothing was sent: a token server has a public name, or is the registry itself",
            )

    def _leads_inside(self, name: str) -> bool:
        """Say whether a name leads into a private network and the registry itself is not in one."""
        if self._resolve is None:
            return False
        private = [found for text in self._resolve(name) if (found := address(text)) and not found.is_global]
        if not private:
            return False
        own = [found for text in self._resolve(self.origin.host) if (found := address(text))]
        return not own or any(found.is_global for found in own)


def _read_token(data: bytes, server: Origin) -> _Token:
    try:
        found: Any = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    text = (found.get("token") or found.get("access_token")) if isinstance(found, dict) else None
    if not isinstance(text, str) or not text.isascii() or not text.isprintable():
        raise RegistryError(f"{server.authority} gave an answer without a token", status=200)
    lasts = found.get("expires_in")
    seconds = float(min(lasts, _LONGEST)) if isinstance(lasts, int | float) and lasts > 0 else _LIFETIME
    return _Token(text, time.monotonic() + max(seconds - _MARGIN, seconds / 2))


def _joined(scopes: Iterable[str]) -> frozenset[str]:
    """Join the scopes of one resource, whose actions servers write in any order.

    >>> _joined(["repository:a:pull,push", "repository:a:push,pull"])
    frozenset({'repository:a:pull,push'})
    """
    found: dict[str, set[str]] = {}
    for each in scopes:
        resource, _, actions = each.rpartition(":")
        found.setdefault(resource, set()).update(actions.split(","))
    return frozenset(f"{resource}:{','.join(sorted(actions))}" for resource, actions in found.items())


def scope(repository: str, actions: Iterable[str]) -> str:
    """Write a scope as token servers read it (distribution's auth/scope.md).

    >>> scope("library/debian", ("push", "pull"))
    'repository:library/debian:pull,push'
    """
    return f"repository:{repository}:{','.join(sorted(actions))}"
