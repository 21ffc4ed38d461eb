"""Layers with an index of their own: what is asked for, what is verified, and what strangers may write."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from layerfs.compression import open_decompressed
from layerfs.errors import BudgetError, LayerError, LayerfsError, VerificationError
from layerfs.seekable import estargz, zstd_chunked
from layerfs.seekable.bodies import read_body
from layerfs.seekable.extent import Chunk, Extent
from layerfs.seekable.layer import open_layer
from layerfs.seekable.ranges import Ahead, MemoryRanges
from layerfs.seekable.toc_json import read_entries
from layerfs.seekable.writing import Format, SeekableCompressor
from layerfs.tree.budget import DEFAULT_BUDGET, Budget
from layerfs.tree.entry import Entry, Kind
from layerfs.tree.tar_writer import TarWriter
from tests.support.seekable import CountedRanges, described, files_of, opened, written

FORMATS: list[Format] = ["estargz", "zstd:chunked"]
BIG = random.Random(7).randbytes(2_500_000)


def stream(*, sparse: bool = False) -> bytes:
    parts: list[bytes] = []
    archive = TarWriter(parts.append)

    def add(path: bytes, kind: Kind, data: bytes = b"", **more: Any) -> None:
        entry = Entry(path, kind, more.pop("mode", 0o644), 1000, 50, 1_600_000_000_500_000_000, len(data))
        archive.add(entry._replace(**more), [data] if kind is Kind.FILE else [])

    add(b"", Kind.DIRECTORY, mode=0o755)
    add(b"etc", Kind.DIRECTORY, mode=0o1777)
    add(b"etc/small", Kind.FILE, b"hello\n", xattrs={b"user.x": b"\0\xff", b"security.capability": b"cap"})
    add(b"etc/.wh.gone", Kind.FILE)
    add(b"etc/.wh..wh..opq", Kind.FILE)
    add(b"big", Kind.FILE, BIG)
    add(b"big2", Kind.HARDLINK, target=b"big")
    add(b"link", Kind.SYMLINK, target=b"../etc/small", mode=0o777)
    add(b"null", Kind.CHARACTER, device=(1, 3))
    add(b"fifo", Kind.FIFO)
    add("größe/\udcff".encode(errors="surrogateescape"), Kind.FILE, b"x" * 600)
    add(b"exact", Kind.FILE, b"y" * (2 << 20))
    if sparse:
        segments = ((4096, 8192), (3_000_000, 4096))
        archive.add(
            Entry(b"sparse", Kind.FILE, 0o600, size=4_000_000, segments=segments), [b"a" * 8192, b"b" * 4096]
        )
        add(b"after", Kind.FILE, b"z")
    archive.close()
    return b"".join(parts)


PLAIN = stream()
MADE = {format: written(PLAIN, format) for format in FORMATS}


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_written_is_read_back(format: Format) -> None:
    blob, done = MADE[format]
    found = {each.entry.path: each for each in opened(blob, done.annotations).entries()}
    own = {estargz.TOC_NAME, estargz.NO_PREFETCH}
    assert set(found) - own == {
        b"", b"etc", b"etc/small", b"etc/.wh.gone", b"etc/.wh..wh..opq", b"big", b"big2", b"link", b"null",
        b"fifo", "größe/\udcff".encode(errors="surrogateescape"), b"exact",
    }  # fmt: skip
    small = found[b"etc/small"]
    fraction = 500_000_000 if format == "zstd:chunked" else 0
    assert small.entry == Entry(
        b"etc/small", Kind.FILE, 0o644, 1000, 50, 1_600_000_000_000_000_000 + fraction, 6,
        xattrs={b"user.x": b"\0\xff", b"security.capability": b"cap"},
    )  # fmt: skip
    assert small.digest == hashlib.sha256(b"hello\n").hexdigest()
    assert found[b"etc"].entry.mode == 0o1777
    assert found[b"null"].entry.device == (1, 3)
    assert found[b"link"].entry.target == b"../etc/small"
    assert found[b"big2"].entry.target == b"big"
    bodies = files_of(opened(blob, done.annotations))
    assert bodies[b"big"] == BIG
    assert bodies[b"exact"] == b"y" * (2 << 20)


@pytest.mark.parametrize("format", FORMATS)
def test_whoever_does_not_know_the_format_finds_the_stream(format: Format) -> None:
    blob, done = MADE[format]
    with open_decompressed(io.BytesIO(blob)) as plain:
        whole = b""
        while data := plain.read(1 << 20):
            whole += data
    assert hashlib.sha256(whole).hexdigest() == done.diff_id.hex
    assert len(whole) == done.size
    if format == "zstd:chunked":
        assert whole == PLAIN


@pytest.mark.parametrize("format", FORMATS)
def test_how_the_stream_is_cut_into_writes_changes_nothing(format: Format) -> None:
    blob, done = MADE[format]
    parts: list[bytes] = []
    packer = SeekableCompressor(parts.append, format)
    made = random.Random(3)
    position = 0
    while position < len(PLAIN):
        size = made.choice([1, 511, 70_000, 1 << 20])
        packer.write(PLAIN[position : position + size])
        position += size
    packer.close()
    assert b"".join(parts) == blob
    assert packer.written == done


@pytest.mark.parametrize("format", FORMATS)
def test_a_compressor_tells_whoever_writes_that_the_stream_is_no_layer(format: Format) -> None:
    packer = SeekableCompressor(lambda data: None, format)
    with pytest.raises(LayerError):
        for _ in range(100):
            packer.write(b"no tar at all" * 1000)
        packer.close()


def test_a_second_conversion_to_estargz_leaves_nothing_of_the_first() -> None:
    blob, done = MADE["estargz"]
    with open_decompressed(io.BytesIO(blob)) as plain:
        whole = b""
        while data := plain.read(1 << 20):
            whole += data
    assert written(whole, "estargz") == (blob, done)


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_with_holes_keeps_its_content(format: Format) -> None:
    blob, done = written(stream(sparse=True), format)
    bodies = files_of(opened(blob, done.annotations))
    whole = bytearray(4_000_000)
    whole[4096 : 4096 + 8192] = b"a" * 8192
    whole[3_000_000:3_004_096] = b"b" * 4096
    assert bodies[b"sparse"] == whole
    assert bodies[b"after"] == b"z"
    assert len(blob) < len(MADE[format][0]) + 60_000


@pytest.mark.parametrize("format", FORMATS)
def test_an_index_costs_one_request_and_a_small_file_one_more(format: Format) -> None:
    blob, done = MADE[format]
    ranges = CountedRanges(blob)
    layer = open_layer(ranges, described(blob, done.annotations))
    assert layer is not None
    found = {each.entry.path: each for each in layer.entries()}
    assert len(ranges.asked) == 1
    small = found[b"etc/small"].extent
    assert small is not None
    assert b"".join(layer.read(small)) == b"hello\n"
    assert len(ranges.asked) == 2
    assert ranges.asked[1][1] < 2000
    # Neighbouring chunks come together.
    big = found[b"big"].extent
    assert big is not None
    assert b"".join(layer.read(big)) == BIG
    assert len(ranges.asked) == 3
    # A part costs the chunks that it touches.
    assert b"".join(layer.read(big, 1_200_000, 10)) == BIG[1_200_000:1_200_010]
    assert ranges.asked[3][1] < 1_100_000


def test_a_large_table_of_contents_costs_two_requests() -> None:
    parts: list[bytes] = []
    archive = TarWriter(parts.append)
    for number in range(4000):
        archive.add(Entry(b"%032x" % (number * 0x9E3779B97F4A7C15), Kind.FILE, size=8), [b"%08d" % number])
    archive.close()
    blob, done = written(b"".join(parts), "estargz")
    ranges = CountedRanges(blob)
    layer = open_layer(ranges, described(blob, done.annotations))
    assert layer is not None
    assert sum(1 for _ in layer.entries()) == 4002
    assert len(ranges.asked) == 2


@pytest.mark.parametrize("format", FORMATS)
@given(offset=st.integers(0, 2_600_000), size=st.none() | st.integers(0, 2_600_000))
@settings(max_examples=30, deadline=None)
def test_any_part_of_a_file_is_that_part(format: Format, offset: int, size: int | None) -> None:
    blob, done = MADE[format]
    layer = opened(blob, done.annotations)
    extent = next(each.extent for each in layer.entries() if each.entry.path == b"big")
    assert extent is not None
    wanted = BIG[offset:] if size is None else BIG[offset : offset + size]
    assert b"".join(layer.read(extent, offset, size)) == wanted


@pytest.mark.parametrize("format", FORMATS)
def test_an_index_that_nobody_promises_is_not_believed(format: Format) -> None:
    blob, _ = MADE[format]
    assert open_layer(MemoryRanges(blob), described(blob, {})) is None


@pytest.mark.parametrize("format", FORMATS)
def test_an_index_with_another_digest_is_refused(format: Format) -> None:
    blob, done = MADE[format]
    wrong = {
        name: "sha256:" + "0" * 64 if "digest" in name or "checksum" in name else text
        for name, text in done.annotations.items()
    }
    with pytest.raises(VerificationError):
        open_layer(MemoryRanges(blob), described(blob, wrong))
    nonsense = dict.fromkeys(done.annotations, "nonsense")
    with pytest.raises(LayerfsError):
        open_layer(MemoryRanges(blob), described(blob, nonsense))


@pytest.mark.parametrize("format", FORMATS)
def test_a_layer_that_lost_its_index_has_none(format: Format) -> None:
    _, done = MADE[format]
    again = gzip.compress(PLAIN, 1)
    if format == "estargz":
        assert open_layer(MemoryRanges(again), described(again, done.annotations)) is None
    else:
        with pytest.raises(LayerfsError):
            open_layer(MemoryRanges(again), described(again, done.annotations))


@pytest.mark.parametrize("format", FORMATS)
def test_wrong_bytes_are_never_given(format: Format) -> None:
    blob, done = MADE[format]
    extent = next(e.extent for e in opened(blob, done.annotations).entries() if e.entry.path == b"big")
    assert extent is not None
    damaged = bytearray(blob)
    chunk = extent.chunks[1]
    damaged[(chunk.start + chunk.end) // 2] ^= 1
    layer = opened(bytes(damaged), done.annotations)
    assert b"".join(layer.read(extent, 0, chunk.offset)) == BIG[: chunk.offset]
    given = b""
    with pytest.raises((VerificationError, LayerError)):
        for data in layer.read(extent):
            given += data
    assert given == BIG[: chunk.offset]


@pytest.mark.parametrize("format", FORMATS)
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_damaged_layer_gives_an_error_of_ours_and_never_wrong_bytes(
    format: Format, data: st.DataObject
) -> None:
    blob, done = written(tiny(), format)
    damaged = bytearray(blob)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged))) :]
    try:
        layer = open_layer(CountedRanges(bytes(damaged)), described(bytes(damaged), done.annotations))
        for path, body in files_of(layer).items() if layer is not None else ():
            if path != estargz.TOC_NAME:
                assert body in (b"one" * 300, b"two" * 400, b"", estargz.LANDMARK)
    except LayerfsError:
        pass


def tiny() -> bytes:
    parts: list[bytes] = []
    archive = TarWriter(parts.append)
    archive.add(Entry(b"one", Kind.FILE, size=900), [b"one" * 300])
    archive.add(Entry(b"two", Kind.FILE, size=1200), [b"two" * 400])
    archive.add(Entry(b"none", Kind.FILE))
    archive.close()
    return b"".join(parts)


DIGEST = "sha256:" + "1" * 64
FILE = {"name": "a", "type": "reg", "size": 10, "offset": 5, "chunkDigest": DIGEST}


def entries(
    document: Any, *, budget: Budget = DEFAULT_BUDGET, warnings: list[str] | None = None
) -> list[Any]:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    said: list[str] = [] if warnings is None else warnings
    return list(read_entries(io.BytesIO(raw), limit=1000, budget=budget, warn=said.append))


def table(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"version": 1, "entries": list(rows)}


@pytest.mark.parametrize(
    "document",
    [
        b"", b"[]", b"null", b"{", b'{"entries":[', b'{"entries":[{]}', b'{"entries":[1]}', b'{"version":2}',
        b'{"entries":[]} x', b'{"entries":[],"entries":[]}', b'\xff\xfe{"entries":[]}', b'{"entries":[{}]}',
        b'{"version":1,"entries":[' + b"[" * 100_000, b'{"x":' + b"[" * 100_000,
        b'{"entries":[{"name":"a","type":"dir","mode":' + b"9" * 5000 + b"}]}",
        table({"name": "a", "type": "door"}), table({"name": "", "type": "dir"}),
        table({"name": 5, "type": "dir"}), table({"name": "a\0b", "type": "dir"}),
        table({"name": "x" * 300, "type": "dir"}), table({"name": "/", "type": "reg"}),
        table({"name": "a", "type": "symlink"}), table({"name": "a", "type": "char"}),
        table({"name": "a", "type": "char", "devMajor": 1 << 20}),
        table({"name": "a", "type": "dir", "mode": -1}), table({"name": "a", "type": "dir", "mode": 1.5}),
        table({"name": "a", "type": "dir", "mode": True}),
        table({"name": "a", "type": "dir", "uid": 1 << 32}),
        table({"name": "a", "type": "dir", "modtime": "yesterday"}),
        table({"name": "a", "type": "dir", "modtime": "2020-13-01T00:00:00Z"}),
        table({"name": "a", "type": "dir", "xattrs": {"user.x": "!!"}}),
        table({"name": "a", "type": "dir", "xattrs": {"": "eA=="}}),
        table({"name": "a", "type": "dir", "xattrs": ["x"]}),
        table({"name": "\ud800", "type": "dir"}),
        table({**FILE, "offset": 1000}), table({**FILE, "offset": -1}), table({**FILE, "offset": 1 << 70}),
        table({**FILE, "chunkSize": 11}), table({**FILE, "chunkOffset": 1}), table({**FILE, "chunkSize": 5}),
        table({**FILE, "chunkDigest": "md5:00"}), table({**FILE, "chunkDigest": "sha512:" + "1" * 128}),
        table({**FILE, "chunkDigest": ""}), table({**FILE, "digest": 5}),
        table(FILE, {**FILE, "name": "b", "offset": 4}),
        table({"name": "a", "type": "chunk", "offset": 5}),
        table({"name": "d", "type": "dir"}, {"name": "d", "type": "chunk", "offset": 5}),
        table({**FILE, "chunkSize": 5}, {"name": "a", "type": "chunk", "offset": 6, "chunkOffset": 4}),
    ],
    ids=lambda document: str(document)[:60],
)  # fmt: skip
def test_tables_that_make_no_sense_are_refused(document: Any) -> None:
    with pytest.raises((LayerError, BudgetError)):
        entries(document)


def test_a_table_is_read_with_whatever_order_and_blanks_json_allows() -> None:
    raw = (
        b' { "more" : [1, {"entries": 5}] , "entries" :[ \n{"type":"dir","name":"./a//b/"} ] ,"version" : 1}'
    )
    assert [each.entry.path for each in entries(raw)] == [b"a/b"]
    assert entries(b'{"entries":null}') == []
    assert entries(b"{}") == []


def test_names_stay_inside_the_tree() -> None:
    warnings: list[str] = []
    found = entries(
        table({"name": "/../../etc/x", "type": "dir"},
              {"name": "l", "type": "hardlink", "linkName": "/../etc/x"}),
        warnings=warnings,
    )  # fmt: skip
    assert [(each.entry.path, each.entry.target) for each in found] == [(b"etc/x", b""), (b"l", b"etc/x")]
    assert warnings


def test_times_are_those_of_rfc_3339() -> None:
    def mtime(text: str) -> int:
        (found,) = entries(table({"name": "a", "type": "dir", "modtime": text}))
        ns: int = found.entry.mtime_ns
        return ns

    assert mtime("1970-01-01T00:00:01Z") == 1_000_000_000
    assert mtime("2020-02-03T04:05:06.123456789Z") == 1_580_702_706_123_456_789
    assert mtime("2020-02-03T05:05:06+01:00") == mtime("2020-02-03T04:05:06Z")
    assert mtime("1969-12-31T23:59:59.5Z") == -500_000_000
    assert mtime("0001-01-01T00:00:00Z") == 0


def test_several_files_in_one_compressed_piece_are_told_apart() -> None:
    packed = gzip.compress(b"first" + b"second", mtime=0)
    blob = b"\0" * 20 + packed
    rows = [
        {"name": "a", "type": "reg", "size": 5, "offset": 20,
         "chunkDigest": "sha256:" + hashlib.sha256(b"first").hexdigest()},
        {"name": "b", "type": "reg", "size": 6, "offset": 20, "innerOffset": 5,
         "chunkDigest": "sha256:" + hashlib.sha256(b"second").hexdigest()},
    ]  # fmt: skip
    from layerfs.seekable.bodies import pieces_of

    raw = json.dumps(table(*rows)).encode()
    found = list(read_entries(io.BytesIO(raw), limit=len(blob), budget=DEFAULT_BUDGET, warn=print))
    begin = pieces_of(MemoryRanges(blob), DEFAULT_BUDGET)
    assert [b"".join(read_body(begin, each.extent)) for each in found if each.extent] == [b"first", b"second"]


def test_budgets_hold_for_tables() -> None:
    with pytest.raises(BudgetError):
        entries(table(*[{"name": "a", "type": "dir"}] * 5), budget=Budget(entries=4))
    with pytest.raises(BudgetError):
        entries(table({"name": "a", "type": "symlink", "linkName": "x" * 5_000_000}))
    with pytest.raises(BudgetError):
        entries(table({**FILE, "size": 1 << 40}))
    for format in FORMATS:
        blob, done = MADE[format]
        with pytest.raises(BudgetError):
            opened(blob, done.annotations, budget=Budget(toc_bytes=200))


def test_a_chunk_that_unpacks_to_less_than_promised_is_an_error() -> None:
    from layerfs.seekable.bodies import pieces_of

    blob = gzip.compress(b"short")
    begin = pieces_of(MemoryRanges(blob), DEFAULT_BUDGET)
    chunk = Chunk(0, 10, 0, len(blob), 0, "sha256:" + "0" * 64)
    with pytest.raises(LayerError):
        list(read_body(begin, Extent(10, (chunk,))))


def test_a_footer_says_where_the_table_begins() -> None:
    footer = estargz.format_footer(0xABCDEF)
    assert len(footer) == 51
    assert gzip.decompress(footer) == b""
    assert estargz.parse_footer(footer) == 0xABCDEF
    for place in range(51):
        wrong = bytearray(footer)
        wrong[place] ^= 0x40
        estargz.parse_footer(bytes(wrong))
    assert estargz.parse_footer(footer[:-1]) is None
    assert estargz.parse_footer(b"") is None


@pytest.mark.parametrize("start", [0, 5, 1 << 40])
def test_a_footer_that_leads_astray_is_refused(start: int) -> None:
    blob = b"\x1f\x8b" + b"x" * 100 + estargz.format_footer(start)
    with pytest.raises(LayerfsError):
        open_layer(MemoryRanges(blob), described(blob, {estargz.TOC_DIGEST: DIGEST}))


@pytest.mark.parametrize(
    "fields",
    [
        (0, 5, 5, 1),
        (1 << 60, 5, 5, 1),
        (10, 1 << 60, 5, 1),
        (10, 5, 1 << 60, 1),
        (10, 5, 5, 2),
        (10, 0, 0, 1),
    ],
)
def test_a_position_that_leads_astray_is_refused(fields: tuple[int, int, int, int]) -> None:
    blob = zstandard.compress(b"x" * 100)
    position = ":".join(map(str, fields))
    annotations = {zstd_chunked.POSITION: position, zstd_chunked.CHECKSUM: DIGEST}
    with pytest.raises(LayerfsError):
        open_layer(MemoryRanges(blob), described(blob, annotations))


def test_reading_ahead_never_goes_beyond_its_limit() -> None:
    data = bytes(range(256)) * 4
    ranges = CountedRanges(data)
    ahead = Ahead(ranges, 600)
    assert ahead.read_at(100, 50) == data[100:150]
    assert ahead.read_at(150, 100) == data[150:250]
    assert ranges.asked == [(100, 500)]
    assert ahead.read_at(550, 200) == data[550:750]
    assert ranges.asked == [(100, 500), (600, 150)]
    assert ahead.read_at(0, 10) == data[:10]


def test_a_cut_connection_is_the_callers_error() -> None:
    from layerfs.errors import TransportError

    blob, done = MADE["estargz"]
    ranges = CountedRanges(blob, most=1)
    layer = open_layer(ranges, described(blob, done.annotations))
    assert layer is not None
    extent = next(each.extent for each in layer.entries() if each.entry.path == b"big")
    assert extent is not None
    with pytest.raises(TransportError):
        list(layer.read(extent))
