"""Two runs beside each other: what got slower, what got faster, and what cannot be told apart."""

from __future__ import annotations

import dataclasses
import enum
import random
import statistics
from collections.abc import Sequence
from typing import Final

from benchmarks.estimates import Estimate
from benchmarks.results import Results

# A change smaller than this is none, however sure it is.
_LEAST: Final = 0.05
# Of fewer rounds nothing is sure.
_FEWEST: Final = 3
_RESAMPLES: Final = 2000
# What says that two runs did the same work.
_SAME: Final = ("scale", "filesystem")


class Change(enum.Enum):
    """What became of a workload on a subject."""

    SLOWER = "slower"
    FASTER = "faster"
    SAME = "same"


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """The second run's median over the first one's, with its confidence interval."""

    workload: str
    subject: str
    before: float
    after: float
    ratio: Estimate
    change: Change


def compare(before: Results, after: Results) -> list[Difference]:
    """Compare whatever both runs have measured; the worst change stands first."""
    found = []
    for one in before.results:
        other = after.find(one.workload, one.subject)
        if other is not None and one.samples and other.samples:
            ratio = _unpaired_ratio(other.walls, one.walls)
            found.append(
                Difference(
                    one.workload,
                    one.subject,
                    statistics.median(one.walls),
                    statistics.median(other.walls),
                    ratio,
                    _judge(ratio, min(len(one.walls), len(other.walls))),
                )
            )
    return sorted(found, key=lambda each: -each.ratio.median)


def differences_of_setting(before: Results, after: Results) -> list[str]:
    """Say what else than layerfs was not the same in the two runs."""
    found = [
        f"{name}: {before.plan[name]} and {after.plan[name]}"
        for name in _SAME
        if before.plan[name] != after.plan[name]
    ]
    for name in ("kernel", "processor", "processors", "memory", "python"):
        if before.facts[name] != after.facts[name]:
            found.append(f"{name}: {before.facts[name]} and {after.facts[name]}")
    for name, tool in before.facts["versions"].items():
        if after.facts["versions"].get(name, tool) != tool:
            found.append(f"{name}: {tool} and {after.facts['versions'][name]}")
    for name, image in before.images.items():
        if name in after.images and after.images[name] != image:
            found.append(f"the image {name} has other content")
    return found


def _judge(ratio: Estimate, rounds: int) -> Change:
    if rounds < _FEWEST:
        return Change.SAME
    if ratio.low > 1 and ratio.median > 1 + _LEAST:
        return Change.SLOWER
    if ratio.high < 1 and ratio.median < 1 - _LEAST:
        return Change.FASTER
    return Change.SAME


def _unpaired_ratio(values: Sequence[float], others: Sequence[float]) -> Estimate:
    """Estimate the ratio of two medians of rounds that have nothing to do with one another."""
    middle = statistics.median(values) / statistics.median(others)
    source = random.Random(0)
    drawn = sorted(
        statistics.median(source.choices(values, k=len(values)))
        / statistics.median(source.choices(others, k=len(others)))
        for _ in range(_RESAMPLES)
    )
    return Estimate(middle, drawn[_RESAMPLES // 40], drawn[-_RESAMPLES // 40 - 1])
