"""Host-file helpers that more than one module needs: copying, removing, locking and replacing files safely.

Whatever walks a tree here works through directory descriptors, holds a bounded number of them, and
does not recurse, so that depth and length of paths have no limit.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from layerfs.errors import InUseError, printable

_CHUNK: Final = 1 << 20
_XFS_ACLS: Final = b"trusted.SGI_ACL_"
_WRITE_BEHIND: Final = 8 << 20
# How often somebody may put something into a tree that is being removed.
_REFILLED_MAXIMUM: Final = 10_000
_SYNCED_RANGE: Final = 8 << 20
_COPY_RANGE_MAXIMUM: Final = 1 << 30
_NO_REFLINK: Final = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ETXTBSY}
)
_NO_COPY_RANGE: Final = frozenset(
    {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ETXTBSY}
)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600, sync: bool = True) -> None:
    """Replace the file `path` by one with this content, in one rename: readers see the old or the new.

    With `sync`, content and name are on disk when this returns.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        try:
            os.fchmod(descriptor, mode)
            write_all(descriptor, data)
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_directory(path.parent)


@contextlib.contextmanager
def naming(path: str | os.PathLike[str] | None) -> Iterator[None]:
    """Have errors of the system that name no file name this one, if it has a name."""
    try:
        yield
    except OSError as error:
        if error.filename is None and path is not None:
            error.filename = os.fspath(path)
        raise


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write every byte of `data`, however often the kernel takes only a part."""
    written = os.write(descriptor, data)
    if written < len(data):
        rest = memoryview(data)[written:]
        while rest:
            rest = rest[os.write(descriptor, rest) :]


class WriteBehind:
    """Has the kernel write a file to disk while it still grows, so that little is left for a sync at the end.

    Args:
        descriptor: of a regular file, open for writing; what comes is appended.
        begun: how many bytes it has already.
    """

    def __init__(self, descriptor: int, begun: int = 0) -> None:
        self._descriptor = descriptor
        self._begun = begun

    def reach(self, size: int) -> None:
        """Hear that the file has so many bytes by now."""
        if size - self._begun >= _WRITE_BEHIND:
            from layerfs import linux

            linux.start_writing_back(self._descriptor, self._begun, size - self._begun)
            self._begun = size


def descriptor_of(stream: object) -> int:
    """Give the descriptor of a stream that reads a regular file, so that a forked process may go on with it.

    Raises:
        OSError: it reads something else.
    """
    fileno = getattr(stream, "fileno", None)
    if fileno is not None:
        descriptor: int = fileno()
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
    raise OSError(errno.EINVAL, "not a stream of a regular file")


def open_regular(directory: int, name: str | bytes) -> int:
    """Open a regular file of a directory for reading, and nothing else.

    To the driver of a device an open is a command, and the other end of a fifo makes us wait.

    Raises:
        OSError: EINVAL, it is none; and as open(2).
    """
    found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", printable(os.fsencode(name)))
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(found)


def sync_directory(path: Path | str | bytes) -> None:
    """Bring the names in a directory to disk (fsync of the directory)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy_data(source: int, target: int, *, size: int, reflink: bool = True, syncing: bool = False) -> bool:
    """Copy a file of `size` bytes into an empty one, the cheapest way that the file systems allow.

    Shares the extents where it can (FICLONE), else copies inside the kernel (copy_file_range(2)), else
    reads and writes. Holes stay holes. The file offsets of the descriptors may move.

    Args:
        source: descriptor open for reading.
        target: descriptor of an empty file, open for writing.
        size: the source's length in bytes, holes included.
        reflink: False spares the attempt to share; for the next file after this returned False.
        syncing: the caller will bring the copy to disk, so that the writing there may begin at once.

    Returns:
        Whether the file system shared the extents; what is False for one file is so for all files of the
        same pair of file systems.
    """
    if size == 0:
        return reflink
    if reflink:
        from layerfs import linux

        try:
            linux.clone_file(source, target)
            return True
        except OSError as error:
            if error.errno not in _NO_REFLINK:
                raise
    start = 0
    while start < size:
        hole = os.lseek(source, start, os.SEEK_HOLE)
        if hole > start:
            _copy_range(source, target, start, min(hole, size), syncing=syncing)
        if hole >= size:
            return False
        try:
            start = os.lseek(source, hole, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
    os.ftruncate(target, size)
    return False


def _copy_range(source: int, target: int, start: int, end: int, *, syncing: bool) -> None:
    from layerfs import linux

    most = _SYNCED_RANGE if syncing else _COPY_RANGE_MAXIMUM
    try:
        while start < end:
            done = os.copy_file_range(source, target, min(end - start, most), start, start)
            if done == 0:
                break  # some file systems answer 0 for files that they cannot splice: reading tells
            if syncing:
                linux.start_writing_back(target, start, done)
            start += done
    except OSError as error:
        if error.errno not in _NO_COPY_RANGE:
            raise
    while start < end:
        data = os.pread(source, min(end - start, _CHUNK), start)
        if not data:
            raise OSError(errno.EIO, "the file became shorter while it was copied")
        view = memoryview(data)
        while view:
            done = os.pwrite(target, view, start)
            start += done
            view = view[done:]


def through_descriptor(directory: int, name: bytes) -> bytes:
    """Name an entry of an open directory for calls that take no descriptor, such as lsetxattr(2)."""
    return b"/proc/self/fd/%d/%s" % (directory, name)


def read_xattrs(target: int | bytes) -> dict[bytes, bytes]:
    """Read every extended attribute of an open file, or of a path without following its last symlink.

    A file system without extended attributes gives an empty result; the names are in ascending order. Left
    out are the names under which xfs shows root its access control lists a second time.
    """
    follow = isinstance(target, int)
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise
    if not names:
        return {}
    found = {}
    for name in sorted(map(os.fsencode, names)):
        if name.startswith(_XFS_ACLS):
            continue
        try:
            found[name] = os.getxattr(target, name, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.ENOTSUP):
                raise
    return found


def write_xattr(target: int | bytes, name: bytes, value: bytes) -> None:
    """Set one extended attribute on an open file, or on a path without following its last symlink."""
    os.setxattr(target, name, value, follow_symlinks=isinstance(target, int))


def open_directory(directory: int, name: bytes | str) -> int:
    """Open a subdirectory for reading: no symlink is followed and no mount is entered.

    Raises:
        InUseError: something is mounted there.
        NotADirectoryError: it is something else, a symlink included.
    """
    from layerfs import linux

    try:
        return linux.openat2(
            directory,
            name,
            os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW,
            resolve=linux.RESOLVE_NO_XDEV | linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS,
        )
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise _mounted(name) from error
        if error.errno == errno.ELOOP:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name) from error
        # Seccomp profiles of some container engines answer EPERM for system calls they do not know.
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise
    opened = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    if os.fstat(opened).st_dev != os.fstat(directory).st_dev:
        os.close(opened)
        raise _mounted(name)
    return opened


def _mounted(name: bytes | str) -> InUseError:
    return InUseError(
        f"something is mounted on {printable(os.fsencode(name))!r}",
        hint="unmount it first; what is mounted is never deleted",
    )


def remove_tree(parent: int, name: bytes | str) -> None:
    """Delete a file or a whole directory of the open directory `parent`; what is missing is no error.

    Goes down and up by single names and holds two descriptors, whatever the depth. Directories without
    write permission are opened up first. Symlinks are deleted, not followed. What somebody still makes in
    there meanwhile goes too.

    Raises:
        InUseError: something is mounted beneath; what came before it in the walk is gone.
    """
    current = _enter_to_remove(parent, name)
    if current is None:
        return
    # One item for each directory on the way down: its name, identity, and subdirectories still to remove.
    path: list[tuple[bytes | str, tuple[int, int], list[str]]] = []
    refilled = 0
    try:
        path.append((name, _identity(current), _remove_files(current)))
        while True:
            here, _, waiting = path[-1]
            if waiting:
                below = waiting.pop()
                entered = _enter_to_remove(current, below)
                if entered is not None:
                    os.close(current)
                    current = entered
                    path.append((below, _identity(current), _remove_files(current)))
                continue
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            above = os.open(b"..", flags, dir_fd=current) if len(path) > 1 else os.dup(parent)
            removed = False
            try:
                if len(path) > 1 and _identity(above) != path[-2][1]:
                    raise InUseError(f"{printable(os.fsencode(here))!r} was moved while it was removed")
                removed = _remove_empty(above, here)
            finally:
                if not removed:
                    os.close(above)
            if not removed:
                refilled += 1
                if refilled > _REFILLED_MAXIMUM:
                    raise InUseError(f"{printable(os.fsencode(here))!r} was filled while it was removed")
                waiting += _remove_files(current)
                continue
            path.pop()
            os.close(current)
            current = above
            if not path:
                return
    finally:
        os.close(current)


def _remove_empty(parent: int, name: bytes | str) -> bool:
    """Delete a directory; False when something has come into it."""
    try:
        os.rmdir(name, dir_fd=parent)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        return False
    return True


def _enter_to_remove(parent: int, name: bytes | str) -> int | None:
    """Open a directory that is to be emptied; delete what is no directory, and give None for it."""
    try:
        return open_directory(parent, name)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        os.unlink(name, dir_fd=parent)
        return None
    except PermissionError:
        unreadable = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            os.chmod(f"/proc/self/fd/{unreadable}", stat.S_IRWXU)
        finally:
            os.close(unreadable)
        return open_directory(parent, name)


def _remove_files(directory: int) -> list[str]:
    """Delete all but directories in an open directory, and give the names of those."""
    below = []
    writable = False
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.name)
                continue
            try:
                os.unlink(entry.name, dir_fd=directory)
            except FileNotFoundError:
                continue
            except PermissionError:
                if writable:
                    raise
                os.fchmod(directory, stat.S_IRWXU)
                writable = True
                os.unlink(entry.name, dir_fd=directory)
    # A directory with nothing but directories may be read-only too.
    if below and not os.access(f"/proc/self/fd/{directory}", os.W_OK | os.X_OK):
        os.fchmod(directory, stat.S_IRWXU)
    return below


def _identity(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


class Lock:
    """An advisory lock on a file (flock(2)), as a context manager; it ends with the process at the latest.

    Not re-entrant: each object is one holder, within a process too. The file is made where it is missing; a
    holder of the exclusive lock may delete the file.
    """

    def __init__(self, path: Path, *, shared: bool = False, blocking: bool = True) -> None:
        self.path = path
        self._operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if blocking else fcntl.LOCK_NB)
        self._descriptor = -1

    def acquire(self) -> Self:
        """Take the lock.

        Raises:
            InUseError: another holder has it and the lock is not `blocking`.
        """
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, self._operation)
                if self._is_current(descriptor):
                    self._descriptor = descriptor
                    descriptor = -1
                    return self
            except BlockingIOError as error:
                raise InUseError(f"{self.path} is locked by another process or thread") from error
            finally:
                if descriptor >= 0:
                    os.close(descriptor)

    def fileno(self) -> int:
        """Give the descriptor that holds the lock, while it is held."""
        return self._descriptor

    def release(self) -> None:
        """Give the lock back; nothing happens when it is not held."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _is_current(self, descriptor: int) -> bool:
        """Say whether the path still names the locked file: its last holder may have deleted it."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(descriptor))
        except FileNotFoundError:
            return False

    def __enter__(self) -> Self:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
