"""A server of HTTP on loopback whose answers are written byte by byte, for what no registry would say."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import NamedTuple, Self


class Asked(NamedTuple):
    """One request; names of header fields are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


# All of an answer, in pieces; when they end, the connection is closed.
Answers = Callable[[Asked], Iterator[bytes] | bytes]


class Scripted:
    """Answers every request as it is told to; a context manager. `host` is what stands in image names."""

    def __init__(self, answers: Answers, *, address: str = "127.0.0.1") -> None:
        self.answers = answers
        self.asked: list[Asked] = []
        self._listening = socket.create_server(
            (address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET
        )
        port = self._listening.getsockname()[1]
        self.host = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), connection, connection.makefile("rb") as stream:
            if connection.recv(1, socket.MSG_PEEK) == b"\x16":
                # Somebody tries TLS first.
                connection.sendall(answer(400))
                return
            method, target, _ = stream.readline().decode("latin-1").split(" ", 2)
            headers = {}
            while (line := stream.readline().decode("latin-1").strip()) != "":
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            asked = Asked(method, target, headers, stream.read(int(headers.get("content-length", "0"))))
            self.asked.append(asked)
            given = self.answers(asked)
            for piece in (given,) if isinstance(given, bytes) else given:
                connection.sendall(piece)


def answer(status: int, body: bytes = b"", **headers: str) -> bytes:
    """Write an answer; underscores in names of header fields stand for dashes."""
    fields = {"Content-Length": str(len(body)), "Connection": "close"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} Said\r\n{head}\r\n".encode("latin-1") + body
