"""Small blobs fetched ahead by a few threads, so that many do not cost a round trip each in turn."""

from __future__ import annotations

import collections
import io
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from layerfs.errors import Interrupted

if TYPE_CHECKING:
    from layerfs.digest import Digest
    from layerfs.oci.descriptor import Descriptor

# What is fetched ahead: blobs of up to so many bytes, as long as so many wait in memory.
SMALL: Final = 1 << 20
_WAITING: Final = 8 << 20


class Prefetch:
    """Blobs that are asked for before they are wanted; for one thread but for its own.

    Nothing is under way between `pause` and the next `expect` or `take`: a process may be forked then.

    Args:
        fetch: gives a blob's bytes, in any thread.
        threads: how many blobs at once.
    """

    def __init__(self, fetch: Callable[[Descriptor], bytes], *, threads: int) -> None:
        self._fetch = fetch
        self._most = threads
        self._changed = threading.Condition()
        self._line: collections.deque[Descriptor] = collections.deque()
        self._sizes: dict[Digest, int] = {}
        self._done: dict[Digest, bytes | BaseException] = {}
        self._threads = 0
        self._waiting = 0
        self._paused = False
        self._closed = False

    def expect(self, blobs: Iterable[Descriptor]) -> None:
        """Begin to fetch those that are small, in this order."""
        with self._changed:
            for each in blobs:
                if each.size <= SMALL and each.data is None and each.digest not in self._sizes:
                    self._sizes[each.digest] = each.size
                    self._line.append(each)
            self._go_on()

    def has(self, digest: Digest) -> bool:
        """Say whether a blob was asked for and not taken yet."""
        return digest in self._sizes

    def take(self, digest: Digest) -> bytes:
        """Wait for a blob, give it and forget it; raises what its fetching raised."""
        with self._changed:
            self._go_on()
            late = next((each for each in self._line if each.digest == digest), None)
            if late is not None:
                # What waits in memory may be wanted after this.
                self._line.remove(late)
                del self._sizes[digest]
        if late is not None:
            return self._fetch(late)
        with self._changed:
            while digest not in self._done:
                if self._closed:
                    raise Interrupted(f"the download of {digest} was given up")
                self._changed.wait()
            found = self._done.pop(digest)
            self._waiting -= self._sizes.pop(digest)
            self._go_on()
        if isinstance(found, BaseException):
            raise found
        return found

    def pause(self) -> None:
        """Begin nothing more, and wait for what is under way."""
        with self._changed:
            self._paused = True
            while self._threads:
                self._changed.wait()

    def close(self) -> None:
        """Begin nothing more, without waiting, and let those fail who wait; idempotent."""
        with self._changed:
            self._line.clear()
            self._paused = self._closed = True
            self._changed.notify_all()

    def _go_on(self) -> None:
        self._paused = False
        while self._threads < self._most and self._threads < len(self._line):
            self._threads += 1
            threading.Thread(target=self._work, name="layerfs-prefetch", daemon=True).start()

    def _work(self) -> None:
        while (descriptor := self._claim()) is not None:
            found: bytes | BaseException
            try:
                found = self._fetch(descriptor)
            except BaseException as error:
                # Of whatever kind: it belongs to whoever wants the blob.
                found = error
            with self._changed:
                self._done[descriptor.digest] = found
                self._changed.notify_all()

    def _claim(self) -> Descriptor | None:
        with self._changed:
            ready = self._line and (not self._waiting or self._waiting + self._line[0].size <= _WAITING)
            if self._paused or not ready:
                self._threads -= 1
                self._changed.notify_all()
                return None
            descriptor = self._line.popleft()
            self._waiting += descriptor.size
            return descriptor


class Prefetched:
    """A blob that is fetched ahead, as a stream; a context manager.

    Args:
        take: waits for its bytes.
        settle: makes it safe to fork.
        stop: lets those fail who wait.
    """

    def __init__(
        self, take: Callable[[], bytes], settle: Callable[[], object], stop: Callable[[], object]
    ) -> None:
        self._take = take
        self._settle = settle
        self.stop = stop
        self._stream: io.BytesIO | None = None
        self._skipped = 0

    def descriptors(self) -> list[int]:
        """Name the descriptors that a forked process needs: none, it has the bytes (`streams.Portable`)."""
        self._opened()
        self._settle()
        return []

    def skip(self, count: int) -> None:
        """Leave out the next bytes, before anything was read."""
        self._skipped += count

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes; raises what its fetching raised."""
        return self._opened().read(size)

    def _opened(self) -> io.BytesIO:
        if self._stream is None:
            self._stream = io.BytesIO(self._take())
            self._stream.seek(self._skipped)
        return self._stream

    def __enter__(self) -> Prefetched:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream = None
