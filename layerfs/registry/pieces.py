"""A part of a blob fetched by several connections and read in order, for links on which one is slow."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from layerfs.errors import Interrupted

# Bytes of one request: long beside what its round trip takes, short beside what may wait in memory.
PIECE: Final = 2 << 20
# Pieces that are here or under way, for each connection.
_AHEAD: Final = 2


class Pieces:
    """Bytes `start` to `end` of something, in order; whoever reads closes.

    Begins with three connections, and adds one whenever the reader has to wait, up to `most`; no more than
    two pieces of 2 MiB for each wait in memory.

    Args:
        fetch: gives so many bytes from an offset on, in any thread.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], start: int, end: int, *, most: int) -> None:
        self._fetch = fetch
        self._end = end
        self._most = most
        self._changed = threading.Condition()
        self._next = start
        self._wanted = start
        self._here: dict[int, bytes] = {}
        self._error: BaseException | None = None
        self._threads = 0
        self._closed = False
        self._rest = memoryview(b"")
        for _ in range(min(3, most)):
            self._begin()

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, at least one before the end; raises what `fetch` raised."""
        if not self._rest and self._wanted < self._end:
            self._rest = memoryview(self._take())
        data = bytes(self._rest[:size])
        self._rest = self._rest[len(data) :]
        return data

    def close(self) -> None:
        """Begin nothing more; what is under way ends by itself, and nobody hears of it."""
        with self._changed:
            self._closed = True
            self._here.clear()
            self._changed.notify_all()

    def stop(self) -> None:
        """Let a read that waits in another thread fail."""
        with self._changed:
            self._error = self._error or Interrupted("the download was given up")
            self._closed = True
            self._changed.notify_all()

    def _take(self) -> bytes:
        with self._changed:
            if self._wanted not in self._here and self._threads < self._most:
                self._begin()
            while self._wanted not in self._here:
                if self._error is not None:
                    raise self._error
                self._changed.wait()
            data = self._here.pop(self._wanted)
            self._wanted += len(data)
            self._changed.notify_all()
            return data

    def _begin(self) -> None:
        self._threads += 1
        threading.Thread(target=self._work, name="layerfs-piece", daemon=True).start()

    def _work(self) -> None:
        while (start := self._claim()) is not None:
            try:
                data = self._fetch(start, min(PIECE, self._end - start))
            except BaseException as error:
                # Of whatever kind: it belongs to the reader, who raises it.
                with self._changed:
                    self._error = self._error or error
                    self._closed = True
                    self._changed.notify_all()
                return
            with self._changed:
                if not self._closed:
                    self._here[start] = data
                    self._changed.notify_all()

    def _claim(self) -> int | None:
        with self._changed:
            while True:
                if self._closed or self._next >= self._end:
                    return None
                if self._next < self._wanted + PIECE * _AHEAD * self._most:
                    start = self._next
                    self._next = min(start + PIECE, self._end)
                    return start
                self._changed.wait()
