"""Looking at a tree and reading its files, and large ones in sequence and at random."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.clock import Clock
from benchmarks.images.recipes import LARGE
from benchmarks.scales import MEBIBYTE
from benchmarks.workloads.base import Bench, State, Workload, in_folder

_BLOCK: Final = 4096


def walk(folder: Path, bench: Bench, clock: Clock) -> None:
    """List every directory of the tree and lstat every entry."""
    with clock():
        _walk(str(folder))


def _walk(directory: str) -> None:
    with os.scandir(directory) as entries:
        for entry in entries:
            os.lstat(entry.path)
            if entry.is_dir(follow_symlinks=False):
                _walk(entry.path)


def find(folder: Path, bench: Bench, clock: Clock) -> None:
    """Run `find -ls` on the tree."""
    with clock():
        bench.commands.run(["find", folder, "-ls"], stdout=Path("/dev/null"))


def read_all(folder: Path, bench: Bench, clock: Clock) -> None:
    """Read every file of the tree."""
    buffer = bytearray(MEBIBYTE)
    with clock():
        for path in _files(str(folder)):
            _read(path, buffer)


def _files(directory: str) -> Iterator[str]:
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path)
            elif entry.is_file(follow_symlinks=False):
                yield entry.path


def _read(path: str, buffer: bytearray) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        while os.readv(descriptor, [buffer]):
            pass
    finally:
        os.close(descriptor)


def sequential(folder: Path, bench: Bench, clock: Clock) -> None:
    """Read one large file of a lower layer from its beginning to its end, by 1 MiB."""
    buffer = bytearray(MEBIBYTE)
    with clock():
        _read(str(folder / LARGE), buffer)


def random_reads(folder: Path, bench: Bench, clock: Clock) -> None:
    """Read blocks of 4 KiB at random places of that file."""
    source = random.Random(0)
    count = bench.scale.random_reads
    places = [source.randrange(bench.scale.large // _BLOCK) * _BLOCK for _ in range(count)]
    descriptor = os.open(folder / LARGE, os.O_RDONLY)
    try:
        with clock(count):
            for place in places:
                os.pread(descriptor, _BLOCK, place)
    finally:
        os.close(descriptor)


WORKLOADS: Final[tuple[Workload, ...]] = (
    in_folder("walk-first", walk),
    in_folder("walk-cold", walk, state=State.COLD, slow=True),
    in_folder("walk-again", walk, state=State.AGAIN),
    in_folder("find-first", find, slow=True),
    in_folder("find-again", find, state=State.AGAIN, slow=True),
    in_folder("read-cold", read_all, state=State.COLD),
    in_folder("read-first", read_all, slow=True),
    in_folder("read-again", read_all, state=State.AGAIN),
    in_folder("sequential-cold", sequential, image="large", state=State.COLD, slow=True),
    in_folder("sequential-warm", sequential, image="large", state=State.AGAIN, slow=True),
    in_folder("random-first", random_reads, image="large", slow=True),
    in_folder("random-warm", random_reads, image="large", state=State.AGAIN, slow=True),
)
