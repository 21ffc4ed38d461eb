"""Copies files of lower layers into the upper one, whole or not at all: by one rename."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Final

from layerfs.files import copy_data, read_xattrs, remove_tree
from layerfs_fuse.links import Links
from layerfs_fuse.nodes import LARGE, Node
from layerfs_fuse.places import Layers, Place
from layerfs_fuse.union import Union

NEW_FILE: Final = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_XATTR: Final = (errno.ENOTSUP, errno.ENODATA)


class Postponed(Exception):
    """The data of a large file must be copied first; nothing has happened yet."""

    def __init__(self, node: Node, size: int) -> None:
        super().__init__()
        self.node = node
        self.size = size


class WritableUnion(Union):
    """A union whose top layer is written; `work` is an open directory of the same file system as that."""

    def __init__(self, layers: Layers, work: int) -> None:
        super().__init__(layers, writable=True)
        self.work = work
        self._made = 0
        # Gives the name of a copy of a large file's data in the work directory, or raises `Postponed`.
        self.fetch: Callable[[Node, int], bytes] | None = None
        # Hears of each file that has come up: attributes that a copy cannot keep are others now.
        self.copied: Callable[[Node], None] | None = None
        self._links = Links(self)
        for name in os.listdir(work):
            remove_tree(work, name)
        with contextlib.suppress(OSError):
            os.removexattr(work, "system.posix_acl_default")  # of a server that was killed

    def temporary(self) -> bytes:
        """Give a name that nothing in the work directory has."""
        self._made += 1
        return b"#%x" % self._made

    def upper(self, node: Node) -> Place:
        """Give the upper directory of a directory, which is copied up first where it must be."""
        self.copy_up(node)
        return node.places[0]

    def copy_up(self, node: Node, *, data: bool = True) -> None:
        """Bring a file into the upper layer, parents first; without `data` a regular file comes empty.

        All names of a file come up together.
        """
        if node.upper:
            if node.partial:
                self._complete(node, data=data)
            return
        chain = [node]
        while chain[-1].parent is not None and not chain[-1].parent.upper:
            chain.append(chain[-1].parent)
        for each in reversed(chain):
            self._copy_up_one(each, data=data)

    def _copy_up_one(self, node: Node, *, data: bool) -> None:
        found = self.stat(node)
        copied = b""
        if data:
            self.require_data(node)
        if self.fetch and data and stat.S_ISREG(found.st_mode) and found.st_size >= LARGE:
            copied = self.fetch(node, found.st_size)
        temporary = copied or self.temporary()
        try:
            others = self._other_names(node, found)
            source, follow = self.path(node)
            if copied:
                pass
            elif stat.S_ISDIR(found.st_mode):
                os.mkdir(temporary, 0o700, dir_fd=self.work)
            elif stat.S_ISREG(found.st_mode):
                self._copy_file(node, temporary, found, data=data)
            elif stat.S_ISLNK(found.st_mode):
                os.symlink(self.readlink(node), temporary, dir_fd=self.work)
            else:
                os.mknod(temporary, found.st_mode, found.st_rdev, dir_fd=self.work)
            self._copy_attributes(source, follow, temporary, found)
            self._note_origin(node, temporary, found)
            self._install(node, temporary, found, others)
        except BaseException:
            remove_tree(self.work, temporary)
            raise

    def know_all_names(self, node: Node) -> None:
        """Look for the further names of a file of a lower layer."""
        self._links.complete(node, self.stat(node))

    def _other_names(self, node: Node, found: os.stat_result) -> list[tuple[Place, bytes]]:
        """Find where the further names of a file will stand in the upper layer."""
        if node.children is not None or node.parent is None or found.st_nlink < 2:
            return []
        self._links.complete(node, found)
        return [(self.upper(parent), name) for parent, name in list(node.names)]

    def _note_origin(self, node: Node, temporary: bytes, found: os.stat_result) -> None:
        origin = self.nodes.origin(node, found)
        if origin is not None:
            # Where there is no room for it, the file has another inode number in the next mount.
            with contextlib.suppress(OSError):
                os.setxattr(self.layers.through(self.work, temporary), *origin, follow_symlinks=False)

    def _complete(self, node: Node, *, data: bool) -> None:
        """Give a file of which the upper layer has the metadata its data."""
        assert node.at is not None
        source = self.open(node, os.O_RDONLY)
        try:
            flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            target = os.open(node.at_name, flags, dir_fd=node.at.open())
            try:
                found = os.fstat(target)
                if data:
                    copy_data(source, target, size=found.st_size)
                    os.fdatasync(target)
                os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
                self.layers.dialect.complete(target)
            finally:
                os.close(target)
        finally:
            os.close(source)
        node.partial = False

    def _copy_file(self, node: Node, temporary: bytes, found: os.stat_result, *, data: bool) -> None:
        target = os.open(temporary, NEW_FILE, 0o600, dir_fd=self.work)
        try:
            if data and found.st_size:
                source = self.open(node, os.O_RDONLY)
                try:
                    copy_data(source, target, size=found.st_size)
                finally:
                    os.close(source)
                # What is safe on disk must not be lost because somebody has opened it for writing.
                os.fdatasync(target)
        finally:
            os.close(target)

    def _copy_attributes(self, source: bytes, follow: bool, name: bytes, found: os.stat_result) -> None:
        work = self.work
        target = self.layers.through(work, name)
        os.chown(name, found.st_uid, found.st_gid, dir_fd=work, follow_symlinks=False)
        if not stat.S_ISLNK(found.st_mode):
            os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=work)
        for key, value in (_xattrs_of_link(source) if follow else read_xattrs(source)).items():
            if self.layers.dialect.shown(key) is not None:
                os.setxattr(target, key, value, follow_symlinks=False)
        os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=work, follow_symlinks=False)

    def _install(
        self, node: Node, temporary: bytes, found: os.stat_result, others: list[tuple[Place, bytes]]
    ) -> None:
        """Give the copy its names, and the node its new place."""
        if node.parent is None:  # it has lost its name already
            descriptor = os.open(temporary, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.work)
            if stat.S_ISDIR(found.st_mode):
                os.rmdir(temporary, dir_fd=self.work)
            else:
                os.unlink(temporary, dir_fd=self.work)
            if node.descriptor >= 0:
                os.close(node.descriptor)
            node.descriptor = descriptor
            node.upper = True
            return
        above = node.parent.places[0]
        for place in (above, *(place for place, _ in others)):
            self.layers.dialect.note_copies(place)
        with contextlib.ExitStack() as undo:
            for place, name in others:
                with _times_kept(place):
                    os.link(
                        temporary, name, src_dir_fd=self.work, dst_dir_fd=place.open(), follow_symlinks=False
                    )
                    undo.callback(_unlink, place, name)
            with _times_kept(above):
                os.rename(temporary, node.name, src_dir_fd=self.work, dst_dir_fd=above.open())
            undo.pop_all()
        node.upper = True
        if node.children is not None:
            node.places.insert(0, above.below(node.name))
        else:
            node.at, node.at_name = above, node.name
            if found.st_nlink > 1:
                self.nodes.share(node, self.stat(node))
        if self.copied is not None:
            self.copied(node)

    def made(self, make: Callable[[bytes], None]) -> bytes:
        """Make something in the work directory and give its name; nothing is left when that fails."""
        temporary = self.temporary()
        try:
            make(temporary)
        except BaseException:
            remove_tree(self.work, temporary)
            raise
        return temporary


def _unlink(place: Place, name: bytes) -> None:
    with _times_kept(place):
        os.unlink(name, dir_fd=place.open())


@contextlib.contextmanager
def _times_kept(place: Place) -> Iterator[None]:
    """Give a directory its times back after a block: a copy-up is no change of it."""
    found = os.fstat(place.open())
    yield
    os.utime(place.open(), ns=(found.st_atime_ns, found.st_mtime_ns))


def _xattrs_of_link(path: bytes) -> dict[bytes, bytes]:
    """Read the extended attributes of what a link of /proc stands for."""
    try:
        names = os.listxattr(path)
    except OSError as error:
        if error.errno in _NO_XATTR:
            return {}
        raise
    return {os.fsencode(name): os.getxattr(path, name) for name in names}
