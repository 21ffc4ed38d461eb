"""What docker and podman share: one command line, of which most words are the same."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from pathlib import Path

from benchmarks.commands import CommandError
from benchmarks.images.image import Image
from benchmarks.subjects.base import Subject


class Engine(Subject, abc.ABC):
    """A container engine, by its command line."""

    most = 100
    # Without a network, as everyone here runs.
    options: Sequence[str] = ("--network", "none")

    # What plain HTTP takes, where the daemon has not been told.
    insecure: Sequence[str] = ()

    @abc.abstractmethod
    def call(self, *words: str | Path) -> bytes:
        """Run one command of the engine on its private root."""

    def holds(self, image: Image) -> bool:
        """Say whether the image is here."""
        try:
            self.call("image", "inspect", image.reference)
        except CommandError:
            return False
        return True

    def have(self, image: Image) -> None:
        """Load the image unless it is here."""
        if not self.holds(image):
            self.load(image)

    def load(self, image: Image) -> None:
        """Load a docker-archive."""
        self.call("load", "--quiet", "--input", image.docker_archive)

    def forget(self, image: Image) -> None:
        """Remove the image."""
        self.call("image", "rm", "--force", image.reference)

    def get_rid(self, image: Image) -> None:
        """Remove the image, and what was built or pulled with the same layers."""
        self.call("image", "prune", "--all", "--force")

    def fetch(self, reference: str) -> None:
        """Pull an image from a registry."""
        self.call("pull", "--quiet", *self.insecure, reference)

    def drop(self, reference: str) -> None:
        """Remove it."""
        self.call("image", "rm", "--force", reference)

    def name_for(self, image: Image, reference: str) -> None:
        """Give the image the registry's name."""
        self.call("tag", image.reference, reference)

    def pack(self, image: Image, reference: str) -> None:
        """Push it; layers are packed by gzip unless told otherwise."""
        self.call("push", "--quiet", *self.insecure, reference)

    def unname(self, reference: str) -> None:
        """Take the name back."""
        self.call("image", "rm", reference)

    def images(self) -> None:
        """List the images."""
        self.call("images")

    def collect(self) -> None:
        """Remove images without a name and a use."""
        self.call("image", "prune", "--force")

    def save(self, image: Image, target: Path) -> None:
        """Save the image."""
        self.call("save", "--output", target, image.reference)

    def run(self, image: Image, command: Sequence[str]) -> None:
        """Run a command."""
        self.call("run", "--rm", *self.options, image.reference, *command)

    def change(self, name: str, image: Image, script: str) -> None:
        """Run a script in a container that stays."""
        self.call("run", "--name", name, *self.options, image.reference, "sh", "-c", script)

    def create(self, name: str, image: Image) -> None:
        """Create a container."""
        self.call("create", "--name", name, *self.options, image.reference)

    def create_many(self, names: Sequence[str], image: Image) -> None:
        """Create containers one after the other."""
        for name in names:
            self.create(name, image)

    def containers(self) -> None:
        """List all containers."""
        self.call("ps", "--all")

    def diff(self, name: str) -> None:
        """List what has changed."""
        self.call("diff", name)

    def commit(self, name: str, image: str) -> None:
        """Commit a container."""
        self.call("commit", name, image)

    def export(self, name: str, target: Path) -> None:
        """Export a container."""
        self.call("export", "--output", target, name)

    def delete(self, name: str) -> None:
        """Remove a container."""
        self.call("rm", "--force", name)

    def untag(self, image: str) -> None:
        """Remove an image."""
        self.call("image", "rm", "--force", image)

    def version(self) -> None:
        """Print the version of the command alone."""
        self.call("--version")
