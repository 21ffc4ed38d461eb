"""A disk whose power can be cut at any moment: every write and every flush is kept, in order, as they came.

A file system lies on a loop device, the loop device on a file, and the file is served by this module through
FUSE. The kernel sends here what the file system sends to its disk: writes, which a disk may keep in its cache
and bring to its medium in any order, and flushes, which a disk answers when all before is on the medium. Both
go into a log before they are answered. So whatever a program was told is synced is in the log by then, and
each position of the log is a moment at which the power may fail: what came before the last flush is there,
and of what came after it any part, in pieces of a sector.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

_HEAD: Final = struct.Struct("<cQI")
_WRITE: Final = b"w"
_FLUSH: Final = b"f"
_SECTOR: Final = 4096
_NAME: Final = "disk"
_ROOT: Final = Path(__file__).parents[2]
_PATIENCE_SECONDS: Final = 20.0

HABITS: Final = ("nothing", "everything", "a part")
"""What of the writes since the last flush a disk keeps."""


class Record(NamedTuple):
    """One write, or one flush (without data); `end` is the position behind it in the log."""

    end: int
    flush: bool
    offset: int
    data: memoryview


def read_log(log: Path) -> list[Record]:
    """Read all records; the data stays in the file."""
    records: list[Record] = []
    if not log.stat().st_size:
        return records
    with log.open("rb") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    position = 0
    while position < len(view):
        kind, offset, length = _HEAD.unpack_from(view, position)
        position += _HEAD.size + length
        records.append(Record(position, kind == _FLUSH, offset, view[position - length : position]))
    return records


class Cutter:
    """Makes images of the disk as they are after cuts, for moments that come one after the other.

    Args:
        base: the image as it was when the log began; is changed.
        log: what was written since.
    """

    def __init__(self, base: Path, log: Path) -> None:
        self._base = base
        self._records = read_log(log)
        # All before this record is in the base.
        self._applied = 0

    @property
    def ends(self) -> list[int]:
        """The positions behind the records."""
        return [record.end for record in self._records]

    @property
    def before_flushes(self) -> list[int]:
        """The positions of which a flush is the next thing to come."""
        pairs = zip(self._records, self._records[1:], strict=False)
        return [record.end for record, after in pairs if after.flush and not record.flush]

    def cut(self, position: int, habit: str, chance: random.Random, image: Path) -> int:
        """Make the image of a disk whose power failed when the log had this length, not before the last cut.

        Returns:
            How many writes had not been flushed.
        """
        end = self._applied
        flushed = self._applied
        while end < len(self._records) and self._records[end].end <= position:
            end += 1
            if self._records[end - 1].flush:
                flushed = end
        with self._base.open("r+b") as file:
            for record in self._records[self._applied : flushed]:
                os.pwrite(file.fileno(), record.data, record.offset)
        self._applied = flushed
        subprocess.run(["cp", "--sparse=always", "--reflink=auto", self._base, image], check=True)
        with image.open("r+b") as file:
            for record in self._records[flushed:end]:
                _apply(file.fileno(), record, habit, chance)
        return end - flushed


def _apply(file: int, record: Record, habit: str, chance: random.Random) -> None:
    if habit == "everything":
        os.pwrite(file, record.data, record.offset)
    elif habit == "a part":
        for start in range(0, len(record.data), _SECTOR):
            if chance.random() < 0.5:
                os.pwrite(file, record.data[start : start + _SECTOR], record.offset + start)


@contextlib.contextmanager
def recorded(image: Path, log: Path, directory: Path) -> Iterator[Path]:
    """Serve an image as a file in a directory, made here, for the length of a block; give that file."""
    directory.mkdir()
    log.touch()
    words = [sys.executable, "-m", "tests.reliability.cut_disk", image, log, directory]
    server = subprocess.Popen(words, cwd=_ROOT)
    try:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not (directory / _NAME).exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise OSError(errno.EIO, "the disk cannot be served: are libfuse 2 and /dev/fuse there?")
            time.sleep(0.01)
        yield directory / _NAME
    finally:
        if server.poll() is None:
            _unmount(directory)
        server.wait()


@contextlib.contextmanager
def loop_device(file: Path) -> Iterator[str]:
    """Make a loop device of a file for the length of a block."""
    done = subprocess.run(["losetup", "--find", "--show", file], check=True, capture_output=True, text=True)
    device = done.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextlib.contextmanager
def mounted(device: str, target: Path, *options: str) -> Iterator[None]:
    """Mount a device for the length of a block."""
    words = ["-o", ",".join(options)] if options else []
    subprocess.run(["mount", *words, device, target], check=True, capture_output=True)
    try:
        yield
    finally:
        _unmount(target)


def _unmount(target: Path) -> None:
    for _ in range(100):
        if subprocess.run(["umount", target], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.05)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(target))


def serve(image: Path, log: Path, directory: Path) -> None:
    """Serve until the directory is unmounted."""
    import fuse

    class Disk(fuse.Operations):  # type: ignore[misc]
        """One file, as large as the image."""

        def __init__(self) -> None:
            self._image = os.open(image, os.O_RDWR | os.O_CLOEXEC)
            self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            self._size = os.fstat(self._image).st_size

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
            if path == f"/{_NAME}":
                return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": self._size}
            raise fuse.FuseOSError(errno.ENOENT)

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return os.pread(self._image, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            self._note(_HEAD.pack(_WRITE, offset, len(data)) + data)
            return os.pwrite(self._image, data, offset)

        def fsync(self, path: str, datasync: int, fh: int) -> int:
            self._note(_HEAD.pack(_FLUSH, 0, 0))
            return 0

        def _note(self, record: bytes) -> None:
            # A part of a record would make all that follows unreadable.
            if os.write(self._log, record) != len(record):
                os._exit(1)

    fuse.FUSE(Disk(), str(directory), foreground=True, nothreads=True, big_writes=True)


if __name__ == "__main__":
    serve(*map(Path, sys.argv[1:4]))
