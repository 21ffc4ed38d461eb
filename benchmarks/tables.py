"""Results as tables on a terminal."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.table import Table as RichTable

from benchmarks import estimates, units
from benchmarks.comparison import Change, compare, differences_of_setting
from benchmarks.report import HEADINGS, figures
from benchmarks.results import Result, Results
from benchmarks.targets import TABLES, Verdict

_COLOURS: Final = {Verdict.MET: "green", Verdict.MISSED: "red", Verdict.UNKNOWN: "yellow"}


def print_results(console: Console, results: Results, peer: str | None) -> None:
    """Print a table of medians for each section, and all that was noted beside them.

    Args:
        peer: the subject over whose time each ratio is shown; None shows none.
    """
    for title, workloads in results.sections.items():
        console.print(_section(results, title, workloads, peer))
    print_notes(console, results)


def print_details(console: Console, results: Results) -> None:
    """Print a table for each workload: intervals, spread, processor time and memory."""
    for workload in results.workloads:
        table = RichTable(title=f"{workload}: {results.about[workload]}", title_justify="left")
        table.add_column("subject")
        for heading in HEADINGS:
            table.add_column(heading, justify="right")
        for result in results.results:
            if result.workload == workload:
                table.add_row(result.subject, *figures(result))
        console.print(table)


def print_targets(console: Console, results: Results) -> None:
    """Print every target with its figure and whether it is met."""
    for table in TABLES:
        shown = RichTable(title=table.title, title_justify="left")
        for heading in ("work", "against", "target", "here (95 % interval)", ""):
            shown.add_column(heading)
        for row in table.rows(results):
            verdict = f"[{_COLOURS[row.verdict]}]{row.verdict.value}[/]"
            shown.add_row(row.work, row.against, row.limit, row.figure, verdict if row.limit else "")
        console.print(shown)


def print_comparison(console: Console, before: Results, after: Results) -> bool:
    """Print what differs between two runs; says whether anything got slower."""
    for difference in differences_of_setting(before, after):
        console.print(f"not the same in both runs: {difference}", style="yellow", highlight=False)
    found = compare(before, after)
    table = RichTable(title="what changed, the worst first", title_justify="left")
    for heading in ("workload", "subject"):
        table.add_column(heading)
    for heading in ("before", "after", "ratio (95 % interval)", ""):
        table.add_column(heading, justify="right")
    for each in found:
        if each.change is not Change.SAME:
            ratio = f"{units.ratio(each.ratio.median)}"
            between = f"({units.ratio(each.ratio.low)} to {units.ratio(each.ratio.high)})"
            colour = "red" if each.change is Change.SLOWER else "green"
            times = (units.seconds(each.before), units.seconds(each.after))
            verdict = f"[{colour}]{each.change.value}[/]"
            table.add_row(each.workload, each.subject, *times, f"{ratio} {between}", verdict)
    console.print(table)
    same = sum(each.change is Change.SAME for each in found)
    console.print(
        f"{same} of {len(found)} pairs of a workload and a subject show no sure change", highlight=False
    )
    return any(each.change is Change.SLOWER for each in found)


def print_notes(console: Console, results: Results) -> None:
    """Print what was left out, what failed, and how quiet the machine was."""
    for name, reason in results.left_out.items():
        console.print(f"left out: {name}: {reason}", style="yellow", highlight=False)
    for result in results.results:
        if result.failed:
            where = f"{result.workload} on {result.subject}"
            console.print(f"failed: {where}: {result.failed}", style="red", markup=False, highlight=False)
    console.print(noise(results), highlight=False)


def _section(results: Results, title: str, workloads: list[str], peer: str | None) -> RichTable:
    shown = [name for name in workloads if name in results.workloads]
    subjects = [
        subject for subject in results.subjects if any(results.find(workload, subject) for workload in shown)
    ]
    over = f"; in brackets over {peer}" if peer else ""
    table = RichTable(
        title=f"{title}: medians, and how far the quartiles are apart{over}", title_justify="left"
    )
    table.add_column("workload")
    for subject in subjects:
        table.add_column(subject, justify="right")
    for workload in shown:
        base = results.find(workload, peer) if peer else None
        found = [results.find(workload, subject) for subject in subjects]
        table.add_row(workload, *(_cell(result, base) for result in found))
    return table


def _cell(result: Result | None, base: Result | None) -> str:
    if result is None:
        return ""
    if result.failed or not result.samples:
        return "[red]failed[/]" if result.failed else ""
    text = f"{units.seconds(estimates.estimate(result.walls).median)} ±{estimates.spread(result.walls):.0%}"
    if base is not None and base.samples:
        text += f" ({units.ratio(estimates.ratio(result.walls, base.walls).median)})"
    return text


def noise(results: Results) -> str:
    """Say how quiet the machine was."""
    if not results.noise:
        return "no round was counted"
    stolen = max(each["stolen"] for each in results.noise)
    load = max(each["load"] for each in results.noise)
    plan = results.plan
    return (
        f"{plan['rounds']} rounds on {plan['filesystem']}, scale {plan['scale']['name']}; at worst "
        f"{stolen:.1%} of the processors' time was stolen in a round, and the load average was {load:.1f}"
    )
