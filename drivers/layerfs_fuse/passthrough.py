"""File data that the kernel moves itself: which open files are tied to a file below (FUSE_PASSTHROUGH).

The kernel's rules: all opens of one inode at a time go to the same file below, or none does. Files of the
upper layer qualify; those of lower layers may be copied up while they are open, so their data goes
through the page cache.
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
from layerfs_fuse.handles import OpenFile
from layerfs_fuse.nodes import Node

_MAP: Final = Struct("=iIQ")
_IDENTITY: Final = Struct("=I")
_OPEN: Final = 0x4010E501
_CLOSE: Final = 0x4004E502
_FSETID: Final = 1 << 4


class Passthrough:
    """The files below that the kernel was given, and how many open files use each."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._users: dict[int, int] = {}
        self._identities: dict[int, int] = {}
        self._capabilities = linux.capget()
        self.enabled = False

    def tie(self, node: Node, file: OpenFile) -> int:
        """Tie a file that was just opened to the one below; gives the backing id, 0 when that cannot be."""
        if not self.enabled or not node.upper:
            return 0
        users = self._users.get(node.id, 0)
        if users == 0:
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
            self._identities[node.id] = identity
        self._users[node.id] = users + 1
        file.backing = self._identities[node.id]
        return file.backing

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
        return node.id in self._users

    def untie(self, node: Node, file: OpenFile) -> None:
        """Take note that an open file is closed."""
        if not file.backing:
            return
        self._users[node.id] -= 1
        if not self._users[node.id]:
            del self._users[node.id]
            fcntl.ioctl(self._device, _CLOSE, _IDENTITY.pack(self._identities.pop(node.id)))


def _is_guarded(file: OpenFile) -> bool:
    """Say whether writing must take setuid or setgid away, which the kernel leaves to us."""
    if not file.flags & os.O_ACCMODE:
        return False
    return bool(os.fstat(file.descriptor).st_mode & (stat.S_ISUID | stat.S_ISGID))
