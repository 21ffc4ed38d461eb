"""The way out of the user namespace that an ordinary user's layerfs lives in: mounts that the user sees.

In its namespace layerfs is root, but what it mounts there nobody else sees; and fusermount3(1) has its power
only outside. So a child that never enters stays behind, and calls it when it is asked to. It starts the
servers of such mounts too: one that came from in here would keep alive what this mount namespace has copied
of the user's mounts, and with that their servers.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from layerfs import fusermount, linux, liveness
from layerfs.errors import InUseError, LayerfsError, MountError

if TYPE_CHECKING:
    from layerfs.mounting import MountInfo

_Argument = TypeVar("_Argument")
_MESSAGE_MAXIMUM: Final = 1 << 20


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

    def mount(
        self,
        target: str,
        options: Sequence[str],
        serve: Callable[[int, _Argument], None],
        argument: _Argument,
    ) -> None:
        """Mount a FUSE file system there and start its server, with the rights that we have in here.

        Args:
            target: a directory of the user's.
            options: for fusermount3.
            serve: a function of a module, called with the mount's /dev/fuse and `argument` in a process that
                is in our user namespace, and outside of our mount namespace; it leaves a server behind.
            argument: anything that pickle takes.

        Raises:
            MountError: it was refused, or the server could not start.
        """
        namespace = os.open("/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._ask(_mount, (target, list(options), pickle.dumps((serve, argument))), [namespace])
        finally:
            os.close(namespace)

    def unmount(self, target: str, *, lazy: bool = False) -> None:
        """Unmount there; see `fusermount.unmount`."""
        self._ask(_unmount, (target, lazy), [])

    def _ask(self, what: Callable[..., None], arguments: tuple[Any, ...], descriptors: list[int]) -> None:
        import socket

        with socket.socket(fileno=os.dup(self._channel)) as channel:
            socket.send_fds(channel, [pickle.dumps((what, arguments))], descriptors)
            answer = channel.recv(_MESSAGE_MAXIMUM)
        if not answer:
            raise MountError("the process that mounts outside of the user namespace is gone")
        kind, message, hint, number = pickle.loads(answer)
        if kind is InUseError:
            raise InUseError(message, hint=hint)
        if kind is not None:
            raise MountError(message, errno=number, hint=hint)


def _wait_upon(channel: int) -> None:
    """Live as the child: do what is asked, until nobody is left who could ask."""
    os.setsid()
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    # Whoever waits for the end of our output must not wait for this process.
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    os.chdir("/")
    # The module `socket` takes long to import, and most commands ask for nothing.
    poller = select.poll()
    poller.register(channel, select.POLLIN)
    poller.poll()
    import socket

    with socket.socket(fileno=channel) as stream:
        while True:
            request, descriptors, _, _ = socket.recv_fds(stream, _MESSAGE_MAXIMUM, 1)
            if not request:
                return
            what, arguments = pickle.loads(request)
            stream.send(pickle.dumps(_done(what, *arguments, *descriptors)))
            for descriptor in descriptors:
                os.close(descriptor)


def _done(work: Callable[..., None], *arguments: object) -> tuple[type | None, str, str | None, int | None]:
    """Do something and describe the error, if there is one."""
    try:
        work(*arguments)
    except LayerfsError as error:
        kind = InUseError if isinstance(error, InUseError) else MountError
        return kind, str(error), error.hint, getattr(error, "errno", None)
    except OSError as error:
        return MountError, str(error), None, error.errno
    return None, "", None, None


def _mount(target: str, options: list[str], started: bytes, namespace: int) -> None:
    device = fusermount.mount(target, options)
    try:
        _start(device, started, namespace)
    except BaseException:
        with contextlib.suppress(LayerfsError):
            fusermount.unmount(target, lazy=True)
        raise
    finally:
        os.close(device)


def _unmount(target: str, lazy: bool) -> None:
    fusermount.unmount(target, lazy=lazy)


def _start(device: int, started: bytes, namespace: int) -> None:
    """Call a function in a process of its own, in the user namespace."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)

            def work() -> None:
                linux.setns(namespace, linux.CLONE_NEWUSER)
                serve, argument = pickle.loads(started)
                serve(device, argument)

            os.write(write, pickle.dumps(_done(work)))
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as stream:
        answer = stream.read()
    os.waitpid(child, 0)
    if not answer:
        raise MountError("the server did not start")
    kind, message, hint, number = pickle.loads(answer)
    if kind is not None:
        raise MountError(message, errno=number, hint=hint)
