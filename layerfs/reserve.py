"""Room kept on a store's file system for the day when it is full: a removal cannot be noted without some."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

_SIZE: Final = 2 << 20


class Reserve:
    """A file of 2 MiB that means nothing: given up when the file system is full, made again afterwards."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def keep(self) -> None:
        """See that the room is kept, if there is as much again besides: who opens the store needs some."""
        if self._path.exists() or not self._has_plenty():
            return
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(file, 0, _SIZE)
            finally:
                os.close(file)
            os.rename(temporary, self._path)
        except OSError:
            # A store on a full or read-only file system works without, as far as it does.
            with contextlib.suppress(OSError):
                temporary.unlink()

    def _has_plenty(self) -> bool:
        try:
            space = os.statvfs(self._path.parent)
        except OSError:
            return False
        return space.f_bavail * space.f_frsize >= 2 * _SIZE

    def probe(self, size: int) -> bool:
        """Say whether there are so many bytes; what a file system tells counts some that it keeps."""
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(file, 0, size)
            finally:
                os.close(file)
                temporary.unlink()
        except OSError:
            return False
        return True

    def release(self) -> bool:
        """Give the room up; says whether there was any."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True
