"""Large files of lower layers, whose data is copied beside the server before they are copied up.

A lower file never changes, so its data can be copied while others are served. Only then is the request
that needs the copy begun, once more from the start; until then nothing has happened.
"""

import collections
import contextlib
import errno
import os
from collections.abc import Callable
from typing import Final, NamedTuple

from layerfs.files import copy_data
from layerfs_fuse.aside import Aside
from layerfs_fuse.copy_up import NEW_FILE, Postponed, WritableUnion
from layerfs_fuse.nodes import Node

_ACL: Final = "system.posix_acl_access"


class Request(NamedTuple):
    """A request to begin anew; `asking` are the uid, gid and thread of who makes it."""

    op: int
    unique: int
    identity: int
    body: bytes
    asking: tuple[int, int, int]


class _Copy(NamedTuple):
    """A copy in the work directory, or why there is none."""

    node: Node
    name: bytes
    errno: int


class LargeFiles:
    """Copies that are being made, and who waits for them; `wake` is called when one is finished."""

    def __init__(self, union: WritableUnion, aside: Aside, wake: Callable[[], None]) -> None:
        self.finished: collections.deque[_Copy] = collections.deque()
        self._union = union
        self._aside = aside
        self._wake = wake
        self._waiting: dict[Node, list[Request]] = {}
        self._copies: dict[Node, _Copy] = {}
        union.fetch = self._fetch

    def _fetch(self, node: Node, size: int) -> bytes:
        copy = self._copies.pop(node, None)
        if copy is None:
            raise Postponed(node, size)
        if copy.errno:
            raise OSError(copy.errno, os.strerror(copy.errno))
        return copy.name

    def wait(self, postponed: Postponed, request: Request) -> None:
        """Begin a request anew when the copy that it needs is there; the first one has it made."""
        node, size = postponed.node, postponed.size
        if node not in self._waiting:
            source, name = self._union.open(node, os.O_RDONLY), self._union.temporary()
            self._waiting[node] = []
            self._aside.run(lambda: self._copy(node, name, source, size))
        self._waiting[node].append(request)

    def _copy(self, node: Node, name: bytes, source: int, size: int) -> None:
        number = errno.EIO
        try:
            target = os.open(name, NEW_FILE, 0o600, dir_fd=self._union.work)
            try:
                # The work directory may have lent an ACL for what the server made there meanwhile.
                with contextlib.suppress(OSError):
                    os.removexattr(target, _ACL)
                os.fchmod(target, 0o600)
                copy_data(source, target, size=size, syncing=True)
                # What is safe on disk must not be lost because somebody has opened it for writing.
                os.fdatasync(target)
            finally:
                os.close(target)
            number = 0
        except OSError as error:
            number = error.errno or errno.EIO
        finally:
            os.close(source)
            self.finished.append(_Copy(node, name, number))
            self._wake()

    def settle(self, answer: Callable[[Request], None]) -> None:
        """Answer who has waited for the copies that are finished."""
        while self.finished:
            copy = self.finished.popleft()
            self._copies[copy.node] = copy
            for request in self._waiting.pop(copy.node):
                answer(request)
            # It may not be needed any more, or be none.
            unused = self._copies.pop(copy.node, None)
            if unused is not None or copy.errno:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(copy.name, dir_fd=self._union.work)
