"""containerd with a daemon of its own, by ctr: with overlayfs, and with copies of directories."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks import processes
from benchmarks.commands import CommandError, Commands, Words, missing
from benchmarks.images.image import Image
from benchmarks.subjects.base import Candidate, Subject

_SNAPSHOTTERS: Final = ("overlayfs", "native")
_CONFIG: Final = """version = 2
root = "{place}/root"
state = "{sockets}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{sockets}/containerd.sock"
"""


class Containerd(Subject):
    """The daemon's client, with one snapshotter."""

    def __init__(self, place: Path, commands: Commands, sockets: Path, snapshotter: str) -> None:
        super().__init__(place, commands)
        self._socket = sockets / "containerd.sock"
        self._snapshotter = snapshotter
        self._runs = 0
        self.daemon = 0

    def call(self, *words: str | Path) -> bytes:
        """Run the client."""
        return self.commands.run(["ctr", "--address", self._socket, *words])

    def daemons(self) -> set[int]:
        """Give the daemon and what it has started."""
        return {self.daemon, *processes.descendants(self.daemon)}

    def answers(self) -> bool:
        """Say whether the daemon is ready."""
        if not self._socket.exists():
            return False
        try:
            self.call("version")
        except CommandError:
            return False
        return True

    def holds(self, image: Image) -> bool:
        """Say whether the image is here."""
        return image.reference in self.call("images", "list", "--quiet").decode().split()

    def have(self, image: Image) -> None:
        """Import the image unless it is here."""
        if not self.holds(image):
            self.load(image)

    def load(self, image: Image) -> None:
        """Import and unpack a docker-archive."""
        self._import(image.docker_archive, image)

    def pull_gzip(self, image: Image) -> None:
        """Import and unpack the layout, as an archive: ctr takes no directory."""
        self._import(image.layout_archive("gzip"), image)

    def pull_zstd(self, image: Image) -> None:
        """Import and unpack the layout, as an archive: ctr takes no directory."""
        self._import(image.layout_archive("zstd"), image)

    def _import(self, archive: Path, image: Image) -> None:
        base = image.reference.rpartition(":")[0]
        self.call("images", "import", "--snapshotter", self._snapshotter, "--base-name", base, archive)

    def forget(self, image: Image) -> None:
        """Remove the image and wait until its files are gone."""
        self.call("images", "remove", "--sync", image.reference)

    def get_rid(self, image: Image) -> None:
        """Remove the image."""
        if self.holds(image):
            self.forget(image)

    def fetch(self, reference: str) -> None:
        """Pull an image from a registry and unpack it."""
        self.call("images", "pull", "--plain-http", "--snapshotter", self._snapshotter, reference)

    def drop(self, reference: str) -> None:
        """Remove it and wait until its files are gone."""
        self.call("images", "remove", "--sync", reference)

    def images(self) -> None:
        """List the images."""
        self.call("images", "list")

    def save(self, image: Image, target: Path) -> None:
        """Export an archive, which docker and others load."""
        self.call("images", "export", target, image.reference)

    def run(self, image: Image, command: Sequence[str]) -> None:
        """Run a command."""
        self._runs += 1
        words = ["--rm", "--snapshotter", self._snapshotter, image.reference, f"run-{self._runs}"]
        self.call("run", *words, *command)

    def version(self) -> None:
        """Print the version of the command alone."""
        self.call("--version")


@dataclasses.dataclass(frozen=True, slots=True)
class _Opening:
    snapshotter: str

    @contextlib.contextmanager
    def __call__(self, place: Path, commands: Commands) -> Iterator[Subject]:
        # The path of a socket has 107 bytes at most, and the daemon's own are deep.
        with tempfile.TemporaryDirectory(prefix="layerfs-containerd-") as sockets:
            config = place / "config.toml"
            config.write_text(_CONFIG.format(place=place, sockets=sockets))
            client = Containerd(place, commands, Path(sockets), self.snapshotter)
            daemon: Words = ["containerd", "--config", config]
            with commands.daemon(daemon, log=place / "log", ready=client.answers) as process:
                client.daemon = process
                yield client


def candidates() -> list[Candidate]:
    """Give one subject for each snapshotter."""
    reason = "needs root" if os.geteuid() else missing("containerd", "ctr", "runc")
    first, second = (f"containerd-{each}" for each in _SNAPSHOTTERS)
    return [
        Candidate(first, reason, _Opening(_SNAPSHOTTERS[0])),
        Candidate(second, reason, _Opening(_SNAPSHOTTERS[1]), variant_of=first),
    ]
