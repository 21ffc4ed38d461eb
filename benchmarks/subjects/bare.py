"""The floor of everything that is done in a tree: a plain copy of it in a directory, nothing mounted."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.commands import missing
from benchmarks.images.image import Image
from benchmarks.subjects.base import Candidate, Subject
from benchmarks.subjects.layer_directories import unpack_merged


class Bare(Subject):
    """Copies the tree with cp for each key."""

    def fill(self, image: Image) -> None:
        """Unpack the layers over one another."""
        unpack_merged(self.commands, image, self.place / image.name)

    def prepare(self, key: str, image: Image) -> None:
        """Copy the tree."""
        self.commands.run(["cp", "-a", "--reflink=auto", self.place / image.name, self._place(key)])

    def mount(self, key: str) -> Path:
        """Give the copy."""
        return self._place(key)

    def unmount(self, key: str) -> None:
        """There is nothing to take away."""

    def enter(self, key: str) -> Path:
        """There is one way to mount."""
        return self.mount(key)

    def leave(self, key: str) -> None:
        """There is one way to unmount."""
        self.unmount(key)

    def remove(self, key: str) -> None:
        """Delete the copy."""
        shutil.rmtree(self._place(key))

    def _place(self, key: str) -> Path:
        return self.place / f"copy-{key}"


def candidates() -> list[Candidate]:
    """Give the one subject."""
    return [Candidate("bare", missing("cp", "tar"), Bare.opened)]
