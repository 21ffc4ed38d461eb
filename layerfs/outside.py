"""The way out of the user namespace that an ordinary user's layerfs lives in: mounts that the user sees.

In its namespace layerfs is root, but what it mounts there nobody else sees; and fusermount3(1) has its power
only outside. So a child that never enters stays behind, and calls it when it is asked to.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from layerfs import fusermount, linux, liveness
from layerfs.errors import InUseError, LayerfsError, MountError

if TYPE_CHECKING:
    from layerfs.mounting import MountInfo

_MESSAGE_MAXIMUM: Final = 65536
_SEPARATOR: Final = "\0"


class Outside:
    """The mount namespace that this process was in when the object was made.

    It is made before the user namespace is entered. `namespace` is the inode number of the mount namespace
    (namespaces(7)). The child ends with the last process that holds the object.
    """

    def __init__(self) -> None:
        self.namespace = liveness.mount_namespace()
        # It shows the namespace of whoever opened it, at any later time.
        self._table = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._channel, far = linux.socketpair()
        if os.fork() == 0:
            try:
                os.close(self._channel)
                _wait_upon(far)
            finally:
                os._exit(0)
        os.close(far)

    def mount_table(self) -> list[MountInfo]:
        """Read the mounts there, as `mounting.mount_table` does."""
        from layerfs import mounting

        return mounting.parse_table(self._table)

    def mount(self, target: str, options: Sequence[str]) -> int:
        """Mount a FUSE file system there; see `fusermount.mount`."""
        (descriptor,) = self._ask("mount", target, *options)
        return descriptor

    def unmount(self, target: str, *, lazy: bool = False) -> None:
        """Unmount there; see `fusermount.unmount`."""
        self._ask("unmount", target, *(["lazy"] if lazy else []))

    def _ask(self, *words: str) -> list[int]:
        import socket

        with socket.socket(fileno=os.dup(self._channel)) as channel:
            channel.send(os.fsencode(_SEPARATOR.join(words)))
            answer, descriptors, _, _ = socket.recv_fds(channel, _MESSAGE_MAXIMUM, 1)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        kind, *rest = os.fsdecode(answer).split(_SEPARATOR)
        if kind == "done":
            return descriptors
        if not rest:
            raise MountError("the process that mounts outside of the user namespace is gone")
        message, hint, number = rest
        if kind == "busy":
            raise InUseError(message, hint=hint or None)
        raise MountError(message, errno=int(number) or None, hint=hint or None)


def _wait_upon(channel: int) -> None:
    """Live as the child: do what is asked, until nobody is left who could ask."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Whoever waits for the end of our output must not wait for this process.
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    os.chdir("/")
    while request := os.read(channel, _MESSAGE_MAXIMUM):
        verb, target, *words = os.fsdecode(request).split(_SEPARATOR)
        descriptors = []
        try:
            if verb == "mount":
                descriptors.append(fusermount.mount(target, words))
            else:
                fusermount.unmount(target, lazy=bool(words))
            answer = "done"
        except LayerfsError as error:
            kind = "busy" if isinstance(error, InUseError) else "refused"
            number = getattr(error, "errno", None) or 0
            answer = _SEPARATOR.join((kind, str(error), error.hint or "", str(number)))
        _send(channel, answer, descriptors)


def _send(channel: int, answer: str, descriptors: list[int]) -> None:
    import socket

    with socket.socket(fileno=os.dup(channel)) as stream:
        socket.send_fds(stream, [os.fsencode(answer)], descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
