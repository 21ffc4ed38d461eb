"""What layerfs is to reach, as rows that one run answers: met, missed or not measured."""

from __future__ import annotations

import dataclasses
import enum
import statistics
from collections.abc import Callable, Sequence
from typing import Final, Protocol

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
    """One target with its figure, as text; without a `limit` the figure is only shown."""

    work: str
    against: str
    limit: str
    figure: str
    verdict: Verdict


class Target(Protocol):
    """One row of a table."""

    def row(self, results: Results) -> Row | None:
        """Find the figure in the results of a run; None if the target is not one for such a run."""


@dataclasses.dataclass(frozen=True, slots=True)
class Ratio:
    """Our median over a peer's.

    Where a target is about several workloads, their times are added up. `theirs` are the peer's where those
    have other names. `filesystems` are those for which the target is meant; none named means all.
    """

    workloads: tuple[str, ...]
    ours: str
    peer: str
    limit: float
    theirs: tuple[str, ...] = ()
    filesystems: tuple[str, ...] = ()

    def row(self, results: Results) -> Row | None:
        """Compare the two medians."""
        if self.filesystems and results.plan["filesystem"] not in self.filesystems:
            return None
        against = " + ".join(self.theirs) + f" of {self.peer}" if self.theirs else self.peer
        work, limit = f"{' + '.join(self.workloads)}, {self.ours}", f"at most {self.limit:g}"
        mine = _sums(results, self.workloads, self.ours)
        theirs = _sums(results, self.theirs or self.workloads, self.peer)
        if not mine or not theirs:
            return Row(work, against, limit, "", Verdict.UNKNOWN)
        found = estimates.ratio(mine, theirs)
        return Row(work, against, limit, _ratio(found), _verdict(found.median, self.limit))


@dataclasses.dataclass(frozen=True, slots=True)
class Bound:
    """A figure of our own that has a limit in itself."""

    workload: str
    ours: str
    limit: float
    measure: Callable[[Result], Estimate]
    write: Callable[[float], str]

    def row(self, results: Results) -> Row | None:
        """Compare the figure with its limit."""
        work, limit = f"{self.workload}, {self.ours}", f"at most {self.write(self.limit)}"
        found, what = _measured(results, self.workload, self.ours), self.measure.__name__.replace("_", " ")
        if found is None:
            return Row(work, what, limit, "", Verdict.UNKNOWN)
        value = self.measure(found).median
        return Row(work, what, limit, self.write(value), _verdict(value, self.limit))


@dataclasses.dataclass(frozen=True, slots=True)
class Growth:
    """The cost of one thing among many over that among few, both our own."""

    large: str
    small: str
    ours: str
    limit: float
    measure: Callable[[Result], Estimate]

    def row(self, results: Results) -> Row | None:
        """Compare the two."""
        work, limit = f"{self.large}, {self.ours}", f"at most {self.limit:g}"
        many, few = (_measured(results, name, self.ours) for name in (self.large, self.small))
        if many is None or few is None:
            return Row(work, self.small, limit, "", Verdict.UNKNOWN)
        value = self.measure(many).median / self.measure(few).median
        return Row(work, self.small, limit, units.ratio(value), _verdict(value, self.limit))


@dataclasses.dataclass(frozen=True, slots=True)
class ServerMemory:
    """The peak of memory of a subject's servers over all workloads; it has no limit."""

    subject: str

    def row(self, results: Results) -> Row | None:
        """Find the peak."""
        peaks = [
            statistics.median(sample.server_memory for sample in result.samples)
            for result in results.results
            if result.subject == self.subject and result.samples
        ]
        if not peaks:
            return None
        figure = units.mebibytes(max(peaks))
        return Row(f"peak memory of the server, {self.subject}", "", "", figure, Verdict.UNKNOWN)


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """One of our own workloads over another one, in some measure."""

    workload: str
    whole: str
    ours: str
    theirs: str
    limit: float
    measure: Callable[[Result], Estimate]

    def row(self, results: Results) -> Row | None:
        """Compare the two."""
        what = self.measure.__name__.replace("_", " ")
        work, limit = f"{self.workload}, {self.ours}: {what}", f"at most {self.limit:g}"
        against = f"{self.whole} of {self.theirs}"
        one = _measured(results, self.workload, self.ours)
        other = _measured(results, self.whole, self.theirs)
        if one is None or other is None:
            return Row(work, against, limit, "", Verdict.UNKNOWN)
        value = self.measure(one).median / self.measure(other).median
        return Row(work, against, limit, units.ratio(value), _verdict(value, self.limit))


def time(result: Result) -> Estimate:
    """Give the wall time of a workload."""
    return estimates.estimate(result.walls)


def time_each(result: Result) -> Estimate:
    """Give the wall time for each of the things that a workload did."""
    return estimates.estimate([sample.wall / sample.items for sample in result.samples])


def peak_memory(result: Result) -> Estimate:
    """Give the peak of memory of a workload: of its largest process, or of all together if that is more."""
    return estimates.estimate([float(sample.most_memory) for sample in result.samples])


def bytes_received(result: Result) -> Estimate:
    """Give how many bytes came over the link."""
    return estimates.estimate([float(sample.received) for sample in result.samples])


def _measured(results: Results, workload: str, subject: str) -> Result | None:
    found = results.find(workload, subject)
    return found if found is not None and found.samples and not found.failed else None


def _sums(results: Results, workloads: Sequence[str], subject: str) -> list[float]:
    """Add workloads up, round by round; nothing if one of them was not measured."""
    found = [_measured(results, workload, subject) for workload in workloads]
    if any(each is None for each in found):
        return []
    return [sum(walls) for walls in zip(*(each.walls for each in found if each), strict=False)]


def _verdict(value: float, limit: float) -> Verdict:
    return Verdict.MET if value <= limit else Verdict.MISSED


def _ratio(found: Estimate) -> str:
    if found.low == found.high:
        return units.ratio(found.median)
    return f"{units.ratio(found.median)} ({units.ratio(found.low)} to {units.ratio(found.high)})"


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """Targets that belong together."""

    title: str
    targets: tuple[Target, ...]

    def rows(self, results: Results) -> list[Row]:
        """Answer every target that is one for such a run."""
        return [row for target in self.targets if (row := target.row(results)) is not None]


_UNION: Final = "layerfs-fuse"
_STORE: Final = "layerfs-overlay2"
_COPIES: Final = "layerfs-vfs"
_MEMORY: Final = 120 << 20

# Workload, the limit over fuse-overlayfs, the limit over the kernel's overlay.
_UNION_LIMITS: Final[tuple[tuple[str, float, float | None], ...]] = (
    ("walk-first", 0.6, None),
    ("walk-again", 0.7, 1.3),
    ("find-again", 0.7, 1.3),
    ("read-cold", 0.9, None),
    ("read-again", 0.5, 1.2),
    ("sequential-cold", 0.6, 1.15),
    ("sequential-warm", 0.6, 1.15),
    ("random-first", 0.6, 1.15),
    ("random-warm", 0.6, 1.15),
    ("write-1m", 0.5, 1.3),
    ("write-4k", 0.5, 1.3),
    ("create", 1.0, None),
    ("delete", 0.9, None),
    ("delete-lower", 0.5, None),
    ("copy-up", 1.0, 1.2),
)


def _union_targets() -> list[Target]:
    found: list[Target] = []
    for workload, peer, kernel in _UNION_LIMITS:
        found.append(Ratio((workload,), _UNION, "fuse-overlayfs", peer))
        if kernel is not None:
            found.append(Ratio((workload,), _UNION, "kernel-overlay", kernel))
    return found


TABLES: Final = (
    Table(
        "the FUSE union",
        (
            *_union_targets(),
            Bound("mount", _UNION, 0.15, time, units.seconds),
            *map(ServerMemory, (_UNION, "fuse-overlayfs", "unionfs-fuse")),
        ),
    ),
    Table(
        "the store and its commands",
        (
            Ratio(("load",), _STORE, "docker", 0.30),
            Ratio(("load",), _STORE, "podman", 0.33),
            Ratio(("load",), _STORE, "cp", 2.0),
            Ratio(("pull-gzip",), _STORE, "umoci", 0.25),
            Ratio(("pull-gzip",), _STORE, "podman", 0.25),
            Ratio(("pull-gzip",), _STORE, "tar", 0.55),
            Ratio(("pull-zstd",), _STORE, "umoci", 0.20),
            Ratio(("pull-zstd",), _STORE, "podman", 0.20),
            Ratio(("run-true",), _STORE, "docker", 0.35),
            Ratio(("run-true",), _STORE, "podman", 0.7),
            Bound("depth-10", _STORE, 0.005, time_each, units.seconds),
            Bound("depth-500", _STORE, 0.015, time_each, units.seconds),
            Ratio(("diff", "commit-mixed"), _STORE, "docker", 0.4),
            Ratio(("diff", "commit-mixed"), _STORE, "podman", 0.3),
            Ratio(("prepare",), _COPIES, "cp", 1.05, filesystems=("ext4",)),
            Ratio(("prepare",), _COPIES, "cp", 0.5, filesystems=("btrfs", "xfs")),
            Ratio(("save",), _STORE, "docker", 0.5),
            Ratio(("save",), _STORE, "skopeo", 0.5),
            Ratio(("push",), _STORE, "skopeo", 0.5),
            *(
                Bound(workload, _STORE, _MEMORY, peak_memory, units.mebibytes)
                for workload in ("load", "load-crowd", "pull-gzip", "pull-zstd", "run-true")
            ),
            *(
                Bound(workload, _STORE, _MEMORY, peak_memory, units.mebibytes)
                for workload in ("diff", "commit-mixed", "save", "push", "export")
            ),
            Ratio(("version",), _STORE, "python", 2),
            Ratio(("images",), _STORE, "python", 4, theirs=("version",)),
            Growth("create-among-10000", "create-among-1", _STORE, 1.5, time_each),
            Growth("list-10000", "list-100", _STORE, 1.5, time_each),
            Growth("images-10000", "images-100", _STORE, 1.5, time_each),
            Growth("load-crowd", "load-few", _STORE, 1.3, time_each),
        ),
    ),
    Table(
        "registries",
        (
            Ratio(("registry-pull",), _STORE, "docker", 0.30),
            Ratio(("registry-pull",), _STORE, "podman", 0.33),
            Ratio(("registry-copy",), _STORE, "skopeo", 0.6),
            Ratio(("registry-push",), _STORE, "docker", 0.5),
            Ratio(("registry-push",), _STORE, "podman", 0.5),
            Ratio(("slow-link-pull",), _STORE, "docker", 0.5),
            *(
                Bound(workload, _STORE, _MEMORY, peak_memory, units.mebibytes)
                for workload in ("registry-pull", "registry-copy", "registry-push", "slow-link-pull")
            ),
            Part("lazy-ls", "slow-link-estargz", _UNION, _UNION, 0.05, bytes_received),
            Part("lazy-ls", "slow-link-estargz", _UNION, _UNION, 0.15, time),
            Part("lazy-ls", "slow-link-estargz", _UNION, "docker", 0.15, time),
            Bound("lazy-ls", _UNION, _MEMORY, peak_memory, units.mebibytes),
        ),
    ),
)
