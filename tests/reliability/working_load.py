"""A load of work on a store, by several processes, that keeps account of what it was told is done."""

from __future__ import annotations

import json
import os
import random
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from layerfs.database import Durability
from layerfs.errors import InUseError
from layerfs.store import Store
from layerfs.value import frozen
from tests.support.tiny_images import TinyImage, layout_files, old_docker_archive, tar, write_files

_MOST_IMAGES: Final = 8
_LOG_MAXIMUM: Final = 1 << 30


@frozen
class Step:
    """One change of what a name stands for: begun and acknowledged when the disk's log had these lengths.

    `digest` is None where the name was taken away.
    """

    name: str
    digest: str | None
    begin: int
    end: int


class Worker:
    """One process of the load.

    Args:
        number: begins the names of its images and containers, which are no other's.
        account: the file of its steps; on another disk.
        log: of the disk.
    """

    def __init__(
        self,
        number: int,
        root: Path,
        inputs: Path,
        *,
        account: Path,
        log: Path,
        durability: Durability,
        seed: int,
    ) -> None:
        self._number = number
        self._root = root
        self._inputs = inputs / str(number)
        self._inputs.mkdir()
        self._account = account.open("a", buffering=1)
        self._log = log
        self._durability: Durability = durability
        self._chance = random.Random(seed * 1000 + number)
        self._images: dict[str, str] = {}
        self._containers: list[str] = []
        self._made = 0

    def run(self, until: float) -> None:
        """Work until a time of `time.monotonic`."""
        kinds: dict[Callable[[Store], None], int] = {
            self._load: 4, self._pull: 3, self._create: 4, self._write: 4, self._commit: 4, self._tag: 2,
            self._remove_image: 4, self._remove_container: 3, self._collect: 1,
        }  # fmt: skip
        while time.monotonic() < until and self._log.stat().st_size < _LOG_MAXIMUM:
            kind = self._chance.choices(list(kinds), list(kinds.values()))[0]
            with Store.open(self._root, driver="overlay2", durability=self._durability) as store:
                kind(store)

    def _change(self, name: str, act: Callable[[], str | None]) -> None:
        """Do what gives a name its digest, and write down when it began and when it was done."""
        self._note(name, None, "begin")
        found = act()
        self._note(name, found, "end")
        if found is None:
            self._images.pop(name, None)
        else:
            self._images[name] = found

    def _note(self, name: str, digest: str | None, what: str) -> None:
        self._account.write(json.dumps([what, name, digest, self._log.stat().st_size]) + "\n")

    def _new(self, what: str) -> str:
        self._made += 1
        return f"{what}{self._number}-{self._made}"

    def _image(self, *, compress: bool) -> TinyImage:
        sizes = (10, 5000, self._chance.choice((100, 200_000, 1_000_000)))
        return TinyImage(*(self._chance.randbytes(size) for size in sizes), compress=compress)

    def _load(self, store: Store) -> None:
        if len(self._images) < _MOST_IMAGES:
            name = self._new("image")
            image = self._image(compress=False)
            archive = self._inputs / "archive.tar"
            archive.write_bytes(tar(old_docker_archive(image, [f"{name}:1"])))
            self._change(name, lambda: str(store.load(archive)[0].digest))

    def _pull(self, store: Store) -> None:
        if len(self._images) < _MOST_IMAGES:
            name = self._new("image")
            image = self._image(compress=True)
            place = self._inputs / name
            write_files(place, layout_files([image.entry(name="latest")], image.blobs))
            self._change(name, lambda: str(store.pull(f"oci:{place}:latest", f"{name}:1").digest))

    def _create(self, store: Store) -> None:
        if self._images and len(self._containers) < _MOST_IMAGES:
            name = self._new("box")
            store.containers.create(f"{self._any_image()}:1", name=name)
            self._containers.append(name)

    def _write(self, store: Store) -> None:
        if self._containers:
            with store.containers.get(self._chance.choice(self._containers)).mounted() as tree:
                for number in range(self._chance.randrange(6)):
                    (tree / f"written{number}").write_bytes(self._chance.randbytes(5000))
                (tree / "file0").unlink(missing_ok=True)

    def _commit(self, store: Store) -> None:
        if self._containers and len(self._images) < _MOST_IMAGES:
            name = self._new("image")
            box = store.containers.get(self._chance.choice(self._containers))
            self._change(name, lambda: str(box.commit(f"{name}:1").digest))

    def _tag(self, store: Store) -> None:
        if self._images:
            old, new = self._any_image(), self._new("image")
            self._change(new, lambda: str(store.images.tag(f"{old}:1", f"{new}:1").digest))

    def _remove_image(self, store: Store) -> None:
        if len(self._images) > 1:
            name = self._any_image()
            before = self._images[name]

            def remove() -> str | None:
                try:
                    store.images.remove(f"{name}:1")
                except InUseError:
                    return before
                return None

            self._change(name, remove)

    def _remove_container(self, store: Store) -> None:
        if self._containers:
            name = self._containers.pop(self._chance.randrange(len(self._containers)))
            store.containers.remove(name)

    def _collect(self, store: Store) -> None:
        store.collect(grace=0)

    def _any_image(self) -> str:
        return self._chance.choice(list(self._images))


def work(
    root: Path,
    inputs: Path,
    *,
    processes: int,
    seconds: float,
    log: Path,
    durability: Durability,
    seed: int,
) -> tuple[list[Step], list[str]]:
    """Have several processes work on a store for a while; give their steps, and what went wrong."""
    inputs.mkdir()
    until = time.monotonic() + seconds
    children = []
    for number in range(processes):
        account, errors = inputs / f"{number}.account", inputs / f"{number}.errors"
        account.touch()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                worker = Worker(
                    number, root, inputs, account=account, log=log, durability=durability, seed=seed
                )
                worker.run(until)
                status = 0
            except BaseException:
                errors.write_text(traceback.format_exc())
            finally:
                os._exit(status)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    steps = [step for account in sorted(inputs.glob("*.account")) for step in _steps(account)]
    return steps, [errors.read_text() for errors in sorted(inputs.glob("*.errors"))]


def _steps(account: Path) -> Iterator[Step]:
    begun = 0
    for line in account.read_text().splitlines():
        what, name, digest, position = json.loads(line)
        if what == "begin":
            begun = position
        else:
            yield Step(name, digest, begun, position)


def promises(steps: list[Step], position: int) -> dict[str, tuple[str | None, ...]]:
    """Say for what each name must stand if the power failed when the log had this length.

    It is one of the digests; None stands for nothing. A step that was on its way has happened, or has not.
    """
    found: dict[str, tuple[str | None, ...]] = {}
    for step in sorted(steps, key=lambda each: each.begin):
        if step.end <= position:
            found[step.name] = (step.digest,)
        elif step.begin < position:
            found[step.name] = (*found.get(step.name, (None,)), step.digest)
    return found
