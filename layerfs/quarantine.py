"""Moves aside what is damaged, or nobody knows, so that a repair never deletes what somebody may want back.

ROOT/quarantine/WHAT...     as it was found; nothing of layerfs reads it, and nothing removes it but its owner
"""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from layerfs import failpoints, files, mounting
from layerfs.errors import InUseError

DIRECTORY: Final = "quarantine"
_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# Of the 255 bytes of a file's name, so that a number fits behind.
_LONGEST: Final = 150
_CHUNK: Final = 1 << 20


class Quarantine:
    """The quarantine of one store; its directory is made with the first thing that comes."""

    def __init__(self, root: Path) -> None:
        self.directory = root / DIRECTORY

    def take(self, path: Path, *, called: str | None = None) -> Path:
        """Move a file or a directory here, and say where it is now.

        Raises:
            InUseError: something is mounted beneath it.
            OSError: it cannot be moved: another file system is in between.
        """
        if path.is_dir() and not path.is_symlink() and (mounts := mounting.mounts_below(path)):
            raise InUseError(f"{os.fsdecode(mounts[-1].target)} is mounted beneath {path}")
        place = self.place(called or path.name)
        failpoints.reach("check.quarantine")
        os.rename(path, place)
        return place

    def copy(self, called: str, directory: int, name: bytes) -> Path | None:
        """Copy a regular file of an open directory here; None where it is none, or its copy is here.

        Raises:
            OSError: it cannot be read, or there is no room for it; nothing of it stays here then.
        """
        source = os.open(name, _OPEN, dir_fd=directory)
        try:
            found = os.fstat(source)
            if not stat.S_ISREG(found.st_mode):
                return None
            place = self.place(called)
            if any(_is_copy(source, other) for other in self._like(called)):
                return None
            target = os.open(place, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                files.copy_data(source, target, size=found.st_size)
                os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
            except OSError:
                place.unlink()
                raise
            finally:
                os.close(target)
        finally:
            os.close(source)
        return place

    def place(self, called: str) -> Path:
        """Find a free name like `called`, which may be a path; the directory is there then."""
        self.directory.mkdir(0o700, exist_ok=True)
        return next(place for place in self._places(called) if not os.path.lexists(place))

    def _like(self, called: str) -> Iterator[Path]:
        """Give what is here by names like `called`."""
        return itertools.takewhile(os.path.lexists, self._places(called))

    def _places(self, called: str) -> Iterator[Path]:
        plain = called.replace(":", "-").replace("/", "-").lstrip(".") or "unnamed"
        encoded = os.fsencode(plain)
        if len(encoded) > _LONGEST:
            # What differs in the rest of the name has another one here: thousands may begin alike.
            whole = hashlib.sha256(encoded).hexdigest()[:16]
            plain = f"{encoded[: _LONGEST - 17].decode('utf-8', 'ignore')}-{whole}"
        yield self.directory / plain
        for number in itertools.count(2):
            yield self.directory / f"{plain}.{number}"

    def occupied(self) -> tuple[int, int]:
        """Count what is here, in bytes and inodes."""
        if not self.directory.is_dir():
            return 0, 0
        from layerfs.directories import occupied

        size, inodes = occupied([self.directory])
        return size, inodes - 1


def _is_copy(source: int, place: Path) -> bool:
    """Say whether a regular file has the bytes of an open one."""
    try:
        other = os.open(place, _OPEN)
    except OSError:
        return False
    with open(other, "rb") as file:
        found = os.fstat(other)
        if not stat.S_ISREG(found.st_mode) or found.st_size != os.fstat(source).st_size:
            return False
        start = 0
        while data := os.pread(source, _CHUNK, start):
            if file.read(len(data)) != data:
                return False
            start += len(data)
    return True
