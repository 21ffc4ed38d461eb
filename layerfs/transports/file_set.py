"""Files by relative name, in a directory or inside a tar archive: what layouts are read from.

Nothing here follows a name out of its root: a directory is opened component by component through
descriptors, and an archive is never unpacked, only looked up.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Protocol, Self

from layerfs import linux
from layerfs.errors import ArchiveError, BudgetError, printable
from layerfs.tree.entry import Kind
from layerfs.tree.tar_reader import TarReader

_MAXIMUM_MEMBERS: Final = 1_000_000
_MAXIMUM_LINKS: Final = 40
_HEADERS: Final = 1 << 16
_ZEROS: Final = bytes(1 << 20)
_RESOLVE: Final = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_NO_MAGICLINKS


class OpenFile:
    """A run of bytes of an open file, read in order; a context manager.

    `size` is its length in bytes, `start` where it begins in the file. The descriptor is closed at the end if
    it is `owned`.
    """

    def __init__(self, descriptor: int, *, offset: int = 0, size: int, owned: bool) -> None:
        self._descriptor = descriptor
        self.start = offset
        self._position = offset
        self._end = offset + size
        self._owned = owned
        self.size = size

    def read(self, size: int, /) -> bytes:
        """Give between one and `size` bytes, none at the end."""
        data = os.pread(self._descriptor, min(size, self._end - self._position), self._position)
        self._position += len(data)
        return data

    def fileno(self) -> int:
        """Give the descriptor of the file that the bytes are in."""
        return self._descriptor

    def close(self) -> None:
        """Close what is owned; idempotent."""
        if self._owned and self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._owned = -1, False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FileSet(Protocol):
    """Regular files by name; names are relative, joined by slashes.

    Attributes:
        title: what it is, for messages.
    """

    title: str

    def open(self, name: str) -> OpenFile | None:
        """Open a file, None when there is none of this name.

        Raises:
            ArchiveError: there is something else of this name.
        """
        ...

    def close(self) -> None:
        """Let go; idempotent."""
        ...


def read_file(files: FileSet, name: str, *, limit: int) -> bytes | None:
    """Read a small file whole, None when there is none.

    Raises:
        ArchiveError: it is no regular file.
        BudgetError: it has more than `limit` bytes.
    """
    file = files.open(name)
    if file is None:
        return None
    with file:
        if file.size > limit:
            raise BudgetError(f"{files.title}: {name} has {file.size} bytes, at most {limit} are read")
        parts = []
        while data := file.read(limit):
            parts.append(data)
    return b"".join(parts)


class DirectoryFiles:
    """The files of a directory; a symlink below it is refused, wherever it leads."""

    def __init__(self, path: Path) -> None:
        self.title = str(path)
        self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    @property
    def descriptor(self) -> int:
        """The directory itself, open; it stays owned here."""
        return self._root

    def open(self, name: str) -> OpenFile | None:
        """Open a file below the directory."""
        # O_NONBLOCK: a fifo must not make anybody wait.
        descriptor = open_beneath(self._root, name, os.O_RDONLY | os.O_NONBLOCK, title=self.title)
        if descriptor is None:
            return None
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            raise ArchiveError(f"{self.title}: {name} is not a regular file")
        return OpenFile(descriptor, size=found.st_size, owned=True)

    def close(self) -> None:
        """Close the directory."""
        if self._root >= 0:
            os.close(self._root)
            self._root = -1


def open_beneath(directory: int, name: str, flags: int, *, title: str) -> int | None:
    """Open a name below an open directory, no symlink in any component; None when it does not exist.

    Raises:
        ArchiveError: a component is a symlink, or the name leads out of the directory.
    """
    try:
        try:
            return linux.openat2(directory, name, flags, resolve=_RESOLVE)
        except OSError as error:
            # Seccomp profiles of some container engines answer EPERM for system calls they do not know.
            if error.errno not in (errno.ENOSYS, errno.EPERM):
                raise
        return _walk_beneath(directory, name, flags)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        if error.errno in (errno.ELOOP, errno.EXDEV):
            raise ArchiveError(
                f"{title}: {name} goes through a symlink or leads outside, which is refused"
            ) from error
        raise


def _walk_beneath(directory: int, name: str, flags: int) -> int:
    current = os.dup(directory)
    parts = name.split("/")
    for place, part in enumerate(parts):
        last = place == len(parts) - 1
        kind = flags if last else os.O_PATH | os.O_DIRECTORY
        try:
            if part in ("", ".", ".."):
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), name)
            found = os.stat(part, dir_fd=current, follow_symlinks=False)
            if stat.S_ISLNK(found.st_mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
            entered = os.open(part, kind | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
        finally:
            os.close(current)
        current = entered
    return current


class _Member:
    """A regular file of an archive, or a link to one."""

    __slots__ = ("offset", "size", "target")

    def __init__(self, offset: int, size: int, target: str | None) -> None:
        self.offset = offset
        self.size = size
        self.target = target


class ArchiveFiles:
    """The files of a plain tar archive, found by offset: nothing is unpacked, and only headers are read.

    Hard links and symlinks between files of the archive are followed, as docker's old archives need
    (a layer that occurs twice is a symlink there). A name that leads outside the archive, and a file that
    occurs twice, are refused: tools differ in which of the two they take.

    Args:
        file: seekable and uncompressed; owned here from now on.
        title: what it is, for messages.
        warn: told of what is odd in the archive.

    Raises:
        LayerError, ArchiveError: it is no tar archive, damaged, or hostile.
        BudgetError: it has more than a million members.
    """

    def __init__(self, file: BinaryIO, *, title: str, warn: Callable[[str], None]) -> None:
        self.title = title
        self._file = file
        self._members: dict[str, _Member] = {}
        try:
            self._index(warn)
        except BaseException:
            file.close()
            raise

    def open(self, name: str) -> OpenFile | None:
        """Open a file of the archive."""
        wanted = posixpath.normpath(name)
        for _ in range(_MAXIMUM_LINKS):
            member = self._members.get(wanted)
            if member is None:
                return None
            if member.target is None:
                return OpenFile(self._file.fileno(), offset=member.offset, size=member.size, owned=False)
            wanted = member.target
        raise ArchiveError(f"{self.title}: {name} is a link that leads to itself")

    def names(self) -> list[str]:
        """List the files and links, in the order of the archive."""
        return list(self._members)

    def close(self) -> None:
        """Close the archive."""
        self._file.close()

    def _index(self, warn: Callable[[str], None]) -> None:
        stream = _Headers(self._file.fileno())
        reader = TarReader(stream, warn=warn)
        for entry in reader:
            if entry.kind not in (Kind.FILE, Kind.HARDLINK, Kind.SYMLINK):
                continue
            name = self._name(entry.path)
            if name in self._members:
                raise ArchiveError(f"{self.title}: {printable(entry.path)!r} occurs twice")
            if len(self._members) >= _MAXIMUM_MEMBERS:
                raise BudgetError(f"{self.title} has more than {_MAXIMUM_MEMBERS} files")
            target = None
            if entry.kind is Kind.HARDLINK:
                target = self._name(entry.target)
            elif entry.kind is Kind.SYMLINK:
                target = self._target(name, entry.target)
            elif entry.segments is not None:
                raise ArchiveError(
                    f"{self.title}: {printable(entry.path)!r} is stored as a sparse file",
                    hint="pack the archive without tar's --sparse",
                )
            else:
                end = reader.offset + entry.size
                if end > stream.size:
                    raise ArchiveError(f"{self.title} is cut off inside {printable(entry.path)!r}")
                stream.leave_out(end)
            self._members[name] = _Member(reader.offset, entry.size, target)

    def _name(self, path: bytes) -> str:
        name = os.fsdecode(path)
        if name.startswith("/") or ".." in name.split("/"):
            raise ArchiveError(f"{self.title}: {printable(path)!r} leads out of the archive")
        return posixpath.normpath(name)

    def _target(self, name: str, target: bytes) -> str:
        found = posixpath.normpath(posixpath.join(posixpath.dirname(name), os.fsdecode(target)))
        if found.startswith("/") or found.split("/")[0] == "..":
            raise ArchiveError(f"{self.title}: the symlink {name!r} leads out of the archive")
        return found


class _Headers:
    """A tar file as a stream whose bodies are zeros: the reader skips them, and the disk is spared."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._position = 0
        self._left_out = 0
        self.size = os.fstat(descriptor).st_size

    def leave_out(self, end: int) -> None:
        """Give zeros instead of what stands before this offset in the file."""
        self._left_out = end

    def read(self, size: int, /) -> bytes:
        if self._position < self._left_out:
            data = _ZEROS[: min(size, self._left_out - self._position)]
        else:
            data = os.pread(self._descriptor, min(size, _HEADERS), self._position)
        self._position += len(data)
        return data
