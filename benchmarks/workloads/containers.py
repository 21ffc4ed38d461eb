"""Containers: running programs, saying what they changed, making images of that, and taking them away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from benchmarks.clock import Clock
from benchmarks.images.image import Image
from benchmarks.images.recipes import LOWER_TREE
from benchmarks.scales import Scale
from benchmarks.subjects.base import Changes, Exports, Prepares, Runs
from benchmarks.workloads.base import Bench, Workload, about

_IMAGE: Final = "system"
_NAME: Final = "changed"
_COMMITTED: Final = "localhost/committed:1"

Script = Callable[[Scale], str]


def _running(
    name: str, command: Sequence[str], other: Sequence[str], text: str, *, slow: bool = False
) -> Workload:
    """Make a workload that runs a command; the other one is for images that have no Python."""

    def run(subject: Runs, bench: Bench, clock: Clock) -> None:
        image = bench.images.get(_IMAGE)
        subject.have(image)
        chosen = command if "python" in image.made_of else other
        with clock():
            subject.run(image, chosen)

    return Workload(name, text, Runs, run, slow=slow)


def _few(scale: Scale) -> str:
    return "echo new > /etc/new; echo more >> /etc/layer; rm /etc/layer-0"


def _many(scale: Scale) -> str:
    loop = f"i=0; while [ $i -lt {scale.changed} ]; do echo $i > /many/$i; i=$((i+1)); done"
    return f"mkdir /many; {loop}"


def _large(scale: Scale) -> str:
    """Copy what is in the image, over and over: data that packs as well as programs do."""
    size = 2 * scale.medium
    every = "for f in /usr/bin/* /usr/lib/*-linux-gnu/*; do [ -f $f ] && cat $f; done"
    return f"endless() {{ while {every}; do :; done; }}; endless 2>/dev/null | head -c {size} > /copy"


def _mixed(scale: Scale) -> str:
    return f"{_many(scale)}; {_large(scale)}; rm -r /{LOWER_TREE}"


def _with_changes(
    name: str, script: Script, text: str, measured: Callable[[Changes], None], *, slow: bool = False
) -> Workload:
    """Make a workload of something that is done with a container after a script has run in it."""

    def run(subject: Changes, bench: Bench, clock: Clock) -> None:
        image = bench.images.get(_IMAGE)
        subject.have(image)
        try:
            subject.change(_NAME, image, script(bench.scale))
            bench.settle()
            with clock():
                measured(subject)
            if measured is _commit:
                subject.untag(_COMMITTED)
        finally:
            if measured is not _delete:
                subject.delete(_NAME)

    return Workload(name, text, Changes, run, slow=slow)


def _diff(subject: Changes) -> None:
    subject.diff(_NAME)


def _commit(subject: Changes) -> None:
    subject.commit(_NAME, _COMMITTED)


def _delete(subject: Changes) -> None:
    subject.delete(_NAME)


def export(subject: Exports, bench: Bench, clock: Clock) -> None:
    """Write the whole tree of a container as a tar."""
    image, target = bench.images.get(_IMAGE), bench.scratch / "exported.tar"
    subject.have(image)
    subject.create("exported", image)
    bench.settle()
    with clock():
        subject.export("exported", target)
    target.unlink()
    subject.delete("exported")


def prepare(subject: Prepares, bench: Bench, clock: Clock) -> None:
    """Make a writable layer on an image, mounted nowhere."""
    image: Image = bench.images.get(_IMAGE)
    subject.fill(image)
    bench.settle()
    with clock():
        subject.make_layer("prepared", image)
    subject.delete_layer("prepared")


_PROGRAM: Final = "import json, email, decimal, http.client, sqlite3, argparse; print(sum(range(100000)))"

WORKLOADS: Final[tuple[Workload, ...]] = (
    Workload("prepare", about(prepare), Prepares, prepare),
    _running("run-true", ["true"], ["true"], "Run /bin/true in a container that is removed after it."),
    _running(
        "run-program",
        ["python3", "-c", _PROGRAM],
        ["sh", "-c", "ls -R /usr"],
        "Run Python with its imports.",
        slow=True,
    ),
    _with_changes("diff", _mixed, "List what changed: many files, a large one, a tree deleted.", _diff),
    _with_changes("commit-few", _few, "Make an image of a few changes.", _commit, slow=True),
    _with_changes("commit-many", _many, "Make an image of many small files.", _commit, slow=True),
    _with_changes("commit-large", _large, "Make an image of one large file.", _commit, slow=True),
    _with_changes(
        "commit-mixed", _mixed, "Make an image of many files, a large one, a tree deleted.", _commit
    ),
    _with_changes("remove", _mixed, "Remove such a container.", _delete, slow=True),
    Workload("export", about(export), Exports, export, storage=False),
)
