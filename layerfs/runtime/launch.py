"""Starts a container's process and waits for it: `run` is the whole interface of the runtime.

Three processes take part. The caller forwards signals and waits. A *monitor*, forked from it, is the
first in the new namespaces (the mount namespace holds the only mounts there are), waits for the process
and tidies up; it ends the container when the caller dies, whatever way. The *process* is process 1
of its PID namespace, as docker has it, so that all others end with it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, NoReturn

from layerfs import linux
from layerfs.errors import LayerfsError, MountError, NotFoundError, ProcessError
from layerfs.mount import Mount
from layerfs.runtime.privileges import become
from layerfs.runtime.process import ProcessSpec
from layerfs.runtime.rootfs import Rootfs
from layerfs.runtime.users import resolve_user

if TYPE_CHECKING:
    from layerfs.runtime.terminal import Terminal

_FORWARDED: Final = frozenset(
    {
        signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM,
        signal.SIGCONT, signal.SIGWINCH, *range(signal.SIGRTMIN, signal.SIGRTMAX),
    }
)  # fmt: skip
# Tells the monitor that the caller is gone; no terminal and no `kill` sends it by chance.
_ORPHANED: Final = int(signal.SIGRTMAX)
# How many SIGINT and SIGTERM together kill a process that stays.
_PATIENCE: Final = 3
_NEVER_STARTED: Final = 125
_RECORD_MAXIMUM: Final = 4000  # below PIPE_BUF, so that records of two writers do not mix
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

        terminal = Terminal(read_input=spec.interactive)
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(_collected(_FORWARDED))
        if terminal is not None:
            stack.callback(terminal.close)
        report, told = os.pipe()
        stack.callback(os.close, report)
        dead, died = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        stack.callback(os.close, dead)
        caller = os.getpid()
        monitor = os.fork()
        if monitor == 0:
            _monitor(mount, spec, told, died, caller, terminal)
        os.close(told)
        os.close(died)
        waiting = stack.enter_context(_Monitor(monitor))
        if terminal is not None:
            terminal.receive()
        pid = _read_report(report)
        process = _open_process(pid)
        if process is not None:
            stack.callback(os.close, process)
        if on_start is not None:
            on_start(pid)
        status = waiting.wait(process, signals, terminal)
        is_dead = False
        # Something that the mount needs may have kept the other end.
        with contextlib.suppress(BlockingIOError):
            is_dead = bool(os.read(dead, 1))
    if is_dead and on_dead is not None:
        on_dead()
    return status


@contextlib.contextmanager
def _collected(numbers: frozenset[int]) -> Iterator[int]:
    """Hold signals back from this thread; gives a descriptor that they are read from (signalfd(2))."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        descriptor = linux.signalfd(numbers)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _open_process(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None  # it has ended already


class _Monitor:
    """The monitor as its parent sees it: in a `with`, since the container must end when we leave early."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._status: int | None = None
        self._asked = 0

    def __enter__(self) -> _Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is None:
            os.kill(self._pid, _ORPHANED)
            os.waitpid(self._pid, 0)

    def wait(self, process: int | None, signals: int, terminal: Terminal | None) -> int:
        """Forward signals, and the terminal's bytes, until the monitor has ended; give its exit status."""
        ended = os.pidfd_open(self._pid)
        try:
            while True:
                poller = select.poll()
                poller.register(signals, select.POLLIN)
                poller.register(ended, select.POLLIN)
                if terminal is not None:
                    terminal.register(poller)
                ready = dict(poller.poll())
                if signals in ready:
                    self._forward(signals, process, terminal)
                if terminal is not None:
                    terminal.pass_on(ready)
                if ended in ready:
                    break
        finally:
            os.close(ended)
        if terminal is not None:
            terminal.drain()
        _, status = os.waitpid(self._pid, 0)
        self._status = _exit_status(status)
        return self._status

    def _forward(self, signals: int, process: int | None, terminal: Terminal | None) -> None:
        """Pass signals on; who asks for the end a third time gets it, as with docker.

        A process 1 that has no handler for a signal never gets it (pid_namespaces(7)).
        """
        data = os.read(signals, 64 * linux.SIGNALFD_SIZE)
        for start in range(0, len(data), linux.SIGNALFD_SIZE):
            number = int.from_bytes(data[start : start + 4], "little")
            if number == signal.SIGWINCH:
                if terminal is not None:
                    terminal.resize()
                continue
            if number in (signal.SIGINT, signal.SIGTERM):
                self._asked += 1
                number = number if self._asked < _PATIENCE else signal.SIGKILL
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(process, number)


def _exit_status(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


# The report: records of a 2-byte length, a letter and a text, written by the monitor and the process.
# Its end says that the program has been executed.


def _write_record(report: int, kind: str, text: str) -> None:
    data = kind.encode() + text.encode("utf-8", "surrogateescape")[:_RECORD_MAXIMUM]
    os.write(report, len(data).to_bytes(2, "big") + data)


def _write_error(report: int, error: Exception) -> int:
    """Report why there will be no process; give the exit status that stands for it."""
    kind, number = "P", _NEVER_STARTED
    if isinstance(error, MountError):
        kind, number = "M", error.errno or 0
    elif isinstance(error, NotFoundError):
        kind = "N"
    elif isinstance(error, ProcessError):
        number = error.status
    hint = error.hint if isinstance(error, LayerfsError) else None
    _write_record(report, kind, f"{number}\0{hint or ''}\0{_words(error)}")
    return number if kind == "P" else _NEVER_STARTED


def _words(error: Exception) -> str:
    if isinstance(error, LayerfsError):
        return str(error)
    if isinstance(error, OSError):
        return f"cannot set the container up: {error}"
    return f"cannot set the container up: {type(error).__name__}: {error}"


def _read_report(report: int) -> int:
    """Read all records; give the process's number.

    Raises:
        ProcessError, MountError, NotFoundError: what the other side met.
    """
    data = b""
    while chunk := os.read(report, 65536):
        data += chunk
    pid = 0
    while data:
        size = int.from_bytes(data[:2], "big")
        kind, text = data[2:3], data[3 : 2 + size].decode("utf-8", "surrogateescape")
        data = data[2 + size :]
        if kind == b"S":
            pid = int(text)
            continue
        number, hint, message = text.split("\0", 2)
        if kind == b"M":
            raise MountError(message, errno=int(number) or None, hint=hint or None)
        if kind == b"N":
            raise NotFoundError(message, hint=hint or None)
        raise ProcessError(message, status=int(number), hint=hint or None)
    if not pid:
        raise ProcessError("the container's monitor was killed before the process started")
    return pid


def _monitor(
    mount: Mount, spec: ProcessSpec, report: int, died: int, caller: int, terminal: Terminal | None
) -> NoReturn:
    """Live as the monitor: make the namespaces, start the process in them, wait, tidy up."""
    status = _NEVER_STARTED
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        linux.prctl(linux.PR_SET_PDEATHSIG, _ORPHANED)
        if os.getppid() != caller:
            os._exit(status)  # it died before it could be watched
        os.umask(0o022)
        linux.unshare(_NAMESPACES | (0 if spec.network == "host" else linux.CLONE_NEWNET))
        rootfs = Rootfs.attach(mount, spec)
        # Not before: what serves the tree may be a process, and the next one forked is the container's first.
        linux.unshare(linux.CLONE_NEWPID)
        watch, watched = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(watched)
            _process(rootfs, spec, report, watch, terminal)
        os.close(watch)
        if terminal is not None:
            terminal.leave_to_process()
        _write_record(report, "S", str(pid))
        os.close(report)
        status = _wait_for(pid)
        if rootfs.is_dead():
            os.write(died, b"!")
        # A tree that became full or read-only keeps an empty mount point: no reason to lose the status.
        with contextlib.suppress(OSError):
            rootfs.detach()
    except Exception as error:  # this is the main function of a process
        status = _write_error(report, error)
    finally:
        os._exit(status)


def _wait_for(pid: int) -> int:
    """Wait for the process; end it when the caller is gone."""
    while True:
        number = signal.sigwait({signal.SIGCHLD, _ORPHANED})
        if number == _ORPHANED:
            os.kill(pid, signal.SIGKILL)
            return _exit_status(os.waitpid(pid, 0)[1])
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return _exit_status(status)


def _process(
    rootfs: Rootfs, spec: ProcessSpec, report: int, watch: int, terminal: Terminal | None
) -> NoReturn:
    """Live as process 1 of the container, until its program takes over."""
    status = _NEVER_STARTED
    try:
        _die_with_monitor(watch)
        os.setsid()
        if spec.network != "host":
            linux.raise_loopback()
        linux.sethostname(spec.hostname)
        # The caller's keys are not the container's. Kernels without keys, or a full quota, do not matter.
        with contextlib.suppress(OSError):
            linux.join_session_keyring()
        rootfs.enter()
        user = resolve_user(rootfs.root, spec.user)
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
        _die_with_monitor(watch)
        _reset_signals()
        linux.close_range(3, (1 << 32) - 1, linux.CLOSE_RANGE_CLOEXEC)
        _execute(spec.argv, env)
    except Exception as error:  # this is the main function of a process
        status = _write_error(report, error)
    finally:
        os._exit(status)


def _die_with_monitor(watch: int) -> None:
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    poller = select.poll()
    poller.register(watch, 0)
    if poller.poll(0):  # its end of the pipe is closed: it was gone before we asked
        os._exit(_NEVER_STARTED)


def _reset_signals() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) is not signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _execute(argv: tuple[str, ...], env: dict[str, str]) -> NoReturn:
    """Execute a program, looked up in the container's PATH when its name has no slash.

    Raises:
        ProcessError: status 127 when there is none, 126 when it cannot be executed.
    """
    name = argv[0]
    if "/" in name:
        candidates = [name]
    else:
        candidates = [f"{directory or '.'}/{name}" for directory in env.get("PATH", "").split(":")]
    refused: OSError | None = None
    for path in candidates if name else ():
        try:
            os.execve(path, argv, env)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                if os.path.isfile(path):
                    raise ProcessError(
                        f"exec {path}: no such file or directory",
                        status=127,
                        hint="it is there, but the interpreter that it names is not",
                    ) from error
                continue
            if error.errno != errno.EACCES:
                raise ProcessError(f"exec {path}: {_reason(error)}", status=126) from error
            refused = refused or error
    if refused is not None:
        raise ProcessError(f"exec: {name!r}: permission denied", status=126) from refused
    if "/" in name:
        raise ProcessError(f"exec: {name!r}: no such file or directory", status=127)
    raise ProcessError(f"exec: {name!r}: executable file not found in $PATH", status=127)


def _reason(error: OSError) -> str:
    return (error.strerror or "").lower()
