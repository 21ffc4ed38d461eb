"""What the kernel has open: files, which follow a copy-up, and listings of directories."""

from __future__ import annotations

import bisect
import os
from typing import Final

from layerfs_fuse.nodes import Node
from layerfs_fuse.union import Listed, Union

_MOST_LISTINGS: Final = 256
_KEPT: Final = os.O_ACCMODE | os.O_SYNC | os.O_DSYNC | os.O_NOATIME


class OpenFile:
    """An open regular file."""

    __slots__ = ("_upper", "backing", "descriptor", "flags", "node")

    def __init__(self, union: Union, node: Node, flags: int) -> None:
        self.node = node
        # Appending is the kernel's business: it sends offsets.
        self.flags = flags & _KEPT
        self.backing = 0
        self._upper = node.upper
        self.descriptor = _open(union, node, self.flags)
        node.users += 1

    def current(self, union: Union) -> int:
        """Give the descriptor of the topmost copy."""
        if self.node.upper is not self._upper:
            descriptor = _open(union, self.node, self.flags)
            os.close(self.descriptor)
            self.descriptor, self._upper = descriptor, True
        return self.descriptor

    def close(self) -> None:
        """Close it; the caller releases the node."""
        self.node.users -= 1
        os.close(self.descriptor)


def _open(union: Union, node: Node, flags: int) -> int:
    if not node.upper:
        flags |= os.O_NOATIME  # nothing changes in lower layers
    try:
        return union.open(node, flags)
    except PermissionError:
        if not flags & os.O_NOATIME:
            raise
        return union.open(node, flags & ~os.O_NOATIME)


class Listings:
    """What directories hold, as far as they are being read.

    A name keeps its offset as long as it stays, whatever else comes or goes, so that several readers
    can share a listing, and none needs to be told apart from the others.
    """

    def __init__(self, union: Union) -> None:
        self._union = union
        self._kept: dict[int, list[tuple[int, Listed]]] = {}

    def after(self, node: Node, offset: int) -> list[tuple[int, Listed]]:
        """Give the names after an offset with their own; a reader that begins sees the directory as it is."""
        found = self._kept.get(node.id) if offset else None
        if found is None:
            found = self._read(node)
        return found[bisect.bisect_right(found, offset, key=_offset) :] if offset else found

    def _read(self, node: Node) -> list[tuple[int, Listed]]:
        above = node.parent or node
        listed = [Listed(b".", node.number, 4), Listed(b"..", above.number, 4), *self._union.entries(node)]
        known = {one.name: offset for offset, one in self._kept.pop(node.id, ())}
        unused = max(known.values(), default=0) + 1
        found = []
        for one in listed:
            offset = known.get(one.name)
            if offset is None:
                offset, unused = unused, unused + 1
            found.append((offset, one))
        found.sort(key=_offset)
        self._kept[node.id] = found
        if len(self._kept) > _MOST_LISTINGS:
            del self._kept[next(iter(self._kept))]
        return found


def _offset(entry: tuple[int, Listed]) -> int:
    return entry[0]
