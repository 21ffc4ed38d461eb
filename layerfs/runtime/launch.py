"""Starts a container's process and waits for it.

Three processes take part. The caller forwards signals and waits. A *monitor*, forked from it, is the
first in the new namespaces (the mount namespace holds the only mounts there are), waits for the process
and tidies up; it ends the container when the caller dies, whatever way. The *process* is process 1
of its PID namespace, as docker has it, so that all others end with it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NoReturn

from layerfs import failpoints, linux
from layerfs.mount import Mount
from layerfs.runtime.process import ProcessSpec
from layerfs.runtime.program import die_with_monitor, forbid_imports, stand_by, start, take_over, wait_for
from layerfs.runtime.rootfs import Rootfs
from layerfs.runtime.watching import NEVER_STARTED, attend, write_error

if TYPE_CHECKING:
    from layerfs.runtime.terminal import Terminal

_NAMESPACES: Final = linux.CLONE_NEWNS | linux.CLONE_NEWUTS | linux.CLONE_NEWIPC


def run(
    mount: Mount,
    spec: ProcessSpec,
    *,
    on_start: Callable[[int], None] | None = None,
    on_dead: Callable[[], None] | None = None,
) -> int:
    """Run a process on a tree until it ends, and give its exit status, 128+N when signal N ended it.

    The tree is attached in a new mount namespace only. Signals that this process gets meanwhile
    (HUP, INT, QUIT, USR1, USR2, TERM, CONT, real-time ones) go to the container's process: call it from
    the main thread for that. Standard output and error are handed on as they are, standard input
    when `spec.interactive`; with `spec.tty` the process gets a terminal of its own, and ours is in raw mode
    meanwhile.

    Args:
        on_start: called with the number of the process, as we see it, once its program has been
            executed; an exception from it ends the container.
        on_dead: called when the process has ended and whatever served its tree had gone before.

    Raises:
        ProcessError: it could not be started; `status` is 125, 126 or 127 as docker gives it.
        MountError: the tree could not be mounted.
        NotFoundError: a volume's source is missing.
    """
    terminal = None
    if spec.tty:
        from layerfs.runtime.terminal import Terminal

        terminal = Terminal(read_input=spec.interactive, console=True)
    dead, died = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = attend(
            lambda report, caller: _monitor(mount, spec, report, died, caller, terminal), terminal, on_start
        )
        is_dead = False
        # Nothing is there, and this end is open, when all went well.
        with contextlib.suppress(BlockingIOError):
            is_dead = bool(os.read(dead, 1))
    finally:
        os.close(dead)
        os.close(died)
    if is_dead and on_dead is not None:
        on_dead()
    return status


def _monitor(
    mount: Mount, spec: ProcessSpec, report: int, died: int, caller: int, terminal: Terminal | None
) -> NoReturn:
    """Live as the monitor: make the namespaces, start the process in them, wait, tidy up."""
    status = NEVER_STARTED
    try:
        stand_by(caller)
        os.umask(0o022)
        linux.unshare(_NAMESPACES | (0 if spec.network == "host" else linux.CLONE_NEWNET))
        failpoints.reach("run.monitor")
        rootfs = Rootfs.attach(mount, spec)
        failpoints.reach("run.attached")
        # Not before: what serves the tree may be a process, and the next one forked is the container's first.
        linux.unshare(linux.CLONE_NEWPID)
        pid = start(report, terminal, lambda watch: _process(rootfs, spec, report, watch, terminal))
        status = wait_for(pid)
        if rootfs.is_dead():
            os.write(died, b"!")
        # A tree that became full or read-only keeps an empty mount point: no reason to lose the status.
        with contextlib.suppress(OSError):
            rootfs.detach()
    except Exception as error:  # this is the main function of a process
        status = write_error(report, error)
    finally:
        os._exit(status)


def _process(
    rootfs: Rootfs, spec: ProcessSpec, report: int, watch: int, terminal: Terminal | None
) -> NoReturn:
    """Live as process 1 of the container, until its program takes over."""
    status = NEVER_STARTED
    try:
        die_with_monitor(watch)
        os.setsid()
        if spec.network != "host":
            linux.raise_loopback()
        linux.sethostname(spec.hostname)
        forbid_imports()
        rootfs.enter()
        failpoints.reach("run.process")
        take_over(rootfs.root, spec, report, watch, terminal)
    except Exception as error:  # this is the main function of a process
        status = write_error(report, error)
    finally:
        os._exit(status)
