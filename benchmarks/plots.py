"""Draws results as SVG: bars with every round's dot for times, lines for what grows. Needs matplotlib."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from benchmarks import estimates, units
from benchmarks.results import Result, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS: Final = 3
_WIDTH: Final = 12.0
_BAR: Final = 0.27
_HEAD: Final = 0.75
_LINE_HEIGHT: Final = 3.2
_LEGEND_COLUMNS: Final = 8
_GAPS: Final = {"h_pad": 0.09, "w_pad": 0.09}
_SMALL: Final[dict[str, Any]] = {"fontsize": 7, "color": "#555555"}
# Ours are strong, what they stand beside is pale, floors are grey.
_OURS: Final = ("#0b6e99", "#d9730d", "#0f7b6c", "#ad1a72", "#6940a5")
_PEERS: Final = ("#9fb8c8", "#c8b49f", "#a8c4a2", "#c4a8bd", "#b3aecb", "#c9c3a0", "#a0c4c9", "#cbb0b0")
_FLOORS: Final = "#cccccc"
_FLOOR_NAMES: Final = ("bare", "tar", "cp", "dd", "python")
_GROWING: Final = re.compile(r"(.+)-(\d+)")
# It would name places elsewhere, and the day.
_NO_METADATA: Final = dict.fromkeys(("Date", "Creator", "Format", "Type"))
_STYLE: Final = {
    "svg.fonttype": "none",
    # Names inside the SVG do not change from one drawing to the next.
    "svg.hashsalt": "layerfs-benchmarks",
    "font.family": "sans-serif",
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#888888",
}


def draw(results: Results) -> dict[str, str]:
    """Give one SVG for each section that has something to show, by the section's name."""
    import matplotlib

    colours = _colours(results.subjects)
    drawn = {}
    with matplotlib.rc_context(_STYLE):
        for section, workloads in results.sections.items():
            if section == "growth":
                figure = _growth(results, workloads, colours)
            else:
                figure = _bars(results, workloads, colours)
            if figure is not None:
                drawn[section] = _to_svg(figure)
    return drawn


def _colours(subjects: Sequence[str]) -> dict[str, str]:
    ours = [name for name in subjects if name.startswith("layerfs-")]
    peers = [name for name in subjects if name not in ours and name not in _FLOOR_NAMES]
    found = {name: _OURS[place % len(_OURS)] for place, name in enumerate(ours)}
    found |= {name: _PEERS[place % len(_PEERS)] for place, name in enumerate(peers)}
    return found | dict.fromkeys(_FLOOR_NAMES, _FLOORS)


def _to_svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", bbox_inches="tight", metadata=_NO_METADATA)
    # What stands before the element is for files, not for pages.
    drawn = text.getvalue()
    return drawn[drawn.index("<svg") :]


def _bars(results: Results, workloads: Sequence[str], colours: Mapping[str, str]) -> Figure | None:
    from matplotlib.figure import Figure

    shown = {
        workload: found
        for workload in workloads
        if (found := [each for each in results.results if each.workload == workload and each.samples])
    }
    if not shown:
        return None
    rows = -(-len(shown) // _COLUMNS)
    names = list(shown)
    heights = [
        max(len(shown[name]) for name in names[row * _COLUMNS : (row + 1) * _COLUMNS]) for row in range(rows)
    ]
    figure = Figure(figsize=(_WIDTH, sum(heights) * _BAR + rows * _HEAD), layout="constrained")
    figure.set_layout_engine("constrained", **_GAPS)
    places = figure.subplots(rows, _COLUMNS, squeeze=False, gridspec_kw={"height_ratios": heights})
    for place, axes in enumerate(places.flat):
        if place < len(names):
            _bar_chart(axes, names[place], shown[names[place]], colours, heights[place // _COLUMNS])
        else:
            axes.set_axis_off()
    return figure


def _bar_chart(
    axes: Axes, workload: str, found: Sequence[Result], colours: Mapping[str, str], slots: int
) -> None:
    """Draw one workload; `slots` is how many bars the tallest chart of the row has, so that all are alike."""
    scale, unit = _unit(max(max(result.walls) for result in found))
    for place, result in enumerate(found):
        middle = estimates.estimate(result.walls)
        axes.barh(place, middle.median * scale, color=colours[result.subject], height=0.72)
        axes.plot([middle.low * scale, middle.high * scale], [place, place], color="#333333", linewidth=1)
        dots = [wall * scale for wall in result.walls]
        axes.plot(dots, [place] * len(dots), ".", color="#333333", markersize=2.5, alpha=0.6)
        end = max(*dots, middle.high * scale)
        axes.annotate(
            units.seconds(middle.median),
            (end, place),
            (3, 0),
            textcoords="offset points",
            va="center",
            **_SMALL,
        )
    axes.set_yticks(range(len(found)), [result.subject for result in found])
    axes.set_ylim(slots - 0.5, -0.5)
    # The figures at the ends of the bars need room.
    axes.set_xlim(0, max(max(result.walls) for result in found) * scale * 1.25)
    axes.locator_params(axis="x", nbins=5)
    axes.tick_params(length=0)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_title(f"{workload}, {unit}")


def _growth(results: Results, workloads: Sequence[str], colours: Mapping[str, str]) -> Figure | None:
    from matplotlib.figure import Figure

    series = _series(results, workloads)
    if not series:
        return None
    rows = -(-len(series) // _COLUMNS)
    figure = Figure(figsize=(_WIDTH, rows * _LINE_HEIGHT + _HEAD), layout="constrained")
    figure.set_layout_engine("constrained", **_GAPS)
    places = figure.subplots(rows, _COLUMNS, squeeze=False)
    known: dict[str, Any] = {}
    for place, axes in enumerate(places.flat):
        if place < len(series):
            name = list(series)[place]
            _line_chart(axes, name, series[name], colours)
            handles, labels = axes.get_legend_handles_labels()
            known |= dict(zip(labels, handles, strict=True))
        else:
            axes.set_axis_off()
    lines = -(-len(known) // _LEGEND_COLUMNS)
    columns = -(-len(known) // lines)
    figure.legend(known.values(), known.keys(), loc="outside upper left", ncols=columns, frameon=False)
    return figure


def _series(
    results: Results, workloads: Sequence[str]
) -> dict[str, dict[str, list[tuple[int, estimates.Estimate]]]]:
    """Give, by workload without its number and by subject, the time of one whole run over that number."""
    found: dict[str, dict[str, list[tuple[int, estimates.Estimate]]]] = {}
    for workload in workloads:
        if (match := _GROWING.fullmatch(workload)) is None:
            continue
        for result in results.results:
            if result.workload == workload and result.samples:
                points = found.setdefault(match[1], {}).setdefault(result.subject, [])
                points.append((int(match[2]), estimates.estimate(result.walls)))
    return {name: lines for name, lines in found.items() if any(len(points) > 1 for points in lines.values())}


def _line_chart(
    axes: Axes,
    name: str,
    lines: Mapping[str, Sequence[tuple[int, estimates.Estimate]]],
    colours: Mapping[str, str],
) -> None:
    from matplotlib.ticker import LogLocator

    for subject, points in lines.items():
        numbers = [number for number, _ in points]
        middles = [middle.median * 1e3 for _, middle in points]
        axes.plot(numbers, middles, marker="o", markersize=3, color=colours[subject], label=subject)
        lows, highs = ([getattr(each, side) * 1e3 for _, each in points] for side in ("low", "high"))
        axes.fill_between(numbers, lows, highs, color=colours[subject], alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    numbers = sorted({number for points in lines.values() for number, _ in points})
    axes.set_xticks(numbers, [f"{number:,}" for number in numbers])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.set_title(f"{name}-N, ms over N")


def _unit(largest: float) -> tuple[float, str]:
    if largest >= 1:
        return 1.0, "s"
    return (1e3, "ms") if largest >= 1e-3 else (1e6, "µs")


def missing() -> str:
    """Say what is not installed, "" if nothing is missing."""
    try:
        import matplotlib
    except ImportError:
        return "matplotlib is not installed: pip install 'layerfs[benchmarks]'"
    _: Any = matplotlib
    return ""
