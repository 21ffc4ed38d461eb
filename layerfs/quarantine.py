"""Moves aside what is damaged, or nobody knows, so that a repair never deletes what somebody may want back.

ROOT/quarantine/WHAT...     as it was found; nothing of layerfs reads it, and nothing removes it but its owner
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from layerfs import failpoints, files, mounting
from layerfs.errors import InUseError

DIRECTORY: Final = "quarantine"
_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# Of the 255 bytes of a file's name, so that a number fits behind.
_LONGEST: Final = 150


class Quarantine:
    """The quarantine of one store; its directory is made with the first thing that comes."""

    def __init__(self, root: Path) -> None:
        self.directory = root / DIRECTORY
        # How often each name was wanted: thousands of files may be called alike.
        self._given: dict[str, int] = {}

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
        """Copy a regular file of an open directory here; None where it is none.

        Raises:
            OSError: it cannot be read, or there is no room for it; nothing of it stays here then.
        """
        source = os.open(name, _OPEN, dir_fd=directory)
        try:
            found = os.fstat(source)
            if not stat.S_ISREG(found.st_mode):
                return None
            place = self.place(called)
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
        text = called.replace(":", "-").replace("/", "-").lstrip(".")
        plain = os.fsencode(text)[:_LONGEST].decode("utf-8", "ignore") or "unnamed"
        number = self._given.get(plain, 0)
        while True:
            number += 1
            place = self.directory / (plain if number == 1 else f"{plain}.{number}")
            if not os.path.lexists(place):
                self._given[plain] = number
                return place

    def occupied(self) -> tuple[int, int]:
        """Count what is here, in bytes and inodes."""
        if not self.directory.is_dir():
            return 0, 0
        from layerfs.directories import occupied

        size, inodes = occupied([self.directory])
        return size, inodes - 1
