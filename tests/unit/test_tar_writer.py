"""The tar writer: plain where it can be, exact always, and read alike by GNU tar and Python."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from layerfs.errors import LayerError
from layerfs.tree.entry import Entry, Kind
from layerfs.tree.tar_writer import TarWriter
from tests.support.tars import read_all

BILLION = 1_000_000_000


def write(*entries: tuple[Entry, bytes]) -> bytes:
    out = io.BytesIO()
    writer = TarWriter(out.write)
    for entry, data in entries:
        writer.add(entry, (data,))
    writer.close()
    return out.getvalue()


def again(entry: Entry, data: bytes = b"") -> Entry:
    ((found, content),) = read_all(write((entry, data)))
    assert content == data
    return found


def test_a_plain_entry_is_one_header_that_python_writes_too() -> None:
    ours = write((Entry(b"usr/bin/a", Kind.FILE, 0o755, 1, 2, 1_700_000_000 * BILLION, 3), b"abc"))
    theirs = io.BytesIO()
    with tarfile.open(fileobj=theirs, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        info = tarfile.TarInfo("usr/bin/a")
        info.mode, info.uid, info.gid, info.mtime, info.size = 0o755, 1, 2, 1_700_000_000, 3
        archive.addfile(info, io.BytesIO(b"abc"))
    theirs_entry = bytearray(theirs.getvalue()[:1024])
    ours_entry = bytearray(ours[:1024])
    # Python leaves device numbers of other files empty; so the checksums differ too.
    for block in (theirs_entry, ours_entry):
        del block[329:345], block[148:156]
    assert ours_entry == theirs_entry
    assert len(ours) == 2048
    assert ours[1024:] == bytes(1024)


@pytest.mark.parametrize(
    "entry",
    [
        Entry(b"a", Kind.FILE, 0o7777, 0o7777777, 0o7777777, 0o77777777777 * BILLION),
        Entry(b"a", Kind.FILE, 0o644, 0o10000000, 0xFFFFFFFE),
        Entry(b"a", Kind.FILE, mtime_ns=-1),
        Entry(b"a", Kind.FILE, mtime_ns=-1_500_000_000),
        Entry(b"a", Kind.FILE, mtime_ns=0o77777777777 * BILLION + BILLION),
        Entry(b"a", Kind.FILE, mtime_ns=1_700_000_000_123_456_789),
        Entry(b"n" * 100, Kind.FILE),
        Entry(b"n" * 101, Kind.FILE),
        Entry(b"p" * 155 + b"/" + b"n" * 100, Kind.FILE),
        Entry(b"p" * 156 + b"/" + b"n" * 100, Kind.FILE),
        Entry(b"/".join([b"d" * 255] * 20), Kind.FILE),
        Entry("gr\u00fcn".encode(), Kind.FILE),
        Entry(b"\xff\xfe\n\\", Kind.FILE),
        Entry(b"\xff" * 101, Kind.FILE),
        Entry(b"\xff" * 100 + b"/" + b"\xfe" * 100, Kind.FILE),
        Entry(b"\xff" * 200 + b"/" + b"\xfe" * 200, Kind.FILE),
        Entry(b"l", Kind.SYMLINK, 0o777, target=b"t" * 4095),
        Entry(b"l", Kind.SYMLINK, 0o777, target=b"\xff"),
        Entry(b"l", Kind.SYMLINK, 0o777, target=b"\xff" * 101),
        Entry(b"h", Kind.HARDLINK, 0o644, target="\u00e4".encode()),
        Entry(b"d/", Kind.DIRECTORY, 0o1755),
        Entry(b"d" * 99 + b"/", Kind.DIRECTORY),
        Entry(b"p" * 60 + b"/" + b"d" * 99 + b"/", Kind.DIRECTORY),
        Entry(b"c", Kind.CHARACTER, 0o600, device=(4095, 1048575)),
        Entry(b"b", Kind.BLOCK, 0o600, device=(0, 0)),
        Entry(b"f", Kind.FIFO, 0o600),
        Entry(b"x", Kind.FILE, xattrs={b"user.a": b"", b"user.b": b"\0\n=", b"user.c=d%\xff": b"\0\xff"}),
    ],
)
def test_what_is_written_is_read_again(entry: Entry) -> None:
    assert again(entry) == entry


def test_directories_end_in_a_slash_and_the_root_is_a_dot() -> None:
    assert again(Entry(b"d", Kind.DIRECTORY)).path == b"d/"
    assert again(Entry(b"", Kind.DIRECTORY)).path == b"./"


def test_names_without_text_stand_in_the_header_alone_if_they_fit() -> None:
    assert len(write((Entry(b"\xff" * 100, Kind.FILE), b""))) == 512 + 1024


@pytest.mark.parametrize(
    "segments", [(), ((0, 3),), ((5, 2), (4096, 3)), ((1 << 40, 1),), ((0, 1), (9999, 1))]
)
def test_sparse_files_keep_their_map(segments: tuple[tuple[int, int], ...]) -> None:
    size = (1 << 41) if not segments or segments[-1][0] > 5000 else sum(segments[-1])
    entry = Entry(b"d/\xc3\xa4" + b"x" * 120, Kind.FILE, 0o600, size=size, segments=segments)
    assert again(entry, b"x" * sum(length for _, length in segments)) == entry


def test_the_same_entries_give_the_same_bytes_however_they_come() -> None:
    one = Entry(b"a", Kind.FILE, size=600_000, xattrs={b"user.a": b"1", b"user.b": b"2"})
    two = one._replace(xattrs={b"user.b": b"2", b"user.a": b"1"})
    data = b"x" * 600_000
    out = io.BytesIO()
    writer = TarWriter(out.write)
    writer.add(two, (data[i : i + 1000] for i in range(0, len(data), 1000)))
    writer.close()
    assert out.getvalue() == write((one, data))


@pytest.mark.parametrize("chunks", [(), (b"ab",), (b"abcd",), (b"abc", b"d")])
def test_data_of_another_length_is_an_error(chunks: Iterable[bytes]) -> None:
    with pytest.raises(LayerError):
        TarWriter(lambda data: None).add(Entry(b"a", Kind.FILE, size=3), chunks)


@pytest.mark.parametrize(
    "entry",
    [
        Entry(b"s", Kind.SOCKET),
        Entry(b"", Kind.FILE),
        Entry(b"a\0b", Kind.FILE),
        Entry(b"a\0b", Kind.FILE, size=5, segments=()),
        Entry(b"", Kind.FILE, size=5, segments=()),
        Entry(b"a", Kind.SYMLINK, target=b"x\0"),
        Entry(b"a", Kind.FILE, size=2, segments=((0, 3),)),
    ],
)
def test_what_tar_cannot_hold_is_an_error(entry: Entry) -> None:
    with pytest.raises(LayerError):
        TarWriter(lambda data: None).add(entry)


def odd_tree() -> list[tuple[Entry, bytes]]:
    time = 1_700_000_000_123_456_789
    long = b"d" * 200 + b"/" + b"e" * 200
    return [
        (Entry(b"d" * 200, Kind.DIRECTORY, 0o700, mtime_ns=time), b""),
        (Entry(long, Kind.FILE, 0o640, mtime_ns=time, size=4), b"long"),
        (Entry(b"\xff\xfe", Kind.FILE, 0o600, mtime_ns=-BILLION, size=3), b"raw"),
        (Entry("\u00fc".encode(), Kind.SYMLINK, 0o777, mtime_ns=time, target=b"t" * 150), b""),
        (Entry(b"hard", Kind.HARDLINK, 0o640, mtime_ns=time, target=long), b""),
        (Entry(b"holes", Kind.FILE, 0o600, mtime_ns=time, size=1 << 30, segments=((4096, 512), (1 << 20, 2))),
         b"a" * 512 + b"bc"),
        (Entry(b"tail", Kind.FILE, 0o600, mtime_ns=5 * BILLION, size=5, segments=((0, 5),)), b"abcde"),
    ]  # fmt: skip


def test_gnu_tar_unpacks_the_same_tree(tmp_path: Path) -> None:
    subprocess.run(
        ["tar", "-xf", "-", "-C", tmp_path], input=write(*odd_tree()), capture_output=True, check=True
    )
    root = os.fsencode(tmp_path)
    for entry, data in odd_tree():
        path = root + b"/" + entry.path
        found = os.lstat(path)
        if entry.kind is Kind.SYMLINK:
            assert os.readlink(path) == entry.target
            continue
        assert found.st_mtime_ns == entry.mtime_ns
        assert found.st_mode & 0o777 == entry.mode
        if entry.kind is Kind.FILE:
            assert found.st_size == entry.size
            with open(path, "rb") as file:
                for offset, length in entry.segments or ((0, entry.size),):
                    file.seek(offset)
                    assert file.read(length) == data[:length]
                    data = data[length:]
    assert os.stat(root + b"/hard").st_nlink == 2
    assert os.stat(root + b"/holes").st_blocks < 1000


def test_python_reads_the_same_entries() -> None:
    with tarfile.open(fileobj=io.BytesIO(write(*odd_tree()))) as archive:
        for info, (entry, data) in zip(archive, odd_tree(), strict=True):
            assert info.name.encode("utf-8", "surrogateescape") == entry.path
            assert info.mode == entry.mode
            assert info.size == entry.size
            if info.isreg() and not info.issparse():
                file = archive.extractfile(info)
                assert file is not None
                assert file.read() == data
