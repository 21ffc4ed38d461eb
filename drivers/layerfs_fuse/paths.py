"""A union as libfuse 2's high-level interface asks for it: by paths, and by handles of what is open (fuse.h).

Names come and go as text of `ENCODING`, one character a byte. Of the kernel's protocol nothing is known
here, nor of how the mount is made.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Callable
from typing import Final, Protocol

from layerfs_fuse.changes import Changes, Maker, failure
from layerfs_fuse.handles import OpenFile
from layerfs_fuse.nodes import Node
from layerfs_fuse.union import Union

ENCODING: Final = "latin-1"
# utimensat(2)'s special values, which come as that many nanoseconds after the epoch.
_NOW: Final = (1 << 30) - 1
_OMIT: Final = (1 << 30) - 2
_MOST_HELD: Final = 16384
# What libfuse renames an open file to that is to be removed or replaced (fuse.c, hidden_name).
_HIDDEN: Final = re.compile(rb"\.fuse_hidden[0-9a-f]{16}")


class FileInfo(Protocol):
    """What is used of libfuse's struct fuse_file_info."""

    flags: int
    fh: int
    keep_cache: int


class PathOperations:
    """The operations of one mount, as fusepy calls them; `maker` says on whose behalf.

    libfuse never says that it has forgotten a path, so the files asked for last are held, in the place of
    lookups that the kernel would count.
    """

    # How fusepy and libfuse are to call: times in nanoseconds, no paths where there are handles.
    use_ns = True
    flag_nullpath_ok = 1
    flag_nopath = 1
    flag_utime_omit_ok = 1

    def __init__(self, union: Union, *, maker: Callable[[], Maker], started: Callable[[], None]) -> None:
        self._union = union
        self._maker = maker
        self._started = started
        self._files: dict[int, OpenFile] = {}
        self._directories: dict[int, Node] = {}
        self._next_handle = 1
        self._held: dict[Node, None] = {}
        # Files that have lost their last name while they are open, by the names that libfuse gave them.
        self._hidden: dict[tuple[Node, bytes], Node] = {}

    def __call__(self, operation: str, *arguments: object) -> object:
        """Carry an operation out; whatever fails is an OSError with an errno."""
        try:
            try:
                return getattr(self, operation)(*arguments)
            except OSError as error:
                if error.errno != errno.EMFILE or not self._union.layers.relieve():
                    raise
                return getattr(self, operation)(*arguments)
        except OSError as error:
            if error.errno:
                raise
            raise failure(errno.EIO) from error
        except Exception as error:
            # Whatever went wrong inside, the process that asks must get an answer, else it hangs.
            self.failed()
            raise failure(errno.EIO) from error
        finally:
            while len(self._held) > _MOST_HELD:
                self._drop(next(iter(self._held)))
            self._union.layers.trim()

    def failed(self) -> None:
        """Hear of an error of our own, in the block that handles it; a place for tests to listen."""

    def init(self, _: str) -> None:
        """Take note that the kernel and libfuse have agreed: from now on requests come."""
        self._started()

    @property
    def _changes(self) -> Changes:
        if not isinstance(self._union, Changes):
            raise failure(errno.EROFS)
        return self._union

    # From paths to files.

    def _node(self, path: str) -> Node:
        node = self._union.nodes.root
        for name in path.encode(ENCODING).split(b"/"):
            if name:
                node = self._existing(node, name)
        return node

    def _entry(self, path: str) -> tuple[Node, bytes]:
        above, _, name = path.rpartition("/")
        return self._node(above), name.encode(ENCODING)

    def _existing(self, parent: Node, name: bytes) -> Node:
        node = self._hidden.get((parent, name)) if self._hidden else None
        if node is None:
            node = self._union.lookup(parent, name)
        if node is None:
            raise failure(errno.ENOENT)
        self._hold(node)
        return node

    def _hold(self, node: Node) -> None:
        self._held.pop(node, None)
        self._held[node] = None
        node.lookups = 1

    def _drop(self, node: Node) -> None:
        if node in self._held:
            del self._held[node]
            self._union.nodes.forget(node.id, 1)

    def _let_go(self, node: Node) -> None:
        """Hold a file no longer that is about to lose a name: that alone must not keep it."""
        self._held.pop(node, None)
        node.lookups = 0

    # Names and attributes.

    def getattr(self, path: str | None, info: FileInfo | None = None) -> dict[str, int]:
        """stat(2) and fstat(2)."""
        if info is not None and info.fh in self._files:
            node = self._files[info.fh].node
        else:
            assert path is not None
            node = self._node(path)
        found = self._union.stat(node)
        return {
            "st_ino": node.number,
            "st_mode": found.st_mode,
            "st_nlink": self._union.number_links(node, found),
            "st_uid": found.st_uid,
            "st_gid": found.st_gid,
            "st_rdev": found.st_rdev,
            "st_size": found.st_size,
            "st_blksize": found.st_blksize,
            "st_blocks": found.st_blocks,
            "st_atime": found.st_atime_ns,
            "st_mtime": found.st_mtime_ns,
            "st_ctime": found.st_ctime_ns,
        }

    def readlink(self, path: str) -> str:
        """readlink(2)."""
        return self._union.readlink(self._node(path)).decode(ENCODING)

    def mknod(self, path: str, mode: int, device: int) -> None:
        """mknod(2)."""
        self._hold(self._changes.mknod(*self._entry(path), mode, device, self._maker()))

    def mkdir(self, path: str, mode: int) -> None:
        """mkdir(2)."""
        self._hold(self._changes.mkdir(*self._entry(path), mode, self._maker()))

    def symlink(self, path: str, target: str) -> None:
        """symlink(2)."""
        self._hold(self._changes.symlink(*self._entry(path), target.encode(ENCODING), self._maker()))

    def link(self, path: str, source: str) -> None:
        """link(2)."""
        self._changes.link(self._node(source), *self._entry(path))

    def unlink(self, path: str) -> None:
        """unlink(2); what has lost its name already is let go."""
        parent, name = self._entry(path)
        hidden = self._hidden.pop((parent, name), None)
        if hidden is None:
            self._remove(self._changes.unlink, parent, name)
        elif hidden.parent is None:
            self._drop(hidden)

    def rmdir(self, path: str) -> None:
        """rmdir(2)."""
        self._remove(self._changes.rmdir, *self._entry(path))

    def _remove(self, remove: Callable[[Node, bytes], None], parent: Node, name: bytes) -> None:
        node = self._existing(parent, name)
        self._let_go(node)
        try:
            remove(parent, name)
        finally:
            if node.parent is not None:
                self._hold(node)

    def rename(self, old: str, new: str) -> None:
        """rename(2)."""
        parent, name = self._entry(new)
        source, old_name = self._entry(old)
        node = self._existing(source, old_name)
        if node.users and _HIDDEN.fullmatch(name):
            # libfuse would keep it under that name until it is closed: here it stays open without any.
            self._remove(self._changes.unlink, source, old_name)
            self._hidden[parent, name] = node
            return
        target = self._union.lookup(parent, name)
        if target is not None:
            self._let_go(target)
        try:
            self._changes.rename(source, old_name, parent, name, 0)
        finally:
            if target is not None and target.parent is not None:
                self._hold(target)

    def chmod(self, path: str, mode: int) -> None:
        """chmod(2)."""
        self._changes.chmod(self._node(path), stat.S_IMODE(mode))

    def chown(self, path: str, uid: int, gid: int) -> None:
        """chown(2); -1 leaves one as it is."""
        self._changes.chown(self._node(path), uid, gid)

    def utimens(self, path: str, times: tuple[int, int]) -> None:
        """utimensat(2), nanoseconds."""
        node = self._node(path)
        now, found = time.time_ns(), self._union.stat(node)
        atime, mtime = (
            now if given == _NOW else old if given == _OMIT else given
            for given, old in zip(times, (found.st_atime_ns, found.st_mtime_ns), strict=True)
        )
        self._changes.utime(node, atime, mtime)

    # Regular files.

    def open(self, path: str, info: FileInfo) -> None:
        """open(2); O_TRUNC comes with it."""
        node = self._node(path)
        self._union.layers.require_room()
        if info.flags & (os.O_ACCMODE | os.O_TRUNC):
            changes = self._changes
            changes.copy_up(node, data=not info.flags & os.O_TRUNC)
            if info.flags & os.O_TRUNC:
                changes.truncate(node, 0)
                if self._maker().uid:
                    changes.kill_set_ids(node)
        self._opened(node, info)

    def create(self, path: str, mode: int, info: FileInfo) -> None:
        """open(2), O_CREAT."""
        self._union.layers.require_room()
        node = self._changes.mknod(*self._entry(path), stat.S_IFREG | stat.S_IMODE(mode), 0, self._maker())
        self._hold(node)
        self._opened(node, info)

    def _opened(self, node: Node, info: FileInfo) -> None:
        file = OpenFile(self._union, node, info.flags)
        info.fh = self._handle()
        self._files[info.fh] = file
        # Each name of a file is an inode of its own to the kernel, which must not keep data for one of them.
        info.keep_cache = int(os.fstat(file.descriptor).st_nlink == 1)

    def _handle(self) -> int:
        handle = self._next_handle
        self._next_handle += 1
        return handle

    def read(self, _: str | None, size: int, offset: int, info: FileInfo) -> bytes:
        """pread(2)."""
        return os.pread(self._files[info.fh].current(self._union), size, offset)

    def write(self, _: str | None, data: bytes, offset: int, info: FileInfo) -> int:
        """pwrite(2)."""
        return os.pwrite(self._files[info.fh].current(self._union), data, offset)

    def truncate(self, path: str | None, size: int, info: FileInfo | None = None) -> None:
        """truncate(2) and ftruncate(2)."""
        if info is not None:
            node = self._files[info.fh].node
        else:
            assert path is not None
            node = self._node(path)
        self._changes.truncate(node, size)

    def fsync(self, _: str | None, data_only: int, info: FileInfo) -> None:
        """fsync(2) and fdatasync(2)."""
        (os.fdatasync if data_only else os.fsync)(self._files[info.fh].current(self._union))

    def release(self, _: str | None, info: FileInfo) -> None:
        """Let an open file go (close(2), the last one)."""
        file = self._files.pop(info.fh)
        node = file.node
        file.close()
        if not node.users:
            for key in [key for key, hidden in self._hidden.items() if hidden is node]:
                del self._hidden[key]
            if node.parent is None:
                self._drop(node)
        self._union.nodes.release(node)

    # Directories.

    def opendir(self, path: str) -> int:
        """opendir(3)."""
        node = self._node(path)
        handle = self._handle()
        self._directories[handle] = node
        node.users += 1
        return handle

    def readdir(self, _: str | None, handle: int) -> list[tuple[str, dict[str, int], int]]:
        """readdir(3), the whole directory."""
        node = self._directories[handle]
        above = node.parent or node
        found = [(".", node.number, stat.S_IFDIR), ("..", above.number, stat.S_IFDIR)]
        found += (
            (name.decode(ENCODING), number, kind << 12) for name, number, kind in self._union.entries(node)
        )
        return [(name, {"st_ino": number, "st_mode": mode}, 0) for name, number, mode in found]

    def fsyncdir(self, _: str | None, data_only: int, handle: int) -> None:
        """fsync(2) of a directory."""
        node = self._directories[handle]
        if node.upper and node.parent is not None:
            os.fsync(node.places[0].open())

    def releasedir(self, _: str | None, handle: int) -> None:
        """Let an open directory go (closedir(3))."""
        node = self._directories.pop(handle)
        node.users -= 1
        self._union.nodes.release(node)

    # Extended attributes and the file system as a whole.

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        """setxattr(2)."""
        self._changes.set_xattr(self._node(path), name.encode(ENCODING), value, flags)

    def getxattr(self, path: str, name: str) -> bytes:
        """getxattr(2)."""
        return self._union.xattr(self._node(path), name.encode(ENCODING))

    def listxattr(self, path: str) -> list[str]:
        """listxattr(2)."""
        return [name.decode(ENCODING) for name in self._union.xattr_names(self._node(path))]

    def removexattr(self, path: str, name: str) -> None:
        """removexattr(2)."""
        self._changes.remove_xattr(self._node(path), name.encode(ENCODING))

    def statfs(self, _: str) -> dict[str, int]:
        """statvfs(3) of the upper layer's file system."""
        found = os.fstatvfs(self._union.layers.roots[0].open())
        names = (
            "f_bsize",
            "f_frsize",
            "f_blocks",
            "f_bfree",
            "f_bavail",
            "f_files",
            "f_ffree",
            "f_favail",
            "f_namemax",
        )
        return {name: getattr(found, name) for name in names}
