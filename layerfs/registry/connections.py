"""The connections of one process: pools by what proves a server's name and by proxy, made when first used."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from layerfs.registry import certificates, proxies

if TYPE_CHECKING:
    import ssl

    import urllib3
    from urllib3.connection import HTTPConnection
    from urllib3.connectionpool import HTTPConnectionPool

    from layerfs.registry.origin import Origin
    from layerfs.registry.settings import Options


# Connections to one server that are kept for later; each is made when there is none that waits.
_KEPT: Final = 20
_PAUSE: Final = 0.003
# How long, in seconds, the end waits for those that are still made.
_PATIENCE: Final = 2.0


_MOST_HEADS: Final = 10


class Trust(NamedTuple):
    """How a server proves to be the one: whether at all, and the directory of further certificates.

    With `client` our own certificate in the directory is shown to the server.
    """

    verify: bool = True
    directory: Path | None = None
    client: bool = False


class Connections:
    """Pools of connections; thread-safe. A process that was forked makes its own."""

    def __init__(self, options: Options, before: Connections | None = None) -> None:
        """Begin without any; what a parent has loaded (`before`) need not be loaded once more."""
        self._options = options
        self._lock = threading.Lock()
        self._pools: dict[tuple[Trust, str | None], urllib3.PoolManager] = {}
        self._threads: list[threading.Thread] = []
        self._contexts: dict[Trust, ssl.SSLContext] = dict(before._contexts) if before else {}

    def request(
        self,
        method: str,
        url: str,
        *,
        origin: Origin,
        trust: Trust,
        headers: Mapping[str, str],
        body: bytes | Iterable[bytes] | None = None,
    ) -> urllib3.BaseHTTPResponse:
        """Send one request and wait for the head of its answer; nothing is followed, retried or decoded.

        Raises:
            urllib3.exceptions.HTTPError: no answer came.
        """
        import urllib3

        options = self._options
        read = options.read_timeout if method in ("GET", "HEAD") else options.upload_timeout
        return self._pool(origin, trust).request(
            method, url, headers=headers, body=body, redirect=False, retries=False,
            preload_content=False, decode_content=False, assert_same_host=False,
            timeout=urllib3.Timeout(connect=options.connect_timeout, read=read),
        )  # fmt: skip

    def connect(self, origin: Origin, trust: Trust, count: int) -> None:
        """Begin to make connections, for requests that come; what fails is left to these."""
        if proxies.proxy_for(origin, self._options.environment) is not None:
            return
        thread = threading.Thread(target=self._connect, args=(origin, trust, count), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _connect(self, origin: Origin, trust: Trust, count: int) -> None:
        from urllib3.exceptions import HTTPError

        # The request at hand shall have the connection that is there already.
        time.sleep(_PAUSE)
        with contextlib.suppress(HTTPError, OSError):
            pool = self._pool(origin, trust).connection_from_host(
                origin.host, origin.port, scheme=origin.scheme
            )
            # urllib3 has no name for it: some out of the pool, or new ones, that go back in unused.
            threads = []
            for connection in [pool._get_conn() for _ in range(count)]:
                if not connection.is_closed:
                    pool._put_conn(connection)
                    continue
                thread = threading.Thread(target=self._open, args=(pool, connection), daemon=True)
                thread.start()
                threads.append(thread)
            for thread in threads:
                thread.join()

    def _open(self, pool: HTTPConnectionPool, connection: HTTPConnection) -> None:
        from urllib3.exceptions import HTTPError

        connection.timeout = self._options.connect_timeout
        try:
            connection.connect()
        except (HTTPError, OSError):
            connection.close()
        pool._put_conn(connection)

    def close(self) -> None:
        """Close what is open and idle; answers that are being read keep their connections."""
        end = time.monotonic() + _PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        with self._lock:
            for pool in self._pools.values():
                pool.clear()
            self._pools.clear()

    def _pool(self, origin: Origin, trust: Trust) -> urllib3.PoolManager:
        proxy = proxies.proxy_for(origin, self._options.environment)
        if origin.scheme == "http":
            trust = Trust()
        with self._lock:
            found = self._pools.get((trust, proxy))
            if found is None:
                found = self._pools[trust, proxy] = self._make(origin, trust, proxy)
            return found

    def _make(self, origin: Origin, trust: Trust, proxy: str | None) -> urllib3.PoolManager:
        import urllib3

        options = self._options
        settings: dict[str, Any] = {
            "num_pools": 32,
            "maxsize": max(options.connections + 2, _KEPT),
        }
        if origin.scheme == "https":
            settings["ssl_context"] = self._context(trust)
        if not trust.verify:
            # The user has asked for it; a warning for each connection says nothing new.
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        made = urllib3.PoolManager(**settings) if proxy is None else proxies.manager(proxy, settings)
        made.pool_classes_by_scheme = _pools()
        return made

    def _context(self, trust: Trust) -> ssl.SSLContext:
        found = self._contexts.get(trust)
        if found is None:
            found = self._contexts[trust] = certificates.context(
                trust.directory, verify=trust.verify, client=trust.client
            )
        return found


@functools.cache
def _pools() -> dict[str, type[urllib3.HTTPConnectionPool]]:
    """Give urllib3's pools, of connections that hear a few interim answers alone (RFC 9110 section 15.2)."""
    import http.client

    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
    from urllib3.connection import HTTPConnection, HTTPSConnection

    class Response(http.client.HTTPResponse):
        heads = 0

        # http.client passes over interim answers by itself, as long as they come.
        def _read_status(self) -> Any:
            self.heads += 1
            if self.heads > _MOST_HEADS:
                raise http.client.HTTPException(f"got more than {_MOST_HEADS} heads of answers")
            return super()._read_status()  # type: ignore[misc]

    class Plain(HTTPConnection):
        response_class = Response

    class Secure(HTTPSConnection):
        response_class = Response

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}
