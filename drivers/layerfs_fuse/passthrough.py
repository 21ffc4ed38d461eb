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
import time
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
_MOST_REFUSED: Final = 256
_PATIENCE: Final = 5.0
"""Seconds in which a thread comes back, however busy the machine is."""


class Refused:
    """Threads that were told that an inode is stale, each with that one; they look the file up and come back.

    The kernel lets them do so once. So nobody must be tied to a file of a lower layer while one that wants
    to write is due; it may find a node that was made just now, and knows of nothing.
    """

    def __init__(self) -> None:
        self._inodes: dict[int, tuple[int, float]] = {}

    def add(self, thread: int, inode: int, *, writing: bool) -> None:
        """Take note of a thread, which may also never come back."""
        if len(self._inodes) >= _MOST_REFUSED:
            self._inodes.clear()
        self._inodes[thread] = inode, time.monotonic() + _PATIENCE if writing else 0

    def insists(self, thread: int, inode: int) -> bool:
        """Say whether a thread has come back with the same inode."""
        return thread in self._inodes and self._inodes[thread][0] == inode

    def forget(self, thread: int) -> None:
        """Take note that a thread has got what it wanted."""
        self._inodes.pop(thread, None)

    def writer_due(self) -> bool:
        """Say whether one that wants to write is on its way."""
        if not self._inodes:
            return False
        now = time.monotonic()
        return any(until > now for _, until in self._inodes.values())


class Passthrough:
    """The files below that the kernel was given, by the inode (a node's id, or a former one) tied to each."""

    def __init__(self, device: int, passed: Passed) -> None:
        self._device = device
        self._passed = passed
        self._tied: dict[int, Backing] = {}
        self._capabilities = linux.capget()
        self.enabled = False
        self.refused = Refused()

    def enable(self) -> None:
        """Begin, as agreed with the kernel."""
        self.enabled = self._passed != "none"

    def takes(self, node: Node, inode: int) -> bool:
        """Say whether a file that is opened by one of its inodes may be tied, or must."""
        if inode in self._tied:
            return True
        if not self.enabled or node.partial or not (node.whole or node.upper):
            return False
        return node.upper or (node.large and self._passed == "all" and not self.refused.writer_due())

    def tie(self, file: OpenFile, inode: int) -> int:
        """Tie a file that was just opened to the one below; gives the backing id, 0 when that cannot be."""
        node, backing = file.node, self._tied.get(inode)
        if backing is None:
            if not self.takes(node, inode) or node.users > 1 or _is_guarded(file):
                return 0
            try:
                with self._not_exempt():
                    # With a buffer that may change, the answer is the call's own: the backing id.
                    identity = fcntl.ioctl(self._device, _OPEN, bytearray(_MAP.pack(file.descriptor, 0, 0)))
            except OSError:
                # No privilege, or a file system below that is stacked too deep: it will not get better.
                if node.upper:
                    self.enabled = False
                else:
                    self._passed = "upper"
                return 0
            backing = self._tied[inode] = Backing(inode, identity, lower=not node.upper)
        backing.users += 1
        file.backing = backing
        return backing.identity

    def ties_below(self, inode: int) -> bool:
        """Say whether an inode is tied to a file of a lower layer."""
        backing = self._tied.get(inode)
        return backing is not None and backing.lower

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

    def ties(self, inode: int) -> bool:
        """Say whether an inode is open and tied."""
        return inode in self._tied

    def untie(self, file: OpenFile) -> None:
        """Take note that an open file is closed."""
        backing = file.backing
        if backing is None:
            return
        backing.users -= 1
        if not backing.users:
            del self._tied[backing.inode]
            fcntl.ioctl(self._device, _CLOSE, _IDENTITY.pack(backing.identity))


def _is_guarded(file: OpenFile) -> bool:
    """Say whether writing must take setuid or setgid away, which the kernel leaves to us."""
    if not file.flags & os.O_ACCMODE:
        return False
    return bool(os.fstat(file.descriptor).st_mode & (stat.S_ISUID | stat.S_ISGID))
