"""The merged tree of an image's layers as data: what a mount of it would show, out of entries alone.

The rules are those by which layers are applied (image-spec layer.md, "Applying Changesets"): whiteouts and
opaque directories hide what older layers have, a directory's entry changes an older directory, everything
else replaces.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from errno import ELOOP, ENOENT, ENOTDIR
from typing import Final, Protocol

from layerfs.errors import BudgetError, printable
from layerfs.seekable.extent import Indexed
from layerfs.tree.budget import DEFAULT_BUDGET, Budget
from layerfs.tree.entry import Entry, Kind
from layerfs.tree.whiteouts import OPAQUE, PREFIX

# As the kernel has it (path_resolution(7)).
_MOST_LINKS: Final = 40
_IMPLIED: Final = 0o755


class Contents(Protocol):
    """One layer: what it has, and the data of its files."""

    def entries(self) -> Iterator[Indexed]:
        """Give the layer's entries in its order, names normalised, whiteouts under their OCI names."""
        ...

    def read(self, file: Indexed, offset: int = 0, size: int | None = None) -> Iterator[bytes]:
        """Give a part of one of its files in pieces."""
        ...


class Node:
    """A file of the tree, of whatever type; hard links are one node under several names.

    `file` is its entry as its layer has it; `links` counts its names; `children` are a directory's, by name.
    """

    __slots__ = ("children", "file", "layer", "links")

    def __init__(self, file: Indexed, layer: int) -> None:
        self.file = file
        self.layer = layer
        self.links = 1
        self.children: dict[bytes, Node] | None = {} if file.entry.kind is Kind.DIRECTORY else None

    @property
    def entry(self) -> Entry:
        """What it is."""
        return self.file.entry


class MergedTree:
    """The tree of some layers, bottom first.

    Args:
        layers: read here once, and kept for `read`; stay the caller's.
        budget: bounds how many files there may be.
        warn: told, one sentence each, what was odd.

    Raises:
        LayerfsError: a layer's entries cannot be read.
        BudgetError: there are more than the budget allows.
    """

    def __init__(
        self,
        layers: Sequence[Contents],
        *,
        budget: Budget = DEFAULT_BUDGET,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._layers = layers
        self._warn = warn
        self.root = _implied(-1)
        count = 0
        for number, layer in enumerate(layers):
            found = list(layer.entries())
            count += len(found)
            if count > budget.entries:
                raise BudgetError(f"an image of more than {budget.entries} entries")
            self._apply(found, number)

    def find(self, path: bytes, *, follow: bool = True) -> Node:
        """Look a path up, as a process would whose root is the tree's.

        Args:
            path: absolute or not, it begins at the root; ``..`` there stays there.
            follow: follow a symlink at its end; a slash behind the name does so always.

        Raises:
            OSError: ENOENT, ENOTDIR or ELOOP.
        """
        return self.resolve(path, follow=follow)[1]

    def resolve(self, path: bytes, *, follow: bool = True) -> tuple[tuple[bytes, ...], Node]:
        """Do what `find` does, and give the names that lead to the file without a symlink, too."""
        todo = path.split(b"/")[::-1]
        follow = follow or path.endswith((b"/", b"/."))
        here: list[tuple[bytes, Node]] = []
        links = 0
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                # A slash asks for a directory.
                if here and here[-1][1].children is None:
                    raise _error(ENOTDIR, path)
                continue
            top = here[-1][1] if here else self.root
            if top.children is None:
                raise _error(ENOTDIR, path)
            if part == b"..":
                if here:
                    here.pop()
                continue
            node = top.children.get(part)
            if node is None:
                raise _error(ENOENT, path)
            if node.entry.kind is Kind.SYMLINK and (todo or follow):
                links += 1
                if links > _MOST_LINKS:
                    raise _error(ELOOP, path)
                target = node.entry.target
                if target.startswith(b"/"):
                    here.clear()
                todo += target.split(b"/")[::-1]
                continue
            here.append((part, node))
        return tuple(name for name, _ in here), here[-1][1] if here else self.root

    def read(self, node: Node, offset: int = 0, size: int | None = None) -> Iterator[bytes]:
        """Give a part of a file in pieces, verified as far as its layer can.

        Raises:
            VerificationError: the bytes are not the promised ones.
            LayerfsError, OSError: they cannot be read.
        """
        return self._layers[node.layer].read(node.file, offset, size)

    def _apply(self, found: list[Indexed], number: int) -> None:
        # Whiteouts first, wherever they stand: they concern older layers alone.
        for file in found:
            name = file.entry.path.rpartition(b"/")[2]
            if name.startswith(PREFIX):
                self._hide(file.entry.path, name)
        links = []
        for file in found:
            entry = file.entry
            if entry.path.rpartition(b"/")[2].startswith(PREFIX):
                continue
            if entry.kind is Kind.HARDLINK:
                links.append(entry)
            else:
                self._put(file, number)
        while links:
            # A link may lead to a name that is itself one, further on.
            left = [entry for entry in links if not self._link(entry, number)]
            if len(left) == len(links):
                for entry in left:
                    self._warn(f"hard link {printable(entry.path)!r} to nothing left out")
                return
            links = left

    def _hide(self, path: bytes, name: bytes) -> None:
        parts = path.split(b"/")[:-1]
        directory: Node | None = self.root
        for part in parts:
            directory = directory.children.get(part) if directory and directory.children else None
        if directory is None or directory.children is None:
            return
        if name == OPAQUE:
            directory.children.clear()
        else:
            hidden = directory.children.pop(name[len(PREFIX) :], None)
            if hidden is not None:
                hidden.links -= 1

    def _put(self, file: Indexed, number: int) -> None:
        entry = file.entry
        if not entry.path:
            self.root.file, self.root.layer = file, number
            return
        *parents, name = entry.path.split(b"/")
        children = self._directory(parents, number)
        old = children.get(name)
        if old is not None and old.children is not None and entry.kind is Kind.DIRECTORY:
            old.file, old.layer = file, number
            return
        self._replace(children, name, Node(file, number))

    def _link(self, entry: Entry, number: int) -> bool:
        node: Node | None = self.root
        for part in entry.target.split(b"/"):
            node = node.children.get(part) if node is not None and node.children else None
        if node is None or node.children is not None:
            return False
        *parents, name = entry.path.split(b"/")
        children = self._directory(parents, number)
        if children.get(name) is not node:
            node.links += 1
            self._replace(children, name, node)
        return True

    def _replace(self, children: dict[bytes, Node], name: bytes, node: Node) -> None:
        old = children.get(name)
        if old is not None:
            old.links -= 1
        children[name] = node

    def _directory(self, parts: list[bytes], number: int) -> dict[bytes, Node]:
        node = self.root
        for part in parts:
            assert node.children is not None
            below = node.children.get(part)
            if below is None or below.children is None:
                below = _implied(number)
                node.children[part] = below
            node = below
        assert node.children is not None
        return node.children


def walk(top: Node, path: bytes = b"") -> Iterator[tuple[bytes, Node]]:
    """Give everything below a directory with its path, names sorted, a directory before what is in it."""
    todo = [(path, top)]
    while todo:
        here, node = todo.pop()
        yield here, node
        for name in sorted(node.children or (), reverse=True):
            assert node.children is not None
            todo.append((here + b"/" + name if here else name, node.children[name]))


def _implied(number: int) -> Node:
    return Node(Indexed(Entry(b"", Kind.DIRECTORY, _IMPLIED), None, None), number)


def _error(number: int, path: bytes) -> OSError:
    return OSError(number, os.strerror(number), os.fsdecode(path))
