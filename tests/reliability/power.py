"""Power cuts: a store in the middle of its work, on a disk that loses what was not flushed.

The load runs once, on a disk that keeps every write and every flush (`cut_disk`). From that each cut is
made: at any moment, right behind an acknowledgement, where nothing later helps, or right before a flush; with
none of the writes since the last flush, with all, or with some of their sectors. The file system replays its
journal, and the store is opened as after a new boot.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, get_args

from layerfs import linux, liveness
from layerfs.database import Durability
from layerfs.store import Store
from layerfs.value import frozen
from tests.reliability import faults
from tests.reliability.cut_disk import HABITS, Cutter, loop_device, mounted, recorded
from tests.reliability.report import Section
from tests.reliability.working_load import Step, promises, work

HELP: Final = "cut the power at random moments of a working load"
FILE_SYSTEMS: Final = ("ext4", "xfs", "btrfs")
_SIZE: Final = 512 << 20
_CUTS_A_ROUND: Final = 100
_PROCESSES: Final = 3
_SURVIVED: Final = (
    "They load, pull, create, write, commit, tag, remove and collect; every write and every flush of "
    "their disk is kept in order. A third of the cuts are right behind an acknowledgement, a third "
    "right before a flush, the others anywhere. Of the writes since the last flush the disk keeps "
    "nothing, everything, or some sectors of 4 KiB. Survived means: the file system mounts, the store "
    "opens, every name stands for what was acknowledged last, `check` with all contents finds nothing "
    "but garbage, every image is unpacked, every container can be mounted and written, and after `gc` "
    "nothing is found."
)
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_MAKE: Final = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}
# Else freed blocks would be told to a disk that knows writes and flushes only.
_OPTIONS: Final = {"ext4": ("nodiscard",), "xfs": ("nodiscard",), "btrfs": ("nodiscard",)}


@frozen
class Recording:
    """What a load has written, and what it was told is done."""

    base: Path
    log: Path
    steps: list[Step]
    errors: list[str]


@frozen
class Cut:
    """One cut: when, what the disk kept, how many writes it had not flushed, what was promised, and wrong."""

    position: int
    habit: str
    unflushed: int
    promised: int
    problems: tuple[str, ...]


def record(
    file_system: str, place: Path, *, seconds: float, processes: int, durability: Durability, seed: int
) -> Recording:
    """Let the load work on a new store on a new file system; everything it leaves is below `place`."""
    image, base, log = place / "image", place / "base", place / "log"
    with image.open("wb") as file:
        file.truncate(_SIZE)
    subprocess.run([*_MAKE[file_system], image], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cp", "--sparse=always", image, base], check=True)
    target = place / "mounted"
    target.mkdir()
    with (
        recorded(image, log, place / "served") as disk,
        loop_device(disk) as device,
        mounted(device, target, *_OPTIONS[file_system]),
    ):
        steps, errors = work(
            target / "store", place / "inputs", processes=processes, seconds=seconds, log=log,
            durability=durability, seed=seed,
        )  # fmt: skip
    image.unlink()
    shutil.rmtree(place / "inputs")
    return Recording(base, log, steps, errors)


def cuts(recording: Recording, file_system: str, place: Path, *, count: int, seed: int) -> Iterator[Cut]:
    """Cut the power so often, and look at what is left each time."""
    chance = random.Random(seed)
    cutter = Cutter(recording.base, recording.log)
    first = min((step.begin for step in recording.steps), default=0)
    anywhere = [end for end in cutter.ends if end >= first]
    acknowledged = [step.end for step in recording.steps]
    # There the disk has most to lose.
    before_flushes = [end for end in cutter.before_flushes if end >= first]
    sorts = (acknowledged, before_flushes, anywhere)
    moments = [chance.choice(sorts[number % len(sorts)]) for number in range(count)]
    target = place / "mounted"
    image = place / "cut"
    for position in sorted(moments):
        habit = chance.choice(HABITS)
        unflushed = cutter.cut(position, habit, chance, image)
        wanted = promises(recording.steps, position)
        kept = sum(None not in digests for digests in wanted.values())
        with loop_device(image) as device:
            problems = _look(device, target, _OPTIONS[file_system], wanted, place)
        yield Cut(position, habit, unflushed, kept, tuple(problems))
        image.unlink()


def _look(
    device: str,
    target: Path,
    options: tuple[str, ...],
    wanted: dict[str, tuple[str | None, ...]],
    place: Path,
) -> list[str]:
    """Look at a store, in a process that lives in another boot, and sees the mount alone."""
    found = place / "found"
    found.unlink(missing_ok=True)

    def look() -> int:
        _boot_anew(place)
        with mounted(device, target, *options):
            found.write_text(json.dumps(_problems(target / "store", wanted)))
        return 0

    outcome = faults.attempt(look, place / "words")
    if outcome.status:
        return [f"it cannot be looked at: {outcome.words.strip()[-1000:]}"]
    problems: list[str] = json.loads(found.read_text())
    return problems


def _problems(root: Path, wanted: dict[str, tuple[str | None, ...]]) -> list[str]:
    problems = []
    with Store.open(root, driver="overlay2") as store:
        for name, digests in wanted.items():
            digest = str(store.images.get(f"{name}:1").digest) if store.has_image(f"{name}:1") else None
            if digest not in digests:
                problems.append(
                    f"{name} is {digest}, and was promised to be {' or '.join(map(str, digests))}"
                )
        problems += [
            f"check: {one.kind} {one.subject}: {one.what}"
            for one in store.check(contents=True).problems
            if one.kind != "orphan"
        ]
        for image in store.images.list():
            before = store.info().layers
            store.containers.unpack(image.manifest, image.config)
            if store.info().layers != before:
                problems.append(f"image {image.names} had not all of its layers")
        for container in store.containers.list():
            list(container.diff())
            with container.mounted() as tree:
                (tree / "after").write_text("after")
        store.collect(grace=0)
        problems += [
            f"check after gc: {one.kind} {one.subject}: {one.what}"
            for one in store.check(contents=True).problems
        ]
    return problems


def _boot_anew(place: Path) -> None:
    """Live in another boot, as far as this process can tell."""
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    boot = place / "boot"
    boot.write_text(f"{uuid.uuid4()}\n")
    linux.mount(str(boot), _BOOT_ID, None, linux.MS_BIND)
    liveness.boot_id.cache_clear()
    assert liveness.boot_id() == boot.read_text().strip()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument("--file-system", choices=(*FILE_SYSTEMS, "all"), default="all")
    parser.add_argument("--cuts", metavar="N", type=int, default=300, help="on each file system")
    parser.add_argument("--seconds", type=float, default=12, help="of work, for each hundred cuts")
    parser.add_argument("--durability", choices=get_args(Durability), default="commit")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the moments depend on it")


def run(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Section:
    """Cut as often as was asked for."""
    kinds = FILE_SYSTEMS if arguments.file_system == "all" else (arguments.file_system,)
    rows = []
    failures = []
    for kind in kinds:
        counts: Counter[str] = Counter()
        for number in range(-(-arguments.cuts // _CUTS_A_ROUND)):
            count = min(_CUTS_A_ROUND, arguments.cuts - number * _CUTS_A_ROUND)
            seed = arguments.seed + number
            with workplace() as place:
                recording = record(
                    kind, place, seconds=arguments.seconds, processes=_PROCESSES,
                    durability=arguments.durability, seed=seed,
                )  # fmt: skip
                failures += [f"{kind}: the load failed: {error}" for error in recording.errors]
                counts["steps"] += len(recording.steps)
                for cut in cuts(recording, kind, place, count=count, seed=seed):
                    counts["cuts"] += 1
                    counts["unflushed"] += cut.unflushed
                    counts["promised"] += cut.promised
                    counts[f"{cut.habit} tried"] += 1
                    counts[f"{cut.habit} survived"] += not cut.problems
                    if cut.problems:
                        failures.append(f"{kind}, {cut.habit} kept: {'; '.join(cut.problems)}")
                        tell(failures[-1])
            tell(f"{kind}: {counts['cuts']} cuts, {len(failures)} not survived")
        rows.append(
            (
                kind, str(counts["steps"]), str(counts["cuts"]), str(counts["unflushed"]),
                str(counts["promised"]),
                *(f"{counts[f'{habit} survived']} of {counts[f'{habit} tried']}" for habit in HABITS),
            )
        )  # fmt: skip
    chosen = "" if arguments.durability == "commit" else f" --durability {arguments.durability}"
    return Section(
        f"Power cuts{chosen.replace(' --', ' with ')}",
        f"python -m tests.reliability power --file-system {arguments.file_system}"
        f" --cuts {arguments.cuts}{chosen}",
        (
            "file system",
            "steps acknowledged",
            "cuts",
            "writes not flushed",
            "images promised",
            *(f"survived, {habit} kept" for habit in HABITS),
        ),
        tuple(rows),
        (
            f"{_PROCESSES} processes work. {_SURVIVED}",
            *(f"Not survived: {failure}" for failure in failures[:20]),
        ),
    )


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """Give an empty directory for images and logs, in memory where that is possible."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="layerfs-power-", dir=memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    ) as place:
        yield Path(place)
