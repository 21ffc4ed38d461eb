"""umoci, which unpacks an image of an OCI layout into a directory."""

from __future__ import annotations

import os
import shutil

from benchmarks.commands import missing
from benchmarks.images.image import TAG, Image
from benchmarks.subjects.base import Candidate, Subject


class Umoci(Subject):
    """Its command."""

    def pull_gzip(self, image: Image) -> None:
        """Unpack the layout into a bundle."""
        source = f"{image.layout('gzip')}:{TAG}"
        self.commands.run(["umoci", "unpack", "--image", source, self.place / image.name])

    def forget(self, image: Image) -> None:
        """Delete the bundle."""
        shutil.rmtree(self.place / image.name, ignore_errors=True)


def candidates() -> list[Candidate]:
    """Give the one subject."""
    reason = "needs root" if os.geteuid() else missing("umoci")
    return [Candidate("umoci", reason, Umoci.opened)]
