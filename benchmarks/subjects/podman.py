"""podman with storage of its own, and no network; containers/storage's overlay driver below."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.commands import CommandError, Commands, Words, missing
from benchmarks.images.image import TAG, Image
from benchmarks.subjects.base import Candidate, Subject
from benchmarks.subjects.engine import Engine

# Where both versions of cgroups are mounted, which crun refuses.
_HYBRID: Final = Path("/sys/fs/cgroup/unified")


class Podman(Engine):
    """Its command, which works without a daemon."""

    # By itself it would raise limits, which not every root may.
    options = (*Engine.options, "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")

    insecure = ("--tls-verify=false",)

    def __init__(self, place: Path, commands: Commands, run: Path) -> None:
        super().__init__(place, commands)
        self._policy = place / "policy.json"
        self._policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
        self._run = run

    @classmethod
    @contextlib.contextmanager
    def opened(cls, place: Path, commands: Commands) -> Iterator[Subject]:
        """Have a directory for sockets, whose paths must be short."""
        with tempfile.TemporaryDirectory(prefix="layerfs-podman-") as run:
            podman = cls(place, commands, Path(run))
            try:
                yield podman
            finally:
                with contextlib.suppress(CommandError):
                    podman.call("rm", "--all", "--force")

    def call(self, *words: str | Path) -> bytes:
        """Run podman on its own storage."""
        place: Words = [
            "--root",
            self.place / "root",
            "--runroot",
            self._run / "run",
            "--tmpdir",
            self._run / "tmp",
        ]
        if _HYBRID.exists():
            place = [*place, "--runtime", "runc"]
        ways = ["--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--events-backend", "file"]
        return self.commands.run(["podman", *place, *ways, *words])

    def load(self, image: Image) -> None:
        """Load a docker-archive."""
        policy: Words = ["--signature-policy", self._policy]
        self.call("load", "--quiet", *policy, "--input", image.docker_archive)

    def pull_gzip(self, image: Image) -> None:
        """Pull the layout."""
        self._pull(image, "gzip")

    def pull_zstd(self, image: Image) -> None:
        """Pull the layout."""
        self._pull(image, "zstd")

    def _pull(self, image: Image, compression: str) -> None:
        source = f"oci:{image.layout(compression)}:{TAG}"
        self.call("pull", "--quiet", "--signature-policy", self._policy, source)

    def fetch(self, reference: str) -> None:
        """Pull an image from a registry."""
        self.call("pull", "--quiet", *self.insecure, "--signature-policy", self._policy, reference)

    def forget(self, image: Image) -> None:
        """Remove the image, whatever it is called after a pull: it is the only one then."""
        self.call("image", "rm", "--all", "--force")

    def have_packed(self, image: Image) -> None:
        """Have the image; what podman keeps is not packed."""
        self.have(image)

    def forget_packed(self, image: Image) -> None:
        """The image stays."""

    def push(self, image: Image, target: Path) -> None:
        """Write an OCI layout, which packs the layers anew."""
        self.call("push", "--quiet", image.reference, f"oci:{target}:{TAG}")


def candidates() -> list[Candidate]:
    """Give the one subject."""
    reason = "needs root" if os.geteuid() else missing("podman", "conmon")
    return [Candidate("podman", reason, Podman.opened)]
