"""The server as a process of its own, left behind by the one that mounts; it ends with the mount."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import resource
import signal
import time
import traceback
import warnings
from typing import Final, NoReturn

from layerfs import linux
from layerfs_fuse.adjusted import AdjustedDevice
from layerfs_fuse.changes import Changes
from layerfs_fuse.device import Device
from layerfs_fuse.options import Options
from layerfs_fuse.places import Layers
from layerfs_fuse.server import Server
from layerfs_fuse.union import Union

NAME: Final = b"layerfs-fuse"
"""What ps(1) calls the process."""

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


class _Server(Server):
    """A server with a log."""

    log: Log | None = None

    def failed(self) -> None:
        """Write down an error of our own, in the block that handles it."""
        if self.log is not None:
            self.log.write(traceback.format_exc())


def start(
    device: int,
    roots: list[int],
    work: int | None,
    *,
    user_xattrs: bool,
    options: Options = Options(),  # noqa: B008  a frozen value
    log: Log | None = None,
) -> None:
    """Leave a process behind that serves a mount, and return when it has all that it needs.

    Args:
        device: the /dev/fuse of the mount.
        roots: the layers' directories, top first; the first one is written if there is a `work`.
        work: the work directory.
        user_xattrs: whether overlayfs's attributes are user.overlay.* in these layers.
        options: how the mount differs from a plain one.
        log: where the server writes down errors of its own.

    Raises:
        OSError: it could not start.
    """
    report, told = os.pipe()
    try:
        with warnings.catch_warnings():
            # From Python 3.12: the child of a process with threads must not need them, and does not.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            try:
                if os.fork() == 0:
                    _live(told, device, roots, work, user_xattrs=user_xattrs, options=options, log=log)
            finally:
                os._exit(0)
    finally:
        os.close(told)
    try:
        os.waitpid(child, 0)
        answer = os.read(report, 256)
    finally:
        os.close(report)
    if answer != b"ready":
        number = int(answer or 0)
        raise OSError(number, os.strerror(number) if number else "the server did not start")


def _live(
    told: int,
    device: int,
    roots: list[int],
    work: int | None,
    *,
    user_xattrs: bool,
    options: Options,
    log: Log | None,
) -> NoReturn:
    """Live as the server: tell whether it could start, then serve until the end of the mount."""
    try:
        try:
            gc.freeze()
            kept = [told, device, *roots]
            kept += [] if work is None else [work]
            kept += [] if log is None else [log.directory]
            numbers = dict(zip(kept, _be_alone(kept), strict=True))
            told, device, roots = numbers[told], numbers[device], [numbers[root] for root in roots]
            work = None if work is None else numbers[work]
            if log is not None:
                log.directory = numbers[log.directory]
            hard = _raise_limit()
            most = max(_LEAST_OPEN, min(_MOST_OPEN, (hard - len(kept) - _MARGIN) // 2))
            layers = Layers(roots, user_xattrs=user_xattrs, most_open=most)
            os.chdir("/proc/self/fd")
            layers.descriptors = b""
            _leave_mounts()
            union = Union(layers, writable=False) if work is None else Changes(layers, work)
            plain = options == Options(allow_other=options.allow_other)
            server = _Server(Device(device) if plain else AdjustedDevice(device, options), union)
            server.log = log
        except OSError as error:
            os.write(told, b"%d" % (error.errno or 0))
            raise
        # Whoever mounts may be gone by now; the mount is not.
        with contextlib.suppress(BrokenPipeError):
            os.write(told, b"ready")
        os.close(told)
        server.run()
    except BaseException:
        if log is not None:
            log.write(traceback.format_exc())
    finally:
        os._exit(0)


def _be_alone(kept: list[int]) -> list[int]:
    """Keep nothing of the process that mounts but these descriptors; give their numbers from now on."""
    os.setsid()
    linux.set_process_name(NAME)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Some may stand where standard streams would, because the process that mounts had closed those.
    moved = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 3) if each < 3 else each for each in kept]
    # Of numbers above a limit that was lowered meanwhile, only this list knows.
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in moved:
            with contextlib.suppress(OSError):
                os.close(int(name))
    null = os.open("/dev/null", os.O_RDWR)
    for standard in range(3):
        if standard != null:
            os.dup2(null, standard)
    return moved


def _raise_limit() -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _leave_mounts() -> None:
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
