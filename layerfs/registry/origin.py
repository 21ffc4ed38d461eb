"""Where a URL leads: scheme, host and port, and what kind of place that is."""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NamedTuple
from urllib.parse import urljoin, urlsplit

from layerfs.errors import UntrustedError

_PORTS: Final = {"https": 443, "http": 80}
# What else stands in a host, a backslash or a letter beyond ASCII, is read by each library in its own way.
_HOST: Final = re.compile(r"[0-9a-z._-]+|[0-9a-f:.]*:[0-9a-f:.]*(%[0-9a-z._-]+)?")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class Origin(NamedTuple):
    """Scheme, host in lower case and port (RFC 6454): what credentials are bound to."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Origin:
        """Read the origin of a URL.

        Raises:
            UntrustedError: it is no URL of HTTP, or one that carries a name or a password.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise UntrustedError(f"{shown(url)!r} is not a URL") from None
        if parts.scheme not in _PORTS or not parts.hostname:
            raise UntrustedError(f"{shown(url)!r} is not a URL of HTTP")
        if "@" in parts.netloc:
            raise UntrustedError(f"a URL on {parts.hostname} carries a user name, which is not followed")
        if _CONTROL.search(url) or not _HOST.fullmatch(parts.hostname):
            raise UntrustedError(f"{shown(url)!r} is not a URL: it has letters that none has")
        return cls(parts.scheme, parts.hostname.lower().rstrip("."), port or _PORTS[parts.scheme])

    @property
    def authority(self) -> str:
        """Host and port as a URL has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


def joined(base: str, target: str) -> str:
    """Give the absolute URL of what an answer from `base` refers to (RFC 3986 section 5).

    Raises:
        UntrustedError: it is no URL.
    """
    try:
        return urljoin(base, target)
    except ValueError:
        raise UntrustedError(f"{shown(target)!r} is not a URL") from None


def shown(url: str) -> str:
    """Write a URL for messages: without its query, which may be signed, and any user name."""
    head = url.partition("?")[0].partition("#")[0][:300]
    scheme, mark, rest = head.partition("://")
    host, slash, path = rest.partition("/")
    return "".join(
        letter if letter.isprintable() else "?"
        for letter in f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"
    )


def check_way(start: Origin, target: str, host: str) -> Origin:
    """Refuse to go where an answer of a registry must not send us, and give the origin of where it does.

    Args:
        start: where the answer came from.
        target: the URL that it gives.
        host: the registry, for messages.

    Raises:
        UntrustedError: it leads from TLS to plain HTTP, or from another machine to this one or its link.
    """
    to = Origin.of(target)
    if start.scheme == "https" and to.scheme != "https":
        raise UntrustedError(f"{host} sends us from HTTPS to {shown(target)}, which is plain HTTP")
    if to.host != start.host:
        found = address(to.host)
        near = found is not None and (found.is_link_local or found.is_unspecified)
        if near or (is_loopback(to.host) and not is_loopback(start.host)):
            raise UntrustedError(f"{host} sends us to {to.authority}, an address of this machine or its link")
    return to


def split_host(host: str) -> tuple[str, int | None]:
    """Part ``HOST[:PORT]`` as a reference has it; an IPv6 address loses its brackets.

    >>> split_host("[::1]:5000"), split_host("docker.io")
    (('::1', 5000), ('docker.io', None))
    """
    parts = urlsplit(f"//{host}")
    return (parts.hostname or host).lower(), parts.port


def address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Read a host that is an address, in any way that inet_aton(3) would take; None for a name."""
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return _old_address(host)
    mapped = getattr(found, "ipv4_mapped", None)
    return found if mapped is None else mapped


def _old_address(host: str) -> ipaddress.IPv4Address | None:
    """Read the forms of inet_aton(3) that resolvers take for addresses too: 127.1, 0x7f000001, 2130706433."""
    import socket

    if not host or not (host[0].isdigit() and all(c in "0123456789abcdefxABCDEFX." for c in host)):
        return None
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def is_loopback(host: str) -> bool:
    """Say whether a host is this machine by its name or its address, without asking a name server."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    found = address(host)
    return found is not None and found.is_loopback
