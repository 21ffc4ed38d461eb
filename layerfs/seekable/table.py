"""A table for layers that have none: where a layer's stream can be entered, and what lies where in it.

Built in one pass over the compressed stream. What it says was read out of the layer itself, so it is as true
as the layer's digest. Its bytes::

    windows     zstd frames: what was unpacked before a seek point, 32 KiB each, of gzip alone
    entries     a table of contents (`tree.toc`) whose files say where they lie in the uncompressed stream
    points      one zstd frame of records: uncompressed offset:u64 compressed offset:u64 bits:u8
                window's offset:u64 window's length:u32
    footer      "LFSEEK1" NUL, then u64: offset and length of the entries, those of the points, length of the
                uncompressed stream, length of the layer's blob

Numbers are little-endian. A seek point is the beginning of a gzip member or a zstd frame, or of a deflate
block; a block of zstd needs the whole window before it and tables of older blocks, so that a layer of one
frame, which most programs write, is read from its beginning on. A file's data is read, and its digest
compared, in pieces of 4 MiB.
"""

from __future__ import annotations

import bisect
import hashlib
import io
import itertools
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from layerfs.compression import (
    Compression,
    Decompressed,
    Readable,
    compressor,
    detect,
    open_decompressed,
    readahead,
)
from layerfs.digest import Digest
from layerfs.errors import BudgetError, LayerError, StoreError
from layerfs.seekable import deflate
from layerfs.seekable.bodies import read_body
from layerfs.seekable.extent import Chunk, Extent, Indexed
from layerfs.seekable.names import normalised
from layerfs.seekable.ranges import Ahead, Ranges, Slice
from layerfs.tree.budget import DEFAULT_BUDGET, Budget
from layerfs.tree.entry import Entry, Kind
from layerfs.tree.tar_reader import TarReader
from layerfs.tree.toc import Place, TocWriter, read_places

MEDIA_TYPE: Final = "application/vnd.layerfs.seek.v1"

# A read unpacks half of it for nothing, in about 2 ms; a window for each is 1.9 per cent of a gzip layer.
SPACING: Final = 2 << 20
# What of a file is verified at once.
_WHOLE: Final = 4 << 20
_MAGIC: Final = b"LFSEEK1\0"
_FOOTER: Final = struct.Struct("<8s6Q")
_POINT: Final = struct.Struct("<QQBQI")
_WINDOW: Final = 1 << 15
_PIECE: Final = 1 << 18
_IN_MEMORY: Final = 4 << 20


class Built(NamedTuple):
    """What a table was built of: the digest of the uncompressed stream, and its length in bytes."""

    diff_id: Digest
    size: int


def build_table(
    stream: Readable,
    write: Callable[[bytes], object],
    *,
    budget: Budget = DEFAULT_BUDGET,
    warn: Callable[[str], None] = lambda text: None,
) -> Built:
    """Read a layer's blob once, and write its table.

    Args:
        stream: the blob, compressed or not; read to its end by another thread, stays the caller's.
        write: takes the table piece by piece.
        budget: what the layer may ask for.
        warn: told, one sentence each, what was odd.

    Raises:
        LayerError: the layer cannot be accepted.
        BudgetError: it asks for more than the budget.
    """
    source = _Peeked(stream)
    points = _Points(write)
    with (
        points.open(source, budget) as plain,
        tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as kept,
    ):
        hashed = _Hashed(plain, source, budget)
        with readahead(hashed) as ahead:
            entries = TocWriter(kept.write)
            reader = TarReader(ahead, budget=budget, warn=warn)
            for count, entry in enumerate(reader, 1):
                if count > budget.entries:
                    raise BudgetError(f"the layer has more than {budget.entries} entries")
                _add(entries, entry, reader, warn)
            reader.drain()
            entries.close()
        starts = points.end
        length = kept.tell()
        kept.seek(0)
        while data := kept.read(_PIECE):
            write(data)
        packed = points.packed()
        write(packed)
        write(_FOOTER.pack(_MAGIC, starts, length, starts + length, len(packed), hashed.size, source.size))
    return Built(Digest("sha256", hashed.hexdigest()), hashed.size)


def _add(entries: TocWriter, entry: Entry, reader: TarReader, warn: Callable[[str], None]) -> None:
    kept = normalised(entry, warn)
    if kept is None:
        return
    if kept.kind is not Kind.FILE:
        entries.add(kept, None)
        return
    at = reader.offset
    hasher = hashlib.sha256()
    data = reader.whole()
    if data is not None and len(data) <= _WHOLE:
        hasher.update(data)
        entries.add(kept, hasher.hexdigest(), Place(at))
        return
    pieces = _Pieces(_runs(kept))
    for _, piece in reader.chunks() if data is None else ((0, data),):
        hasher.update(piece)
        pieces.update(piece)
    entries.add(kept, hasher.hexdigest(), Place(at, pieces.digests()))


def _runs(entry: Entry) -> Iterator[tuple[int, int]]:
    """Divide a file's data into the (offset, length) pieces that are read and verified by themselves.

    One by one: a header may claim exabytes.
    """
    segments = ((0, entry.size),) if entry.segments is None else entry.segments
    for offset, length in segments:
        for start in range(offset, offset + length, _WHOLE):
            yield start, min(_WHOLE, offset + length - start)


class _Pieces:
    """Digests of a file's pieces, as its data passes."""

    def __init__(self, runs: Iterator[tuple[int, int]]) -> None:
        self._runs = runs
        self._left = self._next()
        second = self._next()
        self._alone = self._left > 0 and not second
        self._runs = itertools.chain(((0, second),), runs)
        self._hasher = hashlib.sha256()
        self._digests: list[str] = []

    def update(self, data: bytes) -> None:
        view = memoryview(data)
        while len(view) and not self._alone:
            taken = min(self._left, len(view))
            self._hasher.update(view[:taken])
            self._left -= taken
            view = view[taken:]
            if not self._left:
                self._digests.append(self._hasher.hexdigest())
                self._hasher = hashlib.sha256()
                self._left = self._next()

    def _next(self) -> int:
        return next(self._runs, (0, 0))[1]

    def digests(self) -> tuple[str, ...]:
        return tuple(self._digests)


class _Peeked:
    """A stream that counts, and whose first bytes can be seen before."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self.head = b""
        self.size = 0
        while len(self.head) < 4 and (data := stream.read(_PIECE)):
            self.head += data

    def read(self, size: int, /) -> bytes:
        if self.head:
            data, self.head = self.head[:size], self.head[size:]
        else:
            data = self._stream.read(size)
        self.size += len(data)
        return data


class _Hashed:
    def __init__(self, stream: Readable, source: _Peeked, budget: Budget) -> None:
        self._stream = stream
        self._source = source
        self._budget = budget
        self._hasher = hashlib.sha256()
        self.hexdigest = self._hasher.hexdigest
        self.size = 0

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        self._hasher.update(data)
        self.size += len(data)
        if self.size > max(self._budget.ratio_floor, self._budget.ratio * self._source.size):
            raise BudgetError(f"a layer that unpacks to more than {self._budget.ratio:g} times its size")
        return data


class _Points:
    """Seek points as they are come across; windows are written at once."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._records: list[bytes] = []
        self._next = 0
        self.end = 0

    def open(self, stream: _Peeked, budget: Budget) -> Decompressed | deflate.MarkedGzip:
        kind = detect(stream.head)
        if kind is Compression.GZIP and deflate.finds_blocks():
            return deflate.MarkedGzip(stream, self._block)
        return open_decompressed(stream, budget=budget, mark=self._member)

    def packed(self) -> bytes:
        return _compressed(b"".join(self._records))

    def _member(self, plain: int, start: int) -> None:
        self._block(plain, start, 0, bytes)

    def _block(self, plain: int, start: int, bits: int, window: Callable[[], bytes]) -> None:
        if plain < self._next:
            return
        self._next = plain + SPACING
        data = window()
        packed = _compressed(data) if data else b""
        # What the bits leave over of a byte belongs to the block.
        self._records.append(_POINT.pack(plain, start - bool(bits), bits, self.end, len(packed)))
        self._write(packed)
        self.end += len(packed)


def _compressed(data: bytes) -> bytes:
    parts: list[bytes] = []
    writer = compressor(parts.append, Compression.ZSTD)
    writer.write(data)
    writer.close()
    return b"".join(parts)


class _Point(NamedTuple):
    plain: int
    start: int
    bits: int
    window: int
    length: int


class TableLayer:
    """A layer that is read by its table (`layer.IndexedLayer`).

    Args:
        ranges: the layer's blob.
        table: the table, read in parts as they are needed; stays the caller's, as the blob does.

    Raises:
        StoreError: it is no table, or not this blob's.
    """

    def __init__(self, ranges: Ranges, table: Ranges, *, budget: Budget = DEFAULT_BUDGET) -> None:
        self.toc_digest: Digest | None = None
        self._ranges = ranges
        self._table = table
        self._budget = budget
        self._kind = detect(ranges.read_at(0, min(4, ranges.size)))
        start = table.size - _FOOTER.size
        fields = _FOOTER.unpack(table.read_at(start, _FOOTER.size)) if start >= 0 else (b"",)
        if fields[0] != _MAGIC:
            raise StoreError("a table of seek points that is none")
        self._entries, self._length, points, length, self._plain, blob = fields[1:]
        if blob != ranges.size:
            raise StoreError("a table of seek points that is another layer's")
        if not 0 <= self._entries <= self._entries + self._length <= points <= points + length <= start:
            raise StoreError("a table of seek points whose parts lie outside of it")
        self._points = self._read_points(points, length)
        self._plains = [point.plain for point in self._points]
        # Who reads on where he was needs no seek point.
        self._lock = threading.Lock()
        self._cursor: _Cursor | None = None

    def entries(self) -> Iterator[Indexed]:
        """Give the entries of the layer; see `IndexedLayer`."""
        stream = Slice(self._table, self._entries, self._entries + self._length)
        try:
            for entry, digest, place in read_places(stream):
                extent = None
                if entry.kind is Kind.FILE:
                    extent = self._extent(entry, digest, place)
                yield Indexed(entry, digest, extent)
        except (LayerError, TypeError, ValueError) as error:
            raise StoreError(f"a table of seek points whose entries are damaged: {error}") from error

    def read(self, extent: Extent, offset: int = 0, size: int | None = None) -> Iterator[bytes]:
        """Give a part of a file; see `IndexedLayer`."""
        return read_body(self._begin, extent, offset=offset, size=size)

    def _extent(self, entry: Entry, digest: str | None, place: Place | None) -> Extent:
        if place is None or digest is None:
            if entry.size:
                raise StoreError("a table of seek points without the place of a file")
            return Extent(0, ())
        runs = list(itertools.islice(_runs(entry), max(len(place.pieces), 1) + 1))
        digests = place.pieces or (digest,) * len(runs[:1])
        start = place.at
        chunks = []
        if len(digests) != len(runs):
            raise StoreError("a table of seek points without the digests of a file")
        for (offset, length), each in zip(runs, digests, strict=True):
            chunks.append(Chunk(offset, length, start, start + length, 0, f"sha256:{each}"))
            start += length
        if not 0 <= place.at <= start <= self._plain:
            raise StoreError("a table of seek points with a file outside of its layer")
        return Extent(entry.size, tuple(chunks))

    def _read_points(self, offset: int, length: int) -> list[_Point]:
        if length > self._budget.toc_bytes:
            raise BudgetError(f"a table of seek points of {length} bytes")
        found = [_Point(0, 0, 0, 0, 0)]
        data = _unpacked(self._table.read_at(offset, length), self._budget.toc_bytes)
        if len(data) % _POINT.size:
            raise StoreError("a table of seek points that ends inside one")
        for fields in _POINT.iter_unpack(data):
            point = _Point(*fields)
            sound = point.bits < 8 and point.start < self._ranges.size
            if not sound or point.window + point.length > self._entries or point.length > 2 * _WINDOW:
                raise StoreError("a table of seek points with one outside of its layer")
            if point.plain == 0:
                continue
            if point.plain <= found[-1].plain or point.start < found[-1].start:
                raise StoreError("a table of seek points out of order")
            found.append(point)
        return found

    def _begin(self, last: int) -> Callable[[Chunk], Iterator[bytes]]:
        return lambda chunk: self._inflate(chunk, last)

    def _inflate(self, chunk: Chunk, last: int) -> Iterator[bytes]:
        """Give a chunk's bytes; those up to byte `last` of the stream are about to be wanted."""
        cursor = self._cursor_at(chunk.start, last)
        left = chunk.size
        while left:
            data = cursor.read(min(left, _PIECE))
            if not data:
                raise LayerError(f"the layer ends at byte {cursor.position}, before its files do")
            left -= len(data)
            yield data
        with self._lock:
            self._cursor = cursor

    def _cursor_at(self, plain: int, last: int) -> _Cursor:
        if self._kind is Compression.NONE:
            return _Cursor(Slice(Ahead(self._ranges, last), plain, self._ranges.size), plain)
        point = self._points[bisect.bisect_right(self._plains, plain) - 1]
        with self._lock:
            cursor, self._cursor = self._cursor, None
        if cursor is None or not point.plain <= cursor.position <= plain:
            cursor = self._open(point, last)
        cursor.skip(plain)
        return cursor

    def _open(self, point: _Point, last: int) -> _Cursor:
        behind = bisect.bisect_left(self._plains, last)
        limit = self._points[behind].start + 1 if behind < len(self._points) else self._ranges.size
        ahead = Ahead(self._ranges, limit)
        stream = Slice(ahead, point.start, self._ranges.size)
        if self._kind is Compression.GZIP and (point.bits or point.length):
            window = _unpacked(self._table.read_at(point.window, point.length), _WINDOW)
            return _Cursor(deflate.open_block(stream, point.bits, window, budget=self._budget), point.plain)
        return _Cursor(open_decompressed(stream, budget=self._budget, piece=_PIECE), point.plain)


class _Cursor:
    """The uncompressed stream from some byte on."""

    def __init__(self, stream: Readable, position: int) -> None:
        self._stream = stream
        self.position = position

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.position += len(data)
        return data

    def skip(self, position: int) -> None:
        while self.position < position and self.read(min(position - self.position, _PIECE)):
            pass


def _unpacked(data: bytes, limit: int) -> bytes:
    parts = []
    length = 0
    try:
        with open_decompressed(io.BytesIO(data)) as plain:
            while piece := plain.read(_PIECE):
                parts.append(piece)
                length += len(piece)
                if length > limit:
                    raise StoreError(f"a part of a table of seek points of more than {limit} bytes")
    except LayerError as error:
        raise StoreError(f"a table of seek points that is damaged: {error}") from error
    return b"".join(parts)
