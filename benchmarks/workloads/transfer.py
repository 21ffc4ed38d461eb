"""Images on their way into a store and out of it, and what a store says of them."""

from __future__ import annotations

import shutil
from typing import Final

from benchmarks.clock import Clock
from benchmarks.subjects.base import (
    Collects,
    Keeps,
    Loads,
    PullsGzip,
    PullsZstd,
    Pushes,
    Saves,
    Starts,
    Subject,
)
from benchmarks.workloads.base import Bench, Workload, about

_IMAGE: Final = "system"


def load(subject: Loads, bench: Bench, clock: Clock) -> None:
    """Load a docker-archive."""
    _load(subject, bench, clock, _IMAGE)


def _load(subject: Loads, bench: Bench, clock: Clock, name: str) -> None:
    image = bench.images.get(name)
    _get_ready(subject, bench, name)
    try:
        with clock(image.entries):
            subject.load(image)
    finally:
        subject.forget(image)


def load_few(subject: Loads, bench: Bench, clock: Clock) -> None:
    """Load an image with one layer of small files, the hundredth part of the next one's."""
    _load(subject, bench, clock, "few")


def load_crowd(subject: Loads, bench: Bench, clock: Clock) -> None:
    """Load an image with one layer of very many small files."""
    _load(subject, bench, clock, "crowd")


def pull_gzip(subject: PullsGzip, bench: Bench, clock: Clock) -> None:
    """Pull an OCI layout with gzip layers, and unpack it."""
    image = bench.images.get(_IMAGE)
    _get_ready(subject, bench, _IMAGE)
    try:
        with clock():
            subject.pull_gzip(image)
    finally:
        subject.forget(image)


def pull_zstd(subject: PullsZstd, bench: Bench, clock: Clock) -> None:
    """Pull an OCI layout with zstd layers, and unpack it."""
    image = bench.images.get(_IMAGE)
    _get_ready(subject, bench, _IMAGE)
    try:
        with clock():
            subject.pull_zstd(image)
    finally:
        subject.forget(image)


def _get_ready(subject: object, bench: Bench, name: str) -> None:
    """Have nothing of the image in the store; an earlier workload may have wanted it there."""
    image = bench.images.get(name)
    assert isinstance(subject, Subject)
    if isinstance(subject, Keeps) and subject.holds(image):
        subject.forget(image)
    subject.get_ready(image)
    bench.settle()


def save(subject: Saves, bench: Bench, clock: Clock) -> None:
    """Save an image as an archive."""
    image, target = bench.images.get(_IMAGE), bench.scratch / "saved.tar"
    subject.have(image)
    bench.settle()
    with clock():
        subject.save(image, target)
    target.unlink()


def push(subject: Pushes, bench: Bench, clock: Clock) -> None:
    """Push an image that came from a gzip layout to another OCI layout."""
    image, target = bench.images.get(_IMAGE), bench.scratch / "pushed"
    subject.have_packed(image)
    bench.settle()
    with clock():
        subject.push(image, target)
    subject.forget_packed(image)
    shutil.rmtree(target)


def remove_image(subject: Keeps, bench: Bench, clock: Clock) -> None:
    """Remove an image and all its layers."""
    image = bench.images.get(_IMAGE)
    subject.have(image)
    bench.settle()
    with clock():
        subject.forget(image)


def collect(subject: Collects, bench: Bench, clock: Clock) -> None:
    """Look for garbage in a store with one image, where there is none."""
    subject.have(bench.images.get(_IMAGE))
    with clock():
        subject.collect()


def list_images(subject: Keeps, bench: Bench, clock: Clock) -> None:
    """List the images of a store with one image."""
    subject.have(bench.images.get(_IMAGE))
    with clock():
        subject.images()


def version(subject: Starts, bench: Bench, clock: Clock) -> None:
    """Print the program's version: what it costs to start."""
    with clock():
        subject.version()


WORKLOADS: Final[tuple[Workload, ...]] = (
    Workload("load", about(load), Loads, load),
    Workload("pull-gzip", about(pull_gzip), PullsGzip, pull_gzip, storage=False),
    Workload("pull-zstd", about(pull_zstd), PullsZstd, pull_zstd, storage=False),
    Workload("save", about(save), Saves, save, storage=False),
    Workload("push", about(push), Pushes, push, storage=False),
    Workload("remove-image", about(remove_image), Keeps, remove_image),
    Workload("collect", about(collect), Collects, collect, slow=True),
    Workload("images", about(list_images), Keeps, list_images, storage=False),
    Workload("version", about(version), Starts, version, storage=False),
)
CROWDS: Final[tuple[Workload, ...]] = (
    Workload("load-few", about(load_few), Loads, load_few, slow=True, alone=True, once=True),
    Workload("load-crowd", about(load_crowd), Loads, load_crowd, slow=True, alone=True, once=True),
)
