"""Work in processes of its own: forked, heard through a pipe, and ended with whoever wants it.

Python runs one thread at a time, so what is mostly Python gets a second processor only in a second process. A
forked one has everything at hand, but must not use what it shares with its parent: connections,
locks, descriptors. It keeps those descriptors open that it is told to, and no others.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import select
import signal
import struct
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Generic, NoReturn, TypeVar, cast

from layerfs import forking, linux
from layerfs.errors import LayerfsError

Tell = Callable[[object], None]
Result = TypeVar("Result")

_HEAD: Final = struct.Struct("<cI")
_MESSAGE: Final = b"m"
_RESULT: Final = b"r"
_ERROR: Final = b"e"
_READ: Final = 1 << 16


class Worker(Generic[Result]):
    """A forked process that does one piece of work; whoever makes it calls `end` at last.

    Args:
        work: what it does, told how to send messages; what it returns and sends can be pickled.
        hear: given each message, while `listen` is called.
        keep: descriptors that stay open there.

    Raises:
        OSError: no process can be had (EAGAIN, ENOMEM).
    """

    def __init__(
        self, work: Callable[[Tell], Result], *, hear: Callable[[object], None], keep: Iterable[int]
    ) -> None:
        self._hear = hear
        self._data = b""
        self._ending: tuple[bytes, bytes] | None = None
        self._status = 0
        with forking.alone:
            self._pipe, told = os.pipe()
            try:
                self._pid = _fork()
                if self._pid == 0:
                    _run(work, told, {0, 1, 2, told, *keep})
            except BaseException:
                os.close(self._pipe)
                raise
            finally:
                os.close(told)

    @property
    def running(self) -> bool:
        """Whether it has not been heard to end."""
        return self._pipe >= 0

    @property
    def was_killed(self) -> bool:
        """Whether it ended by a signal."""
        return self._ending is None and self._status < 0

    def listen(self) -> None:
        """Wait for more of what it tells, and pass that on."""
        data = os.read(self._pipe, _READ)
        if not data:
            self._close()
            return
        data = self._data + data
        start = 0
        while len(data) - start >= _HEAD.size:
            kind, size = _HEAD.unpack_from(data, start)
            end = start + _HEAD.size + size
            if end > len(data):
                break
            body = data[start + _HEAD.size : end]
            start = end
            if kind == _MESSAGE:
                self._hear(pickle.loads(body))
            else:
                self._ending = kind, body
        self._data = data[start:]

    def result(self) -> Result:
        """Give what the work returned, or raise what it raised; it is not running any more.

        Raises:
            LayerfsError: it was killed.
        """
        if self._ending is None:
            how = f"by signal {-self._status}" if self._status < 0 else f"with status {self._status}"
            raise LayerfsError(
                f"a process of layerfs's own was ended {how}",
                hint="if memory is short the kernel kills processes: dmesg tells",
            )
        kind, body = self._ending
        if kind == _RESULT:
            return cast(Result, pickle.loads(body))
        raise _unpacked(body)

    def end(self) -> None:
        """Kill it if it still runs; idempotent."""
        if self.running:
            os.kill(self._pid, signal.SIGKILL)
            self._close()

    def _close(self) -> None:
        os.close(self._pipe)
        self._pipe = -1
        # Somebody may wait for all children of this process.
        with contextlib.suppress(ChildProcessError):
            self._status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


def detach(work: Callable[[], object], *, keep: Iterable[int]) -> bool:
    """Have work done by a process that outlives this one; False if none can be had.

    It is no child of this one, has no terminal, and tells nobody how it went. `keep` are descriptors that
    stay open there.
    """
    try:
        pid = _fork()
    except OSError:
        return False
    if pid == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                _be_nobodys({*keep})
                work()
        finally:
            os._exit(0)
    # Somebody may wait for all children of this process.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    return True


def listen(workers: Sequence[Worker[Result]]) -> None:
    """Wait until any of these running workers tells something, and pass it on, in the order given."""
    poll = select.poll()
    for worker in workers:
        poll.register(worker._pipe, select.POLLIN)
    ready = {descriptor for descriptor, _ in poll.poll()}
    for worker in workers:
        if worker._pipe in ready:
            worker.listen()


def _fork() -> int:
    with warnings.catch_warnings():
        # From Python 3.12: the child of a process with threads must not need them, and does not.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _run(work: Callable[[Tell], Result], told: int, keep: set[int]) -> NoReturn:
    try:
        _be_alone(told, keep)
        try:
            ending = _RESULT, pickle.dumps(work(lambda message: _send(told, _MESSAGE, pickle.dumps(message))))
        except BaseException as error:
            # Of whatever kind: it belongs to the parent, which raises it.
            ending = _ERROR, _packed(error)
        _send(told, *ending)
    finally:
        os._exit(0)


def _be_alone(told: int, keep: set[int]) -> None:
    """Let go of what is the parent's, and end with it."""
    gc.freeze()
    signal.set_wakeup_fd(-1)
    # Ctrl-C comes to the whole group of processes; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _close_all_but(keep)
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    poll = select.poll()
    poll.register(told, 0)
    if poll.poll(0):
        # The parent went before that.
        os._exit(1)


def _be_nobodys(keep: set[int]) -> None:
    """Let go of everything, and leave the processors to others."""
    gc.freeze()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nothing, standard)
    _close_all_but({0, 1, 2, *keep})
    os.chdir("/")
    os.nice(10)


def _close_all_but(keep: set[int]) -> None:
    next_one = 0
    for descriptor in sorted(keep):
        # An empty range that begins at 0 would be every descriptor.
        if next_one < descriptor:
            os.closerange(next_one, descriptor)
        next_one = descriptor + 1
    os.closerange(next_one, os.sysconf("SC_OPEN_MAX") + 1)


def _packed(error: BaseException) -> bytes:
    if isinstance(error, LayerfsError):
        # Pickle would make it anew of its message alone.
        state = type(error), error.args, error.__dict__, getattr(error, "errno", None)
        return pickle.dumps(state)
    if not isinstance(error, OSError):
        # Nobody expects it, and the way to it is lost with the process.
        error.add_note("".join(traceback.format_exception(error)))
    try:
        packed = pickle.dumps(error)
        pickle.loads(packed)
        return packed
    except Exception:
        # Of whatever kind: what cannot be packed is told in words.
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))


def _unpacked(body: bytes) -> BaseException:
    state = pickle.loads(body)
    if isinstance(state, BaseException):
        return state
    kind, arguments, attributes, number = state
    error: LayerfsError = kind.__new__(kind, *arguments)
    error.args = arguments
    error.__dict__.update(attributes)
    if isinstance(error, OSError):
        error.errno = number
    return error


def _send(descriptor: int, kind: bytes, body: bytes) -> None:
    data = memoryview(_HEAD.pack(kind, len(body)) + body)
    while data:
        data = data[os.write(descriptor, data) :]
