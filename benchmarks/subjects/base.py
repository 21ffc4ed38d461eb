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


class UnsupportedError(Exception):
    """A subject cannot do this here; that is noted, and is no failure."""


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

    def get_ready(self, image: Image) -> None:
        """Do what must be there before an image is taken in, and is not measured; by default nothing."""

    def daemons(self) -> set[int]:
        """Give the processes that serve the subject as long as it is open; none, unless it has a daemon."""
        return set()


Open = Callable[[Path, Commands], contextlib.AbstractContextManager[Subject]]


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """A subject that may be measured: its name, why it cannot be here, else "", and how it is opened.

    `variant_of` names a subject from which it differs only in how layers are stored, "" if there is none.
    """

    name: str
    missing: str
    open: Open
    variant_of: str = ""


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

    def enter(self, key: str) -> Path:
        """Mount in the fastest way there is; the mount's server may not be the one that users have."""

    def leave(self, key: str) -> None:
        """Unmount in the fastest way there is."""

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
class PullsGzip(Protocol):
    """Takes in an image from an OCI layout with layers packed by gzip."""

    def pull_gzip(self, image: Image) -> None:
        """Copy it in and unpack it."""

    def forget(self, image: Image) -> None:
        """Delete the image with all that only it needs; nothing if it is not there."""


@runtime_checkable
class PullsZstd(Protocol):
    """The same with layers packed by zstd."""

    def pull_zstd(self, image: Image) -> None:
        """Copy it in and unpack it."""

    def forget(self, image: Image) -> None:
        """Delete the image with all that only it needs; nothing if it is not there."""


@runtime_checkable
class Keeps(Protocol):
    """Keeps images under names, as a store does and a floor does not."""

    def holds(self, image: Image) -> bool:
        """Say whether the image is here."""

    def have(self, image: Image) -> None:
        """Have an image ready; again does nothing."""

    def forget(self, image: Image) -> None:
        """Delete the image with all that only it needs; nothing if it is not there."""

    def images(self) -> None:
        """List the images."""


@runtime_checkable
class Collects(Keeps, Protocol):
    """Deletes what nothing needs any more."""

    def collect(self) -> None:
        """Look for garbage, and delete it."""


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

    def change(self, name: str, image: Image, script: str) -> None:
        """Make a container and run a shell script in it to its end."""

    def diff(self, name: str) -> None:
        """List what has changed."""

    def commit(self, name: str, image: str) -> None:
        """Make an image of a container."""

    def delete(self, name: str) -> None:
        """Remove a container."""

    def untag(self, image: str) -> None:
        """Remove an image that `commit` has made."""


@runtime_checkable
class Saves(Protocol):
    """Hands an image out as an archive of docker's form."""

    def have(self, image: Image) -> None:
        """Have an image ready; again does nothing."""

    def save(self, image: Image, target: Path) -> None:
        """Write the archive."""


@runtime_checkable
class Pushes(Protocol):
    """Hands an image that came from an OCI layout out as another one."""

    def have_packed(self, image: Image) -> None:
        """Have the image of the gzip layout ready; again does nothing."""

    def push(self, image: Image, target: Path) -> None:
        """Write the layout."""

    def forget_packed(self, image: Image) -> None:
        """Delete what `have_packed` has made."""


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
class Crowds(Protocol):
    """Keeps many containers, and lists them.

    Attributes:
        most: how many are tried; each costs some peers a tenth of a second.
    """

    most: int

    def have(self, image: Image) -> None:
        """Have an image ready; again does nothing."""

    def create(self, name: str, image: Image) -> None:
        """Make a container, by the command that users have."""

    def create_many(self, names: Sequence[str], image: Image) -> None:
        """Make containers in the fastest way there is."""

    def containers(self) -> None:
        """List all containers."""


@runtime_checkable
class ManyImages(Protocol):
    """Keeps many images, and lists them."""

    def import_many(self, archives: Sequence[Path]) -> None:
        """Make an image of each tar, in the fastest way there is."""

    def images(self) -> None:
        """List the images."""


@runtime_checkable
class Cycles(Protocol):
    """Makes a writable layer usable and takes it away again, without starting a program for it."""

    def fill(self, image: Image) -> None:
        """Have an image ready; again does nothing."""

    def cycle(self, image: Image) -> None:
        """Prepare, mount, unmount and remove."""


@runtime_checkable
class Prepares(Protocol):
    """Makes a writable layer in the way that its library, or the floor's one program, does."""

    def fill(self, image: Image) -> None:
        """Have an image ready; again does nothing."""

    def make_layer(self, key: str, image: Image) -> None:
        """Make a writable layer on an image."""

    def delete_layer(self, key: str) -> None:
        """Delete the writable layer."""


@runtime_checkable
class Starts(Protocol):
    """Has a command whose start alone is of interest."""

    def version(self) -> None:
        """Print the version."""


@runtime_checkable
class Fetches(Protocol):
    """Takes in images from a registry."""

    def get_rid(self, image: Image) -> None:
        """Have nothing of the image, from wherever it came."""

    def fetch(self, reference: str) -> None:
        """Pull the image and unpack it, so that it can be mounted."""

    def drop(self, reference: str) -> None:
        """Delete it with all that only it needs; nothing if it is not there."""


@runtime_checkable
class CopiesOut(Protocol):
    """Copies an image out of a registry without unpacking it."""

    def copy_out(self, reference: str, target: Path) -> None:
        """Write an OCI layout."""


@runtime_checkable
class Packs(Protocol):
    """Pushes an image that it keeps unpacked to a registry."""

    def have(self, image: Image) -> None:
        """Have an image ready, out of the archive; again does nothing."""

    def name_for(self, image: Image, reference: str) -> None:
        """Do what must be done before the image can be pushed under that name; is not measured."""

    def pack(self, image: Image, reference: str) -> None:
        """Push it, its layers packed by gzip."""

    def unname(self, reference: str) -> None:
        """Take back what `name_for` did."""


@runtime_checkable
class Sends(Protocol):
    """Pushes an image that came packed to a registry, as it came."""

    def have_packed(self, image: Image) -> None:
        """Have the image of the gzip layout ready; again does nothing."""

    def send(self, image: Image, reference: str) -> None:
        """Push it."""

    def forget_packed(self, image: Image) -> None:
        """Delete what `have_packed` has made."""


@runtime_checkable
class Lazies(Protocol):
    """Mounts an image of a registry without pulling it."""

    def get_rid(self, image: Image) -> None:
        """Have nothing of the image, from wherever it came."""

    def mount_lazily(self, reference: str) -> Path:
        """Mount it and give the folder."""

    def unmount_lazily(self) -> None:
        """Unmount it and delete all that was fetched; nothing if it is not mounted."""
