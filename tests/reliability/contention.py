"""How long `create` takes while another process unpacks a large layer, collects garbage, or does the same."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from layerfs.store import Store
from tests.reliability.report import Section
from tests.support.tiny_images import TinyImage, layout_files, tar, write_files

HELP = "how long `create` takes while other processes are at work"
ROOT = Path(__file__).parents[2]

# What another process does until it is killed.
_OTHERS = {
    "nobody else": None,
    "another process unpacks a large layer": """
number = 0
while True:
    number += 1
    store.pull(f"oci:{directory}/large:1", f"large{number}")
    store.images.remove(f"large{number}")
""",
    "another process collects garbage": """
while True:
    store.collect(grace=0)
""",
    "another process imports, commits and removes": """
number = 0
while True:
    number += 1
    store.import_tree(f"{directory}/tree", f"made{number}")
    box = store.containers.create(f"made{number}")
    box.commit(f"again{number}")
    store.containers.remove(box.id)
    store.images.remove(f"again{number}")
    store.images.remove(f"made{number}")
""",
}
_SCRIPT = """
import sys
from layerfs.store import Store
directory = sys.argv[1]
with Store.open(f"{directory}/root") as store:
    print("ready", flush=True)
    exec(sys.argv[2])
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--times", type=int, default=300, help="how often `create` is measured in each case")
    parser.add_argument("--megabytes", type=int, default=256, help="of data in the large layer")
    parser.add_argument("--driver", action="append", help="may be repeated; overlay2 by default")


def run(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Section:
    rows = []
    for driver in arguments.driver or ["overlay2"]:
        with tempfile.TemporaryDirectory(prefix="layerfs-contention-") as name:
            for case, times in measure(
                Path(name), driver=driver, times=arguments.times, size=arguments.megabytes << 20, tell=tell
            ):
                rows.append((driver, case, *(f"{1000 * each:.1f}" for each in figures(times))))
    return Section(
        "`create` while others work",
        f"python -m tests.reliability contention --times {arguments.times} --megabytes {arguments.megabytes}"
        + "".join(f" --driver {each}" for each in arguments.driver or ()),
        ("driver", "meanwhile", "median, ms", "p99, ms", "longest, ms"),
        tuple(rows),
        (
            f"A container is created on an image of one small layer and removed again, {arguments.times}"
            " times; removing is not counted. The processes share the machine's processors and disk"
            f" ({os.cpu_count()} processors here), so that most of the difference is these.",
        ),
    )


def figures(times: list[float]) -> tuple[float, float, float]:
    """Give the median, the 99th percentile and the longest of times in seconds."""
    return statistics.median(times), statistics.quantiles(times, n=100)[98], max(times)


def measure(
    directory: Path, *, driver: str, times: int, size: int, tell: Callable[[str], None] = lambda line: None
) -> Iterator[tuple[str, list[float]]]:
    """Give the times in seconds of each case."""
    (directory / "tree").mkdir()
    (directory / "tree/file").write_text("content")
    # Files as images have them, half of the data in large ones.
    files = {f"large/{number}": os.urandom(1 << 20) for number in range(size >> 21)}
    files |= {f"small/{number}": os.urandom(1 << 14) for number in range(size >> 15)}
    image = TinyImage(tars=[tar(files)])
    write_files(directory / "large", layout_files([image.entry(name="1")], image.blobs))
    with Store.open(directory / "root", driver=driver) as store:
        store.import_tree(directory / "tree", "app")
        store.containers.remove(store.containers.create("app").id)
        for case, script in _OTHERS.items():
            tell(f"{driver}: {case}")
            with _beside(directory, script):
                yield case, [_create(store) for _ in range(times)]


def _create(store: Store) -> float:
    begun = time.perf_counter()
    box = store.containers.create("app")
    took = time.perf_counter() - begun
    store.containers.remove(box.id)
    return took


@contextlib.contextmanager
def _beside(directory: Path, script: str | None) -> Iterator[None]:
    """Have a process do something for the length of a block."""
    if script is None:
        yield
        return
    words = [sys.executable, "-c", _SCRIPT, str(directory), script]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        try:
            yield
            assert other.poll() is None, f"the other process ended: {script}"
        finally:
            other.send_signal(signal.SIGKILL)
