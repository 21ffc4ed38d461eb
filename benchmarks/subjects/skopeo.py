"""skopeo, which copies images from one place to another and keeps none."""

from __future__ import annotations

from pathlib import Path

from benchmarks.commands import Words, missing
from benchmarks.images.image import TAG, Image
from benchmarks.subjects.base import Candidate, Subject


class Skopeo(Subject):
    """Its command."""

    def have(self, image: Image) -> None:
        """There is nothing to get ready: it reads the cache's own files."""

    def have_packed(self, image: Image) -> None:
        """There is nothing to get ready: it reads the cache's own files."""

    def forget_packed(self, image: Image) -> None:
        """There is nothing to delete."""

    def save(self, image: Image, target: Path) -> None:
        """Copy the gzip layout into a docker-archive."""
        self._copy(f"oci:{image.layout('gzip')}:{TAG}", f"docker-archive:{target}:{image.reference}")

    def push(self, image: Image, target: Path) -> None:
        """Copy the gzip layout into another layout."""
        self._copy(f"oci:{image.layout('gzip')}:{TAG}", f"oci:{target}:{TAG}")

    def copy_out(self, reference: str, target: Path) -> None:
        """Copy the image of a registry into a layout."""
        self._copy(f"docker://{reference}", f"oci:{target}:{TAG}", "--src-tls-verify=false")

    def send(self, image: Image, reference: str) -> None:
        """Copy the gzip layout into a registry."""
        self._copy(f"oci:{image.layout('gzip')}:{TAG}", f"docker://{reference}", "--dest-tls-verify=false")

    def _copy(self, source: str, target: str, *options: str) -> None:
        scratch: Words = ["--tmpdir", self.place]
        words = ["copy", "--quiet", *options, source, target]
        self.commands.run(["skopeo", "--insecure-policy", *scratch, *words])


def candidates() -> list[Candidate]:
    """Give the one subject."""
    return [Candidate("skopeo", missing("skopeo"), Skopeo.opened)]
