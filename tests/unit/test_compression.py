"""Compression: content decides, damage of any kind is an error, output depends on the bytes alone."""

from __future__ import annotations

import gc
import gzip
import io
import random
import struct
import subprocess
import threading
import time
import tracemalloc
import zlib
from types import SimpleNamespace

import pytest
import zstandard

from layerfs.compression import Compression, Readable, compressor, detect, open_decompressed, readahead
from layerfs.errors import BudgetError, LayerError
from layerfs.tree.budget import Budget
from tests.support.tars import Trickle

TEXT = b"".join(b"line %d of some text\n" % i for i in range(40_000))
SKIPPABLE = b"\x50\x2a\x4d\x18\x05\0\0\0hello"


def zstd(data: bytes, *, level: int = 3, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(level=level, write_checksum=True, **options).compress(data)


def unpack(
    stream: bytes, *, piece: int = 1 << 20, size: int = 1 << 20, budget: Budget | None = None
) -> bytes:
    parts = []
    with open_decompressed(Trickle(stream, piece), budget=budget) as plain:
        while data := plain.read(size):
            assert len(data) <= size
            parts.append(data)
    return b"".join(parts)


def test_content_decides_what_a_stream_is() -> None:
    assert detect(gzip.compress(b"")) is Compression.GZIP
    assert detect(zstd(b"")) is Compression.ZSTD
    assert detect(SKIPPABLE) is Compression.ZSTD
    for other in (b"", b"\x1f", b"usr/", b"BZh9", b"\xfd7zXZ\0", bytes(512)):
        assert detect(other) is Compression.NONE


@pytest.mark.parametrize("piece", [1, 13, 4096, 1 << 20])
@pytest.mark.parametrize("size", [100, 1 << 20])
def test_every_compression_is_read_in_pieces_of_any_size(piece: int, size: int) -> None:
    text = TEXT[:60_000]
    streams = {
        Compression.NONE: text,
        Compression.GZIP: gzip.compress(text),
        Compression.ZSTD: zstd(text),
    }
    for compression, stream in streams.items():
        assert open_decompressed(Trickle(stream, piece)).compression is compression
        assert unpack(stream, piece=piece, size=size) == text


@pytest.mark.parametrize("level", [0, 1, 9])
def test_gzip_of_any_level_is_read(level: int) -> None:
    noise = random.Random(1).randbytes(300_000)
    for data in (b"", b"x", TEXT, noise, bytes(5_000_000)):
        assert unpack(gzip.compress(data, level)) == data


@pytest.mark.parametrize("level", [1, 3, 19])
def test_zstd_of_any_level_is_read(level: int) -> None:
    noise = random.Random(1).randbytes(300_000)
    for data in (b"", b"x", TEXT, noise, bytes(5_000_000)):
        assert unpack(zstd(data, level=level)) == data
        unknown = zstandard.ZstdCompressor(level=level, write_content_size=False, write_checksum=False)
        frame = unknown.compressobj()
        assert unpack(frame.compress(data) + frame.flush()) == data


def gzip_member(data: bytes, flags: int, fields: bytes = b"", *, check: bool = True) -> bytes:
    header = b"\x1f\x8b\x08" + bytes([flags]) + bytes(4) + b"\0\3" + fields
    if flags & 2:
        header += struct.pack("<H", (zlib.crc32(header) + (not check)) & 0xFFFF)
    raw = zlib.compressobj(6, zlib.DEFLATED, -15)
    return header + raw.compress(data) + raw.flush() + struct.pack("<II", zlib.crc32(data), len(data))


@pytest.mark.parametrize("piece", [1, 1 << 20])
def test_all_fields_of_a_gzip_header_are_read(piece: int) -> None:
    fields = b"\5\0extra" + b"name\0" + b"comment\0"
    assert unpack(gzip_member(b"data", 2 | 4 | 8 | 16, fields), piece=piece) == b"data"
    assert unpack(gzip_member(b"data", 1), piece=piece) == b"data"


@pytest.mark.parametrize("piece", [1, 100, 1 << 20])
def test_several_members_an_empty_one_and_nuls_at_the_end_are_one_stream(piece: int) -> None:
    stream = gzip.compress(b"one") + gzip.compress(b"") + gzip.compress(b"two") + bytes(2000)
    assert unpack(stream, piece=piece) == b"onetwo"
    stream = SKIPPABLE + zstd(b"one") + SKIPPABLE + zstd(b"") + zstd(b"two") + SKIPPABLE
    assert unpack(stream, piece=piece) == b"onetwo"


def test_many_small_members_stay_quick() -> None:
    stream = b"".join(gzip.compress(b"%d" % i, 1) for i in range(5000))
    assert unpack(stream) == b"".join(b"%d" % i for i in range(5000))


@pytest.mark.parametrize("whole", [gzip.compress(TEXT), zstd(TEXT)], ids=["gzip", "zstd"])
def test_truncation_anywhere_is_an_error_with_its_offset(whole: bytes) -> None:
    for length in [*range(4, 40), *range(40, len(whole) - 40, 4099), *range(len(whole) - 40, len(whole))]:
        with pytest.raises(LayerError) as caught:
            unpack(whole[:length])
        assert caught.value.offset is not None
        assert 0 <= caught.value.offset <= len(TEXT)


@pytest.mark.parametrize("whole", [gzip.compress(TEXT), zstd(TEXT)], ids=["gzip", "zstd"])
@pytest.mark.parametrize("after", [b"x", b"\0x", b"\x1f", b"ustar" * 200, b"\x28\xb5\x2f\xfe"])
def test_other_data_after_the_end_is_an_error(whole: bytes, after: bytes) -> None:
    for piece in (1 << 20, 5000):
        with pytest.raises(LayerError):
            unpack(whole + after, piece=piece)


@pytest.mark.parametrize("whole", [gzip.compress(TEXT), zstd(TEXT)], ids=["gzip", "zstd"])
def test_a_flipped_bit_is_an_error(whole: bytes) -> None:
    numbers = random.Random(2)
    # A gzip header's time, extra flags and system, and its flag for text, mean nothing; nor a bit of zstd's.
    free = {3, *range(4, 10)} if whole[0] == 0x1F else {4}
    chosen = [numbers.randrange(len(whole)) for _ in range(60)]
    for place in [*range(4, 20), *chosen, len(whole) - 1, len(whole) - 5]:
        if place in free:
            continue
        damaged = bytearray(whole)
        damaged[place] ^= 1 << numbers.randrange(8)
        with pytest.raises((LayerError, BudgetError)):
            assert unpack(bytes(damaged)) != TEXT


def test_gzip_headers_that_cannot_be_right_are_errors() -> None:
    for stream in (
        gzip_member(b"x", 0x20),
        gzip_member(b"x", 0x80),
        gzip_member(b"x", 2, check=False),
        gzip_member(b"x", 8, b"n" * 100_000),
        b"\x1f\x8b\x07" + gzip_member(b"x", 0)[3:],
    ):
        with pytest.raises(LayerError):
            unpack(stream)


def test_a_bomb_exceeds_the_ratio_before_it_is_unpacked() -> None:
    budget = Budget(ratio=500.0, ratio_floor=1 << 20)
    for stream in (gzip.compress(bytes(30_000_000)), zstd(bytes(30_000_000))):
        with pytest.raises(BudgetError):
            unpack(stream, budget=budget)
        assert len(unpack(stream)) == 30_000_000
    small = zstd(bytes(1 << 20))
    assert len(unpack(small, budget=budget)) == 1 << 20


def test_a_zstd_frame_of_runs_is_unpacked_in_bounded_pieces() -> None:
    # Each block of 4 bytes says 128 KiB of zeros; a whole input buffer of them would be gigabytes.
    run = ((1 << 17) << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    stream = b"\x28\xb5\x2f\xfd\x00\x70" + run * 4000
    with open_decompressed(io.BytesIO(stream)) as plain:
        tracemalloc.start()
        for _ in range(64):
            assert len(plain.read(1 << 24)) <= 1 << 20
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 16 << 20


def test_a_zstd_window_beyond_the_limit_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=28)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(BudgetError, match="window"):
        unpack(frame.compress(TEXT) + frame.flush())


def test_reading_a_closed_stream_is_a_mistake() -> None:
    plain = open_decompressed(io.BytesIO(b"x"))
    plain.close()
    with pytest.raises(ValueError, match="closed"):
        plain.read(1)


# -- compressors ------------------------------------------------------------------------------------

SETTINGS = [
    (Compression.NONE, None, 0),
    *((Compression.GZIP, level, 0) for level in (None, 0, 1, 2, 3, 4, 9)),
    (Compression.ZSTD, None, 0),
    (Compression.ZSTD, 1, 0),
    (Compression.ZSTD, 3, 2),
]


def pack(data: bytes, compression: Compression, level: int | None, threads: int, piece: int) -> bytes:
    parts: list[bytes] = []
    packer = compressor(parts.append, compression, level=level, threads=threads)
    for start in range(0, len(data), piece):
        packer.write(data[start : start + piece])
    packer.close()
    return b"".join(parts)


@pytest.mark.parametrize(("compression", "level", "threads"), SETTINGS)
def test_output_depends_on_the_bytes_alone(compression: Compression, level: int | None, threads: int) -> None:
    data = TEXT + random.Random(3).randbytes(300_000)
    packed = pack(data, compression, level, threads, len(data))
    assert unpack(packed) == data
    assert detect(packed) is compression
    for piece in (997, 100_000, 262_144):
        assert pack(data, compression, level, threads, piece) == packed
    assert unpack(pack(b"", compression, level, threads, 1)) == b""


@pytest.mark.parametrize("level", [2, 6])
def test_gzip_says_neither_time_nor_name(level: int) -> None:
    packed = pack(TEXT, Compression.GZIP, level, 0, 1 << 20)
    assert packed[3:8] == bytes(5)
    assert gzip.decompress(packed) == TEXT
    assert subprocess.run(["gzip", "-dc"], input=packed, capture_output=True, check=True).stdout == TEXT


def test_any_number_of_threads_gives_the_same_output() -> None:
    data = random.Random(4).randbytes(1000) * 20_000
    assert pack(data, Compression.ZSTD, 1, 1, 1 << 20) == pack(data, Compression.ZSTD, 1, 3, 1 << 20)


@pytest.mark.parametrize(
    ("compression", "level"),
    [(Compression.GZIP, -1), (Compression.GZIP, 10), (Compression.ZSTD, 0), (Compression.ZSTD, 23)],
)
def test_levels_that_do_not_exist_are_refused(compression: Compression, level: int) -> None:
    with pytest.raises(ValueError, match="levels"):
        compressor(print, compression, level=level)


# -- reading ahead ----------------------------------------------------------------------------------


def threads() -> int:
    return sum(thread.name == "layerfs-readahead" for thread in threading.enumerate())


def wait_until_no_thread_is_left() -> None:
    deadline = time.monotonic() + 5
    while threads():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("size", [1000, 4096, 1 << 20])
def test_reading_ahead_changes_nothing(size: int) -> None:
    with readahead(io.BytesIO(TEXT), chunk=4096, depth=2) as ahead:
        parts = []
        while data := ahead.read(size):
            assert len(data) <= size
            parts.append(data)
        assert b"".join(parts) == TEXT
        assert ahead.read(size) == b""


def test_an_error_comes_after_the_bytes_before_it_and_comes_again() -> None:
    def stream() -> Readable:
        answers = iter([b"one", b"two"])

        def read(size: int) -> bytes:
            try:
                return next(answers)
            except StopIteration:
                raise LayerError("broken", offset=6) from None

        return SimpleNamespace(read=read)

    with readahead(stream()) as ahead:
        assert ahead.read(10) + ahead.read(10) == b"onetwo"
        for _ in range(2):
            with pytest.raises(LayerError, match="broken"):
                ahead.read(10)


def test_no_more_than_the_depth_waits() -> None:
    file = io.BytesIO(TEXT)
    with readahead(file, chunk=1000, depth=3) as ahead:
        ahead.read(1)
        time.sleep(0.05)
        assert file.tell() <= 5000


def test_close_ends_the_thread_and_is_idempotent() -> None:
    ahead = readahead(io.BytesIO(TEXT), chunk=100, depth=1)
    ahead.read(10)
    ahead.close()
    ahead.close()
    wait_until_no_thread_is_left()


def test_a_forgotten_reader_ends_its_thread() -> None:
    ahead = readahead(io.BytesIO(TEXT), chunk=100, depth=1)
    ahead.read(10)
    del ahead
    gc.collect()
    wait_until_no_thread_is_left()
