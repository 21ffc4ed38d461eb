"""Finds the further names of a file of a lower layer, which must all follow when it is copied up."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from layerfs_fuse.nodes import Node
from layerfs_fuse.places import Place

if TYPE_CHECKING:
    from layerfs_fuse.union import Union

Path = tuple[bytes, ...]


class Links:
    """Looks where further names most often stand, then once through the whole tree.

    What was found in that walk is a hint only, since directories can be renamed. But no lower file gains a
    name: one of which a walk saw a single name has no other.
    """

    def __init__(self, union: Union) -> None:
        self._union = union
        self._hints: dict[tuple[int, int], list[Path]] | None = None

    def complete(self, node: Node, found: os.stat_result) -> None:
        """Bring every name that the tree shows for a file of a lower layer into `Node.names`."""
        if self._knows_all(node, found):
            return
        self._look_beside(node, found.st_ino)
        if self._knows_all(node, found):
            return
        key = (found.st_dev, found.st_ino)
        if self._hints is not None:
            hints = self._hints.get(key, [])
            if all(self._follow(path, node) for path in hints):
                return
        self._hints = self._walk()
        for path in self._hints.get(key, []):
            self._follow(path, node)

    def _knows_all(self, node: Node, found: os.stat_result) -> bool:
        return 1 + len(node.names) >= self._union.number_links(node, found)

    def _look_beside(self, node: Node, number: int) -> None:
        for parent in {node.parent, *(parent for parent, _ in node.names)}:
            assert parent is not None
            for name, found, _ in list(self._union.layers.dialect.entries(parent.places)):
                if found == number:
                    self._union.lookup(parent, name)

    def _follow(self, path: Path, node: Node) -> bool:
        """Say whether a path still leads to a file, or to a name that the file has lost."""
        current = self._union.nodes.root
        for name in path:
            below = self._union.lookup(current, name) if current.is_directory else None
            if below is None:
                return False
            current = below
        return current is node

    def _walk(self) -> dict[tuple[int, int], list[Path]]:
        """Find every file with several names, without making nodes of what is on the way."""
        layers = self._union.layers
        found: dict[tuple[int, int], list[Path]] = {}
        todo: list[tuple[Path, list[Place]]] = [((), layers.roots)]
        while todo:
            path, places = todo.pop()
            for name, _, _ in layers.dialect.entries(places):
                merged = layers.merge(places, name)
                if merged is None:
                    continue
                status = merged.status
                if merged.places:
                    todo.append(((*path, name), merged.places))
                elif status.st_nlink > 1:
                    found.setdefault((status.st_dev, status.st_ino), []).append((*path, name))
            layers.trim()
        return {key: paths for key, paths in found.items() if len(paths) > 1}
