"""The mount points that a container needs and its image may lack: made before, taken away afterwards.

Docker hides them in a layer of their own, so that `docker diff` shows none. Here they are made in the
container's tree and removed when its process has ended, with the times of their directories put back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator

from layerfs import linux
from layerfs.errors import ProcessError
from layerfs.runtime.scope import Place, find_place, open_inside
from layerfs.tree.change import Change, ChangeKind
from layerfs.tree.entry import Kind
from layerfs.value import frozen

DIRECTORIES = (b"/proc", b"/sys", b"/dev")
FILES = (b"/etc/hosts", b"/etc/hostname", b"/etc/resolv.conf")


_MODE = 0o755


def without_places(changes: Iterable[Change]) -> Iterator[Change]:
    """Leave out of a running container's changes what was made for it to mount on."""
    return (change for change in changes if not _is_place(change))


def left(changes: Iterable[Change]) -> list[bytes]:
    """Name the places among the changes of a container at rest, whose monitor was killed."""
    return [change.entry.path for change in changes if _is_place(change)]


def remove_left(root: int, paths: Iterable[bytes]) -> None:
    """Remove such places, where they are still empty, from the tree with this root."""
    for path in paths:
        above, _, name = path.rpartition(b"/")
        directory = open_inside(root, b"/" + above, os.O_PATH | os.O_DIRECTORY, symlinks=False)
        try:
            found = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                # Somebody may have put something there.
                with contextlib.suppress(OSError):
                    os.rmdir(name, dir_fd=directory)
            elif stat.S_ISREG(found.st_mode) and not found.st_size:
                os.unlink(name, dir_fd=directory)
        finally:
            os.close(directory)


def _is_place(change: Change) -> bool:
    entry = change.entry
    return (
        change.kind is ChangeKind.ADDED
        and entry.mode == _MODE
        and not entry.size
        and b"/" + entry.path in (DIRECTORIES if entry.kind is Kind.DIRECTORY else FILES)
    )


@frozen
class _Made:
    """One thing that was made; its directory had the times `before`, and was modified at `after`."""

    directory: int
    name: bytes
    inode: int
    before: tuple[int, int]
    after: int


class Places:
    """What was made below one root, newest last."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._made: list[_Made] = []

    def make(self) -> None:
        """Make what is missing; a tree that cannot be written stays as it is.

        Raises:
            ProcessError: /proc, /sys or /dev is a symlink or no directory.
        """
        for path in DIRECTORIES:
            try:
                os.close(open_inside(self._root, path, os.O_PATH | os.O_DIRECTORY, symlinks=False))
            except FileNotFoundError:
                self._make_directory(self._root, path[1:])
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                    raise
                raise ProcessError(f"{path.decode()} of the container is not a directory") from error
        for path in FILES:
            try:
                os.close(open_inside(self._root, path, os.O_PATH))
            except FileNotFoundError:
                self._make_file(path)
            except OSError as error:
                # A loop of links or a file in the place of /etc: the container does without.
                if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                    raise

    def _make_directory(self, directory: int, name: bytes) -> None:
        before = os.stat(directory)
        try:
            os.mkdir(name, _MODE, dir_fd=directory)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            return
        self._note(directory, name, before)

    def _make_file(self, path: bytes) -> None:
        try:
            place = find_place(self._root, path, make=self._make_directory)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.ENOENT):
                raise
            return
        try:
            if place.status is None:
                self._create(place)
        finally:
            os.close(place.directory)

    def _create(self, place: Place) -> None:
        before = os.stat(place.directory)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(place.name, flags, _MODE, dir_fd=place.directory))
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            return
        self._note(place.directory, place.name, before)

    def _note(self, directory: int, name: bytes, before: os.stat_result) -> None:
        kept = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        inode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_ino
        times = (before.st_atime_ns, before.st_mtime_ns)
        self._made.append(_Made(kept, name, inode, times, os.fstat(kept).st_mtime_ns))

    def take_away(self) -> None:
        """Unmount what stands on the places made, and remove those that are still empty.

        Changes our working directory. Runs in the mount namespace of the container, after its last process.
        """
        for made in reversed(self._made):
            try:
                os.fchdir(made.directory)
                _unmount_all(made.name)
                untouched = os.fstat(made.directory).st_mtime_ns == made.after
                if _remove(made) and untouched:
                    os.utime(made.directory, ns=made.before)
            finally:
                os.close(made.directory)
        self._made.clear()


def _unmount_all(name: bytes) -> None:
    try:
        while True:
            linux.umount(name, linux.UMOUNT_NOFOLLOW | linux.MNT_DETACH)
    except OSError as error:
        # EINVAL: nothing is mounted there, any more.
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise


def _remove(made: _Made) -> bool:
    """Remove the very thing that was made, if it is as empty as it was; say whether it is gone."""
    try:
        found = os.stat(made.name, dir_fd=made.directory, follow_symlinks=False)
        if found.st_ino != made.inode:
            return False
        if stat.S_ISDIR(found.st_mode):
            os.rmdir(made.name, dir_fd=made.directory)
        elif stat.S_ISREG(found.st_mode) and found.st_size == 0:
            os.unlink(made.name, dir_fd=made.directory)
        else:
            return False
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EROFS):
            raise
        return False
    return True
