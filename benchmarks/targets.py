"""What layerfs is to reach, as rows that one run answers: met, missed or not measured."""

from __future__ import annotations

import dataclasses
import enum
import statistics
from collections.abc import Callable, Sequence
from typing import Final

from benchmarks import estimates, units
from benchmarks.estimates import Estimate
from benchmarks.results import Result, Results


class Verdict(enum.Enum):
    """How a figure stands to its target."""

    MET = "met"
    MISSED = "missed"
    UNKNOWN = "not measured"


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One target with its figure, as text."""

    work: str
    against: str
    limit: str
    figure: str
    verdict: Verdict


class Target:
    """One or more rows of a table."""

    def row(self, results: Results) -> Row:
        """Find the figure in the results of a run."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, slots=True)
class Ratio(Target):
    """Our median over a peer's of the same workload, or of `other` where theirs has another name."""

    workload: str
    ours: str
    peer: str
    limit: float
    other: str = ""

    def row(self, results: Results) -> Row:
        """Compare the two medians."""
        against = self.peer if not self.other else f"{self.other} of {self.peer}"
        mine = _measured(results, self.workload, self.ours)
        theirs = _measured(results, self.other or self.workload, self.peer)
        limit = f"at most {self.limit:g}"
        if mine is None or theirs is None:
            return Row(f"{self.workload}, {self.ours}", against, limit, "", Verdict.UNKNOWN)
        found = estimates.ratio(mine.walls, theirs.walls)
        figure = f"{units.ratio(found.median)} ({units.ratio(found.low)} to {units.ratio(found.high)})"
        return Row(
            f"{self.workload}, {self.ours}", against, limit, figure, _verdict(found.median, self.limit)
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Bound(Target):
    """A figure of our own that has a limit in itself."""

    workload: str
    ours: str
    limit: float
    measure: Callable[[Result], Estimate]
    write: Callable[[float], str]

    def row(self, results: Results) -> Row:
        """Compare the figure with its limit."""
        found, limit = _measured(results, self.workload, self.ours), f"at most {self.write(self.limit)}"
        if found is None:
            return Row(f"{self.workload}, {self.ours}", "", limit, "", Verdict.UNKNOWN)
        value = self.measure(found).median
        return Row(f"{self.workload}, {self.ours}", "", limit, self.write(value), _verdict(value, self.limit))


def wall(result: Result) -> Estimate:
    """Give the wall time of a workload."""
    return estimates.estimate(result.walls)


def peak_memory(result: Result) -> Estimate:
    """Give the peak of memory of the largest command of a workload."""
    return estimates.estimate([float(sample.memory) for sample in result.samples])


def per_item(result: Result) -> Estimate:
    """Give the wall time for each of the things that a workload did."""
    return estimates.estimate([sample.wall / sample.items for sample in result.samples])


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """Targets that belong together; beside them the servers' memory of the subjects in `memory_of`."""

    title: str
    targets: Sequence[Target]
    memory_of: Sequence[str] = ()

    def rows(self, results: Results) -> list[Row]:
        """Answer every target, and show the memory of the servers named in `memory_of`."""
        return [target.row(results) for target in self.targets] + [
            _memory(results, subject) for subject in self.memory_of
        ]


def _memory(results: Results, subject: str) -> Row:
    peaks = [
        statistics.median(sample.server_memory for sample in result.samples)
        for result in results.results
        if result.subject == subject and result.samples
    ]
    figure = units.mebibytes(max(peaks)) if peaks else ""
    return Row(f"peak memory of the server, {subject}", "", "", figure, Verdict.UNKNOWN)


def _measured(results: Results, workload: str, subject: str) -> Result | None:
    found = results.find(workload, subject)
    return found if found is not None and found.samples and not found.failed else None


def _verdict(value: float, limit: float) -> Verdict:
    return Verdict.MET if value <= limit else Verdict.MISSED


def _union_targets(ours: str) -> list[Target]:
    """One row for each cell of the table of the FUSE union: over fuse-overlayfs, and over the kernel."""
    limits: list[tuple[str, float | None, float | None]] = [
        ("walk-first", 0.6, None),
        ("walk-again", 0.7, 1.3),
        ("find-again", 0.7, 1.3),
        ("read-cold", 0.9, None),
        ("read-again", 0.5, 1.2),
        ("sequential-cold", 0.6, 1.15),
        ("sequential-warm", 0.6, 1.15),
        ("random-warm", 0.6, 1.15),
        ("write-1m", 0.5, 1.3),
        ("write-4k", 0.5, 1.3),
        ("create", 1.0, None),
        ("delete", 0.9, None),
        ("delete-lower", 0.5, None),
        ("copy-up", 1.0, 1.2),
    ]
    found: list[Target] = []
    for workload, peer, kernel in limits:
        if peer is not None:
            found.append(Ratio(workload, ours, "fuse-overlayfs", peer))
        if kernel is not None:
            found.append(Ratio(workload, ours, "kernel-overlay", kernel))
    return [*found, Bound("mount", ours, 0.15, wall, units.seconds)]


TABLES: Final = (
    Table(
        "the FUSE union beside fuse-overlayfs and the kernel's overlay",
        _union_targets("layerfs-fuse"),
        ("layerfs-fuse", "fuse-overlayfs", "unionfs-fuse"),
    ),
)
