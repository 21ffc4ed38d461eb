"""Entering a gzip stream in its middle: at a deflate block, given the 32 KiB that came before it.

Blocks begin at any bit (RFC 1951, 3.2), and no library of Python's tells where, or begins anywhere but at
a byte. Where blocks begin is asked of zlib itself (inflate(), Z_BLOCK) through ctypes; on a system without
libz.so.1, members are the only places to begin. Beginning needs nothing of the system: the bits before
the block are made the end of empty blocks, which say nothing.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable, Iterator
from typing import Any, Final

from layerfs.compression import Decompressed, Limits, Readable, open_decompressed
from layerfs.errors import LayerError

_LIBRARY: Final = "libz.so.1"
_WINDOW: Final = 1 << 15
_BLOCK: Final = 5  # Z_BLOCK
_STREAM_END: Final = 1
_BUFFER_ERROR: Final = -5
_GZIP: Final = 31  # a window of 32 KiB, and gzip's header and checksum
_AT_BLOCK: Final = 128
_LAST: Final = 64
_READ: Final = 1 << 18
_PIECE: Final = 1 << 19

# Told (offset in the uncompressed bytes, offset in the stream, bits of the byte before it that belong to the
# block, what gives the bytes before).
Mark = Callable[[int, int, int, Callable[[], bytes]], object]


class _Stream(ctypes.Structure):
    """z_stream of <zlib.h>."""

    _fields_ = (
        ("next_in", ctypes.c_void_p),
        ("avail_in", ctypes.c_uint),
        ("total_in", ctypes.c_ulong),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_uint),
        ("total_out", ctypes.c_ulong),
        ("msg", ctypes.c_char_p),
        ("state", ctypes.c_void_p),
        ("zalloc", ctypes.c_void_p),
        ("zfree", ctypes.c_void_p),
        ("opaque", ctypes.c_void_p),
        ("data_type", ctypes.c_int),
        ("adler", ctypes.c_ulong),
        ("reserved", ctypes.c_ulong),
    )


@functools.cache
def _zlib() -> Any:
    """Load zlib; None where the system has none."""
    try:
        library = ctypes.CDLL(_LIBRARY)
        library.zlibVersion.restype = ctypes.c_char_p
        library.inflateGetDictionary  # noqa: B018  of 1.2.8
    except (OSError, AttributeError):
        return None
    return library


def finds_blocks() -> bool:
    """Say whether the beginnings of blocks can be found here."""
    return _zlib() is not None


class MarkedGzip:
    """The uncompressed bytes of a gzip stream, telling where it can be entered; a context manager.

    Several members are one stream, NULs after the last are ignored, as `open_decompressed` has it.

    Args:
        stream: the compressed bytes; stays the caller's, and is read to its end.
        mark: told every beginning of a block, in ascending order, before what it unpacks to is given.
    """

    def __init__(self, stream: Readable, mark: Mark) -> None:
        self._library = _zlib()
        self._stream = stream
        self._mark = mark
        self._state = _Stream()
        self._input = b""
        # Bytes that members before this one took and gave.
        self._taken = self._given = 0
        self._ended = False
        self._room = ctypes.create_string_buffer(_PIECE)
        self._between = True
        self._check(
            self._library.inflateInit2_(
                ctypes.byref(self._state), _GZIP, self._library.zlibVersion(), ctypes.sizeof(_Stream)
            )
        )

    def read(self, size: int, /) -> bytes:
        """Return some bytes, up to 512 KiB whatever is asked for; none only at the end.

        Raises:
            LayerError: the stream is damaged, truncated, or followed by something else.
        """
        state = self._state
        state.next_out = ctypes.addressof(self._room)
        state.avail_out = _PIECE
        while state.avail_out and not self._ended:
            if self._between and not self._begin_member():
                break
            if not state.avail_in and not self._feed():
                raise self._error("the compressed stream ends inside a member")
            found = self._library.inflate(ctypes.byref(state), _BLOCK)
            if found == _STREAM_END:
                self._end_member()
                continue
            if found != _BUFFER_ERROR:
                self._check(found)
            if state.data_type & (_AT_BLOCK | _LAST) == _AT_BLOCK and state.total_out:
                self._mark(
                    self._given + state.total_out,
                    self._taken + state.total_in,
                    state.data_type & 7,
                    self._window,
                )
        return ctypes.string_at(self._room, _PIECE - state.avail_out)

    def _feed(self) -> bool:
        self._input = self._stream.read(_READ)
        self._state.next_in = ctypes.cast(ctypes.c_char_p(self._input), ctypes.c_void_p)
        self._state.avail_in = len(self._input)
        return bool(self._input)

    def _rest(self) -> bytes:
        return self._input[len(self._input) - self._state.avail_in :] if self._state.avail_in else b""

    def _begin_member(self) -> bool:
        """See what comes behind the last member: one more, or the end."""
        rest = self._rest()
        while len(rest) < 2 and (data := self._stream.read(_READ)):
            rest += data
        if self._taken and (not rest or not rest[0]):
            while rest:
                if rest.strip(b"\0"):
                    raise self._error("data after the end of the compressed stream")
                rest = self._stream.read(_READ)
            self._ended = True
            return False
        if rest[:2] != b"\x1f\x8b":
            raise self._error("data after the end of the compressed stream" if self._taken else "no gzip")
        self._input = rest
        self._state.next_in = ctypes.cast(ctypes.c_char_p(rest), ctypes.c_void_p)
        self._state.avail_in = len(rest)
        self._mark(self._given, self._taken, 0, bytes)
        self._between = False
        return True

    def _end_member(self) -> None:
        self._taken += self._state.total_in
        self._given += self._state.total_out
        self._between = True
        self._check(self._library.inflateReset(ctypes.byref(self._state)))

    def _window(self) -> bytes:
        window = ctypes.create_string_buffer(_WINDOW)
        length = ctypes.c_uint()
        self._check(
            self._library.inflateGetDictionary(ctypes.byref(self._state), window, ctypes.byref(length))
        )
        return window.raw[: length.value]

    def _check(self, status: int) -> None:
        if status:
            what = self._state.msg or b"zlib's error %d" % status
            raise self._error(f"damaged data ({what.decode(errors='replace')})")

    def _error(self, what: str) -> LayerError:
        place = self._taken + self._state.total_in
        return LayerError(f"gzip: {what} (compressed byte {place})", offset=self._given)

    def close(self) -> None:
        """Free the memory; idempotent. The stream below stays open."""
        if self._state.state:
            self._library.inflateEnd(ctypes.byref(self._state))

    def __enter__(self) -> MarkedGzip:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_block(
    stream: Readable, bits: int, window: bytes, *, budget: Limits | None = None, piece: int = 1 << 18
) -> Decompressed:
    """Decompress a gzip stream from the beginning of a block on, to the end of the last member.

    Args:
        stream: the compressed bytes, from the byte on that has the block's first bit.
        bits: how many bits of that byte belong to the block, its upper ones; 0 when all do.
        window: the up to 32 KiB of uncompressed bytes before the block, none where a member begins.
        budget: bounds the ratio of the members that follow.
        piece: about how many bytes come at once.

    Raises:
        LayerError: in `read`: the stream is damaged or truncated. Checksums of the member are not compared.
    """
    from layerfs.compression import Compression

    pieces = _from_block(stream, bits, window, budget, piece)
    rest = b""

    def read(size: int) -> bytes:
        nonlocal rest
        data = rest or next(pieces, b"")
        data, rest = data[:size], data[size:]
        return data

    return Decompressed(Compression.GZIP, read)


def _from_block(
    stream: Readable, bits: int, window: bytes, budget: Limits | None, piece: int
) -> Iterator[bytes]:
    from isal.igzip_lib import DECOMP_DEFLATE, IgzipDecompressor, IsalError

    inflater = IgzipDecompressor(flag=DECOMP_DEFLATE, zdict=window)
    data = stream.read(_READ)
    if bits:
        data = _led_in(8 - bits, data[:1]) + data[1:]
    while not inflater.eof:
        if inflater.needs_input and not data:
            data = stream.read(_READ)
            if not data:
                raise LayerError("gzip: the compressed stream ends inside a member")
        try:
            unpacked = inflater.decompress(data, piece)
        except IsalError as error:  # type: ignore[misc]  # the stub takes the class for an instance
            raise LayerError(f"gzip: damaged data ({error})") from error
        data = b""
        if unpacked:
            yield unpacked
    following = _Joined(inflater.unused_data, stream)
    if len(following.exactly(8)) < 8:
        raise LayerError("gzip: the compressed stream ends inside a checksum")
    head = following.exactly(1)
    if head and head != b"\0":
        following.put_back(head)
        with open_decompressed(following, budget=budget, piece=piece) as plain:
            while unpacked := plain.read(piece):
                yield unpacked


class _Joined:
    def __init__(self, head: bytes, stream: Readable) -> None:
        self._head = head
        self._stream = stream

    def read(self, size: int, /) -> bytes:
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
            return data
        return self._stream.read(size)

    def exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size and (data := self.read(size - len(found))):
            found += data
        return found

    def put_back(self, data: bytes) -> None:
        self._head = data + self._head


@functools.cache
def _empty_blocks(length: int) -> tuple[bytes, int]:
    """Give bits of empty blocks, `length` of them beyond whole bytes: the bytes, and the bits left over."""
    bits: list[int] = []

    def put(value: int, width: int) -> None:
        bits.extend(value >> place & 1 for place in range(width))

    if length % 2:
        # 91 bits: dynamic codes (RFC 1951, 3.2.7), of which symbols 255 and 256 have one bit each.
        put(0b100, 3)
        put(0, 5)
        put(0, 5)
        put(18 - 4, 4)
        for place in range(18):
            put(1 if place in (2, 17) else 0, 3)
        for zeros in (138, 117):
            put(1, 1)
            put(zeros - 11, 7)
        put(0b000, 3)
        put(1, 1)
    while len(bits) % 8 != length:
        # 10 bits: fixed codes (3.2.6), the end at once.
        put(0b010, 3)
        put(0, 7)
    value = sum(bit << place for place, bit in enumerate(bits))
    whole = len(bits) // 8
    return (value & (1 << 8 * whole) - 1).to_bytes(whole, "little"), value >> 8 * whole


def _led_in(length: int, first: bytes) -> bytes:
    """Put empty blocks in place of the `length` lower bits of a byte."""
    blocks, rest = _empty_blocks(length)
    if not first:
        return b""
    return blocks + struct.pack("B", first[0] >> length << length | rest)
