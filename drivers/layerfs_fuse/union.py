"""The union as it is read: names looked up through the layers, directories merged, attributes found."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from layerfs_fuse.nodes import Node, Nodes
from layerfs_fuse.places import Layers


class Absent(Exception):
    """Pieces of a file's data must come first; nothing has happened yet."""

    def __init__(self, node: Node, first: int, last: int) -> None:
        super().__init__()
        self.node = node
        self.first = first
        self.last = last


class Listed(NamedTuple):
    """One name of a directory, with the type bits of its mode shifted as in dirent(3)."""

    name: bytes
    number: int
    type: int


class Union:
    """A merged tree; nothing of it changes through this class (`layerfs_fuse.changes` does that)."""

    def __init__(self, layers: Layers, *, writable: bool) -> None:
        self.layers = layers
        self.nodes = Nodes(layers, writable=writable)
        # Raises where the data of a file has to come first, some bytes of it or all; else notes that it has.
        self.require: Callable[[Node, int, int | None], None] | None = None

    def lookup(self, parent: Node, name: bytes) -> Node | None:
        """Find what a name stands for; None when there is no such file."""
        if parent.children is None:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        node = parent.children.get(name)
        if node is not None:
            return node
        found = self.layers.merge(parent.places, name)
        return None if found is None else self.nodes.add(parent, name, found)

    def find(self, parent: Node, name: bytes, first: int = 0) -> tuple[Node, os.stat_result] | None:
        """Look up as `lookup` does, and read the attributes of what is found.

        The first `first` ones of the merged directories are known to have no part in it.
        """
        if parent.children is None:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        node = parent.children.get(name)
        if node is not None:
            return node, self.stat(node)
        found = self.layers.merge(parent.places[first:] if first else parent.places, name)
        if found is None:
            return None
        node = self.nodes.add(parent, name, found)
        # One that was known by another name may have been copied up.
        return node, self.stat(node) if node.lookups else found.status

    def described(self, parent: Node, name: bytes, first: int = 0) -> tuple[int, int] | None:
        """Give the inode number and the mode of a name, without making a node; None when nothing shows."""
        assert parent.children is not None
        node = parent.children.get(name)
        if node is not None:
            return node.number, self.stat(node).st_mode
        found = self.layers.merge(parent.places[first:], name)
        return None if found is None else (self.layers.number(found.status), found.status.st_mode)

    def stat(self, node: Node) -> os.stat_result:
        """Read the attributes of the topmost copy; `number_links` and `Node.number` correct two of them."""
        if node.descriptor >= 0:
            return os.fstat(node.descriptor)
        if node.children is not None:
            return os.fstat(node.places[0].open())
        assert node.at is not None
        if not (node.whole or node.upper) and (found := node.at.stat(node.at_name)) is not None:
            return found
        return os.stat(node.at_name, dir_fd=node.at.open(), follow_symlinks=False)

    def number_links(self, node: Node, found: os.stat_result) -> int:
        """Count the names of a file of which `found` are the attributes."""
        if node.children is not None:
            if node.parent is None and node is not self.nodes.root:
                return 0
            # Nobody has counted the subdirectories of a merged one: 1 says so (find(1) understands it).
            return 1 if len(node.places) > 1 else found.st_nlink
        if node.upper:
            return found.st_nlink
        known = 0 if node.parent is None else 1 + len(node.names)
        return max(known, found.st_nlink - self.nodes.lost(found)) if found.st_nlink > 1 else known

    def path(self, node: Node) -> tuple[bytes, bool]:
        """Name the topmost copy for calls that want a path, and say whether they must follow that."""
        if node.descriptor >= 0:
            return self.layers.through(node.descriptor), True
        if node.children is not None:
            return self.layers.through(node.places[0].open()), True
        assert node.at is not None
        return self.layers.through(node.at.open(), node.at_name), False

    def require_data(self, node: Node, offset: int = 0, size: int | None = None) -> None:
        """Go on only when the data of a file, or these bytes of it, are here."""
        if not (node.whole or node.upper):
            if self.require is None:
                raise OSError(errno.EIO, "nobody gets the data of this file")
            self.require(node, offset, size)

    def open(self, node: Node, flags: int, *, partly: bool = False) -> int:
        """Open a regular file, where its data is; with `partly` also one that has not all of it here."""
        if not partly:
            self.require_data(node)
        if node.descriptor >= 0:
            return os.open(self.layers.through(node.descriptor), flags | os.O_CLOEXEC)
        assert node.at is not None
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(node.at_name, flags, dir_fd=node.at.open())
        if node.upper and not node.partial:
            return file
        try:
            data = self.layers.dialect.data(node.at, node.at_name, file)
            if data is None:
                return file
            place, name = data
            whole = os.open(name, flags, dir_fd=place.open())
        except BaseException:
            os.close(file)
            raise
        os.close(file)
        return whole

    @contextlib.contextmanager
    def opened(self, node: Node) -> Iterator[int]:
        """Open the topmost copy of a regular file or a directory, whatever it is for."""
        if node.children is not None:
            yield node.places[0].open() if node.descriptor < 0 else node.descriptor
            return
        file = os.open(self.path(node)[0], os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            yield file
        finally:
            os.close(file)

    def readlink(self, node: Node) -> bytes:
        """Read a symlink."""
        if node.descriptor >= 0:
            return os.readlink(b"", dir_fd=node.descriptor)
        assert node.at is not None
        return os.readlink(node.at_name, dir_fd=node.at.open())

    def names(self, node: Node) -> dict[bytes, int]:
        """Give the names that a directory may show, with how many of the merged ones need not be asked."""
        nameless = node.parent is None and node is not self.nodes.root
        return {} if nameless else self.layers.dialect.names(node.places)

    def entries(self, node: Node) -> list[Listed]:
        """List a directory, whiteouts and what they hide left out, ``.`` and ``..`` too."""
        if node.children is None:  # the layer has changed beneath us
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if node.parent is None and node is not self.nodes.root:
            return []
        found = []
        for name, number, kind in self.layers.dialect.entries(node.places):
            known = node.children.get(name)
            found.append(Listed(name, number if known is None else known.number, kind))
        return found

    def is_empty(self, node: Node) -> bool:
        """Say whether a directory shows no name."""
        return not self.entries(node)

    def xattr_names(self, node: Node) -> list[bytes]:
        """List the extended attributes, the layer format's own left out."""
        path, follow = self.path(node)
        names = map(os.fsencode, os.listxattr(path, follow_symlinks=follow))
        return [shown for name in names if (shown := self.layers.dialect.shown(name)) is not None]

    def xattr(self, node: Node, name: bytes) -> bytes:
        """Read one extended attribute."""
        path, follow = self.path(node)
        return os.getxattr(path, self.layers.dialect.stored(name), follow_symlinks=follow)
