"""The merged tree of an image's layers as data: what a mount of it would show, out of entries alone.

`overlaying` has the rules by which layers are applied.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from errno import ELOOP, ENOENT, ENOTDIR
from typing import Final, Protocol

from layerfs.errors import BudgetError
from layerfs.seekable.extent import Indexed
from layerfs.seekable.overlaying import Node, implied, overlay
from layerfs.tree.budget import DEFAULT_BUDGET, Budget
from layerfs.tree.entry import Kind

# As the kernel has it (path_resolution(7)).
_MOST_LINKS: Final = 40
# Entries of all layers; each takes most of a kilobyte.
_MOST_FILES: Final = 4_000_000


class Contents(Protocol):
    """One layer: what it has, and the data of its files."""

    def entries(self) -> Iterator[Indexed]:
        """Give the layer's entries in its order, names normalised, whiteouts under their OCI names."""
        ...

    def read(self, file: Indexed, offset: int = 0, size: int | None = None) -> Iterator[bytes]:
        """Give a part of one of its files in pieces."""
        ...


class MergedTree:
    """The tree of some layers, bottom first.

    Args:
        layers: read here once, and kept for `read`; stay the caller's.
        budget: bounds how deep it may be.

    Raises:
        LayerfsError: a layer's entries cannot be read.
        BudgetError: they ask for more than the budget.
    """

    def __init__(
        self,
        layers: Sequence[Contents],
        *,
        budget: Budget = DEFAULT_BUDGET,
    ) -> None:
        self._layers = layers
        self._left = _MOST_FILES
        self.root = implied(-1)
        for number, layer in enumerate(layers):
            self.root = overlay(self.root, self._counted(layer), number, depth=budget.depth)
        _count_links(self.root)

    def _counted(self, layer: Contents) -> Iterator[Indexed]:
        for file in layer.entries():
            self._left -= 1
            if self._left < 0:
                raise BudgetError(f"an image of more than {_MOST_FILES} files, which are not held in memory")
            yield file

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


def walk(top: Node, path: bytes = b"") -> Iterator[tuple[bytes, Node]]:
    """Give everything below a directory with its path, names sorted, a directory before what is in it."""
    todo = [(path, top)]
    while todo:
        here, node = todo.pop()
        yield here, node
        for name in sorted(node.children or (), reverse=True):
            assert node.children is not None
            todo.append((here + b"/" + name if here else name, node.children[name]))


def _count_links(root: Node) -> None:
    seen: dict[int, int] = {}
    todo = [root]
    while todo:
        for node in (todo.pop().children or {}).values():
            if node.children is None:
                seen[id(node)] = node.links = seen.get(id(node), 0) + 1
            else:
                todo.append(node)


def _error(number: int, path: bytes) -> OSError:
    return OSError(number, os.strerror(number), os.fsdecode(path))
