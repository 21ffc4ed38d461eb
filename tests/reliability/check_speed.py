"""How fast a sound store is checked, beside `find -ls` and `sha256sum` over the same files."""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from layerfs.store import Store
from tests.reliability.report import Section

HELP = "files a second of a check, beside find and sha256sum"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this campaign."""
    parser.add_argument("--files", type=int, default=100_000, help="how many files the store has")
    parser.add_argument("--layers", type=int, default=4, help="in how many layers they are")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is done; the median counts")
    parser.add_argument("--directory", type=Path, help="where the store is made")


def run(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Section:
    """Make a store, and measure, each after the other in every round, with warm caches."""
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="check-") as place:
        root = Path(place) / "root"
        _fill(Path(place), root, arguments.files, arguments.layers)
        tell("the store is made")
        tree = root / "drivers/overlay2"
        works: dict[str, Callable[[], object]] = {
            "find -ls": lambda: _run(f"find {tree} -ls"),
            "layerfs check": lambda: _check(root, contents=False),
            "sha256sum": lambda: _run(f"find {tree} -type f -print0 | xargs -0 sha256sum"),
            "layerfs check --deep": lambda: _check(root, contents=True),
        }
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(arguments.rounds):
            for name, work in works.items():
                begun = time.monotonic()
                work()
                seconds[name].append(time.monotonic() - begun)
                tell(f"{name}: {seconds[name][-1]:.2f} s")
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    beside = {"layerfs check": "find -ls", "layerfs check --deep": "sha256sum"}
    rows = [
        (
            name,
            f"{middle:.2f}",
            f"{arguments.files / middle:,.0f}",
            f"{middle / medians[beside[name]]:.2f} x {beside[name]}" if name in beside else "",
        )
        for name, middle in medians.items()
    ]
    return Section(
        "Speed of a check",
        f"python -m tests.reliability check_speed --files {arguments.files} --layers {arguments.layers}",
        ("command", "seconds", "files a second", "beside"),
        tuple(rows),
        (
            f"A sound overlay2 store of {arguments.files:,} files in {arguments.layers} layers, caches warm,"
            f" the median of {arguments.rounds} rounds on {len(os.sched_getaffinity(0))} shared processors."
            " A check starts Python, opens the store, and reads its documents as well.",
        ),
    )


def _fill(place: Path, root: Path, files: int, layers: int) -> None:
    with Store.open(root, driver="overlay2", durability="none") as store:
        for number in range(layers):
            tree = place / "tree"
            for each in range(files // layers):
                directory = tree / f"{number}-{each // 100}"
                if each % 100 == 0:
                    directory.mkdir(parents=True)
                (directory / f"file{each}").write_bytes(
                    b"%d of layer %d\n" % (each, number) * (1 + each % 300)
                )
            if number == 0:
                store.import_tree(tree, "app:0")
            else:
                box = store.containers.create(f"app:{number - 1}")
                box.copy_in(f"{tree}/.", b"/")
                box.commit(f"app:{number}")
                store.containers.remove(box.id)
            shutil.rmtree(tree)


def _check(root: Path, *, contents: bool) -> None:
    words = [sys.executable, "-m", "layerfs", "--root", str(root), "check", "--quiet"]
    subprocess.run([*words, *(["--deep"] if contents else [])], check=True, capture_output=True)


def _run(command: str) -> None:
    subprocess.run(["sh", "-c", command], check=True, stdout=subprocess.DEVNULL)
