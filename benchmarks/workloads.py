"""What is measured: each workload a function of a store with the sample image, timed inside.

A workload prepares what it needs, then does its work inside ``with clock():``; only that is measured.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.sample import Scale
from layerfs import Store
from layerfs.digest import Digest

Clock = Callable[[], contextlib.AbstractContextManager[None]]


@dataclasses.dataclass(slots=True)
class Subject:
    """A store of one driver, and the sample image's layers: plain tars in it as blobs, bottom first."""

    store: Store
    blobs: list[Digest]
    scale: Scale
    top: str | None = None

    def unpack(self) -> str:
        """Unpack the image unless that is done; gives the name of its top layer."""
        for blob in self.blobs if self.top is None else ():
            self.top = self.store.layers.apply(blob, blob, parent=self.top).name
        assert self.top is not None
        return self.top

    @contextlib.contextmanager
    def container(self) -> Iterator[Path]:
        """Mount a fresh writable layer over the image for the length of a block."""
        layers = self.store.layers
        layers.prepare("benchmark", self.unpack())
        try:
            with layers.mounted("benchmark") as tree:
                yield tree
        finally:
            layers.remove("benchmark")


def unpack(subject: Subject, clock: Clock) -> None:
    """Unpack every layer of the image out of its blobs, durable as committed."""
    with clock():
        subject.unpack()


def prepare_and_mount(subject: Subject, clock: Clock) -> None:
    """Make a writable layer, mount it, unmount it and remove it."""
    subject.unpack()
    with clock(), subject.container():
        pass


def walk(subject: Subject, clock: Clock) -> None:
    """List every directory of the mounted image and lstat every file."""
    with subject.container() as tree, clock():
        for parent, directories, files in os.walk(tree):
            for name in (*directories, *files):
                os.lstat(os.path.join(parent, name))


def read(subject: Subject, clock: Clock) -> None:
    """Read every file of the mounted image, in pieces of 1 MiB."""
    buffer = bytearray(1 << 20)
    with subject.container() as tree, clock():
        for parent, _, files in os.walk(tree):
            for name in files:
                path = os.path.join(parent, name)
                if not os.path.islink(path):
                    with open(path, "rb", buffering=0) as file:
                        while file.readinto(buffer):
                            pass


def create(subject: Subject, clock: Clock) -> None:
    """Create small files in a new directory."""
    with subject.container() as tree, clock():
        _create(tree, subject.scale.changed)


def _create(tree: Path, count: int) -> None:
    (tree / "created").mkdir()
    for number in range(count):
        with open(tree / "created" / f"{number}", "wb", buffering=0) as file:
            file.write(b"x" * 512)


def copy_up(subject: Subject, clock: Clock) -> None:
    """Change one byte of the image's large file."""
    with subject.container() as tree, clock():
        _touch_large(tree)


def _touch_large(tree: Path) -> None:
    with open(tree / "layer0" / "large", "r+b", buffering=0) as file:
        file.write(b"!")


@contextlib.contextmanager
def _changed(subject: Subject) -> Iterator[str]:
    """A writable layer with created, changed and deleted files, unmounted."""
    layers = subject.store.layers
    layers.prepare("benchmark", subject.unpack())
    with layers.mounted("benchmark") as tree:
        _create(tree, subject.scale.changed)
        _touch_large(tree)
        for number in range(1, max(subject.scale.files // subject.scale.layers // 20, 1)):
            (tree / "layer1" / f"d{number}" / "f2").unlink()
    yield "benchmark"


def diff(subject: Subject, clock: Clock) -> None:
    """List what a container with created, copied-up and deleted files changed."""
    with _changed(subject) as key, clock():
        for _ in subject.store.layers.changes(key):
            pass
    subject.store.layers.remove(key)


def commit(subject: Subject, clock: Clock) -> None:
    """Commit such a layer: tables of contents, sync and database included."""
    layers = subject.store.layers
    with _changed(subject) as key, clock():
        layers.commit(key, "benchmark-committed")
    layers.remove("benchmark-committed")


def remove(subject: Subject, clock: Clock) -> None:
    """Remove such a layer with all its files."""
    with _changed(subject) as key, clock():
        subject.store.layers.remove(key)


WORKLOADS: dict[str, Callable[[Subject, Clock], None]] = {
    "unpack": unpack,
    "prepare+mount": prepare_and_mount,
    "walk": walk,
    "read": read,
    "create": create,
    "copy-up": copy_up,
    "diff": diff,
    "commit": commit,
    "remove": remove,
}
