"""What the kernel has open: files, which follow a copy-up, and listings of directories."""

from __future__ import annotations

import os
from typing import Final

from layerfs_fuse.nodes import Node
from layerfs_fuse.union import Listed, Union

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
    try:
        return union.open(node, flags)
    except PermissionError:
        if not flags & os.O_NOATIME:
            raise
        return union.open(node, flags & ~os.O_NOATIME)


class OpenDirectory:
    """An open directory: what was in it when its first name was asked for, or when it was rewound."""

    __slots__ = ("_listed", "node")

    def __init__(self, node: Node) -> None:
        self.node = node
        self._listed: list[Listed] | None = None
        node.users += 1

    def listed(self, union: Union, offset: int) -> list[Listed]:
        """Give all names from the beginning."""
        if self._listed is None or offset == 0:
            above = self.node.parent or self.node
            self._listed = [
                Listed(b".", self.node.number, 4),
                Listed(b"..", above.number, 4),
                *union.entries(self.node),
            ]
        return self._listed

    def close(self) -> None:
        """Forget the listing; the caller releases the node."""
        self.node.users -= 1
