"""The kernel's overlayfs by mount(8), without anything of layerfs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.commands import Words, missing
from benchmarks.subjects.base import Candidate
from benchmarks.subjects.layer_directories import LayerDirectories


class KernelOverlay(LayerDirectories):
    """Mounted with the kernel's own defaults."""

    def attach(self, lower: Sequence[Path], upper: Path, work: Path, target: Path) -> None:
        """Mount by one call of mount(8); short names, since all options have to fit into a page."""
        directories = ":".join(each.name for each in lower)
        options = f"lowerdir={directories},upperdir={upper},workdir={work}"
        words: Words = ["mount", "-t", "overlay", "overlay", "-o", options, target]
        self.commands.run(words, directory=lower[0].parent)


def candidates() -> list[Candidate]:
    """Give the one subject."""
    reason = "needs root" if os.geteuid() else missing("mount", "umount", "tar")
    return [Candidate("kernel-overlay", reason, KernelOverlay.opened)]
