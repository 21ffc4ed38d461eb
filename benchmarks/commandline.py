"""The command line of the harness: what to run, and where the figures go."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final, TypeVar

from benchmarks import subjects
from benchmarks.commands import Commands
from benchmarks.filesystem import KINDS, fresh
from benchmarks.images.cache import Images
from benchmarks.results import NotResultsError, Results, from_json, to_json
from benchmarks.rounds import Plan, Rounds
from benchmarks.scales import QUICK, SCALES, Scale
from benchmarks.subjects.base import Candidate
from benchmarks.workloads import WORKLOADS
from benchmarks.workloads.base import Workload

if TYPE_CHECKING:
    from rich.console import Console

_Kind = TypeVar("_Kind")
_PROBING_SIZE: Final = 1 << 30
_WIDTH: Final = 200


def _run_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure layerfs's drivers and their peers, each on a fresh file system.",
        epilog="Also: python -m benchmarks show FILE, which prints or draws the figures of an earlier run; "
        "python -m benchmarks compare A B, which shows what got slower. "
        "Example: python -m benchmarks --workloads 'walk-*,mount' --subjects '*fuse*' --json figures.json",
    )
    parser.add_argument("--workloads", default="*", metavar="GLOB,...", help="which; all by default")
    parser.add_argument("--subjects", default="*", metavar="GLOB,...", help="which; all that work here")
    parser.add_argument("--scale", choices=SCALES, default="full", help="how large everything is")
    parser.add_argument("--quick", action="store_true", help="the same as --scale quick: under two minutes")
    parser.add_argument("--rounds", type=int, metavar="N", help="counted runs of each; the scale says")
    parser.add_argument("--warm-up", type=int, metavar="N", help="rounds before them; the scale says")
    parser.add_argument(
        "--filesystem",
        choices=KINDS,
        default="ext4" if os.geteuid() == 0 else "none",
        help="made anew for each round in a loop-mounted file; none: a directory of the temporary one",
    )
    parser.add_argument(
        "--where", type=Path, metavar="DIR", help="holds those files; the temporary directory"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        default=Path("~/.cache/layerfs-benchmarks").expanduser(),
        help="keeps the images that are made (%(default)s)",
    )
    parser.add_argument("--list", action="store_true", help="list workloads and subjects, and leave")
    _add_output(parser)
    return parser


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peer", metavar="SUBJECT", help="show ratios to this one's time")
    parser.add_argument("--details", action="store_true", help="print intervals, CPU and memory too")
    parser.add_argument("--targets", action="store_true", help="print what is to be reached, met or missed")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots; needs matplotlib")
    parser.add_argument(
        "--markdown",
        type=Path,
        metavar="FILE",
        help="renew the figures in docs/benchmarks.md; needs matplotlib",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there; - is stdout")


def main(arguments: Sequence[str]) -> int:
    """Run the harness; gives the exit status."""
    try:
        if arguments and arguments[0] in _COMMANDS:
            status = _COMMANDS[arguments[0]](arguments[1:])
        else:
            status = _run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever reads has enough. Python would complain when it closes the stream.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("interrupted; everything that was started has ended", file=sys.stderr)
        return 130


def _run(arguments: Sequence[str]) -> int:
    parser = _run_parser()
    options = parser.parse_args(arguments)
    _refuse_without_matplotlib(options, parser)
    if options.quick:
        options.scale = "quick"
    with _interruptible(), contextlib.ExitStack() as stack:
        with fresh(options.filesystem, size=_PROBING_SIZE, where=options.where) as place:
            known = subjects.candidates(place)
        chosen = _select(options.subjects, {each.name: each for each in known}, "subject", parser)
        workloads = _select(options.workloads, WORKLOADS, "workload", parser)
        scale = SCALES[options.scale]
        if options.list:
            _list(chosen, workloads)
            return 0
        plan = Plan(
            [each for each in chosen if not each.missing],
            [each for each in workloads if not each.why_not() and _in_scale(each, scale)],
            scale,
            scale.rounds if options.rounds is None else options.rounds,
            scale.warm_up if options.warm_up is None else options.warm_up,
            options.filesystem,
            options.where,
        )
        if plan.rounds < 1 or plan.warm_up < 0:
            parser.error("--rounds must be at least 1, and --warm-up at least 0")
        tell = _teller()
        images = Images(options.cache, scale, told=tell)
        left_out = {each.name: each.missing for each in chosen if each.missing}
        left_out |= {each.name: each.why_not() for each in workloads if each.why_not()}
        commands = stack.enter_context(Commands())
        results = Rounds(plan, images, commands, told=tell).run(left_out, keep=_keeping(options.json))
    return _give(results, options)


def _keeping(path: Path | None) -> Callable[[Results], None]:
    """Give what writes results into the file that was asked for, before the run has ended."""

    def keep(results: Results) -> None:
        if path is not None and path != Path("-"):
            path.write_text(to_json(results))

    return keep


def _show(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks show", description="Print or draw the figures of an earlier run."
    )
    parser.add_argument("file", type=Path, help="what --json wrote")
    _add_output(parser)
    options = parser.parse_args(arguments)
    _refuse_without_matplotlib(options, parser)
    try:
        return _give(from_json(options.file), options)
    except (OSError, NotResultsError) as error:
        parser.error(str(error))


def _compare(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks compare",
        description="Show what got slower from one run to another; the exit status is 1 if anything did.",
    )
    parser.add_argument("before", type=Path, help="what --json wrote")
    parser.add_argument("after", type=Path, help="what --json wrote later")
    options = parser.parse_args(arguments)
    try:
        before, after = from_json(options.before), from_json(options.after)
    except (OSError, NotResultsError) as error:
        parser.error(str(error))
    from benchmarks import tables

    return int(tables.print_comparison(_console(), before, after))


_COMMANDS: Final[Mapping[str, Callable[[Sequence[str]], int]]] = {"show": _show, "compare": _compare}


def _give(results: Results, options: argparse.Namespace) -> int:
    text = to_json(results)
    if options.json == Path("-"):
        print(text, end="")
        return 0
    if options.json is not None:
        options.json.write_text(text)
    if options.html is not None or options.markdown is not None:
        _draw(results, options)
    from benchmarks import tables

    console = _console()
    tables.print_results(console, results, options.peer)
    if options.details:
        tables.print_details(console, results)
    if options.targets:
        tables.print_targets(console, results)
    return 0


def _draw(results: Results, options: argparse.Namespace) -> None:
    from benchmarks import plots, report

    drawn = plots.draw(results)
    if options.html is not None:
        options.html.write_text(report.to_html(results, drawn))
    if options.markdown is not None:
        report.to_markdown(results, drawn, options.markdown)


def _refuse_without_matplotlib(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    from benchmarks import plots

    if (options.html or options.markdown) and plots.missing():
        parser.error(plots.missing())


def _console() -> Console:
    from rich.console import Console

    # A table that is cut to the width of nothing in particular cannot be read.
    return Console() if sys.stdout.isatty() else Console(width=_WIDTH)


def _list(candidates: Sequence[Candidate], workloads: Sequence[Workload]) -> None:
    for workload in workloads:
        state = f" ({workload.state.value})" if workload.state.value else ""
        reason = f"; not here: {workload.why_not()}" if workload.why_not() else ""
        print(f"{workload.name}: {workload.about}{state}{reason}")
    print()
    for candidate in candidates:
        print(candidate.name + (f": left out: {candidate.missing}" if candidate.missing else ""))


def _in_scale(workload: Workload, scale: Scale) -> bool:
    return workload.fits(scale) and not (workload.slow and scale is QUICK)


def _select(text: str, known: Mapping[str, _Kind], what: str, parser: argparse.ArgumentParser) -> list[_Kind]:
    patterns = text.split(",")
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in known):
            parser.error(f"no {what} is called {pattern!r}; there are {', '.join(known)}")
    return [found for name, found in known.items() if any(fnmatch(name, each) for each in patterns)]


def _teller() -> Callable[[str], None]:
    """Give what shows progress: each line with the seconds since the beginning."""
    began = time.monotonic()

    def tell(line: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {line}", file=sys.stderr, flush=True)

    return tell


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let the first interruption or request to end unwind everything, undisturbed by further ones."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
