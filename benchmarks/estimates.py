"""Medians, and how sure they are: intervals by resampling the rounds, the same ones every time."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from typing import Final, NamedTuple

_RESAMPLES: Final = 2000
_TAIL: Final = 0.025


class Estimate(NamedTuple):
    """A median with the 95 per cent confidence interval from `low` to `high`."""

    median: float
    low: float
    high: float


def estimate(values: Sequence[float]) -> Estimate:
    """Estimate the median of what the values are drawn from.

    The percentile bootstrap; with few rounds the interval is the range of the values, and no narrower.
    """
    if len(values) < 3:
        return Estimate(statistics.median(values), min(values), max(values))
    source = random.Random(len(values))
    drawn = [statistics.median(source.choices(values, k=len(values))) for _ in range(_RESAMPLES)]
    return _interval(statistics.median(values), drawn)


def ratio(values: Sequence[float], others: Sequence[float]) -> Estimate:
    """Estimate the ratio of two medians.

    Values of one round belong together, and are drawn together: what slowed a round down slowed both.
    """
    middle = statistics.median(values) / statistics.median(others)
    pairs = list(zip(values, others, strict=False))
    if len(pairs) < 3:
        quotients = [one / other for one, other in pairs]
        return Estimate(middle, min(middle, *quotients), max(middle, *quotients))
    source = random.Random(len(pairs))
    drawn = []
    for _ in range(_RESAMPLES):
        chosen = source.choices(pairs, k=len(pairs))
        drawn.append(
            statistics.median(one for one, _ in chosen) / statistics.median(other for _, other in chosen)
        )
    return _interval(middle, drawn)


def spread(values: Sequence[float]) -> float:
    """Give the distance of the values' quartiles as a part of their median: what noise there was."""
    if len(values) < 2:
        return 0.0
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return (third - first) / statistics.median(values)


def _interval(middle: float, drawn: list[float]) -> Estimate:
    drawn.sort()
    low, high = drawn[int(_TAIL * len(drawn))], drawn[int((1 - _TAIL) * len(drawn)) - 1]
    return Estimate(middle, low, high)
