"""The server as a process of its own, left behind by the one that mounts; it ends with the mount."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import resource
import signal
import warnings
from collections.abc import Callable, Iterable
from typing import Final

from layerfs import linux
from layerfs_fuse.changes import Changes
from layerfs_fuse.dialect import Dialect
from layerfs_fuse.places import Layers
from layerfs_fuse.union import Union

_MOST_OPEN: Final = 4096
_MARGIN: Final = 256


def start(device: int, roots: list[int], work: int | None, *, dialect: Dialect) -> None:
    """Leave a process behind that serves a mount.

    Args:
        device: the /dev/fuse of the mount.
        roots: the layers' directories, top first; the first one is written if there is a `work`.
        work: the work directory.
        dialect: the format of these layers.
    """

    def serve() -> None:
        served, *layers = above_standard([device, *roots])
        copies = above_standard(() if work is None else (work,))
        be_alone({served, *layers, *copies})
        union = opened_union(layers, *copies, dialect=dialect)
        leave_mounts()
        # Whoever serves another way has no use for the kernel's protocol.
        from layerfs_fuse.server import Server

        # It leaves no cycles behind, and looking for them takes longer the more files it knows.
        gc.disable()
        Server(served, union).run()

    leave_behind(serve)


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


def opened_union(roots: list[int], work: int | None = None, *, dialect: Dialect) -> Union:
    """Merge open layers, with as many open directories and as short names for them as a process may have."""
    most = _raise_limit() - _MARGIN
    layers = Layers(roots, dialect=dialect, most_open=max(64, min(_MOST_OPEN, most - len(roots))))
    os.chdir("/proc/self/fd")
    layers.descriptors = b""
    return Union(layers, writable=False) if work is None else Changes(layers, work)


def above_standard(descriptors: Iterable[int]) -> list[int]:
    """Move descriptors that stand where standard streams would, because the parent had closed those."""
    return [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 3) if each < 3 else each for each in descriptors]


def be_alone(kept: set[int]) -> None:
    """Keep nothing of the process that mounts: no descriptor, no session, no signal handler."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    null = os.open("/dev/null", os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    first = 3
    for descriptor in sorted(kept):
        os.closerange(first, descriptor)
        first = descriptor + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def _raise_limit() -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def leave_mounts() -> None:
    """Move to an empty mount namespace.

    In the one where the tree is mounted, the server would keep alive what keeps the server alive. Where
    it may not, it stays: an unmount ends it all the same.
    """
    with contextlib.suppress(OSError):
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
        linux.umount("/", linux.MNT_DETACH)
