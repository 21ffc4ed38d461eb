"""Writes one layer as a tar: entries of packages and generated ones, in one form whatever they came from."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Final

TIME: Final = 1_700_000_000
_PIECE: Final = 1 << 20
# Where Debian 12 has symlinks and its packages still say the short name.
_MERGED: Final = ("bin", "sbin", "lib", "lib64")


class LayerWriter:
    """Writes a layer: names without a leading ``./``, directories once, parents before what is in them.

    A context manager.

    Attributes:
        entries: how many were written.
        size: the sum of the files' lengths, in bytes.
    """

    def __init__(self, path: Path) -> None:
        self._archive = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self._seen: set[str] = set()
        self.entries = 0
        self.size = 0

    def __enter__(self) -> LayerWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._archive.close()

    def file(self, name: str, data: bytes, *, mode: int = 0o644) -> None:
        """Write a file that was generated."""
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode, entry.mtime = len(data), mode, TIME
        self.add(entry, io.BytesIO(data))

    def generated(self, name: str, size: int, pieces: Iterable[bytes]) -> None:
        """Write a large file, piece by piece."""
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode, entry.mtime = size, 0o644, TIME
        self.add(entry, io.BufferedReader(_Pieces(pieces), _PIECE))

    def symlink(self, name: str, target: str) -> None:
        """Write a symbolic link."""
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname, entry.mode, entry.mtime = tarfile.SYMTYPE, target, 0o777, TIME
        self.add(entry)

    def directory(self, name: str, *, mode: int = 0o755) -> None:
        """Write a directory, unless it is there."""
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, mode, TIME
        self.add(entry)

    def whiteout(self, name: str) -> None:
        """Delete what a layer below has under this name."""
        parent, _, last = name.rpartition("/")
        self.file(f"{parent}/.wh.{last}", b"")

    def package(self, archive: tarfile.TarFile) -> None:
        """Take over the files of a Debian package."""
        for entry in archive:
            entry.name = _place(entry.name)
            if entry.islnk():
                entry.linkname = _place(entry.linkname)
            if entry.name:
                entry.uname = entry.gname = ""
                self.add(entry, archive.extractfile(entry) if entry.isreg() else None)

    def add(self, entry: tarfile.TarInfo, data: IO[bytes] | None = None) -> None:
        """Write an entry; one whose name is taken already in this layer is left out."""
        if entry.name in self._seen:
            return
        parent = entry.name.rpartition("/")[0]
        if parent and parent not in self._seen:
            self.directory(parent)
        self._seen.add(entry.name)
        self._archive.addfile(entry, data)
        self.entries += 1
        self.size += entry.size if entry.isreg() else 0


class _Pieces(io.RawIOBase):
    """A file that gives pieces one after the other."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._rest = self._rest or next(self._pieces, b"")
        length = min(len(buffer), len(self._rest))
        buffer[:length], self._rest = self._rest[:length], self._rest[length:]
        return length


def _place(name: str) -> str:
    name = name.removeprefix("./").strip("/")
    first, slash, rest = name.partition("/")
    if first in _MERGED:
        return f"usr/{first}{slash}{rest}"
    return "" if name == "." else name
