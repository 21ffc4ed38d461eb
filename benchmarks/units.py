"""Figures as people read them: three digits and a unit."""

from __future__ import annotations

from benchmarks.estimates import Estimate


def seconds(value: float) -> str:
    """Write a time, in seconds, milliseconds or microseconds."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{_three_digits(value / size)} {unit}"
    return f"{_three_digits(value * 1e6)} µs"


def mebibytes(value: float) -> str:
    """Write a size in MB of 2**20 bytes."""
    return f"{_three_digits(value / (1 << 20))} MB"


def interval(estimate: Estimate) -> str:
    """Write a time as its median with its confidence interval."""
    return f"{seconds(estimate.median)} ({seconds(estimate.low)} to {seconds(estimate.high)})"


def ratio(value: float) -> str:
    """Write a ratio."""
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _three_digits(value: float) -> str:
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
