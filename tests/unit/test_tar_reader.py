"""The tar reader: every odd archive of PITFALLS has one result, an entry or an error that names its place."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from layerfs.errors import BudgetError, LayerError
from layerfs.tree.budget import DEFAULT_BUDGET
from layerfs.tree.entry import Entry, Kind
from layerfs.tree.tar_reader import TarReader
from tests.support.tars import END, Trickle, entries, header, member, names, padded, pax, read_all

BILLION = 1_000_000_000


def error(archive: bytes, **options: object) -> LayerError:
    with pytest.raises(LayerError) as caught:
        read_all(archive, **options)  # type: ignore[arg-type]
    assert caught.value.offset is not None
    return caught.value


def only(archive: bytes, **options: object) -> Entry:
    (entry,) = entries(archive + END, **options)
    return entry


# -- plain entries ----------------------------------------------------------------------------------


def test_every_type_is_read_with_its_own_fields() -> None:
    archive = b"".join(
        [
            header(b"dir/", flag=b"5", mode=b"0001777\0", uid=b"0001750\0"),
            member(b"hello", b"dir/file", mtime=b"00000000012\0"),
            header(b"link", flag=b"2", link=b"dir/file"),
            header(b"hard", flag=b"1", link=b"dir/file"),
            header(b"null", flag=b"3", major=b"0000001\0", minor=b"0000003\0"),
            header(b"disk", flag=b"4", major=b"0000010\0", minor=b"0000021\0"),
            header(b"pipe", flag=b"6"),
            END,
        ]
    )
    assert read_all(archive) == [
        (Entry(b"dir/", Kind.DIRECTORY, 0o1777, 1000), b""),
        (Entry(b"dir/file", Kind.FILE, 0o644, mtime_ns=10 * BILLION, size=5), b"hello"),
        (Entry(b"link", Kind.SYMLINK, 0o644, target=b"dir/file"), b""),
        (Entry(b"hard", Kind.HARDLINK, 0o644, target=b"dir/file"), b""),
        (Entry(b"null", Kind.CHARACTER, 0o644, device=(1, 3)), b""),
        (Entry(b"disk", Kind.BLOCK, 0o644, device=(8, 17)), b""),
        (Entry(b"pipe", Kind.FIFO, 0o644), b""),
    ]


@pytest.mark.parametrize("piece", [1, 7, 511, 512, 513, 4096])
def test_short_reads_change_nothing(piece: int) -> None:
    archive = pax((b"path", b"long" * 60)) + member(b"x" * 1500) + member(b"y" * 10) + header() + END
    assert read_all(archive, piece=piece) == read_all(archive)


def test_a_body_that_is_not_read_is_skipped() -> None:
    archive = member(b"x" * 5_000_000, b"a") + member(b"y", b"b") + END
    reader = TarReader(Trickle(archive, 70_000), warn=pytest.fail)
    assert [entry.path for entry in reader] == [b"a", b"b"]


def test_a_body_can_be_left_half_read_and_its_pieces_end_with_the_next_entry() -> None:
    archive = member(b"x" * 5000, b"a") + member(b"y" * 5000, b"b") + END
    reader = TarReader(Trickle(archive, 1024), warn=pytest.fail)
    iterator = iter(reader)
    next(iterator)
    stale = reader.chunks()
    next(stale)
    assert next(iterator).path == b"b"
    assert list(stale) == []
    assert b"".join(data for _, data in reader.chunks()) == b"y" * 5000


def test_pieces_are_bounded_whatever_the_stream_returns() -> None:
    class Everything:
        def __init__(self, data: bytes) -> None:
            self._file = io.BytesIO(data)

        def read(self, size: int, /) -> bytes:
            return self._file.read()

    reader = TarReader(Everything(member(b"z" * 3_000_000) + END), warn=pytest.fail)
    for _ in reader:
        assert sum(len(data) for _, data in reader.chunks()) == 3_000_000


def test_offsets_count_what_was_consumed() -> None:
    archive = member(b"x" * 700) + member(b"y") + END
    reader = TarReader(io.BytesIO(archive), warn=pytest.fail)
    seen = []
    for _ in reader:
        seen.append(reader.offset)
        list(reader.chunks())
        seen.append(reader.offset)
    assert seen == [512, 1212, 2048, 2049]
    assert reader.offset == len(archive)


def test_the_prefix_belongs_to_the_name_in_ustar_alone() -> None:
    assert only(header(b"name", rest=b"some/where")).path == b"some/where/name"
    assert only(header(b"name", rest=b"some/where", magic=b"ustar  \0")).path == b"name"
    assert only(header(b"name", rest=b"some/where", magic=bytes(8))).path == b"name"


def test_star_keeps_times_behind_a_shorter_prefix() -> None:
    rest = (b"p" * 131) + b"00000000001 00000000002 " + bytes(8) + b"tar\0"
    assert len(rest) == 166 or len(rest) == 167
    assert only(header(b"name", rest=rest.rjust(167, b"p"))).path.startswith(b"p" * 131 + b"/")


def test_names_are_bytes_to_the_first_nul() -> None:
    assert only(header(b"a\xff\n \\\0rest")).path == b"a\xff\n \\"
    assert only(header(b"x" * 100)).path == b"x" * 100


def test_type_bits_of_a_mode_are_masked_away() -> None:
    assert only(header(mode=b"0104755\0")).mode == 0o4755


def test_a_v7_file_whose_name_ends_in_a_slash_is_a_directory() -> None:
    found = read_all(header(b"old/", flag=b"\0", magic=bytes(8)) + header(b"new") + END)
    assert [entry.kind for entry, _ in found] == [Kind.DIRECTORY, Kind.FILE]


def test_a_contiguous_file_is_a_file() -> None:
    assert only(member(b"x", flag=b"7")).kind is Kind.FILE


def test_an_unknown_type_is_a_file_with_a_warning() -> None:
    said: list[str] = []
    found = read_all(member(b"data", b"odd", flag=b"Z") + END, warnings=said)
    assert found == [(Entry(b"odd", Kind.FILE, 0o644, size=4), b"data")]
    assert len(said) == 1
    assert "'Z'" in said[0]
    assert "'odd'" in said[0]


def test_what_the_warning_raises_ends_the_reading() -> None:
    def refuse(message: str) -> None:
        raise LayerError(message)

    with pytest.raises(LayerError, match="unknown type"):
        list(TarReader(io.BytesIO(header(flag=b"Z") + END), warn=refuse))


def test_volume_labels_and_global_headers_create_nothing() -> None:
    said: list[str] = []
    archive = (
        header(b"label", flag=b"V")
        + pax((b"comment", b"a commit"), flag=b"g")
        + pax((b"uid", b"7"), flag=b"g")
        + header(b"real")
        + END
    )
    assert entries(archive, warnings=said) == [Entry(b"real", Kind.FILE, 0o644)]
    assert ["uid" in message for message in said] == [True]


def test_an_incremental_directory_is_a_directory() -> None:
    found = read_all(member(b"Yname\0\0", b"dir/", flag=b"D") + header(b"next") + END)
    assert [entry.kind for entry, _ in found] == [Kind.DIRECTORY, Kind.FILE]


def test_a_file_continued_from_another_volume_is_refused() -> None:
    assert error(member(b"x", flag=b"M") + END).entry == b"file"


# -- sizes of what has no data ----------------------------------------------------------------------


@pytest.mark.parametrize("flag", [b"1", b"2", b"5", b"6"])
def test_a_size_without_data_is_ignored(flag: bytes) -> None:
    said: list[str] = []
    archive = header(b"odd", flag=flag, size=5, link=b"file") + header(b"next") + END
    assert names(read_all(archive, warnings=said)) == [b"odd", b"next"]
    assert "size of 5" in said[0]
    assert entries(archive, warnings=[])[0].size == 0


@pytest.mark.parametrize("piece", [512, 1 << 20])
def test_data_of_a_hard_link_is_skipped(piece: int) -> None:
    archive = member(b"d" * 1300, b"hard", flag=b"1", link=b"file") + header(b"next") + END
    assert names(read_all(archive, piece=piece, warnings=[])) == [b"hard", b"next"]
    archive = pax((b"size", b"1300")) + header(b"hard", flag=b"1", link=b"file")
    archive += padded(b"d" * 1300) + header(b"next") + END
    assert read_all(archive, piece=piece, warnings=[])[0] == (
        Entry(b"hard", Kind.HARDLINK, 0o644, target=b"file"),
        b"",
    )


# -- numbers ----------------------------------------------------------------------------------------


def base256(value: int, length: int) -> bytes:
    data = bytearray(value.to_bytes(length, "big", signed=True))
    data[0] |= 0x80
    return bytes(data)


def test_base_256_numbers_are_read() -> None:
    entry = only(header(uid=base256(3_000_000_000, 8), mtime=base256(-5, 12)))
    assert (entry.uid, entry.mtime_ns) == (3_000_000_000, -5 * BILLION)


@pytest.mark.parametrize("field", [b"   644 \0", b"0000644 ", b"00000644", b"\0\x00000644", b"644\0\0\0\0\0"])
def test_octal_numbers_come_with_blanks_and_nuls_of_every_kind(field: bytes) -> None:
    assert only(header(mode=field)).mode == 0o644


def test_twelve_digits_of_a_size_are_a_number() -> None:
    assert read_all(header(size=b"000000000003") + padded(b"abc") + END)[0][1] == b"abc"


@pytest.mark.parametrize(
    "fields",
    [
        {"size": base256(-1, 12)},
        {"size": b"-0000000001\0"},
        {"size": b"0000000_001\0"},
        {"size": b"00000000008\0"},
        {"size": b"0x000000010\0"},
        {"size": base256(1 << 70, 12)},
        {"uid": base256(-1, 8)},
        {"uid": base256(0xFFFFFFFF, 8)},
        {"gid": base256(1 << 40, 8)},
        {"mode": base256(-1, 8)},
        {"mtime": base256(1 << 80, 12)},
        {"mtime": b"yesterday!!\0"},
        {"flag": b"3", "major": b"0010000\0"},
        {"flag": b"4", "minor": b"4000000\0"},
        {"flag": b"4", "minor": base256(-1, 8)},
    ],
)
def test_numbers_out_of_range_are_errors_that_name_the_entry(fields: dict[str, bytes]) -> None:
    found = error(header() + header(b"bad", **fields) + END)  # type: ignore[arg-type]
    assert found.entry == b"bad"
    assert found.offset is not None
    assert 512 <= found.offset <= 1024


def test_the_largest_ids_and_devices_are_read() -> None:
    assert only(header(uid=base256(0xFFFFFFFE, 8))).uid == 0xFFFFFFFE
    assert only(header(flag=b"3", major=b"0007777\0", minor=b"3777777\0")).device == (4095, 1048575)


# -- checksums and truncation -----------------------------------------------------------------------


def signed(block: bytes) -> bytes:
    return b"%06o\0 " % sum(byte - 256 if byte > 127 else byte for byte in block)


def test_sums_of_signed_bytes_are_accepted() -> None:
    assert only(header(b"\xe4\xff\x80", checksum=signed)).path == b"\xe4\xff\x80"


def test_sums_beyond_the_modulus_of_adler_are_exact() -> None:
    wide = b"\xff" * 100
    rest = b"\xff" * 167
    assert only(header(wide, rest=rest, magic=bytes(8), link=wide)).path == wide

    def wrapped(block: bytes) -> bytes:
        return b"%06o\0 " % (sum(block) - 65521)

    error(header() + header(wide, rest=rest, link=wide, checksum=wrapped) + END)


@pytest.mark.parametrize("place", [0, 100, 124, 148, 156, 257, 345, 511])
def test_a_damaged_header_is_an_error_with_its_offset(place: int) -> None:
    archive = bytearray(header(b"first") + header(b"second") + END)
    archive[512 + place] ^= 1
    found = error(bytes(archive))
    assert (found.entry, found.offset) == (b"first", 512)


@pytest.mark.parametrize("content", [b"\x1f\x8b" + bytes(600), b"{}", b"PK\3\4" * 300, b"x" * 512])
def test_what_is_no_tar_is_refused_at_once(content: bytes) -> None:
    assert "not a tar archive" in str(error(content))


def test_truncation_anywhere_is_an_error() -> None:
    archive = (
        pax((b"path", b"a/long"), (b"mtime", b"1.5"))
        + member(b"d" * 700, b"short")
        + member(b"L" * 120 + b"\0", b"././@LongLink", flag=b"L")
        + member(b"e" * 512, b"x")
    )
    whole = {0, len(archive), 2048 + 512}
    for length in range(0, len(archive), 37):
        if length not in whole:
            found = error(archive[:length])
            assert found.offset is not None
            assert found.offset <= length
    for length in sorted(whole - {2048 + 512}):
        entries(archive[:length])


def test_an_extended_header_without_its_entry_is_an_error() -> None:
    error(pax((b"path", b"x")))
    error(pax((b"path", b"x")) + END)
    error(member(b"name\0", flag=b"L") + END)


def test_no_end_marker_an_empty_stream_and_one_zero_block_are_accepted() -> None:
    assert entries(b"") == []
    assert entries(END) == []
    assert entries(bytes(512)) == []
    assert names(read_all(header())) == [b"file"]
    assert names(read_all(header() + bytes(512))) == [b"file"]
    assert names(read_all(header() + bytes(700))) == [b"file"]


def test_data_after_one_zero_block_is_an_error() -> None:
    found = error(header() + bytes(512) + header(b"hidden") + END)
    assert "after a zero block" in str(found)
    assert found.offset == 1024


def test_zeros_after_the_end_are_read_and_other_bytes_are_warned_of() -> None:
    said: list[str] = []
    assert names(read_all(header() + bytes(10240), warnings=said)) == [b"file"]
    assert said == []
    assert names(read_all(header() + END + header(b"hidden"), piece=512, warnings=said)) == [b"file"]
    assert len(said) == 1


def test_an_entry_without_a_name_or_a_link_without_a_target_is_an_error() -> None:
    error(header(b"") + END)
    error(header(b"", flag=b"5") + END)
    error(header(b"l", flag=b"2") + END)
    error(header(b"l", flag=b"1") + END)


# -- long names and PAX -----------------------------------------------------------------------------


def test_gnu_long_names_replace_those_of_the_header() -> None:
    archive = (
        member(b"t" * 300 + b"\0", b"././@LongLink", flag=b"K")
        + member(b"n" * 5000 + b"\0", b"././@LongLink", flag=b"L")
        + header(b"n" * 100, flag=b"2", link=b"t" * 100)
        + header(b"next")
        + END
    )
    found = entries(archive)
    assert (found[0].path, found[0].target) == (b"n" * 5000, b"t" * 300)
    assert found[1].path == b"next"


def test_records_replace_the_fields_of_the_next_entry_alone() -> None:
    archive = (
        pax((b"path", b"p"), (b"uid", b"5000000"), (b"gid", b"6"), (b"mtime", b"-1.25"), (b"size", b"3"),
            (b"linkpath", b"ignored"), (b"SCHILY.xattr.user.a", b"\0=\n"), (b"SCHILY.xattr.user.empty", b""))
        + header(size=0) + padded(b"abc") + header(b"next") + END
    )  # fmt: skip
    xattrs = {b"user.a": b"\0=\n", b"user.empty": b""}
    assert read_all(archive) == [
        (Entry(b"p", Kind.FILE, 0o644, 5_000_000, 6, -1_250_000_000, 3, xattrs=xattrs), b"abc"),
        (Entry(b"next", Kind.FILE, 0o644), b""),
    ]


@pytest.mark.parametrize(
    ("text", "time"),
    [
        (b"0", 0),
        (b"1.", BILLION),
        (b"1700000000.123456789", 1_700_000_000_123_456_789),
        (b"1700000000.1234567899999", 1_700_000_000_123_456_789),
        (b"0.000000001", 1),
        (b"-0.000000001", -1),
        (b"-1.0000000005", -BILLION - 1),
        (b"-1.0000000000", -BILLION),
        (b"9007199254740993.5", 9_007_199_254_740_993_500_000_000),
    ],
)
def test_times_are_exact_and_rounded_down(text: bytes, time: int) -> None:
    assert only(pax((b"mtime", text)) + header()).mtime_ns == time


@pytest.mark.parametrize(
    "text", [b"-", b".5", b"1e9", b" 1", b"1_0", b"nan", b"1.5\n", b"9" * 20, b"+1", b"1.-5"]
)
def test_times_that_are_no_numbers_are_errors(text: bytes) -> None:
    error(pax((b"mtime", text)) + header() + END)


@pytest.mark.parametrize(
    "records",
    [
        b"5 a=b\n",
        b"7 a=b\n",
        b"06a=b\n",
        b"6 a=bc",
        b"99 a=b\n",
        b" a=b\n",
        b"-6 a=b\n",
        b"+6 a=b\n",
        b"0 a=b\n",
        b"6 =ab\n",
        b"6 abc\n",
        b"6 \0=b\n",
        b"6 a=b\n\0\0",
        b"99999999999999999999999 a=b\n",
        b"a",
    ],
)
def test_malformed_records_are_errors(records: bytes) -> None:
    error(member(records, flag=b"x") + header() + END)


def test_an_empty_value_leaves_the_header_s() -> None:
    assert only(pax((b"path", b""), (b"uid", b""), (b"size", b"")) + header(b"kept")).path == b"kept"


@pytest.mark.parametrize(
    "pair",
    [
        (b"path", b"a\0b"),
        (b"linkpath", b"a\0b"),
        (b"uid", b"-1"),
        (b"uid", b"4294967295"),
        (b"gid", b"0x10"),
        (b"size", b"-1"),
        (b"size", b"9223372036854775808"),
        (b"size", b"1.5"),
        (b"SCHILY.xattr.", b"value"),
        (b"LIBARCHIVE.xattr.user.a", b"!!"),
        (b"LIBARCHIVE.xattr.user%00a", b"YQ"),
    ],
)
def test_records_out_of_range_are_errors(pair: tuple[bytes, bytes]) -> None:
    error(pax(pair) + header() + END)


def test_xattrs_of_libarchive_are_decoded_and_the_plain_form_wins() -> None:
    entry = only(
        pax(
            (b"LIBARCHIVE.xattr.user.a%3Db%20c", b"AP8"),
            (b"LIBARCHIVE.xattr.user.both", b"eA"),
            (b"SCHILY.xattr.user.both", b"y"),
            (b"LIBARCHIVE.xattr.user.none", b""),
        )
        + header()
    )
    assert entry.xattrs == {b"user.a=b c": b"\0\xff", b"user.both": b"y", b"user.none": b""}


def test_an_access_list_in_text_form_is_warned_of() -> None:
    said: list[str] = []
    only(pax((b"SCHILY.acl.access", b"user::rw-")) + header(), warnings=said)
    assert len(said) == 1


def test_budgets_bound_what_describes_entries() -> None:
    budget = dataclasses.replace(DEFAULT_BUDGET, pax_bytes=1000, name_bytes=1000, segments=2)
    for archive in (
        pax((b"comment", b"c" * 1000)),
        pax((b"comment", b"c" * 1000), flag=b"g"),
        header(flag=b"x", size=1 << 32),
        member(b"n" * 1001, flag=b"L"),
        pax((b"GNU.sparse.map", b"0,1,2,1,4,1"), (b"GNU.sparse.size", b"9")) + member(b"abc"),
    ):
        with pytest.raises(BudgetError):
            read_all(archive + END, budget=budget)


# -- sparse files -----------------------------------------------------------------------------------


def sparse_pieces(archive: bytes, piece: int = 1 << 20) -> tuple[Entry, list[tuple[int, bytes]]]:
    reader = TarReader(Trickle(archive, piece), warn=pytest.fail)
    found = [(entry, list(reader.chunks())) for entry in reader]
    assert [entry.path for entry, _ in found] == [b"sparse", b"next"]
    return found[0]


def old_map(*pairs: tuple[int, int]) -> bytes:
    return b"".join(b"%011o\0%011o\0" % pair for pair in pairs)


TAIL = header(b"next") + END


@pytest.mark.parametrize("piece", [100, 512, 1 << 20])
def test_all_four_forms_of_sparse_files_are_read(piece: int) -> None:
    major, minor, size = (b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), b"GNU.sparse.size"
    name, data = (b"GNU.sparse.name", b"sparse"), padded(b"aabbb")
    real = old_map((10, 2), (4096, 3)).ljust(96, b"\0") + b"\0" + b"%012o" % (1 << 35)
    gnu = {"flag": b"S", "size": 5, "magic": b"ustar  \0"}
    big = 1 << 35
    forms = [
        header(b"sparse", rest=bytes(41) + real, **gnu) + data,
        pax((size, b"%d" % big), (b"GNU.sparse.numblocks", b"2"), (b"GNU.sparse.offset", b"10"),
            (b"GNU.sparse.numbytes", b"2"), (b"GNU.sparse.offset", b"4096"), (b"GNU.sparse.numbytes", b"3"))
        + header(b"sparse", size=5) + data,
        pax((size, b"%d" % big), (b"GNU.sparse.map", b"10,2,4096,3"), name) + header(b"x", size=5) + data,
        pax(major, minor, name, (b"GNU.sparse.realsize", b"%d" % big))
        + header(b"GNUSparseFile.0/sparse", size=517) + padded(b"2\n10\n2\n4096\n3\n") + data,
    ]  # fmt: skip
    for form in forms:
        entry, pieces = sparse_pieces(form + TAIL, piece)
        assert entry == Entry(b"sparse", Kind.FILE, 0o644, size=big, segments=((10, 2), (4096, 3)))
        assert pieces == [(10, b"aa"), (4096, b"bbb")]


def test_an_old_map_goes_on_in_extension_blocks() -> None:
    pairs = [(1024 * i, 1) for i in range(30)]
    rest = bytes(41) + old_map(*pairs[:4]) + b"\1" + b"%011o\0" % 40000
    archive = header(b"sparse", flag=b"S", size=30, rest=rest, magic=b"ustar  \0")
    archive += (old_map(*pairs[4:25]) + b"\1").ljust(512, b"\0") + old_map(*pairs[25:]).ljust(512, b"\0")
    entry, pieces = sparse_pieces(archive + padded(bytes(range(30))) + TAIL, 512)
    assert entry.segments == tuple(pairs)
    assert pieces == [(1024 * i, bytes([i])) for i in range(30)]


@pytest.mark.parametrize(
    ("text", "size", "length"),
    [
        (b"0,3,2,2", b"10", 5),
        (b"5,3,0,2", b"10", 5),
        (b"0,5", b"4", 5),
        (b"0,4", b"10", 5),
        (b"0,6", b"10", 5),
        (b"0", b"10", 5),
        (b"0,-5", b"10", 5),
        (b"0,5,,", b"10", 5),
        (b"0,5", b"", 5),
        (b"0,5", b"-1", 5),
    ],
)
def test_maps_that_do_not_fit_their_file_are_errors(text: bytes, size: bytes, length: int) -> None:
    archive = pax((b"GNU.sparse.map", text), (b"GNU.sparse.size", size)) + member(b"x" * length)
    error(archive + END)


@pytest.mark.parametrize("table", [b"", b"x\n", b"1\n0\n", b"1\n" + b"1" * 600, b"99999999\n", b"-1\n"])
def test_malformed_maps_in_the_data_are_errors(table: bytes) -> None:
    records = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9")]
    with pytest.raises((LayerError, BudgetError)):
        read_all(pax(*records) + member(padded(table or bytes(512))) + END)


def test_a_sparse_file_of_an_unknown_version_is_refused() -> None:
    error(pax((b"GNU.sparse.major", b"2"), (b"GNU.sparse.minor", b"0")) + member(b"x") + END)


# -- what real programs write -----------------------------------------------------------------------


@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_archives_of_gnu_tar_are_read(form: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"hello" * 1000)
    (tree / "link").symlink_to("file")
    (tree / "hard").hardlink_to(tree / "file")
    if form not in ("v7", "ustar"):
        (tree / ("n" * 200)).write_bytes(b"long")
    subprocess.run(
        ["tar", "--sort=name", f"--format={form}", "-cf", tmp_path / "a.tar", "-C", tree, "."], check=True
    )
    found = {
        entry.path.rstrip(b"/"): (entry, data) for entry, data in read_all((tmp_path / "a.tar").read_bytes())
    }
    assert found[b"."][0].kind is Kind.DIRECTORY
    assert found[b"./file"][1] == b"hello" * 1000
    assert found[b"./hard"][0].target == b"./file"
    assert found[b"./link"][0].target == b"file"
    if form == "posix":
        assert found[b"./file"][0].mtime_ns == (tree / "file").stat().st_mtime_ns
    if form not in ("v7", "ustar"):
        assert found[b"./" + b"n" * 200][1] == b"long"


@pytest.mark.parametrize(
    "options",
    [["--format=oldgnu"], ["--sparse-version=0.0"], ["--sparse-version=0.1"], ["--sparse-version=1.0"]],
)
def test_sparse_files_of_gnu_tar_are_read(options: list[str], tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        for i in range(40):
            file.seek(i * 65536)
            file.write(b"%d" % i)
        file.truncate(1 << 30)
    if not options[0].startswith("--format"):
        options = ["--format=posix", *options]
    archive = tmp_path / "a.tar"
    subprocess.run(["tar", "-S", *options, "-cf", archive, "-C", tmp_path, "sparse"], check=True)
    reader = TarReader(io.BytesIO(archive.read_bytes()), warn=pytest.fail)
    (entry,) = [entry for entry in reader if entry.path and (pieces := list(reader.chunks()))]
    assert entry.size == 1 << 30
    content = bytearray(40 * 65536)
    for offset, data in pieces:
        content[offset : offset + len(data)] = data
    assert all(content[i * 65536 :].startswith(b"%d" % i) for i in range(40))
    assert len(bytes(content).replace(b"\0", b"")) == 70


def test_archives_of_python_are_read() -> None:
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=form) as archive:
            info = tarfile.TarInfo("d\u00e4/" * 30 + "x" * 60)
            info.size, info.mtime, info.uid = 3, 1_600_000_000, 2_000_000
            archive.addfile(info, io.BytesIO(b"abc"))
        ((entry, data),) = read_all(file.getvalue())
        assert entry == Entry(info.name.encode(), Kind.FILE, 0o644, 2_000_000, 0, 1_600_000_000 * BILLION, 3)
        assert data == b"abc"
