"""The figures of a run as one HTML page that needs nothing beside it, and as Markdown with drawings."""

from __future__ import annotations

import html
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks import estimates, units
from benchmarks.results import Result, Results
from benchmarks.targets import TABLES, Row, Verdict

_BEGIN: Final = "<!-- figures: written by `python -m benchmarks show FILE --markdown` -->"
_END: Final = "<!-- end of figures -->"
_STYLE: Final = """
body { color: #222; font: 15px/1.5 system-ui, sans-serif; max-width: 75em;
  margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.6em } h2 { font-size: 1.25em; margin-top: 2.2em; border-bottom: 1px solid #ddd }
h3 { font-size: 1em; margin-bottom: .2em }
.wide { overflow-x: auto } svg { max-width: 100%; height: auto }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { padding: .22em .7em; text-align: right; border-bottom: 1px solid #eee; white-space: nowrap }
th:first-child, td:first-child { text-align: left } th { background: #f6f6f4; font-weight: 600 }
.met { color: #0f7b3c } .missed, .failed { color: #b3261e; font-weight: 600 } .unknown { color: #888 }
details { margin: .6em 0 } summary { cursor: pointer }
"""
HEADINGS: Final = (
    *("median", "95 % interval", "spread", "CPU", "of it servers"),
    *("largest process", "all together", "of it at rest", "servers' peaks", "bytes"),
)

_OF_COMMANDS: Final = ("images", "registries", "containers")
_MEMORY: Final = (
    "The largest process, and all processes of the subject together at one moment; in brackets what its "
    "daemons held before the work began. `-` is work that had ended before the first sample."
)
_TARGET_HEADINGS: Final = ("work", "against", "target", "here", "")

Cells = Sequence[Sequence[str]]


def to_html(results: Results, plots: Mapping[str, str]) -> str:
    """Give the whole page; `plots` are SVG texts by section."""
    parts = ["<h1>layerfs beside its peers</h1>", f"<p>{html.escape(setting(results))}</p>"]
    for table in TABLES:
        rows = [row for row in table.rows(results) if row.verdict is not Verdict.UNKNOWN or not row.limit]
        if rows:
            parts.append(f"<h2>Targets: {html.escape(table.title)}</h2>")
            parts.append(_html_table(_TARGET_HEADINGS, [_target_cells(row) for row in rows]))
    for section, workloads in results.sections.items():
        parts.append(f"<h2>{html.escape(section.capitalize())}</h2>")
        if section in plots:
            parts.append(f'<div class="wide">{plots[section]}</div>')
        for workload in workloads:
            found = [each for each in results.results if each.workload == workload]
            if found:
                heading = f"<b>{html.escape(workload)}</b>: {html.escape(results.about[workload])}"
                table_text = _html_table(("subject", *HEADINGS), [_cells(each) for each in found])
                parts.append(f"<details><summary>{heading}</summary>{table_text}</details>")
    parts += _notes(results)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>layerfs: benchmarks</title>'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def to_markdown(results: Results, plots: Mapping[str, str], target: Path) -> None:
    """Put the figures into a Markdown file, between its two marks, and drawings into a directory beside it.

    Raises:
        ValueError: the file has no marks.
    """
    text = target.read_text()
    if _BEGIN not in text or _END not in text:
        raise ValueError(f"{target} has no line {_BEGIN!r}, or none {_END!r} after it")
    directory = target.with_suffix("")
    directory.mkdir(exist_ok=True)
    parts = [setting(results)]
    for table in TABLES:
        rows = [_target_cells(row) for row in table.rows(results)]
        parts += [f"### Targets: {table.title}", _markdown_table(_TARGET_HEADINGS, rows)]
    for section, workloads in results.sections.items():
        parts.append(f"### {section.capitalize()}")
        if section in plots:
            (directory / f"{section}.svg").write_text(_as_file(plots[section]))
            parts.append(f"![{section}]({directory.name}/{section}.svg)")
        parts.append(_markdown_table(*_matrix(results, workloads, _median)))
    if workloads := [name for name in results.about if _uses_memory(results, name)]:
        parts += ["### Memory", _MEMORY, _markdown_table(*_matrix(results, workloads, _memory))]
    # What a failed command said names places of the machine, and stands in the other forms.
    remarks = [
        *_left_out(results),
        *(f"{each.workload} failed on {each.subject}" for each in _failed(results)),
    ]
    if remarks:
        parts += ["### Notes", "\n".join(f"* {line}" for line in remarks)]
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    target.write_text(f"{before}{_BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{_END}{after}")


def setting(results: Results) -> str:
    """Say in a sentence or two on what, and how, all of it was measured."""
    facts, plan = results.facts, results.plan
    tools = "; ".join(f"{name}: {text}" for name, text in facts["versions"].items())
    images = "; ".join(
        f"{name}: {image['layers']} layers, {image['entries']} entries, {units.mebibytes(image['size'])}"
        for name, image in results.images.items()
        if not name.startswith("depth-")
    )
    stolen = max((each["stolen"] for each in results.noise), default=0.0)
    load = max((each["load"] for each in results.noise), default=0.0)
    return " ".join(
        (
            f"layerfs {facts['layerfs']}, Python {facts['python']}, Linux {facts['kernel']},",
            f"{facts['processors']} processors ({facts['processor']}),",
            f"{units.mebibytes(facts['memory'])} of memory.",
            f"{plan['rounds']} rounds after {plan['warm_up']} to warm up, each on a fresh",
            f"{plan['filesystem']},",
            f"at the scale {plan['scale']['name']}.",
            f"At worst {stolen:.1%} of the processors' time was stolen in a round,",
            f"and the load average was {load:.1f}. Images: {images}. {tools}.",
        )
    )


def _target_cells(row: Row) -> list[str]:
    return [row.work, row.against, row.limit, row.figure, row.verdict.value if row.limit else ""]


def _matrix(
    results: Results, workloads: Sequence[str], write: Callable[[Result | None], str]
) -> tuple[list[str], Cells]:
    subjects = [name for name in results.subjects if any(results.find(each, name) for each in workloads)]
    rows = [
        [workload, *(write(results.find(workload, subject)) for subject in subjects)]
        for workload in workloads
        if workload in results.about
    ]
    return ["workload", *subjects], rows


def _median(result: Result | None) -> str:
    if result is None or not result.samples:
        return "failed" if result is not None and result.failed else ""
    return f"{units.seconds(estimates.estimate(result.walls).median)} ±{estimates.spread(result.walls):.0%}"


def _uses_memory(results: Results, workload: str) -> bool:
    """Say whether a workload is one of commands, and not of what is done in a mounted folder."""
    return any(
        name == workload
        for section in _OF_COMMANDS
        for name in results.sections.get(section, [])
        if name in results.workloads
    )


def _memory(result: Result | None) -> str:
    if result is None or not result.samples:
        return ""
    largest, together, resting = (
        statistics.median(getattr(sample, name) for sample in result.samples)
        for name in ("memory", "together", "resting")
    )
    if not largest:
        return ""
    text = f"{units.mebibytes(largest)}, {units.mebibytes(together) if together else '-'}"
    return f"{text} ({units.mebibytes(resting)})" if resting else text


def _cells(result: Result) -> list[str]:
    """Give a subject's name and its figures, in the order of the headings."""
    return [result.subject, *figures(result)]


def figures(result: Result) -> list[str]:
    """Give what stands under `HEADINGS`; of a workload that failed only that."""
    if not result.samples:
        return ["failed" if result.failed else ""]
    wall = estimates.estimate(result.walls)
    cpu = statistics.median(sample.user + sample.system for sample in result.samples)
    server = statistics.median(sample.server for sample in result.samples)
    sizes = (
        statistics.median(getattr(sample, name) for sample in result.samples)
        for name in ("memory", "together", "resting", "server_memory", "received")
    )
    return [
        units.seconds(wall.median),
        f"{units.seconds(wall.low)} to {units.seconds(wall.high)}",
        f"{estimates.spread(result.walls):.0%}",
        units.seconds(cpu),
        units.seconds(server) if server else "",
        *(units.mebibytes(size) if size else "" for size in sizes),
    ]


def _left_out(results: Results) -> list[str]:
    return [f"{name} was left out: {reason}" for name, reason in results.left_out.items()]


def _failed(results: Results) -> list[Result]:
    return [each for each in results.results if each.failed]


def _notes(results: Results) -> list[str]:
    lines = _left_out(results)
    lines += [f"{each.workload} failed on {each.subject}: {each.failed}" for each in _failed(results)]
    lines += [f"the image {name} is made of {image['made_of']}" for name, image in results.images.items()]
    return ["<h2>Notes</h2>", "<ul>", *(f"<li>{html.escape(line)}</li>" for line in lines), "</ul>"]


def _html_table(headings: Sequence[str], rows: Cells) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in headings)
    body = "".join(f"<tr>{''.join(map(_html_cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _html_cell(text: str) -> str:
    marked = text if text in ("met", "missed", "failed") else "unknown" if text == "not measured" else ""
    return f'<td class="{marked}">{html.escape(text)}</td>' if marked else f"<td>{html.escape(text)}</td>"


def _markdown_table(headings: Sequence[str], rows: Cells) -> str:
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _as_file(drawing: str) -> str:
    return f'<?xml version="1.0" encoding="utf-8"?>\n{drawing}'
