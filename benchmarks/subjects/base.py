"""What is measured: a subject on a fresh file system, and the capabilities that workloads ask of it.

A subject has the methods of those protocols below that it can do; a workload is run on the subjects that have
what it needs. Subjects do everything through the programs that their users run.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from benchmarks.commands import Commands
from benchmarks.images.image import Image


class Subject:
    """One subject, opened on an empty directory of a fresh file system.

    Args:
        place: that directory; everything of the subject is below it.
        commands: runs programs.
    """

    def __init__(self, place: Path, commands: Commands) -> None:
        self.place = place
        self.commands = commands

    @classmethod
    @contextlib.contextmanager
    def opened(cls, place: Path, commands: Commands) -> Iterator[Subject]:
        """Open the subject for the length of a block; one with a daemon starts it here."""
        yield cls(place, commands)

    def daemons(self) -> set[int]:
        """Give the processes that serve the subject as long as it is open; none, unless it has a daemon."""
        return set()


Open = Callable[[Path, Commands], contextlib.AbstractContextManager[Subject]]


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """A subject that may be measured: its name, why it cannot be here, else "", and how it is opened."""

    name: str
    missing: str
    open: Open


@runtime_checkable
class Trees(Protocol):
    """Shows an image as a folder with a writable layer of its own, under a key.

    In this order: fill, prepare, mount, unmount, remove; `mount` may come again after `unmount`.
    """

    def fill(self, image: Image) -> None:
        """Have an image ready; again does nothing."""

    def prepare(self, key: str, image: Image) -> None:
        """Make a writable layer on an image."""

    def mount(self, key: str) -> Path:
        """Make its tree visible and give the folder."""

    def unmount(self, key: str) -> None:
        """Take the tree away."""

    def remove(self, key: str) -> None:
        """Delete the writable layer."""


@runtime_checkable
class Loads(Protocol):
    """Takes in an image from an archive of docker's form."""

    def load(self, image: Image) -> None:
        """Load it."""

    def forget(self, image: Image) -> None:
        """Delete the image with all that only it needs; nothing if it is not there."""


@runtime_checkable
class Pulls(Protocol):
    """Takes in an image from an OCI layout."""

    def pull(self, image: Image, compression: str) -> None:
        """Copy it in and unpack it; `compression` is "gzip" or "zstd"."""

    def forget(self, image: Image) -> None:
        """Delete the image with all that only it needs; nothing if it is not there."""


@runtime_checkable
class Runs(Protocol):
    """Runs commands on an image."""

    def have(self, image: Image) -> None:
        """Have an image ready; again does nothing."""

    def run(self, image: Image, command: Sequence[str]) -> None:
        """Run a command in a container that is gone afterwards."""


@runtime_checkable
class Changes(Protocol):
    """Keeps containers, says what has changed in them and makes images of it."""

    def have(self, image: Image) -> None:
        """Have an image ready; again does nothing."""

    def create(self, name: str, image: Image) -> None:
        """Make a container."""

    def change(self, name: str, script: Path) -> None:
        """Change its tree by a Python script, which gets the tree as working directory; not measured."""

    def diff(self, name: str) -> None:
        """List what has changed."""

    def commit(self, name: str, image: str) -> None:
        """Make an image of a container."""

    def delete(self, name: str) -> None:
        """Remove a container."""

    def delete_image(self, image: str) -> None:
        """Remove an image that `commit` has made."""


@runtime_checkable
class Saves(Protocol):
    """Hands an image out as an archive."""

    def have(self, image: Image) -> None:
        """Have an image ready; again does nothing."""

    def save(self, image: Image, target: Path) -> None:
        """Write an archive of docker's form."""


@runtime_checkable
class Pushes(Protocol):
    """Hands an image out as an OCI layout."""

    def have(self, image: Image) -> None:
        """Have an image ready; again does nothing."""

    def push(self, image: Image, target: Path) -> None:
        """Write an OCI layout."""


@runtime_checkable
class Exports(Protocol):
    """Writes a container's whole tree as one tar."""

    def have(self, image: Image) -> None:
        """Have an image ready; again does nothing."""

    def create(self, name: str, image: Image) -> None:
        """Make a container."""

    def export(self, name: str, target: Path) -> None:
        """Write its tree."""

    def delete(self, name: str) -> None:
        """Remove a container."""


@runtime_checkable
class Collects(Protocol):
    """Deletes what nothing needs any more."""

    def have(self, image: Image) -> None:
        """Have an image ready; again does nothing."""

    def abandon(self, image: Image) -> None:
        """Take the image's name away and leave its files, so that there is garbage."""

    def collect(self) -> None:
        """Delete it."""
