"""One operation in a process of its own, with a fault at one of its failpoints."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import pkgutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import layerfs
from layerfs import failpoints, linux

KINDS: Final = ("kill", "error", "enospc", "eio", "full")
"""Faults: SIGKILL, an exception, ENOSPC and EIO there, and the file system really filled there."""

_SERVERS: Final = frozenset({"layerfs-fuse", "layerfs-fetch"})
_PR_SET_CHILD_SUBREAPER: Final = 36
_ENDING_SECONDS: Final = 20.0
_APPEND: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
_HIGH: Final = 900


class Outcome(NamedTuple):
    """How an operation ended: its status, negative for a signal, what it said, and processes that stayed."""

    status: int
    words: str
    left: tuple[str, ...]


def attempt(perform: Callable[[], int], log: Path, *, before: Callable[[], None] = lambda: None) -> Outcome:
    """Do something in a forked process, and wait until all that it started has ended, but for servers.

    Args:
        perform: gives an exit status; what it raises counts as 70.
        log: takes what it writes to its standard streams.
        before: called in that process.
    """
    told, tell = os.pipe()
    keeper = os.fork()
    if keeper == 0:
        try:
            linux.prctl(_PR_SET_CHILD_SUBREAPER, 1)
            child = os.fork()
            if child == 0:
                os.close(tell)
                _perform(perform, log, before)
            status, left = _wait(child)
            os.write(tell, "\n".join([str(status), *left]).encode())
        finally:
            os._exit(0)
    os.close(tell)
    with open(told, "rb") as file:
        lines = file.read().decode().split("\n")
    os.waitpid(keeper, 0)
    return Outcome(int(lines[0]), log.read_text(errors="replace"), tuple(lines[1:]))


def _perform(perform: Callable[[], int], log: Path, before: Callable[[], None]) -> None:
    status = 70
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for number, source in enumerate((null, file, file)):
            os.dup2(source, number)
        # Whoever runs us may have put something else there.
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        try:
            before()
            status = perform()
        except BaseException:
            os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def _wait(child: int) -> tuple[int, list[str]]:
    """Wait for a child, then for what it left behind; give its status and what does not end."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    deadline = time.monotonic() + _ENDING_SECONDS
    while left := [name for name in _children() if name not in _SERVERS]:
        if time.monotonic() > deadline:
            return status, left
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        time.sleep(0.002)
    return status, []


def _children() -> list[str]:
    """Name the living children of this process."""
    found = []
    for pid in Path("/proc/thread-self/children").read_text().split():
        with contextlib.suppress(OSError):
            found.append(Path(f"/proc/{pid}/comm").read_text().strip())
    return found


def import_everything() -> None:
    """Have every module of the library here, so that a forked process need not read it again."""
    for found in pkgutil.walk_packages(layerfs.__path__, "layerfs."):
        if not found.name.startswith(("layerfs.__main__", "layerfs.fsspec", "layerfs.testing")):
            importlib.import_module(found.name)


class _Kept:
    """A file that can be written wherever this process, or one that it forks, comes to be."""

    def __init__(self, path: Path) -> None:
        self._path = path
        opened = os.open(path, _APPEND, 0o600)
        # A number that nobody uses again where all descriptors are closed.
        self._descriptor = fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, _HIGH)
        os.close(opened)

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """Give a descriptor, by the path where the one that was kept is closed."""
        try:
            os.fstat(self._descriptor)
        except OSError:
            descriptor = os.open(self._path, _APPEND, 0o600)
            yield descriptor
            os.close(descriptor)
        else:
            yield self._descriptor


def noted(log: Path) -> Callable[[], None]:
    """Give what makes a process, and those that it forks, write down each failpoint that is reached."""

    def begin() -> None:
        kept = _Kept(log)

        def reach(name: str) -> None:
            with kept.opened() as file:
                os.write(file, f"{name}\n".encode())

        _replace(reach)

    return begin


def read_notes(log: Path) -> Counter[str]:
    """Count how often each failpoint was reached."""
    return Counter(log.read_text().split())


def armed(kind: str, name: str, number: int, *, ballast: Path, mark: Path) -> Callable[[], None]:
    """Give what makes a process meet a fault of `KINDS` at the `number`-th reaching of a failpoint.

    Args:
        ballast: the file that fills the file system.
        mark: a file that is not empty once the failpoint was reached so often.
    """
    real = failpoints.reach

    def begin() -> None:
        marked, weight = _Kept(mark), _Kept(ballast)
        left = number

        def reach(reached: str) -> None:
            nonlocal left
            if reached == name:
                left -= 1
                if left == 0:
                    with marked.opened() as file:
                        os.write(file, b"!")
                    if kind == "full":
                        with weight.opened() as file:
                            fill(file)
            real(reached)

        _replace(reach)
        if kind != "full":
            os.environ["LAYERFS_FAILPOINTS"] = f"{name}={kind}@{number}"
            # For what does not go through the command line.
            failpoints.arm(os.environ["LAYERFS_FAILPOINTS"])

    return begin


def fill(ballast: int) -> None:
    """Let a file take every block of its file system that is left, those for root alone included."""
    end = 0
    size = 1 << 26
    while size >= 1 << 12:
        try:
            os.posix_fallocate(ballast, end, size)
            end += size
        except OSError:
            size >>= 1


def _replace(reach: Callable[[str], None]) -> None:
    failpoints.reach = reach
