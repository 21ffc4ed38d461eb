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
    process of a command, 0 if there was none, and `server_memory` the sum of the servers' peaks; memory is in
    bytes. `together` is the most that all of them, commands and servers, held at one moment, what they share
    counted once; it is sampled, so that what lasts less than 50 ms may be missed. `resting` is the part of it
    that the servers held before. `items` is how many things were done, and `received` how many bytes
    came over a link, or to a registry, where that is counted.
    """

    wall: float
    user: float
    system: float
    server: float
    memory: int
    server_memory: int
    items: int = 1
    together: int = 0
    resting: int = 0
    received: int = 0

    @property
    def most_memory(self) -> int:
        """The larger one of the two peaks: of the largest process, and of all together at a moment."""
        return max(self.memory, self.together)


class Clock(Protocol):
    """What a workload gets: ``with clock():`` around what is measured."""

    def __call__(
        self, items: int = 1, *, received: Callable[[], int] = int
    ) -> contextlib.AbstractContextManager[None]: ...


class StopWatch:
    """A clock that counts.

    Args:
        at_rest: the living processes that serve other subjects; what else lives serves this one.
    """

    def __init__(self, commands: Commands, at_rest: set[int]) -> None:
        self._commands = commands
        self._at_rest = at_rest
        self.sample: Sample | None = None

    @contextlib.contextmanager
    def __call__(self, items: int = 1, *, received: Callable[[], int] = int) -> Iterator[None]:
        """Count what happens in a block; `received` counts bytes from its own beginning on."""
        commands = self._commands
        before = commands.others() - self._at_rest
        processes.forget_peak(before)
        commands.peak = 0
        served, used = processes.used_by(before), commands.used()
        commands.sampler.begin(self._at_rest | commands.scenery)
        bytes_before = received()
        wall = time.perf_counter()
        try:
            yield
        finally:
            wall = time.perf_counter() - wall
            memory = commands.sampler.end()
        cpu = commands.used().minus(used)
        after = before | (commands.others() - self._at_rest)
        self.sample = Sample(
            wall,
            max(cpu.user, 0.0),
            max(cpu.system, 0.0),
            max(processes.used_by(after).minus(served).total, 0.0),
            commands.peak,
            processes.peak(after),
            items,
            memory.peak,
            memory.resting,
            received() - bytes_before,
        )


@contextlib.contextmanager
def not_counted(items: int = 1, *, received: Callable[[], int] = int) -> Iterator[None]:
    """Take the place of a clock while a workload is done to fill the caches."""
    yield
