"""The caller's side of a container's process: it forks the monitor, forwards signals, and waits.

The monitor, and the process that it starts, tell through a pipe, the report, how the start went: records of a
2-byte length, a letter and a text. Its end says that the program has been executed. The last one may be the
springboard's, whose text is a number in 4 bytes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, NoReturn

from layerfs import forking, linux
from layerfs.errors import LayerfsError, MountError, NotFoundError, ProcessError

if TYPE_CHECKING:
    from layerfs.runtime.terminal import Terminal

NEVER_STARTED: Final = 125
ORPHANED: Final = int(signal.SIGRTMAX)
"""Tells the monitor that the caller is gone; no terminal and no `kill` sends it by chance."""

_FORWARDED: Final = frozenset(
    {
        signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM,
        signal.SIGCONT, signal.SIGWINCH, *range(signal.SIGRTMIN, signal.SIGRTMAX),
    }
)  # fmt: skip
# How many SIGINT and SIGTERM together kill a process that stays.
_PATIENCE: Final = 3
_RECORD_MAXIMUM: Final = 4000  # below PIPE_BUF, so that records of two writers do not mix


def attend(
    monitor: Callable[[int, int], NoReturn],
    terminal: Terminal | None,
    on_start: Callable[[int], None] | None,
) -> int:
    """Fork a monitor, stand by until it ends, and give its exit status, which is that of the process.

    Signals that come to this thread meanwhile go to the process.

    Args:
        monitor: the main function of the fork; given the report and this process's number.
        terminal: the process's own, if it has one; closed at the end.
        on_start: called with the process's number once its program has been executed; an exception from
            it ends the process.

    Raises:
        ProcessError, MountError, NotFoundError: what the other side met.
    """
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(_Signals())
        if terminal is not None:
            stack.callback(terminal.close)
        caller = os.getpid()
        with forking.alone:
            report, told = os.pipe()
            stack.callback(os.close, report)
            try:
                pid = os.fork()
                if pid == 0:
                    monitor(told, caller)
            finally:
                os.close(told)
        waiting = stack.enter_context(_Monitor(pid))
        if terminal is not None:
            terminal.receive()
        started = _read_report(report)
        process = _open_process(started)
        if process is not None:
            stack.callback(os.close, process)
        if on_start is not None:
            on_start(started)
        return waiting.wait(process, signals, terminal)


class _Signals:
    """What is to be forwarded of the signals that come to this process, for the length of a `with`.

    They are held back from this thread, and read from a descriptor (signalfd(2)). One that comes to the
    process as a whole goes to any thread that does not hold it back, and would end us: so where other threads
    are there is a handler too, and the descriptor that the interpreter writes to in whichever thread it runs.
    """

    def __enter__(self) -> _Signals:
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
            stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
            self._held = linux.signalfd(_FORWARDED)
            stack.callback(os.close, self._held)
            self._handled = -1
            if (
                len(os.listdir("/proc/self/task")) > 1
                and threading.current_thread() is threading.main_thread()
            ):
                self._handle(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _handle(self, stack: contextlib.ExitStack) -> None:
        self._handled, told = os.pipe()
        for descriptor in (self._handled, told):
            stack.callback(os.close, descriptor)
            os.set_blocking(descriptor, False)
        stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(told, warn_on_full_buffer=False))
        for number in _FORWARDED:
            before = signal.signal(number, lambda *_: None)
            if before is not None:  # None: not Python's, and not to be put back by it
                stack.callback(signal.signal, number, before)

    def register(self, poller: select.poll) -> None:
        """Say what we wait for."""
        for descriptor in (self._held, self._handled):
            if descriptor >= 0:
                poller.register(descriptor, select.POLLIN)

    def read(self, ready: Mapping[int, int]) -> Iterator[int]:
        """Give the numbers of those that have come."""
        if self._held in ready:
            data = b""
            # Another thread may have taken it since, and its handler told of it.
            with contextlib.suppress(BlockingIOError):
                data = os.read(self._held, 64 * linux.SIGNALFD_SIZE)
            for start in range(0, len(data), linux.SIGNALFD_SIZE):
                yield int.from_bytes(data[start : start + 4], "little")
        if self._handled in ready:
            yield from _FORWARDED.intersection(os.read(self._handled, 64))


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
            os.kill(self._pid, ORPHANED)
            os.waitpid(self._pid, 0)

    def wait(self, process: int | None, signals: _Signals, terminal: Terminal | None) -> int:
        """Forward signals, and the terminal's bytes, until the monitor has ended; give its exit status."""
        ended = os.pidfd_open(self._pid)
        try:
            while True:
                poller = select.poll()
                signals.register(poller)
                poller.register(ended, select.POLLIN)
                if terminal is not None:
                    terminal.register(poller)
                ready = dict(poller.poll())
                for number in signals.read(ready):
                    self._forward(number, process, terminal)
                if terminal is not None:
                    terminal.pass_on(ready)
                if ended in ready:
                    break
        finally:
            os.close(ended)
        if terminal is not None:
            terminal.drain()
        _, status = os.waitpid(self._pid, 0)
        self._status = exit_status(status)
        return self._status

    def _forward(self, number: int, process: int | None, terminal: Terminal | None) -> None:
        """Pass a signal on; who asks for the end a third time gets it, as with docker.

        A process 1 that has no handler for a signal never gets it (pid_namespaces(7)).
        """
        if number == signal.SIGWINCH:
            if terminal is not None:
                terminal.resize()
            return
        if number in (signal.SIGINT, signal.SIGTERM):
            self._asked += 1
            number = number if self._asked < _PATIENCE else signal.SIGKILL
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, number)


def exit_status(status: int) -> int:
    """Turn what wait(2) gives into a shell's exit status: 128+N for signal N."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def write_record(report: int, kind: str, text: str) -> None:
    """Report one thing: S and the process's number, X and what is executed, or what `write_error` says."""
    data = kind.encode() + text.encode("utf-8", "surrogateescape")[:_RECORD_MAXIMUM]
    os.write(report, len(data).to_bytes(2, "big") + data)


def write_error(report: int, error: Exception) -> int:
    """Report why there will be no process; give the exit status that stands for it."""
    kind, number = "P", NEVER_STARTED
    if isinstance(error, MountError):
        kind, number = "M", error.errno or 0
    elif isinstance(error, NotFoundError):
        kind = "N"
    elif isinstance(error, ProcessError):
        number = error.status
    hint = error.hint if isinstance(error, LayerfsError) else None
    write_record(report, kind, f"{number}\0{hint or ''}\0{_words(error)}")
    return number if kind == "P" else NEVER_STARTED


def not_executed(path: str, number: int | None) -> ProcessError:
    """Say that a program that was found could not be executed, with docker's status for it."""
    if number in (errno.ENOENT, errno.ENOTDIR):
        return ProcessError(
            f"exec {path}: no such file or directory",
            status=127,
            hint="it is there, but the interpreter that it names is not",
        )
    return ProcessError(f"exec {path}: {os.strerror(number or 0).lower()}", status=126)


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
    path = ""
    while data:
        size = int.from_bytes(data[:2], "big")
        kind, body = data[2:3], data[3 : 2 + size]
        text = body.decode("utf-8", "surrogateescape")
        data = data[2 + size :]
        if kind == b"S":
            # The monitor's own word, which comes first.
            pid = pid or int(text)
            continue
        if kind == b"X":
            path = text
            continue
        if kind == b"E":
            raise not_executed(path, int.from_bytes(body, "little"))
        number, hint, message = text.split("\0", 2)
        if kind == b"M":
            raise MountError(message, errno=int(number) or None, hint=hint or None)
        if kind == b"N":
            raise NotFoundError(message, hint=hint or None)
        raise ProcessError(message, status=int(number), hint=hint or None)
    if not pid:
        raise ProcessError("the container's monitor was killed before the process started")
    return pid
