"""Starts one more process in a running container: in its namespaces, on its tree (`layerfs exec`)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NoReturn

from layerfs import linux, liveness
from layerfs.errors import NotFoundError, ProcessError, UnsupportedError
from layerfs.liveness import Owner
from layerfs.runtime.process import ProcessSpec
from layerfs.runtime.program import die_with_monitor, forbid_imports, stand_by, start, take_over, wait_for
from layerfs.runtime.scope import open_inside
from layerfs.runtime.watching import NEVER_STARTED, attend, write_error

if TYPE_CHECKING:
    from layerfs.runtime.terminal import Terminal

# The user namespace first: it gives the right to enter the others (setns(2)).
_NAMESPACES: Final = {
    "user": linux.CLONE_NEWUSER,
    "mnt": linux.CLONE_NEWNS,
    "uts": linux.CLONE_NEWUTS,
    "ipc": linux.CLONE_NEWIPC,
    "net": linux.CLONE_NEWNET,
    "pid": linux.CLONE_NEWPID,
}
_NO_DIRECTORY: Final = 126


def enter(container: Owner, spec: ProcessSpec, *, on_start: Callable[[int], None] | None = None) -> int:
    """Run a process beside a container's own until it ends, and give its exit status as `launch.run` does.

    It ends with the container, and with the caller. Signals, streams and terminal are as with `launch.run`.

    Args:
        container: the container's process 1.
        spec: what is run; volumes, network and host name are those that the container has already.
        on_start: called with the number of the process, as we see it, once its program has been executed.

    Raises:
        ProcessError: it could not be started; `status` is 125, 126 or 127 as docker gives it.
        NotFoundError: the container has ended.
        UnsupportedError: it is another user's.
    """
    terminal = None
    if spec.tty:
        from layerfs.runtime.terminal import Terminal

        terminal = Terminal(read_input=spec.interactive, console=False)
    process = _open(container)
    try:
        return attend(
            lambda report, caller: _monitor(container, process, spec, report, caller, terminal),
            terminal,
            on_start,
        )
    finally:
        os.close(process)


def _open(container: Owner) -> int:
    gone = NotFoundError("the container's process has ended", hint="layerfs ps -a tells how")
    try:
        process = os.pidfd_open(container.pid)
    except ProcessLookupError:
        raise gone from None
    # Only now is it certain that the number cannot pass to another process in between.
    if not liveness.alive(container):
        os.close(process)
        raise gone
    return process


def _monitor(
    container: Owner, process: int, spec: ProcessSpec, report: int, caller: int, terminal: Terminal | None
) -> NoReturn:
    """Live as the monitor: enter the container's namespaces, start the process there, and wait."""
    status = NEVER_STARTED
    try:
        stand_by(caller)
        os.umask(0o022)
        # Else the container's processes could reach for this one's program and descriptors (proc(5)).
        linux.prctl(linux.PR_SET_DUMPABLE, 0)
        _join(container.pid, process)
        pid = start(report, terminal, lambda watch: _process(spec, report, watch, terminal))
        status = wait_for(pid)
    except Exception as error:  # this is the main function of a process
        status = write_error(report, error)
    finally:
        os._exit(status)


def _join(pid: int, process: int) -> None:
    kinds = 0
    try:
        for name, kind in _NAMESPACES.items():
            theirs, ours = (os.stat(f"/proc/{who}/ns/{name}") for who in (pid, "self"))
            if not os.path.samestat(theirs, ours):
                kinds |= kind
        forbid_imports()
        linux.setns(process, kinds)
        if kinds & linux.CLONE_NEWUSER:
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
    except (FileNotFoundError, ProcessLookupError):
        raise NotFoundError("the container's process has ended") from None
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise UnsupportedError(
                "this kernel cannot enter the namespaces of a process",
                errno=error.errno,
                hint="Linux 5.8 can",
            ) from error
        raise ProcessError(
            f"cannot enter the container: {error.strerror}", hint="whoever started it may"
        ) from error


def _process(spec: ProcessSpec, report: int, watch: int, terminal: Terminal | None) -> NoReturn:
    """Live as the process until its program takes over."""
    status = NEVER_STARTED
    try:
        die_with_monitor(watch)
        os.setsid()
        # The root of the mount namespace is the container's tree.
        root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fchdir(open_inside(root, os.fsencode(spec.cwd), os.O_PATH | os.O_DIRECTORY))
        except OSError as error:
            raise ProcessError(
                f"cannot use {spec.cwd} as the working directory: {error.strerror}", status=_NO_DIRECTORY
            ) from error
        take_over(root, spec, report, watch, terminal)
    except Exception as error:  # this is the main function of a process
        status = write_error(report, error)
    finally:
        os._exit(status)
