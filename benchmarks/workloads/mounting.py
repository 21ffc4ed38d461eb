"""Making a tree usable, and taking it away again."""

from __future__ import annotations

import os
from typing import Final

from benchmarks.clock import Clock
from benchmarks.subjects.base import Trees
from benchmarks.workloads.base import Bench, Workload, about, container


def prepare_and_mount(subject: Trees, bench: Bench, clock: Clock) -> None:
    """Make a writable layer and mount it until a file can be written."""
    image = bench.images.get("tree")
    subject.fill(image)
    with clock():
        subject.prepare("prepared", image)
        folder = subject.mount("prepared")
        (folder / "usable").touch()
    subject.leave("prepared")
    subject.remove("prepared")


def mount(subject: Trees, bench: Bench, clock: Clock) -> None:
    """Mount a writable layer that is there, until its root can be listed."""
    with container(subject, bench.images.get("tree")):
        with clock():
            folder = subject.mount("benchmark")
            os.listdir(folder)
        subject.leave("benchmark")


def unmount(subject: Trees, bench: Bench, clock: Clock) -> None:
    """Unmount a tree in which one file was written."""
    with container(subject, bench.images.get("tree")):
        folder = subject.mount("benchmark")
        (folder / "written").write_bytes(b"x" * 512)
        bench.settle()
        with clock():
            subject.unmount("benchmark")


WORKLOADS: Final[tuple[Workload, ...]] = tuple(
    Workload(name, about(function), Trees, function)
    for name, function in (
        ("prepare+mount", prepare_and_mount),
        ("mount", mount),
        ("unmount", unmount),
    )
)
