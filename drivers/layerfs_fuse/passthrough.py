"""File data that the kernel moves itself: which open files are tied to a file below (FUSE_PASSTHROUGH).

The kernel's rules: all opens of one inode at a time go to the same file below, or none does. Files of the
upper layer qualify, and large ones of lower layers. Should one of these be copied up while it is open, who
has it open keeps the lower one's data, and who opens it from then on gets another inode.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from struct import Struct
from typing import Final

from layerfs import linux
from layerfs_fuse.handles import Backing, OpenFile
from layerfs_fuse.nodes import Node
from layerfs_fuse.options import Passed

_MAP: Final = Struct("=iIQ")
_IDENTITY: Final = Struct("=I")
_OPEN: Final = 0x4010E501
_CLOSE: Final = 0x4004E502
_FSETID: Final = 1 << 4


class Passthrough:
    """The files below that the kernel was given, by the id of the node that is tied to each."""

    def __init__(self, device: int, passed: Passed) -> None:
        self._device = device
        self._passed = passed
        self._tied: dict[int, Backing] = {}
        self._capabilities = linux.capget()
        self.enabled = False

    def enable(self) -> None:
        """Begin, as agreed with the kernel."""
        self.enabled = self._passed != "none"

    def takes(self, node: Node) -> bool:
        """Say whether a file may be tied."""
        if not self.enabled or node.partial:
            return False
        return node.upper or (node.large and self._passed == "all")

    def tie(self, node: Node, file: OpenFile) -> int:
        """Tie a file that was just opened to the one below; gives the backing id, 0 when that cannot be."""
        if not self.takes(node):
            return 0
        backing = self._tied.get(node.id)
        if backing is None:
            if node.users > 1 or _is_guarded(file):
                return 0
            try:
                with self._not_exempt():
                    # With a buffer that may change, the answer is the call's own: the backing id.
                    identity = fcntl.ioctl(self._device, _OPEN, bytearray(_MAP.pack(file.descriptor, 0, 0)))
            except OSError:
                # No privilege, or a file system below that is stacked too deep: it will not get better.
                self.enabled = False
                return 0
            backing = self._tied[node.id] = Backing(node.id, identity, lower=not node.upper)
        backing.users += 1
        file.backing = backing
        return backing.identity

    def is_outdated(self, node: Node, *, writing: bool) -> bool:
        """Say whether a file is tied to one of a lower layer, and is about to be opened as another one."""
        backing = self._tied.get(node.id)
        return backing is not None and backing.lower and (writing or node.upper)

    @contextlib.contextmanager
    def _not_exempt(self) -> Iterator[None]:
        """Register a file as somebody whose writing takes setuid and setgid away.

        The kernel writes to it as whoever registered it, and chmod(2) may come while it is open.
        """
        effective, permitted, inheritable = self._capabilities
        linux.capset(effective & ~_FSETID, permitted, inheritable)
        try:
            yield
        finally:
            linux.capset(effective, permitted, inheritable)

    def ties(self, node: Node) -> bool:
        """Say whether a file is open and tied."""
        return node.id in self._tied

    def untie(self, file: OpenFile) -> None:
        """Take note that an open file is closed."""
        backing = file.backing
        if backing is None:
            return
        backing.users -= 1
        if not backing.users:
            del self._tied[backing.node]
            fcntl.ioctl(self._device, _CLOSE, _IDENTITY.pack(backing.identity))


def _is_guarded(file: OpenFile) -> bool:
    """Say whether writing must take setuid or setgid away, which the kernel leaves to us."""
    if not file.flags & os.O_ACCMODE:
        return False
    return bool(os.fstat(file.descriptor).st_mode & (stat.S_ISUID | stat.S_ISGID))
