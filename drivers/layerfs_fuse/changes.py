"""What changes a union: files made, removed, renamed and given attributes, in the dialect of its layers."""

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from typing import Final, NamedTuple

from layerfs import linux
from layerfs_fuse.copy_up import WritableUnion
from layerfs_fuse.nodes import Node
from layerfs_fuse.places import NO_PLACES, Found, Place

_SET_IDS: Final = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX
_CREATED: Final = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# FS_IMMUTABLE_FL and FS_APPEND_FL.
_FORBIDDING: Final = 0x10 | 0x20
_ACCESS_LISTS: Final = b"system.posix_acl_"
_KILL_GROUP: Final = stat.S_ISGID | stat.S_IXGRP


def failure(number: int) -> OSError:
    """Make the error of an errno."""
    return OSError(number, os.strerror(number))


class Maker(NamedTuple):
    """Who makes a file, and with which umask."""

    uid: int
    gid: int
    umask: int


class Changes(WritableUnion):
    """The whole union, for writing."""

    def mknod(self, parent: Node, name: bytes, mode: int, device: int, maker: Maker) -> Node:
        """Make a regular file, a fifo, a socket or a device (mknod(2))."""
        if stat.S_ISCHR(mode) and device == 0:
            raise failure(errno.EPERM)  # overlayfs's whiteout, which no layer may hold

        def make(directory: int, entry: bytes) -> None:
            os.mknod(entry, mode, device, dir_fd=directory)

        return self._make(parent, name, make, mode, maker)

    def create(self, parent: Node, name: bytes, mode: int, flags: int, maker: Maker) -> tuple[Node, int]:
        """Make a regular file and give a descriptor too, opened with `flags` (open(2), O_CREAT)."""
        mode = stat.S_IMODE(mode)
        nameless = parent is not self.nodes.root and parent.parent is None
        descriptor = -1
        if not (nameless or self.nodes.child(parent, name) or self._is_below(parent, name)):
            place = self.upper(parent)
            above = place.open()
            if self.layers.dialect.is_free(place, name):
                os.umask(maker.umask)
                with contextlib.suppress(FileExistsError):  # what hides the name, or shows under it
                    descriptor = os.open(name, flags | _CREATED, mode, dir_fd=above)
        if descriptor < 0:
            node = self.mknod(parent, name, stat.S_IFREG | mode, 0, maker)
            return node, self.open(node, flags)
        try:
            self._own(above, above, name, stat.S_IFREG | mode, maker)
            found = Found(os.fstat(descriptor), place, NO_PLACES)
            return self.nodes.add(parent, name, found, new=True), descriptor
        except BaseException:
            os.close(descriptor)
            os.unlink(name, dir_fd=above)
            raise

    def symlink(self, parent: Node, name: bytes, target: bytes, maker: Maker) -> Node:
        """Make a symlink (symlink(2))."""

        def make(directory: int, entry: bytes) -> None:
            os.symlink(target, entry, dir_fd=directory)

        return self._make(parent, name, make, 0, maker)

    def mkdir(self, parent: Node, name: bytes, mode: int, maker: Maker) -> Node:
        """Make a directory (mkdir(2)), opaque where a deleted one of a lower layer had its name."""

        def make(directory: int, entry: bytes) -> None:
            os.mkdir(entry, mode, dir_fd=directory)

        return self._make(parent, name, make, stat.S_IFDIR | stat.S_IMODE(mode), maker)

    def tmpfile(self, parent: Node, mode: int, maker: Maker) -> Node:
        """Make a regular file without a name (open(2), O_TMPFILE)."""
        if parent is not self.nodes.root and parent.parent is None:
            raise failure(errno.ENOENT)
        above = self.upper(parent).open()
        os.umask(maker.umask)
        flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
        descriptor = os.open(b".", flags, stat.S_IMODE(mode), dir_fd=above)
        try:
            self._own(above, None, self.layers.through(descriptor), mode, maker)
        except BaseException:
            os.close(descriptor)
            raise
        return self.nodes.add_nameless(descriptor)

    def _make(
        self, parent: Node, name: bytes, make: Callable[[int, bytes], None], mode: int, maker: Maker
    ) -> Node:
        if self.lookup(parent, name) is not None:
            raise failure(errno.EEXIST)
        if parent is not self.nodes.root and parent.parent is None:
            raise failure(errno.ENOENT)
        place = self.upper(parent)
        above = place.open()
        os.umask(maker.umask)

        def build(directory: int, entry: bytes) -> None:
            make(directory, entry)
            self._own(above, directory, entry, mode, maker)

        self.layers.dialect.add(self, place, name, build, directory=stat.S_ISDIR(mode))
        return self._added(parent, place, name)

    def _added(self, parent: Node, place: Place, name: bytes) -> Node:
        found = place.stat(name)
        if found is None:
            raise failure(errno.EIO)
        places = [place.below(name)] if stat.S_ISDIR(found.st_mode) else NO_PLACES
        return self.nodes.add(parent, name, Found(found, place, places), new=True)

    def _own(self, above: int, directory: int | None, name: bytes, mode: int, maker: Maker) -> None:
        """Give a new file its owner, as the file system below would have if the maker had made it.

        Without a `directory` the name is that of an open file.
        """
        follow = directory is None
        parent = os.fstat(above)
        inherit = parent.st_mode & stat.S_ISGID
        gid = parent.st_gid if inherit else maker.gid
        if maker.uid or gid:
            os.chown(name, maker.uid, gid, dir_fd=directory, follow_symlinks=follow)
        if stat.S_ISDIR(mode) and inherit:
            mode |= stat.S_ISGID
        if mode & _SET_IDS:
            now = os.stat(name, dir_fd=directory, follow_symlinks=follow)
            os.chmod(name, stat.S_IMODE(now.st_mode) | mode & _SET_IDS, dir_fd=directory)

    def link(self, node: Node, parent: Node, name: bytes) -> Node:
        """Give a file one more name (link(2)); it is copied up first."""
        if self.lookup(parent, name) is not None:
            raise failure(errno.EEXIST)
        if parent is not self.nodes.root and parent.parent is None:
            raise failure(errno.ENOENT)
        self.copy_up(node)
        place = self.upper(parent)

        def build(directory: int, entry: bytes) -> None:
            self._link(node, directory, entry)

        self.layers.dialect.note_copies(place)
        self.layers.dialect.add(self, place, name, build, directory=False)
        assert parent.children is not None
        parent.children[name] = node
        if node.parent is None:
            self._place(node, parent, name)
            os.close(node.descriptor)
            node.descriptor = -1
        else:
            node.add_name(parent, name)
            self.nodes.share(node, self.stat(node))
        return node

    def _link(self, node: Node, directory: int, name: bytes) -> None:
        if node.parent is None:  # made without a name (O_TMPFILE)
            os.link(self.layers.through(node.descriptor), name, dst_dir_fd=directory, follow_symlinks=True)
            return
        assert node.at is not None
        source = node.at.open()
        os.link(node.at_name, name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)

    def unlink(self, parent: Node, name: bytes) -> None:
        """Remove a name (unlink(2))."""
        node = self._existing(parent, name)
        if node.is_directory:
            raise failure(errno.EISDIR)
        place = self.upper(parent)
        if node.users and node.linked is not None and not node.upper:
            self.know_all_names(node)
        self._keep(node)
        below = not node.upper or self._is_below(parent, name)
        self.layers.dialect.remove(self, place, name, below=below, directory=False)
        self._unname(node, parent, name)

    def rmdir(self, parent: Node, name: bytes) -> None:
        """Remove a directory in which nothing shows (rmdir(2))."""
        node = self._existing(parent, name)
        if not node.is_directory:
            raise failure(errno.ENOTDIR)
        if not self.is_empty(node):
            raise failure(errno.ENOTEMPTY)
        place = self.upper(parent)
        self._keep(node)
        below = not node.upper or self._is_below(parent, name)
        self.layers.dialect.remove(self, place, name, below=below, directory=True)
        self._unname(node, parent, name)

    def _existing(self, parent: Node, name: bytes) -> Node:
        node = self.lookup(parent, name)
        if node is None:
            raise failure(errno.ENOENT)
        return node

    def _is_below(self, parent: Node, name: bytes) -> bool:
        """Say whether a name would show from lower layers, were it not in the upper one."""
        if len(parent.places) == 1 and parent.upper:
            return False
        lower = [place for place in parent.places if place.layer]
        return self.layers.merge(lower, name) is not None

    def _keep(self, node: Node) -> None:
        """Hold a file that is about to lose its last name; whoever has it open can still use it."""
        if node.descriptor >= 0 or node.names or not (node.lookups or node.users):
            return
        if node.children is not None:
            node.descriptor = self.layers.kept(os.dup(node.places[0].open()))
        elif node.upper and node.at is not None:
            if node.users:
                self.copy_up(node)  # only its metadata may have been
            flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
            node.descriptor = self.layers.kept(os.open(node.at_name, flags, dir_fd=node.at.open()))

    def _unname(self, node: Node, parent: Node, name: bytes) -> None:
        """Take a name away from a node."""
        if not node.upper:
            self.nodes.lose(node)
        assert parent.children is not None
        parent.children.pop(name, None)
        if (parent, name) in node.names:
            del node.names[parent, name]
        elif node.names:
            above, other = next(iter(node.names))
            del node.names[above, other]
            self._place(node, above, other)
        else:
            node.parent = None
            for place in node.places:
                place.close()
            self.nodes.release(node)
        self.nodes.release(parent)

    def _place(self, node: Node, parent: Node, name: bytes) -> None:
        node.parent, node.name = parent, name
        if node.upper:
            node.at, node.at_name = parent.places[0], name

    def rename(self, old: Node, old_name: bytes, new: Node, new_name: bytes, flags: int) -> None:
        """Move a file or a directory (renameat2(2)), RENAME_NOREPLACE and RENAME_EXCHANGE understood."""
        if flags & ~(linux.RENAME_NOREPLACE | linux.RENAME_EXCHANGE):
            raise failure(errno.EINVAL)
        node = self._existing(old, old_name)
        target = self.lookup(new, new_name)
        if flags & linux.RENAME_EXCHANGE:
            if target is None:
                raise failure(errno.ENOENT)
            if target is not node:
                self._exchange(node, old, old_name, target, new, new_name)
            return
        if target is not None:
            if flags & linux.RENAME_NOREPLACE:
                raise failure(errno.EEXIST)
            if target is node:
                return
            self._check_replaceable(node, target)
        self._detach_from_below(node, old, old_name, new, new_name)
        source, destination = self.upper(old), self.upper(new)
        below = self._is_below(old, old_name)
        if target is not None:
            self._keep(target)
            for place in target.places[1:] if target.upper else ():
                # What it hides may be cleared away.
                place.close()
                target.places.remove(place)
        self.layers.dialect.note_copies(destination)
        self.layers.dialect.move(
            self, source, old_name, destination, new_name, below=below, directory=node.is_directory
        )
        if target is not None:
            self._unname(target, new, new_name)
        self._moved(node, old, old_name, new, new_name)

    def _check_replaceable(self, node: Node, target: Node) -> None:
        if target.is_directory:
            if not node.is_directory:
                raise failure(errno.EISDIR)
            if not self.is_empty(target):
                raise failure(errno.ENOTEMPTY)
        elif node.is_directory:
            raise failure(errno.ENOTDIR)

    def _detach_from_below(self, node: Node, old: Node, old_name: bytes, new: Node, new_name: bytes) -> None:
        """Copy a file up; make sure that a directory shows the same wherever it is."""
        self.copy_up(node)
        if node.children is None:
            return
        path, _ = self.path(node)
        if len(node.places) == 1:
            if self._is_below(new, new_name):
                self.layers.dialect.make_opaque(path)
            return
        target = self._path_below(node)
        if not self.layers.dialect.redirect(path, target):
            self._copy_up_below(node)

    def _path_below(self, node: Node) -> bytes:
        """Give the path by which the layers below alone show a directory, if they do."""
        names: list[bytes] = []
        current = node
        while current.parent is not None:
            redirect = self.layers.dialect.redirected(current.places[0]) if current.upper else None
            names.append(redirect or current.name)
            if names[-1].startswith(b"/"):
                break
            current = current.parent
        return b"/" + b"/".join(reversed(names)).strip(b"/")

    def _copy_up_below(self, node: Node) -> None:
        """Copy a whole directory up, after which the layers below serve nothing of it.

        Nothing is hidden before everything is there, and then from the innermost directories on: who is
        stopped in between, or has to begin again, has lost nothing.
        """
        directories = [node]
        for directory in directories:
            self.copy_up(directory)
            for name, _, _ in self.entries(directory):
                child = self.lookup(directory, name)
                if child is not None:
                    self.copy_up(child)
                    if child.is_directory:
                        directories.append(child)
        for directory in reversed(directories):
            if len(directory.places) > 1:
                self.layers.dialect.make_opaque(self.path(directory)[0])
            for place in directory.places[1:]:
                place.close()
            del directory.places[1:]

    def _exchange(
        self, node: Node, old: Node, old_name: bytes, target: Node, new: Node, new_name: bytes
    ) -> None:
        self._detach_from_below(node, old, old_name, new, new_name)
        self._detach_from_below(target, new, new_name, old, old_name)
        source, destination = self.upper(old), self.upper(new)
        for place in (source, destination):
            self.layers.dialect.note_copies(place)
        linux.renameat2(source.open(), old_name, destination.open(), new_name, linux.RENAME_EXCHANGE)
        assert old.children is not None and new.children is not None
        self._moved(node, old, old_name, new, new_name)
        self._moved(target, new, new_name, old, old_name)
        old.children[old_name], new.children[new_name] = target, node

    def _moved(self, node: Node, old: Node, old_name: bytes, new: Node, new_name: bytes) -> None:
        """Follow a rename of the upper layer."""
        assert old.children is not None and new.children is not None
        if old.children.get(old_name) is node:
            del old.children[old_name]
        new.children[new_name] = node
        if (old, old_name) in node.names:
            del node.names[old, old_name]
            node.add_name(new, new_name)
        elif node.children is None:
            self._place(node, new, new_name)
        else:
            node.parent, node.name = new, new_name
            node.places[0].parent, node.places[0].name = new.places[0], new_name
        self.nodes.release(old)

    def set_xattr(self, node: Node, name: bytes, value: bytes, flags: int) -> None:
        """Set an extended attribute (setxattr(2))."""
        self.copy_up(node)
        path, follow = self.path(node)
        os.setxattr(path, self.layers.dialect.stored(name), value, flags, follow_symlinks=follow)

    def remove_xattr(self, node: Node, name: bytes) -> None:
        """Remove an extended attribute (removexattr(2))."""
        try:
            self.xattr(node, name)  # what is not there is no reason to copy up
        except OSError as error:
            if node.upper and error.errno == errno.ENODATA and name.startswith(_ACCESS_LISTS):
                return  # file systems remove a list that is not there without a word
            raise
        self.copy_up(node)
        path, follow = self.path(node)
        os.removexattr(path, self.layers.dialect.stored(name), follow_symlinks=follow)

    def chmod(self, node: Node, mode: int) -> None:
        """Change the mode (chmod(2)); a symlink has none, though kernels before 6.6 ask for that."""
        if stat.S_ISLNK(self.stat(node).st_mode):
            raise failure(errno.EOPNOTSUPP)  # chmod(2) would follow it, out of the layers
        self.copy_up(node)
        os.chmod(self.path(node)[0], mode)

    def kill_set_ids(self, node: Node) -> None:
        """Take setuid, and setgid where the group may execute, from a file that somebody else writes."""
        mode = stat.S_IMODE(self.stat(node).st_mode)
        left = mode & ~stat.S_ISUID
        if mode & _KILL_GROUP == _KILL_GROUP:
            left &= ~stat.S_ISGID
        if left != mode:
            self.chmod(node, left)

    def chown(self, node: Node, uid: int, gid: int) -> None:
        """Change the owner (chown(2)); -1 leaves one as it is."""
        self.copy_up(node)
        path, follow = self.path(node)
        os.chown(path, uid, gid, follow_symlinks=follow)

    def utime(self, node: Node, atime_ns: int, mtime_ns: int) -> None:
        """Set both times, nanoseconds (utimensat(2))."""
        self.copy_up(node)
        path, follow = self.path(node)
        os.utime(path, ns=(atime_ns, mtime_ns), follow_symlinks=follow)

    def truncate(self, node: Node, size: int) -> None:
        """Change a regular file's length (truncate(2))."""
        self.copy_up(node, data=size > 0)
        os.truncate(self.path(node)[0], size)

    def set_file_flags(self, node: Node, flags: int) -> None:
        """Set the flags that chattr(1) knows, but for those that would keep us from serving the file."""
        if flags & _FORBIDDING:
            raise failure(errno.EOPNOTSUPP)
        self.copy_up(node)
        with self.opened(node) as file:
            linux.set_file_flags(file, flags)
