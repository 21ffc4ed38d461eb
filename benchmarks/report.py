"""Shows results: a table for people, JSON for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from benchmarks.harness import Plan, Result, facts


def table(results: Sequence[Result], plan: Plan) -> Any:
    """Give a rich table: a row a workload, medians with the shortest and longest run."""
    from rich.table import Table

    shown = Table(
        title=f"medians of {plan.runs} runs, milliseconds (shortest to longest); {plan.filesystem}, "
        f"{plan.scale.layers} layers, {plan.scale.files} files"
    )
    shown.add_column("workload")
    for driver in plan.drivers:
        shown.add_column(driver, justify="right")
    found = {(result.workload, result.driver): result for result in results}
    for workload in plan.workloads:
        shown.add_row(workload, *(_cell(found[workload, driver]) for driver in plan.drivers))
    return shown


def _cell(result: Result) -> str:
    shortest, longest = result.spread
    return f"{result.median * 1e3:.1f} ({shortest * 1e3:.1f} to {longest * 1e3:.1f})"


def document(results: Sequence[Result], plan: Plan) -> dict[str, Any]:
    """Give everything as JSON values; times in seconds, sizes in bytes."""
    return {
        "machine": facts(),
        "plan": dataclasses.asdict(plan),
        "results": [
            {
                "driver": result.driver,
                "workload": result.workload,
                "median": result.median,
                "samples": [dataclasses.asdict(sample) for sample in result.samples],
            }
            for result in results
        ],
    }
