"""fuse-overlayfs, the FUSE server that podman uses where overlayfs is not to be had."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.commands import missing
from benchmarks.subjects.base import Candidate
from benchmarks.subjects.layer_directories import LayerDirectories


class FuseOverlayfs(LayerDirectories):
    """Mounted with its own defaults; it leaves a server behind."""

    def attach(self, lower: Sequence[Path], upper: Path, work: Path, target: Path) -> None:
        """Mount by its one command."""
        directories = ":".join(map(str, lower))
        options = f"lowerdir={directories},upperdir={upper},workdir={work}"
        self.commands.run(["fuse-overlayfs", "-o", options, target])


def candidates() -> list[Candidate]:
    """Give the one subject."""
    reason = "needs root" if os.geteuid() else missing("fuse-overlayfs", "umount", "tar")
    return [Candidate("fuse-overlayfs", reason, FuseOverlayfs.opened)]
