"""Writes layers that carry an index of their own: eStargz and zstd:chunked.

Both cut a layer's plain tar stream into pieces that are compressed by themselves: each file's data in chunks,
and what is between. zstd:chunked keeps the stream byte for byte, and with it the layer's diff id. eStargz is
a tar stream of its own: a landmark before everything and the table of contents behind, files with holes
written out, and older landmarks and tables left out; so it has another diff id, which the image's config has
to name (`ImageConfig.with_diff_ids`).
"""

from __future__ import annotations

import base64
import collections
import datetime
import hashlib
import json
import os
import queue
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import IO, Any, Final, Literal

from layerfs.compression import Compression, Readable
from layerfs.digest import Digest
from layerfs.errors import BudgetError, LayerError
from layerfs.seekable import estargz, zstd_chunked
from layerfs.seekable.bodies import zeros
from layerfs.tree.budget import DEFAULT_BUDGET, Budget
from layerfs.tree.entry import Entry, Kind
from layerfs.tree.tar_header import BLOCK
from layerfs.tree.tar_reader import TarReader
from layerfs.tree.tar_writer import TarWriter
from layerfs.value import frozen

Format = Literal["estargz", "zstd:chunked"]

# What a file is cut into: a read of a few bytes fetches and unpacks so much.
CHUNK: Final = 1 << 20
_TYPES: Final = {
    Kind.FILE: "reg",
    Kind.DIRECTORY: "dir",
    Kind.SYMLINK: "symlink",
    Kind.HARDLINK: "hardlink",
    Kind.CHARACTER: "char",
    Kind.BLOCK: "block",
    Kind.FIFO: "fifo",
}
_OWN: Final = frozenset({estargz.TOC_NAME, estargz.PREFETCH, estargz.NO_PREFETCH})
_GZIP_LEVEL: Final = 2
_ZSTD_LEVEL: Final = 3
_READ: Final = 1 << 18
_IN_MEMORY: Final = 8 << 20
_WAITING: Final = 16


@frozen
class Written:
    """A layer that was written: the digest of its plain stream and the length of that in bytes.

    `annotations` belong to the layer's descriptor: without them nobody trusts the index.
    """

    diff_id: Digest
    size: int
    annotations: Mapping[str, str]


def compression_of(format: Format) -> Compression:
    """Say how a layer of a format is compressed for those who do not know the format."""
    return Compression.GZIP if format == "estargz" else Compression.ZSTD


def write_layer(
    stream: Readable,
    write: Callable[[bytes], object],
    format: Format,
    *,
    level: int | None = None,
    budget: Budget = DEFAULT_BUDGET,
    warn: Callable[[str], None] = lambda text: None,
) -> Written:
    """Write a layer in one pass; the same stream gives the same bytes.

    Args:
        stream: the plain tar stream; read to its end.
        write: takes the layer's blob piece by piece.
        format: which one.
        level: as `compression.compressor` has it.
        budget: what the layer may ask for.
        warn: told, one sentence each, what was odd.

    Raises:
        LayerError: the stream is no layer.
        BudgetError: it asks for more than the budget.
        ValueError: there is no such level.
    """
    kind = _Estargz if format == "estargz" else _ZstdChunked
    return kind(write, level).run(stream, budget, warn)


class SeekableCompressor:
    """What `write_layer` does, as a `compression.Compressor`; the work is done in a thread.

    After `close`, `written` says what came of it.
    """

    def __init__(
        self,
        write: Callable[[bytes], object],
        format: Format,
        *,
        level: int | None = None,
        budget: Budget = DEFAULT_BUDGET,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._pipe = _Pipe()
        self._error: BaseException | None = None
        self.written: Written | None = None

        def run() -> None:
            try:
                self.written = write_layer(self._pipe, write, format, level=level, budget=budget, warn=warn)
            except BaseException as error:
                # Of whatever kind: it belongs to the writer, who raises it.
                self._error = error
                self._pipe.drain()

        self._thread = threading.Thread(target=run, name="layerfs-seekable", daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        """Compress more.

        Raises:
            LayerError, BudgetError, OSError: what was written so far cannot be accepted, or not be put away.
        """
        if self._error is not None:
            raise self._error
        if data:
            self._pipe.put(data)

    def close(self) -> None:
        """Write what is left, the index, and the end; raises as `write` does."""
        self._pipe.put(b"")
        self._thread.join()
        if self._error is not None:
            raise self._error


class _Pipe:
    """Bytes from one thread to another; none are the end."""

    def __init__(self) -> None:
        self._queue: queue.Queue[bytes] = queue.Queue(_WAITING)
        self._rest = b""
        self._ended = False

    def put(self, data: bytes) -> None:
        self._queue.put(data)

    def read(self, size: int, /) -> bytes:
        if not self._rest and not self._ended:
            self._rest = self._queue.get()
            self._ended = not self._rest
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def drain(self) -> None:
        while not self._ended:
            self._rest = b""
            self.read(1)


class _Kept:
    """A stream whose bytes are kept until they are taken."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._pieces: collections.deque[bytes] = collections.deque()
        self._taken = 0
        self._hasher = hashlib.sha256()
        self.size = 0

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(min(size, _READ))
        if data:
            self._hasher.update(data)
            self._pieces.append(data)
            self.size += len(data)
        return data

    @property
    def digest(self) -> Digest:
        return Digest("sha256", self._hasher.hexdigest())

    def take(self, end: int) -> Iterator[bytes]:
        """Give what was read and not taken yet, up to an offset."""
        while self._taken < end and self._pieces:
            piece = self._pieces.popleft()
            wanted = end - self._taken
            if len(piece) > wanted:
                self._pieces.appendleft(piece[wanted:])
                piece = piece[:wanted]
            self._taken += len(piece)
            yield piece

    def drop(self, end: int) -> None:
        """Forget what was read, up to an offset."""
        for _ in self.take(end):
            pass


class _Table:
    """The table of contents on its way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._separator = b'{"version":1,"entries":[\n'
        self.size = 0
        self._hasher = hashlib.sha256()

    def add(self, members: Mapping[str, Any]) -> None:
        # Halves of surrogate pairs stand for bytes that are not UTF-8; others read them as U+FFFD.
        self._put(self._separator + json.dumps(members, separators=(",", ":")).encode())
        self._separator = b",\n"

    def end(self) -> Digest:
        self._put((self._separator if self._separator[:1] == b"{" else b"") + b"\n]}\n")
        return Digest("sha256", self._hasher.hexdigest())

    def data(self) -> Iterator[bytes]:
        self._file.seek(0)
        while data := self._file.read(_READ):
            yield data

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._hasher.update(data)
        self.size += len(data)


class _Writer:
    """What both formats have in common."""

    # Whether the last of several chunks says its size, too.
    sizes_all = False

    def __init__(self, write: Callable[[bytes], object], compress: Callable[[bytes], bytes]) -> None:
        self._write = write
        self._compress = compress
        self._between: list[bytes] = []
        self._length = 0
        self.offset = 0

    def run(self, stream: Readable, budget: Budget, warn: Callable[[str], None]) -> Written:
        kept = _Kept(stream)
        reader = TarReader(kept, budget=budget, warn=warn)
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as file:
            table = _Table(file)
            self.begin(table)
            end = 0
            for count, entry in enumerate(reader, 1):
                if count > budget.entries:
                    raise BudgetError(f"the layer has more than {budget.entries} entries")
                end = self.add(entry, reader, kept, table)
            return self.finish(reader, kept, table, end)

    def begin(self, table: _Table) -> None:
        """Write what stands before everything."""

    def add(self, entry: Entry, reader: TarReader, kept: _Kept, table: _Table) -> int:
        """Write an entry; give where its data ends in the stream, padding included."""
        raise NotImplementedError

    def finish(self, reader: TarReader, kept: _Kept, table: _Table, end: int) -> Written:
        """Write what is left of the stream, which ends at `end` but for its end marker, and the table."""
        raise NotImplementedError

    def between(self, pieces: Iterable[bytes]) -> None:
        """Write bytes that are no file's data, together with their neighbours."""
        for data in pieces:
            self._between.append(data)
            self._length += len(data)
            if self._length >= CHUNK:
                whole = b"".join(self._between)
                cut = len(whole) - len(whole) % CHUNK
                for start in range(0, cut, CHUNK):
                    self.piece(whole[start : start + CHUNK])
                self._between, self._length = [whole[cut:]], len(whole) - cut

    def settle(self) -> None:
        """Compress what stands between files so far, so that something of its own can begin."""
        if self._length:
            self.piece(b"".join(self._between))
        self._between, self._length = [], 0

    def piece(self, data: bytes) -> None:
        """Compress bytes by themselves."""
        self.put(self._compress(data))

    def put(self, data: bytes) -> None:
        """Write bytes as they are."""
        self._write(data)
        self.offset += len(data)

    def body(self, members: dict[str, Any], size: int, data: Iterable[bytes], table: _Table) -> None:
        """Write a file's data in chunks, and its entries; `members` are those of the first."""
        whole = hashlib.sha256()
        chunks: list[dict[str, Any]] = []
        position = 0
        for chunk in _cut(data):
            whole.update(chunk)
            found: dict[str, Any] = {"offset": self.offset}
            if position:
                found["chunkOffset"] = position
            if position + len(chunk) < size or (position and self.sizes_all):
                found["chunkSize"] = len(chunk)
            found["chunkDigest"] = f"sha256:{hashlib.sha256(chunk).hexdigest()}"
            position += len(chunk)
            self.piece(chunk)
            chunks.append(found)
        members["digest"] = f"sha256:{whole.hexdigest()}"
        self.rows(members, chunks, table)

    def rows(self, members: dict[str, Any], chunks: list[dict[str, Any]], table: _Table) -> None:
        """Write a file's entries."""
        table.add({**members, **chunks[0]} if chunks else members)
        for chunk in chunks[1:]:
            table.add({"name": members["name"], "type": "chunk", **chunk})


def _cut(data: Iterable[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []
    length = 0
    for piece in data:
        parts.append(piece)
        length += len(piece)
        while length >= CHUNK:
            whole = b"".join(parts)
            yield whole[:CHUNK]
            parts, length = [whole[CHUNK:]], length - CHUNK
    if length:
        yield b"".join(parts)


class _Source:
    """Pieces that are read in lengths of the reader's."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def some(self, size: int) -> bytes:
        rest = self._rest or next(self._pieces, b"")
        self._rest = rest[size:]
        return rest[:size]

    def exactly(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size and (data := self.some(size)):
            parts.append(data)
            size -= len(data)
        return b"".join(parts)


def _passed(reader: TarReader, kept: _Kept, at: int) -> Iterator[bytes]:
    """Give the data of the reader's entry, which begins at an offset, and forget it."""
    for _, data in reader.chunks():
        at += len(data)
        kept.drop(at)
        yield data


def _filled(source: _Source, entry: Entry) -> Iterator[bytes]:
    """Give a file with its holes filled."""
    position = 0
    for offset, length in (*(entry.segments or ()), (entry.size, 0)):
        yield from zeros(offset - position)
        position = offset + length
        while length and (data := source.some(min(length, _READ))):
            length -= len(data)
            yield data


def _padded(offset: int) -> int:
    return (offset + BLOCK - 1) & -BLOCK


def _header(entry: Entry) -> bytes:
    parts: list[bytes] = []
    writer = TarWriter(parts.append)
    writer.add_header(entry)
    writer.flush()
    return b"".join(parts)


def _gzip(level: int) -> Callable[[bytes], bytes]:
    if not 0 <= level <= 9:
        raise ValueError(f"gzip has levels 0 to 9, not {level}")
    if level <= 3:
        from isal import isal_zlib

        return lambda data: isal_zlib.compress(data, level, 31)
    import zlib

    def compress(data: bytes) -> bytes:
        small = zlib.compressobj(level, zlib.DEFLATED, 31)
        return small.compress(data) + small.flush()

    return compress


def _members(entry: Entry, *, fractions: bool) -> dict[str, Any]:
    kind = _TYPES.get(entry.kind)
    if kind is None:
        raise LayerError("a socket cannot be stored in a layer", entry=entry.path)
    found: dict[str, Any] = {"name": os.fsdecode(entry.path), "type": kind}
    if entry.size:
        found["size"] = entry.size
    found["modtime"] = _time(entry.mtime_ns, fractions=fractions)
    if entry.target:
        found["linkName"] = os.fsdecode(entry.target)
    found["mode"] = entry.mode
    found["uid"], found["gid"] = entry.uid, entry.gid
    if entry.kind in (Kind.CHARACTER, Kind.BLOCK):
        found["devMajor"], found["devMinor"] = entry.device
    if entry.xattrs:
        found["xattrs"] = {
            os.fsdecode(n): base64.b64encode(v).decode() for n, v in sorted(entry.xattrs.items())
        }
    return found


def _time(mtime_ns: int, *, fractions: bool) -> str:
    seconds, rest = divmod(mtime_ns, 1_000_000_000)
    try:
        text = (datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=seconds)).isoformat()
    except OverflowError:
        return "1970-01-01T00:00:00Z"
    decimals = f".{rest:09d}".rstrip("0") if rest and fractions else ""
    return f"{text}{decimals}Z"


class _ZstdChunked(_Writer):
    sizes_all = True

    def __init__(self, write: Callable[[bytes], object], level: int | None) -> None:
        import zstandard

        level = _ZSTD_LEVEL if level is None else level
        if not 1 <= level <= zstandard.MAX_COMPRESSION_LEVEL:
            raise ValueError(f"zstd has levels 1 to {zstandard.MAX_COMPRESSION_LEVEL}, not {level}")
        super().__init__(write, zstandard.ZstdCompressor(level=level, write_checksum=True).compress)

    def add(self, entry: Entry, reader: TarReader, kept: _Kept, table: _Table) -> int:
        at = reader.offset
        self.between(kept.take(at))
        members = _members(entry, fractions=True)
        if entry.kind is not Kind.FILE or not entry.size:
            table.add(members)
            return at
        self.settle()
        end = at
        if entry.segments is None:
            end += entry.size
            self.body(members, entry.size, _passed(reader, kept, at), table)
        else:
            end += sum(length for _, length in entry.segments)
            self._sparse(members, entry, _passed(reader, kept, at), table)
        return _padded(end)

    def rows(self, members: dict[str, Any], chunks: list[dict[str, Any]], table: _Table) -> None:
        super().rows({**members, "endOffset": self.offset}, chunks, table)

    def _sparse(self, members: dict[str, Any], entry: Entry, data: Iterator[bytes], table: _Table) -> None:
        """Write the data that there is, and say of the rest that it is zeros."""
        whole = hashlib.sha256()
        rows: list[dict[str, Any]] = []
        source = _Source(data)
        position = 0
        for offset, length in (*(entry.segments or ()), (entry.size, 0)):
            if offset > position:
                rows.append(self._row(position, offset - position, hole=True))
                for hole in zeros(offset - position):
                    whole.update(hole)
            for start in range(offset, offset + length, CHUNK):
                chunk = source.exactly(min(CHUNK, offset + length - start))
                whole.update(chunk)
                row = self._row(start, len(chunk))
                row["chunkDigest"] = f"sha256:{hashlib.sha256(chunk).hexdigest()}"
                self.piece(chunk)
                rows.append(row)
            position = offset + length
        members["digest"] = f"sha256:{whole.hexdigest()}"
        self.rows(members, rows, table)

    def _row(self, position: int, size: int, *, hole: bool = False) -> dict[str, Any]:
        row: dict[str, Any] = {"offset": self.offset, "chunkSize": size}
        if position:
            row["chunkOffset"] = position
        if hole:
            row["chunkType"] = "zeros"
            hasher = hashlib.sha256()
            for piece in zeros(size):
                hasher.update(piece)
            row["chunkDigest"] = f"sha256:{hasher.hexdigest()}"
        return row

    def finish(self, reader: TarReader, kept: _Kept, table: _Table, end: int) -> Written:
        reader.drain()
        self.between(kept.take(kept.size))
        self.settle()
        table.end()
        packed = self._compress(b"".join(table.data()))
        offset = self.offset + zstd_chunked.SKIPPABLE.size
        self._skippable(packed)
        fields = (offset, len(packed), table.size, zstd_chunked.CRFS, 0, 0, 0, zstd_chunked.MAGIC)
        self._skippable(zstd_chunked.FOOTER.pack(*fields))
        checksum = str(Digest.of(packed))
        position = f"{offset}:{len(packed)}:{table.size}:{zstd_chunked.CRFS}"
        annotations = {
            zstd_chunked.CHECKSUM: checksum,
            zstd_chunked.POSITION: position,
            zstd_chunked.OLD_CHECKSUM: checksum,
            zstd_chunked.OLD_POSITION: position,
        }
        return Written(kept.digest, kept.size, MappingProxyType(annotations))

    def _skippable(self, data: bytes) -> None:
        self.put(zstd_chunked.SKIPPABLE.pack(zstd_chunked.SKIPPABLE_MAGIC, len(data)) + data)


class _Estargz(_Writer):
    def __init__(self, write: Callable[[bytes], object], level: int | None) -> None:
        super().__init__(write, _gzip(_GZIP_LEVEL if level is None else level))
        self._hasher = hashlib.sha256()
        self._size = 0
        # What of the stream is left out ends here.
        self._left_out = 0

    def piece(self, data: bytes) -> None:
        self._hasher.update(data)
        self._size += len(data)
        super().piece(data)

    def begin(self, table: _Table) -> None:
        self._file(Entry(estargz.NO_PREFETCH, Kind.FILE, 0o444, size=1), [estargz.LANDMARK], table)

    def add(self, entry: Entry, reader: TarReader, kept: _Kept, table: _Table) -> int:
        kept.drop(self._left_out)
        at = reader.offset
        stored = 0
        if entry.kind is Kind.FILE:
            segments = ((0, entry.size),) if entry.segments is None else entry.segments
            stored = sum(length for _, length in segments)
        end = _padded(at + stored)
        if entry.path.strip(b"/").removeprefix(b"./") in _OWN or entry.segments is not None:
            kept.drop(at)
            self._left_out = end
            data = _passed(reader, kept, at)
            if entry.segments is not None:
                self._file(entry._replace(segments=None), _filled(_Source(data), entry), table)
            else:
                collections.deque(data, maxlen=0)
            return end
        self.between(kept.take(at))
        members = _members(entry, fractions=False)
        if not stored:
            table.add(members)
            return at
        self.settle()
        self.body(members, entry.size, _passed(reader, kept, at), table)
        return end

    def _file(self, entry: Entry, data: Iterable[bytes], table: _Table) -> None:
        """Write a file that is not in the stream, or in another form."""
        self.between([_header(entry)])
        self.settle()
        self.body(_members(entry, fractions=False), entry.size, data, table)
        self.between([bytes(-entry.size % BLOCK)])

    def finish(self, reader: TarReader, kept: _Kept, table: _Table, end: int) -> Written:
        # The end marker, and what may stand behind it, make room for the table.
        kept.drop(self._left_out)
        self.between(kept.take(end))
        reader.drain()
        kept.drop(kept.size)
        self.settle()
        digest = table.end()
        start = self.offset
        # One member, however long: readers look no further.
        header = _header(Entry(estargz.TOC_NAME, Kind.FILE, 0o444, size=table.size))
        padding = bytes(-table.size % BLOCK + 2 * BLOCK)
        self.piece(b"".join([header, *table.data(), padding]))
        self.put(estargz.format_footer(start))
        annotations = {estargz.TOC_DIGEST: str(digest), estargz.UNCOMPRESSED_SIZE: str(self._size)}
        return Written(Digest("sha256", self._hasher.hexdigest()), self._size, MappingProxyType(annotations))
