"""The command line of the harness: what to run, and where the figures go."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from benchmarks import report
from benchmarks.filesystem import KINDS
from benchmarks.harness import Plan, run
from benchmarks.sample import FULL, QUICK, TINY
from benchmarks.workloads import WORKLOADS
from layerfs import plugins

_SCALES = {"tiny": TINY, "quick": QUICK, "full": FULL}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Compare the drivers that work on this machine, each run on a fresh file system.",
        epilog="example: python -m benchmarks --drivers overlay2,vfs --json figures.json",
    )
    parser.add_argument("--drivers", help="comma-separated; all that work here by default")
    parser.add_argument("--workloads", help=f"comma-separated, of {', '.join(WORKLOADS)}; all by default")
    parser.add_argument("--scale", choices=_SCALES, default="quick", help="how large the image is")
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each")
    parser.add_argument("--warm-up", type=int, default=1, help="runs of each before them")
    parser.add_argument(
        "--filesystem",
        choices=KINDS,
        default="ext4" if os.geteuid() == 0 else "none",
        help="made anew for each run in a loop-mounted file; none: a directory of the temporary one",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there; - is stdout")
    return parser


def _chosen(text: str | None, known: list[str], what: str, parser: argparse.ArgumentParser) -> list[str]:
    chosen = known if text is None else text.split(",")
    for name in chosen:
        if name not in known:
            parser.error(f"no {what} {name!r} here; there are {', '.join(known)}")
    return chosen


def main() -> int:
    """Run the harness; gives the exit status."""
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.runs < 1 or arguments.warm_up < 0:
        parser.error("--runs must be at least 1, and --warm-up at least 0")
    with tempfile.TemporaryDirectory() as place:
        working = [candidate.name for candidate in plugins.explain(Path(place)) if candidate.works]
    plan = Plan(
        _chosen(arguments.drivers, working, "driver that works", parser),
        _chosen(arguments.workloads, list(WORKLOADS), "workload", parser),
        _SCALES[arguments.scale],
        arguments.runs,
        warm_up=arguments.warm_up,
        filesystem=arguments.filesystem,
    )
    results = run(plan, told=lambda line: print(line, file=sys.stderr))
    text = json.dumps(report.document(results, plan), indent=2)
    if arguments.json == Path("-"):
        print(text)
        return 0
    from rich.console import Console

    Console().print(report.table(results, plan))
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
