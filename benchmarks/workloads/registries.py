"""Images between a store and a registry, on this host and at the end of a slow link."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Final

from benchmarks import link, registry
from benchmarks.clock import Clock
from benchmarks.link import Link
from benchmarks.registry import Registry
from benchmarks.subjects.base import CopiesOut, Fetches, Lazies, Packs, Sends
from benchmarks.workloads.base import Bench, Workload, about

_IMAGE: Final = "system"
_HEAVY: Final = "heavy"


@contextlib.contextmanager
def _registry(
    bench: Bench, images: Sequence[tuple[str, str]] = (), *, over: Link | None = None
) -> Iterator[Registry]:
    """Have a registry with images in it, everything on the disk."""
    place = bench.scratch / "registry"
    try:
        held = []
        for name, compression in images:
            get = bench.images.get_estargz if compression == "estargz" else bench.images.get
            held.append((get(name), compression))
        with registry.serving(bench.commands, place, held, over=over) as found:
            bench.settle()
            yield found
    finally:
        shutil.rmtree(place)


def pull(subject: Fetches, bench: Bench, clock: Clock) -> None:
    """Pull an image with gzip layers from a registry on this host, and unpack it."""
    with _registry(bench, [(_IMAGE, "gzip")]) as found:
        _fetch(subject, bench, clock, found, _IMAGE)


def _fetch(
    subject: Fetches, bench: Bench, clock: Clock, found: Registry, name: str, over: Link | None = None
) -> None:
    image = bench.images.get(name)
    subject.get_rid(image)
    bench.settle()
    reference = found.reference(image)
    try:
        with clock(received=over.received if over else int):
            subject.fetch(reference)
    finally:
        subject.drop(reference)


def copy(subject: CopiesOut, bench: Bench, clock: Clock) -> None:
    """Copy an image from a registry on this host to an OCI layout; nothing is unpacked."""
    target = bench.scratch / "copied"
    with _registry(bench, [(_IMAGE, "gzip")]) as found:
        try:
            with clock():
                subject.copy_out(found.reference(bench.images.get(_IMAGE)), target)
        finally:
            shutil.rmtree(target, ignore_errors=True)


def push(subject: Packs, bench: Bench, clock: Clock) -> None:
    """Push an image to a registry on this host, its layers packed by gzip on the way."""
    image = bench.images.get(_IMAGE)
    subject.have(image)
    with _registry(bench) as found:
        subject.name_for(image, found.reference(image))
        try:
            with clock(received=found.stored):
                subject.pack(image, found.reference(image))
        finally:
            subject.unname(found.reference(image))


def send(subject: Sends, bench: Bench, clock: Clock) -> None:
    """Push an image that came with gzip layers to a registry on this host, byte for byte."""
    image = bench.images.get(_IMAGE)
    subject.have_packed(image)
    try:
        with _registry(bench) as found, clock(received=found.stored):
            subject.send(image, found.reference(image))
    finally:
        subject.forget_packed(image)


def slow_pull(subject: Fetches, bench: Bench, clock: Clock) -> None:
    """Pull an image of one large layer over 50 ms and 100 Mbit/s for each connection, and unpack it."""
    with link.slow(bench.commands) as over, _registry(bench, [(_HEAVY, "gzip")], over=over) as found:
        _fetch(subject, bench, clock, found, _HEAVY, over)


def slow_pull_estargz(subject: Fetches, bench: Bench, clock: Clock) -> None:
    """Pull an image with eStargz layers over that link, and unpack it."""
    with link.slow(bench.commands) as over, _registry(bench, [(_IMAGE, "estargz")], over=over) as found:
        _fetch(subject, bench, clock, found, _IMAGE, over)


def lazy_ls(subject: Lazies, bench: Bench, clock: Clock) -> None:
    """Mount that image over that link without pulling it, and list its root by `ls -l`."""
    with link.slow(bench.commands) as over, _registry(bench, [(_IMAGE, "estargz")], over=over) as found:
        subject.get_rid(bench.images.get(_IMAGE))
        try:
            with clock(received=over.received):
                folder = subject.mount_lazily(found.reference(bench.images.get(_IMAGE)))
                bench.commands.run(["ls", "-l", folder])
        finally:
            subject.unmount_lazily()


def _why_no_link() -> str:
    return registry.why_not() or link.why_not()


WORKLOADS: Final[tuple[Workload, ...]] = (
    Workload("registry-pull", about(pull), Fetches, pull, why_not=registry.why_not, storage=False),
    Workload("registry-copy", about(copy), CopiesOut, copy, why_not=registry.why_not, storage=False),
    Workload("registry-push", about(push), Packs, push, why_not=registry.why_not, storage=False),
    Workload("registry-send", about(send), Sends, send, why_not=registry.why_not, storage=False),
    Workload("slow-link-pull", about(slow_pull), Fetches, slow_pull, why_not=_why_no_link, slow=True),
    Workload(
        "slow-link-estargz",
        about(slow_pull_estargz),
        Fetches,
        slow_pull_estargz,
        why_not=_why_no_link,
        slow=True,
    ),
    Workload("lazy-ls", about(lazy_ls), Lazies, lazy_ls, why_not=_why_no_link, slow=True),
)
