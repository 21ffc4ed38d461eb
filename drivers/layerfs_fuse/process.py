"""The server as a process of its own, left behind by the one that mounts; it ends with the mount."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from layerfs import linux
from layerfs.driver import Bodies
from layerfs_fuse.changes import Changes
from layerfs_fuse.dialect import Dialect
from layerfs_fuse.options import Options
from layerfs_fuse.places import Layers
from layerfs_fuse.union import Union

if TYPE_CHECKING:
    from socket import socket

NAME: Final = b"layerfs-fuse"
"""What ps(1) calls the process."""

FETCHER: Final = b"layerfs-fetch"
"""What ps(1) calls the one that gets data of files."""

_NONE: Final[Mapping[int, int]] = {}
_READY: Final = b"ready"
# So many of those that get data may be killed within so many seconds.
_MOST_DEATHS: Final = 5
_SOON: Final = 10.0
_MOST_OPEN: Final = 4096
_LEAST_OPEN: Final = 8
# Descriptors for requests at hand, and standard streams.
_MARGIN: Final = 16
_LOG_MAXIMUM: Final = 1 << 16


class Log:
    """A file for errors of the server's own, made when there is one; `directory` is open."""

    def __init__(self, directory: int, name: str) -> None:
        self.directory = directory
        self.name = name

    def write(self, text: str) -> None:
        """Append a text with the time; a file that has grown large begins anew. Never fails."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with contextlib.suppress(OSError):
            file = os.open(self.name, flags, 0o600, dir_fd=self.directory)
            try:
                if os.fstat(file).st_size > _LOG_MAXIMUM:
                    os.ftruncate(file, 0)
                now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                os.write(file, f"{now}\n{text}\n".encode(errors="replace")[-_LOG_MAXIMUM:])
            finally:
                os.close(file)


def start(
    device: int,
    roots: list[int],
    work: int | None,
    *,
    dialect: Dialect,
    options: Options = Options(),  # noqa: B008  a frozen value
    log: Log | None = None,
    bodies: Bodies | None = None,
    lazy: Mapping[int, int] | None = None,
    attached: bool = False,
) -> None:
    """Leave a process behind that serves a mount, and return when it has all that it needs.

    Args:
        device: the /dev/fuse of the mount.
        roots: the layers' directories, top first; the first one is written if there is a `work`.
        work: the work directory.
        dialect: the format of these layers.
        options: how the mount differs from a plain one.
        log: where the server writes down errors of its own.
        bodies: gets what the files of some roots lack of their data, in a second process that ends with the
            first one.
        lazy: which roots, each with the layer's number in requests.
        attached: whether the mount is attached already.

    Raises:
        OSError: it could not start.
    """
    report, told = os.pipe()

    def serve() -> None:
        try:
            _serve(
                told, device, roots, work, dialect=dialect, options=options, log=log, bodies=bodies,
                lazy=lazy or {}, attached=attached,
            )  # fmt: skip
        except BaseException:
            if log is not None:
                log.write(traceback.format_exc())

    with open(report, "rb", buffering=0) as stream:
        try:
            leave_behind(serve)
        finally:
            os.close(told)
        answer = stream.read(16)
    if answer != _READY:
        number = int(answer or errno.EIO)
        raise OSError(number, os.strerror(number))


def _serve(
    told: int,
    device: int,
    roots: list[int],
    work: int | None,
    *,
    dialect: Dialect,
    options: Options,
    log: Log | None,
    bodies: Bodies | None,
    lazy: Mapping[int, int],
    attached: bool,
) -> None:
    """Tell whether the server could start, then serve until the end of the mount."""
    told, device, *roots = above_standard([told, device, *roots])
    copies = above_standard(() if work is None else (work,))
    kept = {told, device, *roots, *copies}
    if log is not None:
        (log.directory,) = above_standard((log.directory,))
        kept.add(log.directory)
    fetching = None if bodies is None else _start_fetching(bodies, attached=attached)
    if fetching is not None:
        kept.add(fetching.fileno())
    be_alone(kept)
    try:
        union = opened_union(roots, *copies, dialect=dialect, lazy=lazy)
    except OSError as error:
        os.write(told, b"%d" % (error.errno or errno.EIO))
        raise
    # Whoever serves another way has no use for the kernel's protocol; without mounts there are no modules.
    from layerfs_fuse.device import Device
    from layerfs_fuse.server import Server

    plain = options == Options(allow_other=options.allow_other, passthrough=options.passthrough)
    if plain:
        connection = Device(device)
    else:
        from layerfs_fuse.adjusted import AdjustedDevice

        connection = AdjustedDevice(device, options)
    if fetching is not None:
        import layerfs_fuse.fetches  # noqa: F401  there are no modules later
    leave_mounts()
    unfinished = bodies is not None and bodies.unfinished
    server = Server(
        connection, union, passthrough=options.passthrough, fetching=fetching, unfinished=unfinished
    )
    if log is not None:
        server.log = log.write
    # Whoever mounts may be gone by now; the mount is not.
    with contextlib.suppress(BrokenPipeError):
        os.write(told, _READY)
    os.close(told)
    # It leaves no cycles behind, and looking for them takes longer the more files it knows.
    gc.disable()
    server.run()


def _start_fetching(bodies: Bodies, *, attached: bool) -> socket:
    """Have what files lack got by a child, and give the connection to it.

    The child keeps the files of whoever mounts, which the server leaves: it looks up hosts and reads
    certificates. But it must not keep the mount: so it has a copy of the mount namespace, from before that is
    attached, out of which goes what goes here. Where the mount is attached already, the child stays in its
    namespace: that is the user's own, which lasts.
    """
    import socket

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # Nobody waits for it.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    if os.fork():
        theirs.close()
        if ours.recv(len(_READY)) != _READY:
            raise OSError(errno.EIO, "the process that fetches data did not start")
        return ours
    try:
        ours.close()
        (end,) = above_standard([theirs.detach()])
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        be_alone({end}, FETCHER)
        if not attached:
            with contextlib.suppress(OSError):
                linux.unshare(linux.CLONE_NEWNS)
                linux.mount("none", "/", None, linux.MS_REC | linux.MS_SLAVE)
        os.chdir("/")
        connection = socket.socket(fileno=end)
        connection.send(_READY)
        _fetch_on(bodies, connection)
    finally:
        os._exit(0)


def _fetch_on(bodies: Bodies, connection: socket) -> None:
    """Serve in a child, and in another one when that was killed; who lives for a while may die often."""
    from layerfs_fuse.fetches import ANSWERED, BEGUN_ANEW

    died: list[float] = []
    while True:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
                bodies.serve(connection)
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        if status == 0:
            return
        died = [*died[1 - _MOST_DEATHS :], time.monotonic()]
        if len(died) == _MOST_DEATHS and died[-1] - died[0] < _SOON:
            return
        with contextlib.suppress(OSError):
            connection.send(ANSWERED.pack(BEGUN_ANEW, 0, False))


def leave_behind(serve: Callable[[], None]) -> None:
    """Run `serve` in a process that is nobody's child, and ends with it."""
    with warnings.catch_warnings():
        # From Python 3.12: the child of a process with threads must not need them, and does not.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        if os.fork() == 0:
            gc.freeze()
            serve()
    finally:
        os._exit(0)


def opened_union(
    roots: list[int],
    work: int | None = None,
    *,
    dialect: Dialect,
    lazy: Mapping[int, int] = _NONE,
) -> Union:
    """Merge open layers, with as many open directories and as short names for them as a process may have."""
    limit = _raise_limit()
    most = max(_LEAST_OPEN, min(_MOST_OPEN, (limit - len(roots) - _MARGIN) // 2))
    layers = Layers(roots, dialect=dialect, most_open=most, limit=limit, lazy=lazy)
    os.chdir("/proc/self/fd")
    layers.descriptors = b""
    return Union(layers, writable=False) if work is None else Changes(layers, work)


def above_standard(descriptors: Iterable[int]) -> list[int]:
    """Move descriptors that stand where standard streams would, because the parent had closed those."""
    return [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 3) if each < 3 else each for each in descriptors]


def be_alone(kept: set[int], called: bytes = NAME) -> None:
    """Keep nothing of the process that mounts: no descriptor, no session, no signal handler, no name."""
    os.setsid()
    linux.set_process_name(called)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Of numbers above a limit that was lowered meanwhile, only this list knows.
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(name))
    null = os.open("/dev/null", os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    if null > 2:
        os.close(null)


def _raise_limit() -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def leave_mounts() -> None:
    """Move to a mount namespace of our own with nothing in it, and stay in the working directory.

    In the one where the tree is mounted, the server would keep alive what keeps the server alive. Who may
    not leave stays, such as an ordinary user without a user namespace: an unmount ends the server all the
    same, but the namespace does not end before that.
    """
    with contextlib.suppress(OSError):
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
        here = linux.open_tree(linux.AT_FDCWD, ".", linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC)
        try:
            # In a user namespace "/" cannot be detached before there is another root, and all that was copied
            # from outside holds together: one use of any part keeps the whole (mount_namespaces(7)).
            linux.mount("none", "/proc", "tmpfs", 0, "size=4k,mode=555")
            os.chdir("/proc")
            linux.pivot_root(".", ".")
            linux.umount(".", linux.MNT_DETACH)
        finally:
            os.fchdir(here)
            os.close(here)
