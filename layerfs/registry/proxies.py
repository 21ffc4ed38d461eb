"""Which proxy a request goes through: HTTP_PROXY, HTTPS_PROXY and NO_PROXY as docker and podman read them."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from layerfs.errors import InvalidError
from layerfs.registry.origin import Origin, address, is_loopback

if TYPE_CHECKING:
    import urllib3


def proxy_for(origin: Origin, environment: Mapping[str, str]) -> str | None:
    """Name the proxy for a server as a URL, None for a direct connection; this machine has none ever.

    The rules are those of Go's golang.org/x/net/http/httpproxy.
    """
    if is_loopback(origin.host):
        return None
    name = f"{origin.scheme}_proxy"
    found = environment.get(name.upper()) or environment.get(name)
    if not found or _is_excepted(origin, environment.get("NO_PROXY") or environment.get("no_proxy") or ""):
        return None
    return found if "://" in found else f"http://{found}"


def manager(proxy: str, settings: Mapping[str, Any]) -> urllib3.PoolManager:
    """Make a pool whose connections go through a proxy.

    Raises:
        InvalidError: the proxy's URL is none, or of a kind that is not supported.
    """
    import urllib3

    try:
        parts = urlsplit(proxy)
        port = parts.port
    except ValueError:
        parts, port = urlsplit("none:"), None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        kind = f"a proxy of the kind {parts.scheme!r}" if parts.hostname else "a proxy's URL that is none"
        raise InvalidError(
            f"the environment names {kind[:100]}",
            hint="HTTPS_PROXY=http://HOST:PORT is of the form that is known",
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    headers = None
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers = urllib3.make_headers(proxy_basic_auth=login)
    url = f"{parts.scheme}://{host}:{port or (443 if parts.scheme == 'https' else 80)}"
    return urllib3.ProxyManager(url, proxy_headers=headers, **settings)


def _is_excepted(origin: Origin, exceptions: str) -> bool:
    found = address(origin.host)
    for entry in filter(None, (part.strip().lower() for part in exceptions.split(","))):
        if entry == "*":
            return True
        if found is not None and "/" in entry:
            try:
                if found in ipaddress.ip_network(entry, strict=False):
                    return True
            except ValueError:
                pass
            continue
        if found is not None and found == address(entry.strip("[]")):
            return True
        try:
            parts = urlsplit(f"//{entry.removeprefix('*')}")
            host, port = parts.hostname or "", parts.port
        except ValueError:
            continue
        if port is not None and port != origin.port:
            continue
        if origin.host == host.lstrip(".") and not (host.startswith(".") and found is None):
            return True
        if found is None and origin.host.endswith(f".{host.lstrip('.')}"):
            return True
    return False
