"""Compression of layers, judged by content: strict decompressors, deterministic compressors, reading ahead.

gzip is RFC 1952, zstd RFC 8878. Both libraries are loaded when they are first used.
"""

from __future__ import annotations

import collections
import enum
import struct
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Final, Protocol, Self

from layerfs.errors import BudgetError, LayerError

_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
# Of what is trusted: all that zstd itself takes unasked.
_MAXIMUM_WINDOW: Final = 128 << 20
# What `Budget.window` allows by default is all that is written here, at any level.
_WINDOW_LOG: Final = 25
_LARGEST_BLOCK: Final = 1 << 17
_READ: Final = 1 << 18
# Seconds for which a read that was told to fail is waited for.
_PATIENCE: Final = 2.0
_FIRST_FEED: Final = 1 << 14
# What igzip is asked for at once: it makes room by doubling, which costs more the more it makes.
_PIECE: Final = 1 << 18
_MAXIMUM_TEXT: Final = 1 << 16
# What a compressor is given at once: libraries may compress the same bytes differently when cut differently.
_BLOCK: Final = 1 << 18
_GZIP_DEFAULT: Final = 2
_ZSTD_DEFAULT: Final = 3
# What one thread of zstd compresses at a time, at levels whose windows are not larger: four times as much,
# as is usual, would take three times the memory and save one byte of a hundred.
_JOB: Final = 2 << 20
_FAST: Final = 9
# Levels above it would have windows that many readers refuse.
_LARGE: Final = 20


class Readable(Protocol):
    """What a stream must have to be read here."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes; none only at the end."""
        ...


class Limits(Protocol):
    """The part of a budget that concerns decompression; see `tree.budget.Budget`."""

    @property
    def ratio(self) -> float:
        """Unpacked bytes per compressed byte."""
        ...

    @property
    def ratio_floor(self) -> int:
        """Unpacked bytes below which no ratio is refused."""
        ...

    @property
    def members(self) -> int:
        """How many gzip members, or zstd frames, a stream may consist of."""
        ...

    @property
    def window(self) -> int:
        """Bytes that a zstd frame may want to be kept."""
        ...


class Compression(enum.Enum):
    """How a layer is compressed."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"


def detect(head: bytes) -> Compression:
    """Tell the compression of a stream from its first 4 bytes or more."""
    if head.startswith(_GZIP_MAGIC):
        return Compression.GZIP
    if head.startswith(_ZSTD_MAGIC) or _is_skippable(head):
        return Compression.ZSTD
    return Compression.NONE


def _is_skippable(head: bytes) -> bool:
    return head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F


class Decompressed:
    """The uncompressed bytes of a stream, verified as far as they are read; a context manager.

    Args:
        source: gives the uncompressed bytes; its pieces are bounded whatever the input is.
    """

    def __init__(self, compression: Compression, source: Callable[[int], bytes]) -> None:
        self.compression = compression
        self._source: Callable[[int], bytes] | None = source

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, at least one before the end.

        Raises:
            LayerError: the stream is damaged, truncated, or followed by something else.
            BudgetError: it unpacks to more than its limits allow.
        """
        if self._source is None:
            raise ValueError("read of a closed stream")
        return self._source(size)

    def close(self) -> None:
        """Free the decompressor; the stream below stays open."""
        self._source = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


# Told (offset in the uncompressed bytes, offset in the stream) where a gzip member or a zstd frame begins.
Mark = Callable[[int, int], object]


def open_decompressed(
    stream: Readable, *, budget: Limits | None = None, piece: int = 1 << 20, mark: Mark | None = None
) -> Decompressed:
    """Decompress a stream of tar, gzip or zstd, whichever its content is.

    Several gzip members or zstd frames are one stream, as `gzip -d` and `zstd -d` have it; NULs after the
    last gzip member are ignored.

    Args:
        stream: stays the caller's, and is read to its end.
        budget: bounds the ratio, members and windows; None for a stream that is trusted.
        piece: about how many bytes come at once at most.
        mark: told where decompression can begin, as it gets there.
    """
    source = _Input(stream.read)
    compression = detect(source.peek(4))
    if compression is Compression.NONE:
        return Decompressed(compression, lambda size: source.take(min(size, piece)))
    unpack = _gunzip if compression is Compression.GZIP else _unzstd
    return Decompressed(
        compression, _Pieces(unpack(source, piece, mark, budget), source, compression, budget).read
    )


class _Input:
    """The compressed bytes: peeked at, taken, and put back."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._buffer = b""
        self._start = 0
        self.taken = 0

    def peek(self, size: int) -> bytes:
        """Return the next `size` bytes without taking them; fewer only at the end."""
        if len(self._buffer) - self._start < size:
            parts = [self._buffer[self._start :]]
            have = len(parts[0])
            while have < size and (data := self._read(_READ)):
                parts.append(data)
                have += len(data)
            self._buffer, self._start = b"".join(parts), 0
        return self._buffer[self._start : self._start + size]

    def take(self, size: int) -> bytes:
        """Take up to `size` bytes, at least one before the end."""
        have = len(self._buffer) - self._start
        if not have:
            data = self._read(size)
            self.taken += len(data)
            return data
        start = self._start
        taken = min(have, size)
        self._start += taken
        self.taken += taken
        if taken == len(self._buffer):
            data, self._buffer, self._start = self._buffer, b"", 0
            return data
        return self._buffer[start : start + taken]

    def exactly(self, size: int, what: str) -> bytes:
        """Take `size` bytes."""
        data = self.peek(size)
        if len(data) < size:
            raise LayerError(f"the compressed stream ends inside {what}")
        self._start += size
        self.taken += size
        return data

    def fill(self, size: int) -> bytes:
        """Take up to `size` bytes, reading them in pieces of the usual length."""
        self.peek(1)
        return self.take(size)

    def put_back(self, data: bytes) -> None:
        """Return what was taken last and not used."""
        self._buffer, self._start = data + self._buffer[self._start :], 0
        self.taken -= len(data)


class _Pieces:
    """Reads what an unpacking generator yields, and says where it failed."""

    def __init__(
        self, pieces: Iterator[bytes], source: _Input, compression: Compression, budget: Limits | None
    ) -> None:
        self._pieces = pieces
        self._input = source
        self._name = compression.value
        self._budget = budget
        self._given = 0
        self._rest = b""
        self._start = 0

    def read(self, size: int) -> bytes:
        if not self._rest:
            try:
                self._rest = next(filter(None, self._pieces), b"")
            except LayerError as error:
                raise LayerError(
                    f"{self._name}: {error} (compressed byte {self._input.taken})", offset=self._given
                ) from error
            self._given += len(self._rest)
            self._check_ratio()
        rest, start = self._rest, self._start
        if len(rest) - start <= size:
            self._rest, self._start = b"", 0
            return rest[start:]
        self._start = start + size
        return rest[start : self._start]

    def _check_ratio(self) -> None:
        budget = self._budget
        if budget is None or self._given <= budget.ratio_floor:
            return
        if self._given > budget.ratio * self._input.taken:
            raise BudgetError(
                f"a {self._name} stream that unpacks to more than {budget.ratio:g} times its size",
                hint="raise Budget.ratio (--budget ratio=N) if this image is known to be harmless",
            )


def _counted(members: int, budget: Limits | None) -> int:
    """Count one more of a stream's members; each takes time, and may have nothing in it."""
    if budget is not None and members >= budget.members:
        raise BudgetError(
            f"a compressed stream of more than {budget.members} members or frames",
            hint="raise Budget.members (--budget members=N) if this image is known to be harmless",
        )
    return members + 1


def _gunzip(
    source: _Input, at_once: int, mark: Mark | None = None, budget: Limits | None = None
) -> Iterator[bytes]:
    from isal.igzip_lib import DECOMP_DEFLATE, IgzipDecompressor, IsalError
    from isal.isal_zlib import crc32

    given = members = 0
    while True:
        members = _counted(members, budget)
        if mark is not None:
            mark(given, source.taken)
        _skip_gzip_header(source)
        # igzip reads headers itself, but loses its place in one that is cut between two calls.
        inflater = IgzipDecompressor(flag=DECOMP_DEFLATE)
        crc = length = 0
        feed = _FIRST_FEED
        parts: list[bytes] = []
        while not inflater.eof:
            data = b""
            if inflater.needs_input:
                # A member may be tiny, and what it leaves is copied: begin small.
                data = source.fill(feed)
                feed = min(feed * 2, _READ)
                if not data:
                    yield b"".join(parts)
                    raise LayerError("the compressed stream ends inside a member")
            try:
                piece = inflater.decompress(data, _PIECE)
            except IsalError as error:  # type: ignore[misc]  # the stub takes the class for an instance
                yield b"".join(parts)
                raise LayerError(f"damaged data ({error})") from error
            if piece:
                crc = crc32(piece, crc)
                length += len(piece)
                parts.append(piece)
                if len(parts) >= at_once // _PIECE:
                    yield b"".join(parts)
                    parts.clear()
        if parts:
            yield b"".join(parts)
        source.put_back(inflater.unused_data)
        if struct.unpack("<II", source.exactly(8, "a checksum")) != (crc, length & 0xFFFFFFFF):
            raise LayerError("a wrong checksum")
        given += length
        if not _has_more_members(source):
            return


def _has_more_members(source: _Input) -> bool:
    head = source.peek(2)
    if head.startswith(b"\0"):
        while data := source.fill(_READ):
            if data != bytes(len(data)):
                raise LayerError("data after the end of the compressed stream")
        return False
    if head and head != _GZIP_MAGIC:
        raise LayerError("data after the end of the compressed stream")
    return bool(head)


def _skip_gzip_header(source: _Input) -> None:
    import zlib

    header = source.exactly(10, "a header")
    flags = header[3]
    if header[2] != 8 or flags & 0xE0:
        raise LayerError("a header with an unknown method or unknown flags")
    if flags & 4:
        size = source.exactly(2, "a header")
        header += size + source.exactly(int.from_bytes(size, "little"), "a header")
    for flag in (8, 16):
        if flags & flag:
            text = source.peek(_MAXIMUM_TEXT)
            end = text.find(b"\0")
            if end < 0:
                raise LayerError("a header that does not end")
            header += source.exactly(end + 1, "a header")
    if flags & 2 and source.exactly(2, "a header") != (zlib.crc32(header) & 0xFFFF).to_bytes(2, "little"):
        raise LayerError("a wrong checksum of a header")


def _unzstd(
    source: _Input, at_once: int, mark: Mark | None = None, budget: Limits | None = None
) -> Iterator[bytes]:
    from zstandard import ZstdDecompressor, ZstdError

    window = _MAXIMUM_WINDOW if budget is None else min(budget.window, _MAXIMUM_WINDOW)
    decompressor = ZstdDecompressor(max_window_size=window)
    given = frames = 0
    while head := source.peek(4):
        frames = _counted(frames, budget)
        if _is_skippable(head):
            size = int.from_bytes(source.exactly(8, "a frame's header")[4:], "little")
            while size:
                size -= len(_some(source.fill(min(size, _READ))))
            continue
        if head != _ZSTD_MAGIC:
            raise LayerError("data after the end of the compressed stream")
        if mark is not None:
            mark(given, source.taken)
        # What these blocks unpack to at most comes in one piece.
        frame = decompressor.decompressobj(write_size=max(at_once, _LARGEST_BLOCK))
        for data in _zstd_blocks(source, max(at_once // _LARGEST_BLOCK, 1)):
            try:
                piece = frame.decompress(data)
            except ZstdError as error:
                if "memory" in str(error):
                    raise BudgetError(
                        f"a zstd window of more than {window >> 10} KiB",
                        hint="raise Budget.window (--budget window=128M), or compress the layer again without"
                        " --long and --ultra",
                    ) from error
                raise LayerError(f"damaged data ({error})") from error
            if piece:
                given += len(piece)
                yield piece
        if not frame.eof:
            raise LayerError("a frame that does not end")


def _some(data: bytes) -> bytes:
    if not data:
        raise LayerError("the compressed stream ends inside a frame")
    return data


def _zstd_blocks(source: _Input, at_once: int) -> Iterator[bytes]:
    """Give one frame in pieces of so many blocks at most, so that no input can ask for more memory.

    The library bounds neither its output nor tells a truncated frame from a whole one; blocks do: each
    unpacks to 128 KiB at most (RFC 8878, 3.1.1.2).
    """
    descriptor = source.peek(5)[4:]
    flags = _some(descriptor)[0]
    single = flags >> 5 & 1
    size = 5 + (not single) + (0, 1, 2, 4)[flags & 3] + ((single, 2, 4, 8)[flags >> 6])
    parts = [source.exactly(size, "a frame's header")]
    blocks = 0
    last = 0
    while not last:
        header = source.peek(3)
        if len(header) < 3:
            raise LayerError("the compressed stream ends inside a frame")
        fields = int.from_bytes(header, "little")
        last, kind, size = fields & 1, fields >> 1 & 3, fields >> 3
        if kind == 3 or size > _LARGEST_BLOCK:
            # A block larger than any window allows.
            raise LayerError("damaged data (a malformed block)")
        parts.append(source.exactly(3 + (1 if kind == 1 else size), "a frame"))
        blocks += 1
        if blocks == at_once:
            yield b"".join(parts)
            parts, blocks = [], 0
    if flags & 4:
        parts.append(source.exactly(4, "a checksum"))
    if parts:
        yield b"".join(parts)


class Compressor(Protocol):
    """Takes a stream and writes it compressed."""

    def write(self, data: bytes) -> None:
        """Compress more."""
        ...

    def close(self) -> None:
        """Write what is left and the end of the stream; what it writes to stays open."""
        ...


def compressor(
    write: Callable[[bytes], object],
    compression: Compression,
    *,
    level: int | None = None,
    threads: int = 0,
) -> Compressor:
    """Make a compressor; the same bytes give the same output, however they are cut into writes.

    Args:
        write: takes the compressed bytes.
        compression: what to write.
        level: for gzip 0 to 3 (igzip, several times faster than zlib) and 4 to 9 (zlib, smaller); for zstd
            1 to 22; None for a good one.
        threads: for zstd, how many compress at once; any number from 1 on gives the same output, 0
            (in the caller's thread) another.

    Raises:
        ValueError: the level is none of these.
    """
    if compression is Compression.GZIP:
        return _Blocks(write, *_gzip_functions(_GZIP_DEFAULT if level is None else level))
    if compression is Compression.ZSTD:
        return _Blocks(write, *_zstd_functions(_ZSTD_DEFAULT if level is None else level, threads))
    return _Plain(write)


def _gzip_functions(level: int) -> tuple[Callable[[bytes], bytes], Callable[[], bytes]]:
    if not 0 <= level <= 9:
        raise ValueError(f"gzip has levels 0 to 9, not {level}")
    # 31: a window of 32 KiB and a gzip header, whose time is 0 and which names no file.
    if level <= 3:
        from isal import isal_zlib

        fast = isal_zlib.compressobj(level, isal_zlib.DEFLATED, 31)
        return fast.compress, fast.flush
    import zlib

    small = zlib.compressobj(level, zlib.DEFLATED, 31)
    return small.compress, small.flush


def _zstd_functions(level: int, threads: int) -> tuple[Callable[[bytes], bytes], Callable[[], bytes]]:
    import zstandard

    if not 1 <= level <= zstandard.MAX_COMPRESSION_LEVEL:
        raise ValueError(f"zstd has levels 1 to {zstandard.MAX_COMPRESSION_LEVEL}, not {level}")
    given: dict[str, int] = {"job_size": _JOB} if threads and level <= _FAST else {}
    if level > _LARGE:
        given["window_log"] = _WINDOW_LOG
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, write_checksum=True, threads=threads, **given
    )
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return frame.compress, frame.flush


class _Plain:
    """A compressor that does not compress."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write

    def write(self, data: bytes) -> None:
        self._write(data)

    def close(self) -> None:
        pass


class _Blocks:
    """A compressor that is given blocks of one length, so that its output does not depend on the writes."""

    def __init__(
        self,
        write: Callable[[bytes], object],
        compress: Callable[[bytes], bytes],
        flush: Callable[[], bytes],
    ) -> None:
        self._write = write
        self._compress = compress
        self._flush = flush
        self._parts: list[bytes] = []
        self._length = 0

    def write(self, data: bytes) -> None:
        self._parts.append(data)
        self._length += len(data)
        if self._length < _BLOCK:
            return
        data = b"".join(self._parts)
        whole = len(data) - len(data) % _BLOCK
        for start in range(0, whole, _BLOCK):
            self._put(self._compress(data[start : start + _BLOCK]))
        self._parts = [data[whole:]]
        self._length = len(data) - whole

    def close(self) -> None:
        if self._length:
            self._put(self._compress(b"".join(self._parts)))
        self._put(self._flush())
        self._parts, self._length = [], 0

    def _put(self, data: bytes) -> None:
        if data:
            self._write(data)


class _Queue:
    """What the reader and its thread share."""

    def __init__(self, depth: int) -> None:
        self.changed = threading.Condition()
        self.pieces: collections.deque[bytes] = collections.deque()
        self.depth = depth
        self.ended = False
        self.stopped = False
        self.error: BaseException | None = None

    def fill(self, stream: Readable, chunk: int) -> None:
        """Read the stream to its end, unless the reader stops first."""
        try:
            while not self.stopped:
                data = stream.read(chunk)
                with self.changed:
                    if not data:
                        break
                    self.pieces.append(data)
                    self.changed.notify_all()
                    while len(self.pieces) >= self.depth and not self.stopped:
                        self.changed.wait()
        except BaseException as error:
            # Of whatever kind: it belongs to the reader, who raises it.
            self.error = error
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def stop(self) -> None:
        """Let the thread end after the read that it is in."""
        with self.changed:
            self.stopped = True
            self.pieces.clear()
            self.changed.notify_all()


class ReadAhead:
    """A stream that a thread of its own reads ahead; a context manager."""

    def __init__(self, stream: Readable, *, chunk: int, depth: int) -> None:
        self._queue = _Queue(depth)
        self._rest = b""
        self._start = 0
        self._given_up = False
        # The thread holds the queue, not this object: forgetting this object ends the thread.
        self._finalizer = weakref.finalize(self, self._queue.stop)
        self._thread = threading.Thread(
            target=self._queue.fill, args=(stream, chunk), name="layerfs-readahead", daemon=True
        )
        self._thread.start()

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes; what the stream raised is raised here, after the bytes before it."""
        rest = self._rest or self._next()
        start = self._start
        if len(rest) - start <= size:
            self._rest, self._start = b"", 0
            return rest[start:]
        self._rest, self._start = rest, start + size
        return rest[start : start + size]

    def _next(self) -> bytes:
        queue = self._queue
        with queue.changed:
            while not queue.pieces and not queue.ended:
                if queue.stopped:
                    raise ValueError("read of a closed stream")
                queue.changed.wait()
            if queue.pieces:
                queue.changed.notify_all()
                return queue.pieces.popleft()
        if queue.error is not None:
            raise queue.error
        return b""

    def close(self) -> None:
        """Stop reading ahead, and wait for the read that is under way: the stream may be closed then."""
        self._finalizer()
        if not self._given_up:
            self._thread.join()

    def give_up(self) -> None:
        """Stop reading ahead in a stream all of whose reads fail from now on; wait a moment at most."""
        self._finalizer()
        self._given_up = True
        self._thread.join(_PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def readahead(stream: Readable, *, chunk: int = 1 << 20, depth: int = 4) -> ReadAhead:
    """Read a stream in a thread, so that inflating and hashing below overlap with the caller's work.

    Args:
        stream: read by the thread alone until `close`.
        chunk: bytes asked for at once.
        depth: how many pieces wait at most.
    """
    return ReadAhead(stream, chunk=chunk, depth=depth)
