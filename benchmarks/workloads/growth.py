"""How the cost of one thing grows with how many there are: layers, containers, images, files."""

from __future__ import annotations

import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from benchmarks.clock import Clock
from benchmarks.scales import FULL, QUICK, TINY
from benchmarks.subjects.base import Crowds, Cycles, ManyImages
from benchmarks.workloads import transfer
from benchmarks.workloads.base import Bench, Run, UnsuitedError, Workload

_CYCLES: Final = 5
# One alone says little, and a store of so many is filled in one round only.
_CREATED: Final = 10


def _depth(layers: int) -> Workload:
    def run(subject: Cycles, bench: Bench, clock: Clock) -> None:
        image = bench.images.get(f"depth-{layers}")
        subject.fill(image)
        subject.cycle(image)
        with clock(_CYCLES):
            for _ in range(_CYCLES):
                subject.cycle(image)

    text = f"Prepare, mount, unmount and remove on {layers} layers, {_CYCLES} times."
    return Workload(f"depth-{layers}", text, Cycles, run, fits=lambda scale: layers in scale.depths)


def _crowd(name: str, text: str, needs: type[Any], run: Run, count: int) -> Workload:
    once = count > 100
    return Workload(
        name, text, needs, run, slow=True, alone=True, once=once, fits=lambda scale: count in scale.containers
    )


def _create_among(count: int) -> Workload:
    def run(subject: Crowds, bench: Bench, clock: Clock) -> None:
        _populate(subject, bench, count)
        image = bench.images.get("few")
        with clock(_CREATED):
            for number in range(_CREATED):
                subject.create(f"one-more-{number}", image)

    text = f"Create {_CREATED} containers beside {count} others."
    return _crowd(f"create-among-{count}", text, Crowds, run, count)


def _list_among(count: int) -> Workload:
    def run(subject: Crowds, bench: Bench, clock: Clock) -> None:
        _populate(subject, bench, count)
        with clock(count):
            subject.containers()

    text = f"List {count} containers."
    return _crowd(f"list-{count}", text, Crowds, run, count)


def _populate(subject: Crowds, bench: Bench, count: int) -> None:
    if count > subject.most:
        raise UnsuitedError
    image = bench.images.get("few")
    subject.have(image)
    subject.create_many([f"other-{number}" for number in range(count)], image)
    bench.settle()


def _images(count: int) -> Workload:
    def run(subject: ManyImages, bench: Bench, clock: Clock) -> None:
        subject.import_many([_archive(bench.scratch, number) for number in range(count)])
        with clock(count):
            subject.images()

    text = f"List {count} images."
    return _crowd(f"images-{count}", text, ManyImages, run, count)


def _archive(directory: Path, number: int) -> Path:
    path = directory / f"{number}.tar"
    data = b"%d\n" % number
    with tarfile.open(path, "w") as archive:
        entry = tarfile.TarInfo("number")
        entry.size = len(data)
        archive.addfile(entry, BytesIO(data))
    return path


def _sizes(of: str) -> list[int]:
    """Give every number that a scale names, smallest first."""
    return sorted({number for scale in (TINY, QUICK, FULL) for number in getattr(scale, of)})


DEPTHS: Final = tuple(_depth(count) for count in _sizes("depths"))
CONTAINERS: Final = tuple(
    workload for count in _sizes("containers") for workload in (_create_among(count), _list_among(count))
)
IMAGES: Final = tuple(_images(count) for count in _sizes("containers"))
WORKLOADS: Final[tuple[Workload, ...]] = (*DEPTHS, *CONTAINERS, *IMAGES, *transfer.CROWDS)
