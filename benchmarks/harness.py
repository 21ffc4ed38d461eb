"""Runs workloads over drivers: interleaved, each run on a fresh file system, with facts about the machine."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.filesystem import fresh
from benchmarks.sample import Scale, write_layers
from benchmarks.workloads import WORKLOADS, Subject
from layerfs import Store, __version__

_ROOM: Final = 1 << 30


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What to run: `runs` counted ones of each workload on each driver, after `warm_up` that do not count."""

    drivers: Sequence[str]
    workloads: Sequence[str]
    scale: Scale
    runs: int
    warm_up: int = 1
    filesystem: str = "ext4"


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One measured run: wall and processor time in seconds, peak memory of this process so far in bytes."""

    wall: float
    cpu: float
    peak: int


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """All runs of one workload on one driver."""

    driver: str
    workload: str
    samples: list[Sample]

    @property
    def median(self) -> float:
        """The median of wall time, in seconds."""
        return statistics.median(sample.wall for sample in self.samples)

    @property
    def spread(self) -> tuple[float, float]:
        """The shortest and the longest run, in seconds of wall time."""
        walls = [sample.wall for sample in self.samples]
        return min(walls), max(walls)


class _Watch:
    """A clock that a workload starts and stops once."""

    sample: Sample | None = None

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.sample = Sample(wall, cpu, peak)


def run(plan: Plan, *, told: Callable[[str], None]) -> list[Result]:
    """Run a plan; `told` hears one line before each round."""
    results = {(w, d): Result(d, w, []) for w in plan.workloads for d in plan.drivers}
    size = (plan.scale.large + plan.scale.files * 16384) * 12 + _ROOM
    with fresh("none", size=0) as place:
        layers = write_layers(place, plan.scale)
        for number in range(-plan.warm_up, plan.runs):
            what = "warm-up" if number < 0 else f"run {number + 1} of {plan.runs}"
            # A B A B: what slows the machine down for a while slows every driver down.
            for workload in plan.workloads:
                told(f"{what}: {workload}")
                for driver in plan.drivers:
                    sample = measure(driver, workload, layers, plan.scale, plan.filesystem, size)
                    if number >= 0:
                        results[workload, driver].samples.append(sample)
    return list(results.values())


def measure(
    driver: str, workload: str, layers: list[Path], scale: Scale, filesystem: str, size: int
) -> Sample:
    """Run one workload once, on a store of its own."""
    watch = _Watch()
    with fresh(filesystem, size=size) as place, Store.open(place / "store", driver=driver) as store:
        blobs = []
        for layer in layers:
            with store.blobs.ingest() as ingest, layer.open("rb") as file:
                while data := file.read(1 << 20):
                    ingest.write(data)
                blobs.append(ingest.commit())
        subject = Subject(store, blobs, scale)
        if workload != "unpack":
            subject.unpack()
        os.sync()
        WORKLOADS[workload](subject, watch)
    assert watch.sample is not None
    return watch.sample


def facts() -> dict[str, Any]:
    """What a reader of figures wants to know of the machine."""
    return {
        "layerfs": __version__,
        "python": sys.version.split()[0],
        "kernel": platform.release(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
