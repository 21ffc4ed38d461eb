"""A layer's tar stream without the data of its files, from which and the unpacked files it is put together.

Kept in place of a plain layer's blob, so that its data is on the disk once. On disk it is a zstd stream of
records, in the order of the tar stream::

    "L" length:u32 bytes                            bytes of the stream: headers, padding, small files
    "F" offset:u64 length:u64 length:u32 path       bytes of a file of the unpacked layer

Numbers are little-endian; a path is relative to the root of the tree, and no part of it is a symlink.
"""

from __future__ import annotations

import collections
import struct
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from layerfs.compression import Compression, Readable, compressor, open_decompressed
from layerfs.errors import StoreError
from layerfs.tree.entry import Entry

MEDIA_TYPE: Final = "application/vnd.layerfs.skeleton.v1+zstd"

_LITERAL: Final = struct.Struct("<cI")
_FILE: Final = struct.Struct("<cQQI")
# Opening a file costs more than keeping so few bytes a second time.
SMALLEST: Final = 257
_AT_ONCE: Final = 1 << 18
# Further than this a reader of tar never stands behind the end of what it has read.
_BEHIND: Final = 8 << 20
_READ: Final = 1 << 18


class Part(NamedTuple):
    """A run of bytes, in bytes from `offset`, of a file of the unpacked layer."""

    path: bytes
    offset: int
    length: int


class SkeletonWriter:
    """Writes the skeleton of a layer that passes; `refer` says what is in a file by now, or will be soon.

    The layer passes by `read`, as a stream, or is handed to `add`.

    Args:
        stream: the uncompressed layer; stays the caller's.
        write: takes the skeleton piece by piece.
    """

    def __init__(self, stream: Readable | None, write: Callable[[bytes], object]) -> None:
        self._stream = stream
        self._compressor = compressor(write, Compression.ZSTD, level=1)
        # What was read and is not settled yet, as (offset in the stream, bytes).
        self._pieces: collections.deque[tuple[int, bytes]] = collections.deque()
        self._read = 0
        self._settled = 0
        self._parts: list[bytes] = []
        self._length = 0
        self.whole = True

    def read(self, size: int, /) -> bytes:
        """Read on in the layer."""
        assert self._stream is not None
        data = self._stream.read(size)
        self.add(data)
        return data

    def add(self, data: bytes) -> None:
        """Take the bytes of the layer that come next."""
        offset = self._read
        self._read += len(data)
        if self._read > self._settled:
            self._pieces.append((offset, data))
            if self._read - self._settled > _BEHIND:
                self._keep(self._read - _BEHIND)

    def refer(self, entry: Entry, path: bytes, start: int) -> None:
        """Say that a file's data, which stands in the stream from offset `start` on, goes to `path`."""
        stored = entry.size if entry.segments is None else sum(length for _, length in entry.segments)
        if stored < SMALLEST or start < self._settled:
            return
        self._keep(start)
        for offset, length in entry.segments or ((0, stored),):
            self._add(_FILE.pack(b"F", offset, length, len(path)), path)
        self._settled = start + stored
        while self._pieces and self._pieces[0][0] + len(self._pieces[0][1]) <= self._settled:
            self._pieces.popleft()

    def lose(self) -> None:
        """Say that a file may be gone that the skeleton refers to: it is of no use then."""
        self.whole = False

    def close(self) -> None:
        """Write what is left, once the layer was read to its end."""
        self._keep(self._read)
        self._flush()
        self._compressor.close()

    def _keep(self, end: int) -> None:
        """Settle what comes before an offset as it is."""
        while self._settled < end:
            offset, data = self._pieces[0]
            stop = min(end, offset + len(data))
            kept = data[self._settled - offset : stop - offset]
            self._add(_LITERAL.pack(b"L", len(kept)), kept)
            self._settled = stop
            if stop == offset + len(data):
                self._pieces.popleft()

    def _add(self, head: bytes, body: bytes) -> None:
        self._parts += (head, body)
        self._length += len(head) + len(body)
        if self._length >= _AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        self._compressor.write(b"".join(self._parts))
        self._parts.clear()
        self._length = 0


def read_skeleton(stream: Readable) -> Iterator[bytes | Part]:
    """Read a skeleton back: the bytes of the layer, and where the others lie.

    Raises:
        StoreError: it is not one.
    """
    with open_decompressed(stream) as plain:
        source = _Records(plain)
        while kind := source.peek():
            if kind == b"L":
                yield source.take(_LITERAL.unpack(source.take(_LITERAL.size))[1])
            elif kind == b"F":
                _, offset, length, name = _FILE.unpack(source.take(_FILE.size))
                yield Part(source.take(name), offset, length)
            else:
                raise StoreError("a skeleton with a record of an unknown kind")


class _Records:
    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._buffer = b""
        self._start = 0

    def peek(self) -> bytes:
        self._fill(1)
        return self._buffer[self._start : self._start + 1]

    def take(self, size: int) -> bytes:
        self._fill(size)
        end = self._start + size
        if end > len(self._buffer):
            raise StoreError("a skeleton that ends inside a record")
        data = self._buffer[self._start : end]
        self._start = end
        return data

    def _fill(self, size: int) -> None:
        have = len(self._buffer) - self._start
        if have >= size:
            return
        parts = [self._buffer[self._start :]]
        while have < size and (data := self._stream.read(_READ)):
            parts.append(data)
            have += len(data)
        self._buffer, self._start = b"".join(parts), 0
