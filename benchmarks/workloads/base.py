"""What a workload is: a plain function, and what must be so before it is called."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.clock import Clock, not_counted
from benchmarks.commands import Commands
from benchmarks.images.cache import Images
from benchmarks.images.image import Image
from benchmarks.scales import Scale
from benchmarks.subjects.base import Trees
from layerfs import linux

_KEY: Final = "benchmark"


class UnsuitedError(Exception):
    """A workload is none for this subject after all; that is no failure."""


class State(enum.Enum):
    """What the caches hold when a workload begins; the values are what reports say."""

    COLD = "caches dropped"
    FRESH = "a mount freshly made, files below it cached"
    AGAIN = "the same done before on this mount"
    ANY = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Bench:
    """What a workload may use beside its subject.

    `scratch` is an empty directory on the subject's file system.
    """

    scale: Scale
    images: Images
    commands: Commands
    scratch: Path

    def settle(self) -> None:
        """Write back what the subject's file system has to write, so that it does not happen later."""
        descriptor = os.open(self.scratch, os.O_RDONLY)
        try:
            linux.syncfs(descriptor)
        finally:
            os.close(descriptor)


Run = Callable[[Any, Bench, Clock], None]


def _always(scale: Scale) -> bool:
    return True


@dataclasses.dataclass(frozen=True, slots=True)
class Workload:
    """One workload: `run` does it on a subject that has the capability `needs`.

    `why_not` says why this machine cannot do it, "" if it can. A `slow` one is left out of quick runs,
    one that does not fit a scale out of that. One that runs `alone` gets a file system of its own, since it
    leaves much behind; one that runs `once` does so in one round only. How layers are stored matters little
    to one that is not of the `storage`: quick runs leave it out on variants of a subject.
    """

    name: str
    about: str
    needs: type[Any]
    run: Run
    state: State = State.ANY
    why_not: Callable[[], str] = str
    slow: bool = False
    alone: bool = False
    once: bool = False
    storage: bool = True
    fits: Callable[[Scale], bool] = _always


def drop_caches() -> None:
    """Write everything back and let the kernel forget what it has read; drop_caches of proc_sys_vm(5)."""
    # The whole machine: what is below the file system is in files of another one.
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def about(function: Callable[..., object]) -> str:
    """Give the first sentence of a function's docstring."""
    return (function.__doc__ or "").strip().splitlines()[0]


def in_folder(
    name: str,
    function: Callable[[Path, Bench, Clock], None],
    *,
    image: str = "tree",
    state: State = State.FRESH,
    why_not: Callable[[], str] = str,
    slow: bool = False,
) -> Workload:
    """Make a workload of a function that works in a mounted folder."""

    def run(subject: Trees, bench: Bench, clock: Clock) -> None:
        shown = bench.images.get(image)
        with container(subject, shown):
            if state is State.FRESH:
                try:
                    _walk(subject.enter(_KEY))
                finally:
                    subject.leave(_KEY)
            with mounted(subject) as folder:
                if state is State.AGAIN:
                    function(folder, bench, not_counted)
                bench.settle()
                if state is State.COLD:
                    drop_caches()
                function(folder, bench, clock)

    return Workload(name, about(function), Trees, run, state, why_not, slow)


@contextlib.contextmanager
def container(subject: Trees, image: Image) -> Iterator[None]:
    """Have a writable layer on an image for the length of a block."""
    subject.fill(image)
    subject.prepare(_KEY, image)
    try:
        yield
    finally:
        subject.remove(_KEY)


@contextlib.contextmanager
def mounted(subject: Trees) -> Iterator[Path]:
    """Have that layer's tree mounted for the length of a block."""
    folder = subject.mount(_KEY)
    try:
        yield folder
    finally:
        subject.leave(_KEY)


def _walk(folder: Path) -> None:
    subprocess.run(["find", folder, "-size", "-0"], check=True, stdout=subprocess.DEVNULL)
