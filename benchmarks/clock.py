"""The clock that a workload starts and stops once, and the sample that it leaves."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from benchmarks import processes
from benchmarks.commands import Commands


class Sample(NamedTuple):
    """What one run of a workload took.

    `wall` is seconds. `user` and `system` are processor seconds of everything that worked for it, `server`
    those of daemons and of mounts' servers, which are part of both. `memory` is the peak of the largest
    command in bytes, 0 if there was none; `server_memory` the sum of the servers' peaks. `items` is how many
    things were done.
    """

    wall: float
    user: float
    system: float
    server: float
    memory: int
    server_memory: int
    items: int = 1


class Clock(Protocol):
    """What a workload gets: ``with clock():`` around what is measured."""

    def __call__(self, items: int = 1) -> contextlib.AbstractContextManager[None]: ...


class StopWatch:
    """A clock that counts.

    Args:
        servers: gives the processes that serve the subject: its daemons, and its mount's server.
    """

    def __init__(self, commands: Commands, servers: Callable[[], set[int]]) -> None:
        self._commands = commands
        self._servers = servers
        self.sample: Sample | None = None

    @contextlib.contextmanager
    def __call__(self, items: int = 1) -> Iterator[None]:
        """Count what happens in a block."""
        commands = self._commands
        before = self._servers()
        processes.forget_peak(before)
        commands.peak = 0
        served, used = processes.used_by(before), commands.used()
        wall = time.perf_counter()
        yield
        wall = time.perf_counter() - wall
        after = before | self._servers()
        cpu = commands.used().minus(used)
        self.sample = Sample(
            wall,
            max(cpu.user, 0.0),
            max(cpu.system, 0.0),
            max(processes.used_by(after).minus(served).total, 0.0),
            commands.peak,
            processes.peak(after),
            items,
        )


@contextlib.contextmanager
def not_counted(items: int = 1) -> Iterator[None]:
    """Take the place of a clock while a workload is done to fill the caches."""
    yield
