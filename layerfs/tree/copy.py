"""Copy a whole file tree so that nothing tells the copy from the original but inode numbers and ctimes."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Final

from layerfs.errors import printable
from layerfs.files import copy_data, read_xattrs, through_descriptor, write_xattr
from layerfs.tree.ladder import OPEN_DIRECTORY, Ladder
from layerfs.tree.links import Several

_NEW_FILE: Final = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC
_PLAIN_MODE: Final = 0o777
# Smaller files wait for each other on their way to the disk.
_WRITTEN_AT_ONCE: Final = 1 << 20
# Room for a name below a path of this length, within PATH_MAX.
_LONGEST_PATH: Final = 3800


def copy_tree(source: int, target: int, *, several: Several | None = None) -> None:
    """Copy everything below one directory into another, empty one, and the directory's own attributes.

    Kept are types, owners, modes, nanosecond access and modification times, all extended attributes
    with ACLs and capabilities, hard links within the tree, holes, devices, fifos and sockets. Extents
    are shared where the file system can. Depth and length of paths have no limit.

    Args:
        source: descriptor of a directory that nobody is changing.
        target: descriptor of an empty directory.
        several: says which files of the source may have more than one name there, if not all may that
            have more than one anywhere.
    """
    _Copy(source, target, several or _any).run()


def copy_changes(
    source: int, target: int, *, keep: Callable[[bytes], bool], warn: Callable[[str], None]
) -> None:
    """Copy a writable layer's directory of changes, to be a layer that nobody writes to; as `copy_tree` does.

    Sockets are left out with a warning, as layers hold none. Data begins to be written to disk at once.

    Args:
        source: descriptor of the directory.
        target: descriptor of an empty directory.
        keep: says of each extended attribute whether the copy gets it; what it raises ends the copy.
        warn: told what was left out.
    """
    _CopyChanges(source, target, keep, warn).run()


def link_tree(source: int, target: int) -> None:
    """Make directories as `copy_tree` does, and every other name a hard link to the same file.

    Args:
        source: descriptor of a directory that nobody is changing.
        target: descriptor of an empty directory on the same file system.

    Raises:
        OSError: a file cannot have one name more: EMLINK, EPERM or EXDEV.
    """
    _Link(source, target, _any).run()


class _Level:
    """A directory on the way down: what its copy gets when it is left, and the directories yet to come."""

    __slots__ = ("below", "found", "name")

    def __init__(self, name: bytes, found: os.stat_result) -> None:
        self.name = name
        self.found = found
        self.below: list[tuple[bytes, os.stat_result]] = []


class _Copy:
    _syncing = False

    def __init__(self, source: int, target: int, several: Several) -> None:
        self._several = several
        self._sources, self._targets = Ladder(source), Ladder(target)
        self._target_root = target
        self._levels = [_Level(b"", os.fstat(source))]
        # Where the first name of each file with several names was copied to.
        self._linked: dict[tuple[int, int], tuple[bytes, ...]] = {}
        self._reflink = True
        self._umask = _current_umask()
        self._owner = (os.geteuid(), os.getegid())

    def run(self) -> None:
        try:
            self._copy_files()
            while True:
                level = self._levels[-1]
                if level.below:
                    self._enter(*level.below.pop())
                    self._copy_files()
                    continue
                self._finish_directory(level.found)
                self._levels.pop()
                if not self._levels:
                    return
                self._sources.pop()
                self._targets.pop()
        finally:
            self._sources.close()
            self._targets.close()

    def _enter(self, name: bytes, found: os.stat_result) -> None:
        os.mkdir(name, 0o700, dir_fd=self._targets.top)
        self._sources.push(os.open(name, OPEN_DIRECTORY, dir_fd=self._sources.top))
        self._targets.push(os.open(name, OPEN_DIRECTORY, dir_fd=self._targets.top))
        self._levels.append(_Level(name, found))

    def _finish_directory(self, found: os.stat_result) -> None:
        """Set what would have kept us out, or been inherited by what is inside, were it set before."""
        target = self._targets.top
        os.fchown(target, found.st_uid, found.st_gid)
        os.fchmod(target, stat.S_IMODE(found.st_mode))
        for name, value in self._xattrs(self._sources.top).items():
            write_xattr(target, name, value)
        os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))

    def _copy_files(self) -> None:
        """Copy all but directories of the directory where the walk stands."""
        below = self._levels[-1].below
        source = self._sources.top
        with os.scandir(source) as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                mode = found.st_mode
                if stat.S_ISDIR(mode):
                    below.append((os.fsencode(entry.name), found))
                elif (
                    found.st_nlink > 1 and self._several(found) and self._link(os.fsencode(entry.name), found)
                ):
                    pass
                elif stat.S_ISREG(mode):
                    self._copy_file(entry.name, found)
                else:
                    self._copy_node(os.fsencode(entry.name), found)

    def _copy_file(self, name: str, found: os.stat_result) -> None:
        source = _open_file(self._sources.top, name)
        try:
            mode = stat.S_IMODE(found.st_mode)
            target = os.open(name, _NEW_FILE, mode & _PLAIN_MODE, dir_fd=self._targets.top)
            try:
                if found.st_size:
                    size = found.st_size
                    syncing = self._syncing and size >= _WRITTEN_AT_ONCE
                    self._reflink = copy_data(
                        source, target, size=size, reflink=self._reflink, syncing=syncing
                    )
                if (found.st_uid, found.st_gid) != self._owner:
                    os.fchown(target, found.st_uid, found.st_gid)
                if mode & (self._umask | ~_PLAIN_MODE):
                    os.fchmod(target, mode)
                if os.listxattr(source):
                    for xattr, value in self._xattrs(source).items():
                        write_xattr(target, xattr, value)
                os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _copy_node(self, name: bytes, found: os.stat_result) -> None:
        source, target = self._sources.top, self._targets.top
        if stat.S_ISLNK(found.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        else:
            os.mknod(name, found.st_mode, found.st_rdev, dir_fd=target)
        if (found.st_uid, found.st_gid) != self._owner:
            os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
        if not stat.S_ISLNK(found.st_mode):
            # The node is fresh and no link, in a tree of our own: fchmodat(2) cannot be led elsewhere.
            os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=target)
        xattrs = self._xattrs(through_descriptor(source, name))
        for xattr, value in xattrs.items():
            write_xattr(through_descriptor(target, name), xattr, value)
        os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=target, follow_symlinks=False)

    def _xattrs(self, target: int | bytes) -> dict[bytes, bytes]:
        return read_xattrs(target)

    def _link(self, name: bytes, found: os.stat_result) -> bool:
        """Link to the copy of another name of the same file; False when this is its first name."""
        identity = (found.st_dev, found.st_ino)
        first = self._linked.get(identity)
        if first is None:
            self._linked[identity] = (*(level.name for level in self._levels[1:]), name)
            return False
        path = b"/".join(first)
        directory, last = self._target_root, path
        if len(path) > _LONGEST_PATH:
            directory, last = _open_parent(self._target_root, first), first[-1]
        try:
            os.link(last, name, src_dir_fd=directory, dst_dir_fd=self._targets.top, follow_symlinks=False)
        finally:
            if directory != self._target_root:
                os.close(directory)
        return True


def _any(found: os.stat_result) -> bool:
    return True


class _CopyChanges(_Copy):
    _syncing = True

    def __init__(
        self, source: int, target: int, keep: Callable[[bytes], bool], warn: Callable[[str], None]
    ) -> None:
        super().__init__(source, target, _any)
        self._keep = keep
        self._warn = warn

    def _xattrs(self, target: int | bytes) -> dict[bytes, bytes]:
        return {name: value for name, value in read_xattrs(target).items() if self._keep(name)}

    def _copy_node(self, name: bytes, found: os.stat_result) -> None:
        if stat.S_ISSOCK(found.st_mode):
            path = b"/".join((*(level.name for level in self._levels[1:]), name))
            self._warn(f"socket {printable(path)!r} left out: a layer cannot hold it")
        else:
            super()._copy_node(name, found)


class _Link(_Copy):
    def _copy_files(self) -> None:
        below = self._levels[-1].below
        source, target = self._sources.top, self._targets.top
        with os.scandir(source) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    below.append((os.fsencode(entry.name), entry.stat(follow_symlinks=False)))
                else:
                    name = entry.name
                    os.link(name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)


def _open_file(directory: int, name: str) -> int:
    """Open a file, and not what a container may have put in its place meanwhile, such as the host's disk."""
    try:
        file = os.open(name, _OLD_FILE, dir_fd=directory)
    except PermissionError as error:
        # O_NOATIME is for the owner alone.
        if error.errno != errno.EPERM:
            raise
        file = os.open(name, _OLD_FILE & ~os.O_NOATIME, dir_fd=directory)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "it changed while it was copied", name)
    return file


def _open_parent(root: int, path: tuple[bytes, ...]) -> int:
    directory = os.dup(root)
    for name in path[:-1]:
        try:
            below = os.open(name, OPEN_DIRECTORY, dir_fd=directory)
        finally:
            os.close(directory)
        directory = below
    return directory


def _current_umask() -> int:
    """Read the process's umask without changing it, as umask(2) would."""
    with open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return _PLAIN_MODE
