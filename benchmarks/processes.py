"""What /proc says of the processes that the harness has started: which there are, and what they have used."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

_PR_SET_CHILD_SUBREAPER: Final = 36
_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")


class Cpu(NamedTuple):
    """Processor time in seconds."""

    user: float = 0.0
    system: float = 0.0

    def plus(self, other: Cpu) -> Cpu:
        """Give the sum."""
        return Cpu(self.user + other.user, self.system + other.system)

    def minus(self, other: Cpu) -> Cpu:
        """Give the difference."""
        return Cpu(self.user - other.user, self.system - other.system)

    @property
    def total(self) -> float:
        """User and system time together."""
        return self.user + self.system


def adopt_orphans() -> None:
    """Make daemons that leave their parents children of this process; PR_SET_CHILD_SUBREAPER(2const)."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def reap(except_for: Iterable[int]) -> None:
    """Collect adopted processes that have ended; those of `except_for` are waited for elsewhere."""
    spared = set(except_for)
    for child in _children(os.getpid()):
        if child not in spared:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, os.WNOHANG)


def children() -> set[int]:
    """Give the children of this process."""
    return set(_children(os.getpid()))


def descendants(root: int, spared: Iterable[int] = ()) -> set[int]:
    """Give the processes below `root`, at any depth, without those spared and what is below these."""
    passed = set(spared)
    found: set[int] = set()
    waiting = [root]
    while waiting:
        for child in _children(waiting.pop()):
            if child not in found and child not in passed:
                found.add(child)
                waiting.append(child)
    return found


def _children(process: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{process}/task"):
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{process}/task/{thread}/children").read_text().split())
    return found


def used_by(processes: Iterable[int]) -> Cpu:
    """Add up what living processes, and children that they have waited for, have used; proc_pid_stat(5)."""
    total = Cpu()
    for process in processes:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            user, system, waited_user, waited_system = map(int, fields[11:15])
            total = total.plus(Cpu((user + waited_user) * _TICK, (system + waited_system) * _TICK))
    return total


def used_by_self() -> Cpu:
    """Give what this process, and adopted ones that have ended, have used."""
    own, ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cpu(own.ru_utime + ended.ru_utime, own.ru_stime + ended.ru_stime)


def forget_peak(processes: Iterable[int]) -> None:
    """Let the peak of memory begin anew for each process; proc_pid_clear_refs(5)."""
    for process in processes:
        with contextlib.suppress(OSError):
            Path(f"/proc/{process}/clear_refs").write_text("5")


def peak(processes: Iterable[int]) -> int:
    """Add up the peaks of resident memory of living processes, in bytes; ``VmHWM`` of proc_pid_status(5)."""
    total = 0
    for process in processes:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    total += int(line.split()[1]) * 1024
    return total
