"""Tar blocks by hand, so that tests can write what no sane program does."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from layerfs.tree.budget import DEFAULT_BUDGET, Budget
from layerfs.tree.entry import Entry
from layerfs.tree.tar_reader import TarReader

END = bytes(1024)


def header(
    name: bytes = b"file",
    *,
    flag: bytes = b"0",
    size: bytes | int = 0,
    mode: bytes = b"0000644\0",
    uid: bytes = b"0000000\0",
    gid: bytes = b"0000000\0",
    mtime: bytes = b"00000000000\0",
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    major: bytes = b"0000000\0",
    minor: bytes = b"0000000\0",
    rest: bytes = b"",
    checksum: Callable[[bytes], bytes] | None = None,
) -> bytes:
    """Make a header block; `rest` stands from byte 345 on, `checksum` makes that field from the block."""
    if isinstance(size, int):
        size = b"%011o\0" % size
    block = b"".join(
        [
            name.ljust(100, b"\0"), mode, uid, gid, size, mtime, b" " * 8, flag, link.ljust(100, b"\0"),
            magic, bytes(64), major, minor, rest.ljust(167, b"\0"),
        ]
    )  # fmt: skip
    assert len(block) == 512
    field = b"%06o\0 " % sum(block) if checksum is None else checksum(block)
    return block[:148] + field + block[156:]


def padded(data: bytes) -> bytes:
    """Fill the last block of a body."""
    return data + bytes(-len(data) % 512)


def member(data: bytes, name: bytes = b"file", **fields: Any) -> bytes:
    """Make a header and its body."""
    return header(name, size=len(data), **fields) + padded(data)


def record(keyword: bytes, value: bytes) -> bytes:
    """Make one PAX record."""
    length = len(keyword) + len(value) + 3
    while length != len(keyword) + len(value) + 3 + len(str(length)):
        length = len(keyword) + len(value) + 3 + len(str(length))
    return b"%d %b=%b\n" % (length, keyword, value)


def pax(*records: tuple[bytes, bytes], flag: bytes = b"x") -> bytes:
    """Make an extended header with its body."""
    return member(b"".join(record(*pair) for pair in records), b"PaxHeaders/file", flag=flag)


class Trickle:
    """A stream that gives at most `piece` bytes at once."""

    def __init__(self, data: bytes, piece: int) -> None:
        self._file = io.BytesIO(data)
        self._piece = piece

    def read(self, size: int, /) -> bytes:
        return self._file.read(min(size, self._piece))


def read_all(
    archive: bytes,
    *,
    piece: int = 1 << 20,
    budget: Budget = DEFAULT_BUDGET,
    warnings: list[str] | None = None,
) -> list[tuple[Entry, bytes]]:
    """Read a whole archive: each entry with the data that it has, holes left out."""
    said: list[str] = [] if warnings is None else warnings
    reader = TarReader(Trickle(archive, piece), budget=budget, warn=said.append)
    found = [(entry, b"".join(data for _, data in reader.chunks())) for entry in reader]
    reader.drain()
    assert reader.offset == len(archive)
    return found


def entries(archive: bytes, **options: Any) -> list[Entry]:
    return [entry for entry, _ in read_all(archive, **options)]


def names(found: Sequence[tuple[Entry, bytes]]) -> list[bytes]:
    return [entry.path for entry, _ in found]
