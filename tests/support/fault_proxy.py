"""A reverse proxy before a registry that does wrong what it is told to, and notes what it was asked."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Final, NamedTuple, Self

_PIECE: Final = 64 << 10
_OF_CONNECTIONS: Final = frozenset({"connection", "keep-alive", "transfer-encoding", "proxy-connection"})


class Fault(NamedTuple):
    """What goes wrong with requests of which ``METHOD PATH`` has the pattern `where` in it.

    It happens `times` times, after `after` requests that went well. Numbers count bytes of the answer's body.
    """

    where: str
    times: int = 1
    after: int = 0
    # No answer at all: the connection is closed when the request's head was read.
    silent: bool = False
    # The answer ends after so many bytes: by the connection's end, or, with `reset`, by its reset.
    cut: int | None = None
    reset: bool = False
    # Nothing more comes after so many bytes, and the connection stays.
    stall: int | None = None
    # The byte at this place is another one.
    flip: int | None = None
    # The last so many bytes are missing, and Content-Length says nothing of them.
    shorten: int = 0
    # Content-Length promises so many bytes more than there are; then the connection ends.
    promise: int = 0
    # Another status, with `headers` and `body`, in place of the registry's answer.
    status: int | None = None
    headers: Mapping[str, str] = {}
    body: bytes = b""
    # A redirect to this origin, with the request's own path.
    elsewhere: str | None = None
    # The request's Range is not handed on.
    ignore_range: bool = False
    # The connection is reset after so many bytes of the request's body.
    cut_upload: int | None = None
    # Header fields of the registry's answer that are replaced.
    replace: Mapping[str, str] = {}


class Seen(NamedTuple):
    """One request."""

    method: str
    path: str
    headers: Mapping[str, str]


class FaultProxy:
    """Stands before the registry at `upstream` (HOST:PORT); a context manager.

    `host` is what stands in image names, `connections` counts those that asked for something, `accepted` all.
    `rate` limits each connection's answers, in bytes a second. `port` is one that is free, when 0.
    """

    def __init__(
        self, upstream: str, *, name: str = "127.0.0.1", rate: int | None = None, port: int = 0
    ) -> None:
        self.upstream = upstream
        self.rate = rate
        self.requests: list[Seen] = []
        self.connections = 0
        self.accepted = 0
        # Bytes of the registry's answers that were handed on, heads left out.
        self.sent = 0
        self._faults: list[list[object]] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = _Server(("127.0.0.1", port), Handler)
        self.host = f"{name}:{self._server.server_port}"

    def add(self, *faults: Fault) -> None:
        """Do these wrong from now on; where several fit, the first that is left over happens."""
        with self._lock:
            self._faults += [[fault, fault.after, fault.times] for fault in faults]

    def clear(self) -> None:
        """Do everything right again, and forget what was asked."""
        with self._lock:
            self._faults.clear()
            self.requests.clear()
            self.sent = 0

    def asked(self, where: str) -> list[Seen]:
        """Give the requests of which ``METHOD PATH`` has the pattern in it, in order."""
        return [seen for seen in list(self.requests) if re.search(where, f"{seen.method} {seen.path}")]

    def fault(self, line: str) -> Fault | None:
        with self._lock:
            for entry in self._faults:
                fault, after, times = entry
                assert isinstance(fault, Fault) and isinstance(after, int) and isinstance(times, int)
                if not times or not re.search(fault.where, line):
                    continue
                if after:
                    entry[1] = after - 1
                    continue
                entry[2] = times - 1
                return fault
        return None

    def wait(self, seconds: float | None = None) -> None:
        """Wait, until the proxy ends at most."""
        self._closing.wait(seconds)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that go away: that is what many tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    owner: FaultProxy

    def log_message(self, *_: object) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.owner.accepted += 1
        self._begun = False

    def _handle(self) -> None:
        if not self._begun:
            self._begun = True
            self.owner.connections += 1
        fault = self.owner.fault(f"{self.command} {self.path}") or Fault("")
        self.owner.requests.append(Seen(self.command, self.path, dict(self.headers.items())))
        self._serve(fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

    def _serve(self, fault: Fault) -> None:
        if fault.silent:
            self._end()
        elif fault.cut_upload is not None:
            self.rfile.read(fault.cut_upload)
            self._reset()
        elif fault.elsewhere is not None:
            self._say(fault.status or 307, {"Location": f"{fault.elsewhere}{self.path}"}, b"")
        elif fault.status is not None:
            self._say(fault.status, fault.headers, fault.body)
        else:
            self._ask(fault)

    def _ask(self, fault: Fault) -> None:
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _OF_CONNECTIONS}
        if fault.ignore_range:
            headers.pop("Range", None)
        upstream = http.client.HTTPConnection(self.owner.upstream, timeout=60)
        with contextlib.closing(upstream):
            chunked = self.headers.get("Transfer-Encoding", "").lower() == "chunked"
            upstream.request(self.command, self.path, self._body(chunked), headers, encode_chunked=chunked)
            with upstream.getresponse() as answer:
                self._hand_on(answer, fault)

    def _body(self, chunked: bool) -> Iterator[bytes] | None:
        if chunked:
            return self._chunks()
        length = int(self.headers.get("Content-Length", "0"))
        return self._piece(length) if length else None

    def _piece(self, length: int) -> Iterator[bytes]:
        while length and (data := self.rfile.read(min(length, _PIECE))):
            length -= len(data)
            yield data

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield from self._piece(size)
            self.rfile.readline()
        self.rfile.readline()

    def _say(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        for _ in self._body(False) or ():
            pass
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _hand_on(self, answer: http.client.HTTPResponse, fault: Fault) -> None:
        length = answer.length if self.command != "HEAD" else None
        replaced = {name.lower() for name in fault.replace}
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() in _OF_CONNECTIONS | replaced:
                continue
            if name.lower() == "content-length" and length is not None:
                value = str(length - fault.shorten + fault.promise)
            self.send_header(name, value)
        for name, value in fault.replace.items():
            self.send_header(name, value)
        if answer.chunked:
            # Of an unknown length: the end of the connection is its end.
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command == "HEAD":
            return
        end = None if length is None else length - fault.shorten
        at = 0
        while data := answer.read(_PIECE):
            for stop, action in ((fault.cut, self._cut), (fault.stall, self._stall)):
                if stop is not None and at + len(data) >= stop:
                    self.wfile.write(data[: stop - at])
                    self.wfile.flush()
                    action(fault)
                    return
            if fault.flip is not None and at <= fault.flip < at + len(data):
                place = fault.flip - at
                data = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
            if end is not None:
                data = data[: max(0, end - at)]
            self.wfile.write(data)
            at += len(data)
            with self.owner._lock:
                self.owner.sent += len(data)
            if self.owner.rate:
                time.sleep(len(data) / self.owner.rate)
        if fault.promise:
            self._end()

    def _cut(self, fault: Fault) -> None:
        if fault.reset:
            self._reset()
        else:
            self._end()

    def _stall(self, fault: Fault) -> None:
        self.owner.wait()
        self._end()

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._end()

    def _end(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            if not self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)[0]:
                self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()
