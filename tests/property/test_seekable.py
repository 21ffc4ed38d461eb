"""Any part of any file, read through a table of seek points, is what the plain stream has there."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import random
import tarfile
import zlib
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from layerfs.compression import Compression, open_decompressed
from layerfs.errors import LayerError, LayerfsError
from layerfs.seekable import deflate, table
from layerfs.seekable.ranges import MemoryRanges
from layerfs.seekable.table import TableLayer, build_table
from layerfs.tree.entry import Kind

pytestmark = pytest.mark.usefixtures("close_points")


@pytest.fixture(scope="module")
def close_points() -> Any:
    """Points a few KiB apart and pieces as small, so that small layers have many."""
    patch = pytest.MonkeyPatch()
    patch.setattr(table, "SPACING", 5000)
    patch.setattr(table, "_WHOLE", 7000)
    yield
    patch.undo()


def content(seed: int, size: int) -> bytes:
    """Bytes that compress somewhat, the same for one seed."""
    made = random.Random(seed)
    words = [made.randbytes(made.randint(1, 12)) for _ in range(50)]
    parts: list[bytes] = []
    length = 0
    while length < size:
        word = made.choice(words) if made.random() < 0.9 else made.randbytes(40)
        parts.append(word)
        length += len(word)
    return b"".join(parts)[:size]


def tar(files: list[bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for place, data in enumerate(files):
            entry = tarfile.TarInfo(f"d{place % 3}/f{place}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


def several_members(data: bytes, cut: int) -> bytes:
    return gzip.compress(data[:cut], 1) + gzip.compress(data[cut:], 9)


def with_flushes(data: bytes, step: int) -> bytes:
    """Deflate in one member with blocks of every kind: stored, fixed, dynamic, empty."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    parts = []
    for start in range(0, len(data), step):
        parts.append(packer.compress(data[start : start + step]))
        parts.append(packer.flush((zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH, zlib.Z_BLOCK)[start // step % 3]))
    return b"".join(parts) + packer.flush()


def frames(data: bytes, step: int) -> bytes:
    return (
        b"".join(zstandard.compress(data[start : start + step]) for start in range(0, len(data), step))
        + b"\x50\x2a\x4d\x18\x03\0\0\0abc"
    )


PACKED = {
    "none": lambda data: data,
    "gzip -1": lambda data: gzip.compress(data, 1),
    "gzip -9": lambda data: gzip.compress(data, 9),
    "gzip stored": lambda data: gzip.compress(data, 0),
    "gzip members": lambda data: several_members(data, len(data) // 3),
    "gzip flushes": lambda data: with_flushes(data, 3001),
    "zstd one frame": zstandard.compress,
    "zstd frames": lambda data: frames(data, 9973),
}


def indexed(blob: bytes) -> TableLayer:
    written = io.BytesIO()
    built = build_table(io.BytesIO(blob), written.write)
    with open_decompressed(io.BytesIO(blob)) as plain:
        whole = b""
        while data := plain.read(1 << 20):
            whole += data
    assert built.diff_id.hex == hashlib.sha256(whole).hexdigest()
    assert built.size == len(whole)
    return TableLayer(MemoryRanges(blob), MemoryRanges(written.getvalue()))


@pytest.mark.parametrize("packed", PACKED)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_part_of_any_file_is_what_the_stream_has(packed: str, data: st.DataObject) -> None:
    sizes = data.draw(
        st.lists(st.sampled_from([0, 1, 511, 512, 4000, 30_000, 70_000]), min_size=1, max_size=6)
    )
    seed = data.draw(st.integers(0, 1 << 30))
    files = [content(seed + place, size) for place, size in enumerate(sizes)]
    layer = indexed(PACKED[packed](tar(files)))
    found = {each.entry.path: each for each in layer.entries()}
    assert set(found) == {b"d%d/f%d" % (place % 3, place) for place in range(len(files))}
    for _ in range(8):
        place = data.draw(st.integers(0, len(files) - 1))
        each = found[b"d%d/f%d" % (place % 3, place)]
        offset, size = data.draw(st.integers(0, 80_000)), data.draw(st.none() | st.integers(0, 80_000))
        assert each.extent is not None
        assert each.digest == hashlib.sha256(files[place]).hexdigest()
        wanted = files[place][offset:] if size is None else files[place][offset : offset + size]
        assert b"".join(layer.read(each.extent, offset, size)) == wanted


@given(seed=st.integers(0, 1 << 30), level=st.integers(0, 9), step=st.integers(500, 9000))
@settings(max_examples=40, deadline=None)
def test_a_gzip_stream_can_be_entered_at_every_block(seed: int, level: int, step: int) -> None:
    plain = content(seed, 60_000)
    blob = gzip.compress(plain[:20_000], level) + with_flushes(plain[20_000:], step) + bytes(600)
    points: list[tuple[int, int, int, bytes]] = []
    with deflate.MarkedGzip(
        io.BytesIO(blob), lambda at, start, bits, window: points.append((at, start, bits, window()))
    ) as marked:
        whole = b""
        while data := marked.read(1 << 20):
            whole += data
    assert whole == plain
    assert len(points) > 4
    for at, start, bits, window in points:
        stream = io.BytesIO(blob[start - bool(bits) :])
        opened = deflate.open_block(stream, bits, window) if window else open_decompressed(stream)
        found = b""
        while data := opened.read(1 << 20):
            found += data
        assert found == plain[at:]


def test_blocks_that_begin_at_each_of_the_eight_bits_were_met() -> None:
    seen: set[int] = set()
    for seed in range(40):
        blob = gzip.compress(content(seed, 200_000), 6)
        with deflate.MarkedGzip(
            io.BytesIO(blob), lambda _at, _start, bits, _window: seen.add(bits)
        ) as marked:
            while marked.read(1 << 20):
                pass
    assert seen == set(range(8))


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_layer_or_table_gives_an_error_of_ours_and_never_wrong_bytes(data: st.DataObject) -> None:
    files = [content(1, 30_000), content(2, 9000), b"x"]
    blob = bytearray(gzip.compress(tar(files), 6))
    written = io.BytesIO()
    build_table(io.BytesIO(bytes(blob)), written.write)
    made = bytearray(written.getvalue())
    damaged = data.draw(st.sampled_from([blob, made]))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged))) :]
    try:
        layer = TableLayer(MemoryRanges(bytes(blob)), MemoryRanges(bytes(made)))
        for each in layer.entries():
            if each.extent is not None and each.digest is not None:
                whole = b"".join(layer.read(each.extent))
                assert hashlib.sha256(whole).hexdigest() == each.digest or not each.entry.size
    except LayerfsError:
        pass


@pytest.mark.parametrize("cut", [1, 9, 20, 5000])
def test_a_truncated_gzip_layer_is_refused(cut: int) -> None:
    blob = gzip.compress(tar([content(3, 50_000)]), 6)[:-cut]
    with pytest.raises(LayerError):
        build_table(io.BytesIO(blob), lambda data: None)


def test_what_is_no_layer_is_refused() -> None:
    for blob in (b"\x1f\x8b", bz2.compress(b"x" * 4000), gzip.compress(b"hello") + b"trailing"):
        with pytest.raises(LayerError):
            build_table(io.BytesIO(blob), lambda data: None)


def test_without_a_zlib_of_the_system_members_are_the_places_to_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deflate, "finds_blocks", lambda: False)
    files = [content(place, 40_000) for place in range(4)]
    layer = indexed(several_members(tar(files), 70_000))
    for place, each in enumerate(layer.entries()):
        assert each.entry.kind is Kind.FILE
        assert each.extent is not None
        assert b"".join(layer.read(each.extent, 33_333, 5000)) == files[place][33_333:38_333]


def test_a_sparse_file_has_its_holes() -> None:
    from layerfs.compression import compressor
    from layerfs.tree.entry import Entry
    from layerfs.tree.tar_writer import TarWriter

    parts: list[bytes] = []
    packer = compressor(parts.append, Compression.GZIP)
    archive = TarWriter(packer.write)
    segments = ((512, 8192), (100_352, 20_480), (300_000, 100))
    data = [content(offset, length) for offset, length in segments]
    archive.add(Entry(b"sparse", Kind.FILE, size=400_000, segments=segments), data)
    archive.close()
    packer.close()
    layer = indexed(b"".join(parts))
    (each,) = layer.entries()
    whole = bytearray(400_000)
    for (offset, length), piece in zip(segments, data, strict=True):
        whole[offset : offset + length] = piece
    assert each.entry.segments == segments
    assert each.extent is not None
    assert b"".join(layer.read(each.extent)) == whole
    for offset, size in ((0, 600), (8000, 95_000), (300_050, 200_000), (399_999, 5), (400_000, 5)):
        assert b"".join(layer.read(each.extent, offset, size)) == whole[offset : offset + size]
