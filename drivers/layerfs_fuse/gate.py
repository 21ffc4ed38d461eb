"""What waits while the layers of a mount show their topmost names only (`layerfs.driver.Unfinished`)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from layerfs_fuse.large import Request
from layerfs_fuse.nodes import Node, Nodes
from layerfs_fuse.protocol import Op

# What is answered out of the names and attributes that are there: of the root, and of what stands in it.
_OF_ROOT: Final = frozenset(
    map(
        int,
        (
            Op.LOOKUP, Op.GETATTR, Op.OPENDIR, Op.READDIR, Op.READDIRPLUS, Op.RELEASEDIR, Op.GETXATTR,
            Op.LISTXATTR, Op.STATFS, Op.SYNCFS,
        ),
    )
)  # fmt: skip
_OF_TOP: Final = frozenset(map(int, (Op.GETATTR, Op.READLINK, Op.GETXATTR, Op.LISTXATTR, Op.STATFS)))


class Gate:
    """The requests of one mount that wait; nothing of them has happened yet.

    Attributes:
        failed: whether they would wait in vain.
    """

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._waiting: list[Request] = []
        self._shut = False
        self.failed = False

    def admits(self, op: int, node: Node) -> bool:
        """Say whether a request can be answered now.

        Raises:
            OSError: neither now nor later (EIO).
        """
        if not self._shut:
            if node is self._nodes.root:
                if op in _OF_ROOT:
                    return True
            elif op in _OF_TOP and node.parent is self._nodes.root:
                return True
        if self.failed:
            raise OSError(errno.EIO, "the outlines of the layers could not be made")
        return False

    def wait(self, request: Request) -> None:
        """Keep a request until the gate opens."""
        self._waiting.append(request)

    def interrupt(self, unique: int) -> bool:
        """Forget a request whose process was told to stop waiting; say whether it was here."""
        for request in self._waiting:
            if request.unique == unique:
                self._waiting.remove(request)
                return True
        return False

    def shut(self) -> None:
        """Have everything wait."""
        self._shut = True

    def fail(self) -> None:
        """Let nobody wait who would wait in vain."""
        self._shut, self.failed = False, True

    def release(self, answer: Callable[[Request], None]) -> None:
        """Answer who has waited."""
        waiting, self._waiting = self._waiting, []
        for request in waiting:
            answer(request)
