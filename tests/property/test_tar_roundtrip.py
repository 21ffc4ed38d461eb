"""Entries written are read the same by us, Python and GNU tar; damage is never more than an error."""

from __future__ import annotations

import contextlib
import io
import subprocess
import tarfile
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerfs.errors import BudgetError, LayerError
from layerfs.tree.entry import Entry, Kind
from layerfs.tree.tar_reader import TarReader
from layerfs.tree.tar_writer import TarWriter
from tests.support.tars import Trickle, header, read_all

quick = settings(max_examples=150, deadline=None)

MAXIMUM_ID = (1 << 32) - 2

characters = st.one_of(
    st.sampled_from([b"a", b"b", b".", b" ", b"\n", b"\\", b"\xff", b"\x01", "\u00e4".encode(), b"x" * 90])
)
parts = st.lists(characters, min_size=1, max_size=4).map(b"".join)
paths = st.lists(parts, min_size=1, max_size=6).map(b"/".join)
times = st.one_of(
    st.integers(0, 1 << 33).map(lambda seconds: seconds * 1_000_000_000),
    st.integers(-(1 << 62), 1 << 62),
)
ids = st.one_of(st.integers(0, 70_000), st.integers(0, MAXIMUM_ID))
xattr_names = st.lists(
    st.sampled_from([b"user.a", b"=", b"%", b"\xc3\xa4", b"%3D", b" "]), min_size=1, max_size=3
)
xattrs = st.dictionaries(xattr_names.map(b"".join), st.binary(max_size=20), max_size=3)


@st.composite
def members(draw: st.DrawFn) -> tuple[Entry, bytes]:
    kind = draw(st.sampled_from([kind for kind in Kind if kind is not Kind.SOCKET]))
    path = draw(paths) + (b"/" if kind is Kind.DIRECTORY else b"")
    entry = Entry(
        path, kind, draw(st.integers(0, 0o7777)), draw(ids), draw(ids), draw(times), xattrs=draw(xattrs)
    )
    if kind in (Kind.SYMLINK, Kind.HARDLINK):
        return entry._replace(target=draw(paths)), b""
    if kind in (Kind.CHARACTER, Kind.BLOCK):
        return entry._replace(device=(draw(st.integers(0, 4095)), draw(st.integers(0, 1048575)))), b""
    if kind is not Kind.FILE:
        return entry, b""
    data = draw(st.binary(max_size=1100))
    if not draw(st.booleans()):
        return entry._replace(size=len(data)), data
    segments = []
    offset = left = 0
    while left < len(data):
        offset += draw(st.integers(0, 1 << 34))
        length = draw(st.integers(1, len(data) - left))
        if segments and sum(segments[-1]) == offset:
            offset += 1
        segments.append((offset, length))
        left += length
        offset += length
    size = offset + draw(st.integers(0, 1 << 34))
    return entry._replace(size=size, segments=tuple(segments)), data


archives = st.lists(members(), max_size=6)


def write(found: list[tuple[Entry, bytes]]) -> bytes:
    out = io.BytesIO()
    writer = TarWriter(out.write)
    for entry, data in found:
        writer.add(entry, (data,))
    writer.close()
    return out.getvalue()


class TestWhatIsWrittenIsRead:
    """Streaming both ways, every field of every entry is kept."""

    @quick
    @given(archives, st.sampled_from([1, 100, 512, 1 << 20]))
    def test_by_our_reader(self, found: list[tuple[Entry, bytes]], piece: int) -> None:
        assert read_all(write(found), piece=piece) == found

    @quick
    @given(archives)
    def test_by_python(self, found: list[tuple[Entry, bytes]]) -> None:
        kinds = {
            Kind.FILE: tarfile.REGTYPE,
            Kind.DIRECTORY: tarfile.DIRTYPE,
            Kind.SYMLINK: tarfile.SYMTYPE,
            Kind.HARDLINK: tarfile.LNKTYPE,
            Kind.CHARACTER: tarfile.CHRTYPE,
            Kind.BLOCK: tarfile.BLKTYPE,
            Kind.FIFO: tarfile.FIFOTYPE,
        }
        with tarfile.open(fileobj=io.BytesIO(write(found))) as archive:
            for info, (entry, data) in zip(archive, found, strict=True):
                assert info.name.encode("utf-8", "surrogateescape") == entry.path.rstrip(b"/")
                assert info.linkname.encode("utf-8", "surrogateescape") == entry.target.rstrip(b"/")
                assert info.type == kinds[entry.kind]
                assert (info.mode, info.uid, info.gid, info.size) == (*entry[2:5], entry.size)
                assert int(info.mtime) - entry.mtime_ns // 1_000_000_000 in (0, 1)
                if entry.kind is Kind.FILE and entry.segments is None:
                    file = archive.extractfile(info)
                    assert file is not None
                    assert file.read() == data

    @settings(max_examples=25, deadline=None)
    @given(archives)
    def test_by_gnu_tar(self, found: list[tuple[Entry, bytes]]) -> None:
        # Its sparse files are made of whole blocks.
        found = [pair for pair in found if pair[0].segments is None]
        result = subprocess.run(
            ["tar", "-tf", "-", "--null", "--quoting-style=literal", "--show-transformed-names", "-P"],
            input=write(found), capture_output=True, check=True,
        )  # fmt: skip
        assert result.stdout == b"".join(entry.path + b"\n" for entry, _ in found)


class TestDamage:
    """Whatever the bytes, the reader ends with entries, a LayerError or a BudgetError, in bounded memory."""

    @settings(max_examples=300, deadline=None)
    @given(archives, st.data())
    def test_of_bytes_in_the_middle(self, found: list[tuple[Entry, bytes]], data: st.DataObject) -> None:
        archive = bytearray(write(found))
        for _ in range(data.draw(st.integers(1, 4))):
            place = data.draw(st.integers(0, len(archive) - 1))
            block = place - place % 512
            archive[place] = data.draw(
                st.sampled_from([0, 0x20, 0x2D, 0x30, 0x37, 0x39, 0x80, 0xFF, 0x0A, 0x3D])
            )
            if data.draw(st.booleans()):
                # With a right checksum the damage reaches what is behind it.
                head = archive[block : block + 148] + b" " * 8 + archive[block + 156 : block + 512]
                archive[block + 148 : block + 156] = b"%06o\0 " % sum(head)
        self._read(bytes(archive))

    @quick
    @given(archives, st.data())
    def test_by_blocks_cut_repeated_and_moved(
        self, found: list[tuple[Entry, bytes]], data: st.DataObject
    ) -> None:
        archive = write(found)
        blocks = [archive[i : i + 512] for i in range(0, len(archive), 512)]
        chosen = data.draw(st.lists(st.sampled_from(blocks), max_size=20))
        self._read(b"".join(chosen))
        self._read(archive[: data.draw(st.integers(0, len(archive)))])

    @quick
    @given(st.binary(max_size=2000))
    def test_of_everything(self, noise: bytes) -> None:
        self._read(noise)

    def _read(self, archive: bytes) -> None:
        reader = TarReader(Trickle(archive, 4096), warn=lambda message: None)
        try:
            for entry in reader:
                assert entry.path
                assert 0 <= entry.mode <= 0o7777
                assert 0 <= entry.uid <= MAXIMUM_ID
                end = 0
                for offset, piece in reader.chunks():
                    assert end <= offset
                    assert piece
                    end = offset + len(piece)
                assert end <= entry.size
            reader.drain()
        except LayerError as error:
            assert error.offset is not None
            assert error.offset <= len(archive)
        except BudgetError:
            pass


def test_a_claim_of_terabytes_costs_nothing() -> None:
    entry = Entry(b"sparse", Kind.FILE, size=1 << 45, segments=((1 << 44, 1),))
    claim = header(b"big", size=b"\x80" + bytes(5) + b"\x7f" + b"\xff" * 5)
    for content, error in ((write([(entry, b"x")]), None), (claim + b"x" * 600, LayerError)):
        tracemalloc.start()
        with contextlib.nullcontext() if error is None else pytest.raises(error):
            for _ in (reader := TarReader(io.BytesIO(content), warn=pytest.fail)):
                for _ in reader.chunks():
                    pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 << 20
