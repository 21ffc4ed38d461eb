"""layerfs itself: one subject for each driver that an entry point names, by the command that users have."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.commands import Commands
from benchmarks.images.image import Image
from benchmarks.subjects.base import Candidate, Subject
from layerfs import Store, plugins
from layerfs.errors import NotFoundError

PREFIX = "layerfs-"


class Layerfs(Subject):
    """A store of its own under one driver.

    What a workload measures is a command; what only gets ready for it goes through the library.
    """

    def __init__(self, place: Path, commands: Commands, store: Store) -> None:
        super().__init__(place, commands)
        self.store = store

    def call(self, *words: str | Path, stdout: Path | None = None) -> bytes:
        """Run one layerfs command on the store."""
        store: list[str | Path] = ["--root", self.store.root, "--driver", self.store.driver.name]
        return self.commands.run([sys.executable, "-m", "layerfs", *store, *words], stdout=stdout)

    # -- trees

    def fill(self, image: Image) -> None:
        """Load the image unless it is here."""
        if not self._has(image.reference):
            self.store.load(image.docker_archive)

    def prepare(self, key: str, image: Image) -> None:
        """Create a container."""
        self.store.containers.create(image.reference, name=key)

    def mount(self, key: str) -> Path:
        """Mount a container's tree."""
        target = self.place / f"mounted-{key}"
        target.mkdir(exist_ok=True)
        self.call("mount", key, target)
        return target

    def unmount(self, key: str) -> None:
        """Unmount it."""
        self.call("umount", self.place / f"mounted-{key}")

    def remove(self, key: str) -> None:
        """Remove the container."""
        self.store.containers.remove(key)

    # -- images

    def load(self, image: Image) -> None:
        """Load a docker-archive."""
        self.call("load", "--quiet", "-i", image.docker_archive)

    def _has(self, name: str) -> bool:
        try:
            self.store.images.get(name)
        except NotFoundError:
            return False
        return True


@dataclasses.dataclass(frozen=True, slots=True)
class _Opening:
    driver: str

    @contextlib.contextmanager
    def __call__(self, place: Path, commands: Commands) -> Iterator[Subject]:
        with Store.open(place / "store", driver=self.driver) as store:
            yield Layerfs(place, commands, store)


def candidates(place: Path) -> list[Candidate]:
    """Give one subject for each installed driver, best first; `place` is where the drivers are tried."""
    reason = "needs root" if os.geteuid() else ""
    found = plugins.explain(place)
    return [Candidate(PREFIX + each.name, reason or each.reason, _Opening(each.name)) for each in found]
