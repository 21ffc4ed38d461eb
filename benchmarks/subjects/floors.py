"""The least that the same work can cost with the plain tools that everyone has: tar, cp and dd."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.commands import missing
from benchmarks.images.image import Image
from benchmarks.subjects.base import Candidate, Subject
from benchmarks.subjects.layer_directories import unpack_merged


class Tar(Subject):
    """tar, which unpacks the layers over one another and heeds no whiteouts."""

    def load(self, image: Image) -> None:
        """Unpack the plain layers."""
        self._unpack(image, image.layers, [])

    def pull_gzip(self, image: Image) -> None:
        """Unpack the layers that gzip has packed."""
        self._unpack(image, image.compressed("gzip"), ["--gzip"])

    def pull_zstd(self, image: Image) -> None:
        """Unpack the layers that zstd has packed."""
        self._unpack(image, image.compressed("zstd"), ["--zstd"])

    def _unpack(self, image: Image, layers: Sequence[Path], options: Sequence[str]) -> None:
        target = self.place / image.name
        target.mkdir()
        for layer in layers:
            self.commands.run(["tar", "--numeric-owner", *options, "-xpf", layer, "-C", target])

    def forget(self, image: Image) -> None:
        """Delete the tree."""
        shutil.rmtree(self.place / image.name, ignore_errors=True)

    def have(self, image: Image) -> None:
        """Have the tree."""
        unpack_merged(self.commands, image, self.place / f"{image.name}-tree")

    def create(self, name: str, image: Image) -> None:
        """The tree itself is what is packed."""
        (self.place / name).symlink_to(self.place / f"{image.name}-tree")

    def export(self, name: str, target: Path) -> None:
        """Pack the tree."""
        self.commands.run(["tar", "--numeric-owner", "-cf", target, "-C", self.place / name, "."])

    def delete(self, name: str) -> None:
        """Forget the container."""
        (self.place / name).unlink()


class Copy(Subject):
    """cp, which copies the tree, and files."""

    def get_ready(self, image: Image) -> None:
        """Have the tree that is copied."""
        self.fill(image)

    def fill(self, image: Image) -> None:
        """Have the tree."""
        unpack_merged(self.commands, image, self.place / f"{image.name}-tree")

    def have(self, image: Image) -> None:
        """Have the tree."""
        self.fill(image)

    def have_packed(self, image: Image) -> None:
        """There is nothing to get ready."""

    def forget_packed(self, image: Image) -> None:
        """There is nothing to delete."""

    def load(self, image: Image) -> None:
        """Copy the tree."""
        self.prepare(image.name, image)

    def forget(self, image: Image) -> None:
        """Delete the copy."""
        shutil.rmtree(self.place / f"copy-{image.name}", ignore_errors=True)

    def prepare(self, key: str, image: Image) -> None:
        """Copy the tree as vfs does, sharing blocks where the file system can."""
        tree = self.place / f"{image.name}-tree"
        self.commands.run(["cp", "-a", "--reflink=auto", tree, self.place / f"copy-{key}"])

    def remove(self, key: str) -> None:
        """Delete the copy."""
        shutil.rmtree(self.place / f"copy-{key}")

    def save(self, image: Image, target: Path) -> None:
        """Copy the archive."""
        self.commands.run(["cp", image.docker_archive, target])

    def push(self, image: Image, target: Path) -> None:
        """Copy the layout."""
        self.commands.run(["cp", "-a", image.layout("gzip"), target])


class Dd(Subject):
    """dd, which moves as many bytes, and waits for the disk as a durable load does."""

    def load(self, image: Image) -> None:
        """Copy the archive's bytes to the disk."""
        target = self.place / image.name
        words = [f"if={image.docker_archive}", f"of={target}", "bs=1M", "conv=fsync", "status=none"]
        self.commands.run(["dd", *words])

    def forget(self, image: Image) -> None:
        """Delete the copy."""
        (self.place / image.name).unlink(missing_ok=True)


class Python(Subject):
    """Python itself, which every command of layerfs has to start."""

    def version(self) -> None:
        """Start, and do nothing."""
        self.commands.run([sys.executable, "-c", "pass"])


def candidates() -> list[Candidate]:
    """Give one subject for each tool."""
    return [
        Candidate("tar", missing("tar", "gzip", "zstd"), Tar.opened),
        Candidate("cp", missing("cp", "tar"), Copy.opened),
        Candidate("dd", missing("dd"), Dd.opened),
        Candidate("python", "", Python.opened),
    ]
