"""Hashing in a thread of its own, beside the work that has the same bytes to write."""

from __future__ import annotations

import hashlib
import queue
import threading
from typing import Final, Self

# Pieces that wait at most; whoever hashes more waits. A piece is a reader's, of 1 MiB at most.
_WAITING: Final = 16


class Hash:
    """The hash of bytes that are handed to a `Hasher`; its text, in hex, is there when they are hashed."""

    __slots__ = ("_done", "_hash")

    def __init__(self, algorithm: str) -> None:
        self._hash = hashlib.new(algorithm, usedforsecurity=False)
        self._done: threading.Event | None = threading.Event()

    def __str__(self) -> str:
        if self._done is not None:
            self._done.wait()
            self._done = None
        return self._hash.hexdigest()

    def _take(self, data: bytes | None) -> None:
        if data is not None:
            self._hash.update(data)
        elif self._done is not None:
            self._done.set()


class Hasher:
    """A thread that hashes; a context manager, which leaves when all is hashed."""

    def __init__(self) -> None:
        self._queue: queue.Queue[tuple[Hash | None, bytes | None]] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._run, name="layerfs-hasher", daemon=True)
        self._thread.start()

    def begin(self, algorithm: str = "sha256") -> Hash:
        """Begin a hash; `update` and `end` are told of it."""
        return Hash(algorithm)

    def update(self, hash: Hash, data: bytes) -> None:
        """Hash more bytes."""
        self._queue.put((hash, data))

    def end(self, hash: Hash) -> None:
        """Say that all bytes were given."""
        self._queue.put((hash, None))

    def _run(self) -> None:
        while True:
            hash, data = self._queue.get()
            if hash is None:
                return
            hash._take(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put((None, None))
        self._thread.join()
