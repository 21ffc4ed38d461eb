"""The files that the kernel knows of: an inode each, with where it lies and how often it was looked up."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from typing import Final

from layerfs_fuse.origins import Origins
from layerfs_fuse.places import NO_PLACES, Found, Layers, Place

ROOT_ID: Final = 1
LARGE: Final = 4 << 20
"""Bytes from which on a file of a lower layer is large: its data has ways of its own."""


class Node:
    """One file of the merged tree; `at` and `at_name` say where its topmost copy lies."""

    __slots__ = (
        "at", "at_name", "children", "descriptor", "id", "large", "linked", "lookups", "name", "names",
        "number", "parent", "partial", "places", "upper", "users", "whole",
    )  # fmt: skip

    def __init__(self, identity: int, parent: Node | None, name: bytes) -> None:
        self.id = identity
        self.lookups = 0
        self.parent = parent
        self.name = name
        # Further names of the same file, of which there can be 65,000.
        self.names = _NO_NAMES
        self.children: dict[bytes, Node] | None = None
        # The merged directories, top first.
        self.places = NO_PLACES
        self.at: Place | None = None
        self.at_name = b""
        self.upper = False
        # Whether it is a regular file of `LARGE` bytes or more in a lower layer.
        self.large = False
        # Whether it is known to have its data: files of lazy layers may lack it.
        self.whole = True
        # Whether the upper layer has the file's metadata only.
        self.partial = False
        # How `Nodes` finds it by its file, when that has several names.
        self.linked: tuple[int, int] | None = None
        # A file without a name is reached through this (O_PATH).
        self.descriptor = -1
        self.number = 0
        # How many open handles there are.
        self.users = 0

    def add_name(self, parent: Node, name: bytes) -> None:
        """Note a further name of the same file."""
        if not self.names:
            self.names = {}
        self.names[parent, name] = None

    @property
    def is_directory(self) -> bool:
        """Say whether this is a directory."""
        return self.children is not None


# One for all files with a single name, since they are many.
_NO_NAMES: Final[dict[tuple[Node, bytes], None]] = {}


class Nodes:
    """Every node that the kernel holds, by its id and, below its directory, by its name."""

    def __init__(self, layers: Layers, *, writable: bool) -> None:
        self.layers = layers
        self.writable = writable
        self._by_id: dict[int, Node] = {}
        self._next = ROOT_ID
        # Former ids, with how often each was looked up.
        self._former: dict[int, int] = {}
        # The nodes that still have one.
        self.renewed: set[Node] = set()
        # Files with several names are one node.
        self._linked: dict[tuple[int, int], Node] = {}
        # How many names were taken from files of lower layers, which still count them.
        self._lost: dict[tuple[int, int], int] = {}
        self._origins = Origins(layers)
        self.root = self._new(None, b"")
        self.root.children = {}
        self.root.places = list(layers.roots)
        self.root.upper = writable
        self.root.number = layers.number(os.fstat(layers.roots[0].open()))
        self.root.lookups = 1

    def _new(self, parent: Node | None, name: bytes) -> Node:
        node = Node(self._next, parent, name)
        self._next += 1
        self._by_id[node.id] = node
        return node

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def issued(self) -> int:
        """How many nodes there have been."""
        return self._next

    def spare(self, count: int) -> list[int]:
        """Pick nodes of lower layers that nobody has open here, from the oldest on, children before parents.

        They count as the youngest afterwards.
        """
        found: list[int] = []
        for identity in list(itertools.islice(self._by_id, count)):
            node = self._by_id.pop(identity)
            self._by_id[identity] = node
            if not (node.upper or node.users or node is self.root):
                found.append(identity)
        found.reverse()
        return found

    def get(self, identity: int) -> Node:
        """Find the node of a request."""
        node = self._by_id.get(identity)
        if node is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return node

    def child(self, parent: Node, name: bytes) -> Node | None:
        """Find a node that is known already."""
        return parent.children.get(name) if parent.children is not None else None

    def add(self, parent: Node, name: bytes, found: Found, *, new: bool = False) -> Node:
        """Make the node of a name that was looked up, or find the one of another name of the same file.

        What is `new` was made just now, and not copied from a lower layer.
        """
        assert parent.children is not None
        upper = self.writable and found.parent.layer == 0
        status = found.status
        linked = not found.places and status.st_nlink > 1
        if linked:
            node = self._linked.get((status.st_dev, status.st_ino))
            if node is not None:
                if node.parent is None:
                    node.parent, node.name = parent, name
                    node.at, node.at_name = found.parent, name
                elif (parent, name) != (node.parent, node.name):
                    node.add_name(parent, name)
                parent.children[name] = node
                return node
        node = self._new(parent, name)
        node.upper = upper
        node.number = self.layers.number(status)
        if upper and not new:
            self._look_below(node, found, name)
        if found.places:
            node.children = {}
            node.places = found.places
        else:
            node.at, node.at_name = found.parent, name
            node.large = not upper and status.st_size >= LARGE and stat.S_ISREG(status.st_mode)
            node.whole = upper or not found.parent.lacks(status)
        if linked:
            self.share(node, status)
        parent.children[name] = node
        return node

    def _look_below(self, node: Node, found: Found, name: bytes) -> None:
        """Find out what a file of the upper layer has from a lower one: its inode number, its data."""
        if len(found.places) > 1:
            node.number = self.layers.number(os.fstat(found.places[1].open()))
            return
        path = found.parent.path_of(name)
        marks = os.listxattr(path, follow_symlinks=False)
        if marks:
            node.number = self._origins.number(path, marks) or node.number
            partial = self.layers.dialect.mark(b"metacopy")
            node.partial = partial is not None and partial.decode() in marks

    def origin(self, node: Node, found: os.stat_result) -> tuple[bytes, bytes] | None:
        """Give the extended attribute by which a copy of a lower file keeps its inode number."""
        if node.descriptor >= 0:
            return None
        if node.children is None:
            assert node.at is not None
            return self._origins.record(node.at.open(), node.at_name, found)
        place = node.places[0]
        return None if place.parent is None else self._origins.record(place.parent.open(), place.name, found)

    def lose(self, node: Node) -> None:
        """Note that a file of a lower layer with several names has one less."""
        if node.linked is not None:
            self._lost[node.linked] = self._lost.get(node.linked, 0) + 1

    def lost(self, found: os.stat_result) -> int:
        """Say how many names of a file of a lower layer are gone."""
        return self._lost.get((found.st_dev, found.st_ino), 0)

    def add_nameless(self, descriptor: int) -> Node:
        """Make the node of a file of the upper layer that has no name, reached through `descriptor`."""
        node = self._new(None, b"")
        node.upper = True
        node.descriptor = descriptor
        node.number = self.layers.number(os.fstat(descriptor))
        return node

    def share(self, node: Node, status: os.stat_result) -> None:
        """Remember a file that has come to have several names."""
        if node.linked is not None and self._linked.get(node.linked) is node:
            del self._linked[node.linked]
        node.linked = (status.st_dev, status.st_ino)
        self._linked[node.linked] = node

    def renew(self, node: Node) -> None:
        """Give a node another id; whoever knows it by the former one still finds it."""
        self._former[node.id] = node.lookups
        self.renewed.add(node)
        node.id = self._next
        self._next += 1
        self._by_id[node.id] = node

    def forget(self, identity: int, count: int) -> None:
        """Take back lookups; a node that has none and no children goes."""
        node = self._by_id.get(identity)
        if node is None or node is self.root:
            return
        node.lookups -= count
        if identity in self._former:
            self._former[identity] -= count
            if self._former[identity] <= 0:
                del self._former[identity], self._by_id[identity]
                self.renewed.discard(node)
        self.release(node)

    def release(self, node: Node) -> None:
        """Let a node go that nobody needs any longer, and those above it that it kept."""
        current: Node | None = node
        while current is not None and current is not self.root:
            if current.lookups > 0 or current.children or current.users:
                return
            self._by_id.pop(current.id, None)
            if current.linked is not None and self._linked.get(current.linked) is current:
                del self._linked[current.linked]
            above = current.parent
            for parent, name in ((above, current.name), *current.names):
                if (
                    parent is not None
                    and parent.children is not None
                    and parent.children.get(name) is current
                ):
                    del parent.children[name]
            for place in current.places:
                place.close()
            if current.descriptor >= 0:
                os.close(current.descriptor)
                current.descriptor = -1
            current.parent = None
            current = above
