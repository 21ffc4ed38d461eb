"""The last steps of a container's process before its program takes over, inside the container's tree."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import stat
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from layerfs import linux
from layerfs.errors import ProcessError
from layerfs.runtime import springboard
from layerfs.runtime.privileges import become
from layerfs.runtime.process import ProcessSpec
from layerfs.runtime.users import resolve_user
from layerfs.runtime.watching import NEVER_STARTED, ORPHANED, exit_status, not_executed, write_record

if TYPE_CHECKING:
    from layerfs.runtime.terminal import Terminal

# What the kernel reads of a script to find its interpreter (BINPRM_BUF_SIZE of <linux/binfmts.h>).
_FIRST_LINE = 256


def take_over(root: int, spec: ProcessSpec, report: int, watch: int, terminal: Terminal | None) -> NoReturn:
    """Become the spec's user, with its streams and environment, and execute its program.

    Args:
        root: the container's tree, which is this process's root by now.
        report: where it is told what cannot be executed.
        watch: a pipe whose other end the monitor has.

    Raises:
        ProcessError: there will be no process; `status` says which way.
        OSError: the kernel refused.
    """
    # The caller's keys are not the container's. Kernels without keys, or a full quota, do not matter.
    with contextlib.suppress(OSError):
        linux.join_session_keyring()
    user = resolve_user(root, spec.user)
    if terminal is not None:
        terminal.take(user.uid)
    elif not spec.interactive:
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(null, 0)
    env = dict(spec.env)
    if not env.get("HOME"):
        env["HOME"] = user.home
    become(user, no_new_privileges=spec.no_new_privileges)
    # Changing ids has taken the first one back (prctl(2)).
    die_with_monitor(watch)
    _reset_signals()
    linux.close_range(3, (1 << 32) - 1, linux.CLOSE_RANGE_CLOEXEC)
    _execute(spec.argv, env, report)


def forbid_imports() -> None:
    """Import nothing any more: in a container's tree a stranger has written what would be found."""
    sys.meta_path.clear()


def stand_by(caller: int) -> None:
    """Begin to live as a monitor: all signals are held back, and the caller's end is told.

    Args:
        caller: the parent's number; this process ends at once if that is gone.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    linux.prctl(linux.PR_SET_PDEATHSIG, ORPHANED)
    if os.getppid() != caller:
        os._exit(NEVER_STARTED)  # it died before it could be watched


def start(report: int, terminal: Terminal | None, live: Callable[[int], NoReturn]) -> int:
    """Fork, in the monitor, the process, and report its number; the report is closed here.

    Args:
        live: the main function of the process; given its end of the pipe by which it sees the monitor.
    """
    watch, watched = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(watched)
        live(watch)
    os.close(watch)
    if terminal is not None:
        terminal.leave_to_process()
    write_record(report, "S", str(pid))
    os.close(report)
    return pid


def wait_for(pid: int) -> int:
    """Wait, in the monitor, for its process; end it when the caller is gone. Gives the exit status."""
    while True:
        number = signal.sigwait({signal.SIGCHLD, ORPHANED})
        if number == ORPHANED:
            os.kill(pid, signal.SIGKILL)
            return exit_status(os.waitpid(pid, 0)[1])
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return exit_status(status)


def die_with_monitor(watch: int) -> None:
    """Have this process killed when its monitor ends."""
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    poller = select.poll()
    poller.register(watch, 0)
    if poller.poll(0):  # its end of the pipe is closed: it was gone before we asked
        os._exit(NEVER_STARTED)


def _reset_signals() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) is not signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _execute(argv: tuple[str, ...], env: dict[str, str], report: int) -> NoReturn:
    """Execute a program, looked up in the container's PATH when its name has no slash.

    Raises:
        ProcessError: status 127 when there is none, 126 when it cannot be executed.
    """
    path = _find(argv[0], env.get("PATH", ""))
    _refuse_ours(path)
    board = springboard.make(report)
    if board is not None:
        write_record(report, "X", path)
        # The springboard takes that back.
        os.set_inheritable(report, True)
        # Where a rule of the host forbids to execute it, what was looked at has to do.
        with contextlib.suppress(OSError):
            os.execve(board, (path, *argv), env)
        os.set_inheritable(report, False)
    try:
        os.execve(path, argv, env)
    except OSError as error:
        raise not_executed(path, error.errno) from error


def _find(name: str, path: str) -> str:
    """Find the program as execvp(3) does.

    Raises:
        ProcessError: as `_execute`.
    """
    candidates = [name] if "/" in name else [f"{directory or '.'}/{name}" for directory in path.split(":")]
    refused = False
    for candidate in candidates if name else ():
        try:
            found = os.stat(candidate)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                raise not_executed(candidate, error.errno) from error
            refused = refused or error.errno == errno.EACCES
            continue
        if stat.S_ISREG(found.st_mode) and os.access(candidate, os.X_OK, effective_ids=True):
            return candidate
        refused = True
    if refused:
        raise ProcessError(f"exec: {name!r}: permission denied", status=126)
    if "/" in name:
        raise ProcessError(f"exec: {name!r}: no such file or directory", status=127)
    raise ProcessError(f"exec: {name!r}: executable file not found in $PATH", status=127)


def _refuse_ours(path: str) -> None:
    """Refuse a program, or a script's interpreter, that a link of /proc leads to: it may be this process's.

    Raises:
        ProcessError: status 126.
    """
    try:
        with open(_open_plainly(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY), "rb") as file:
            line = file.read(_FIRST_LINE).partition(b"\n")[0]
    except PermissionError:
        return  # it can be executed and not read
    words = line[2:].split(None, 1)
    if line.startswith(b"#!") and words:
        # That it is missing, or no program, is told when it is executed.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            os.close(_open_plainly(os.fsdecode(words[0]), os.O_PATH))


def _open_plainly(path: str, flags: int) -> int:
    try:
        return linux.openat2(linux.AT_FDCWD, path, flags, resolve=linux.RESOLVE_NO_MAGICLINKS)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise ProcessError(
            f"exec {path}: a link of /proc leads there, and programs are not executed through those",
            status=126,
        ) from error
