"""unionfs-fuse, the FUSE union that live systems use."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.commands import missing
from benchmarks.subjects.base import Candidate
from benchmarks.subjects.layer_directories import LayerDirectories


class UnionfsFuse(LayerDirectories):
    """Mounted with copy-on-write, for every user, as a container needs it."""

    def hide(self, layer: Path, name: str) -> None:
        """Put a whiteout into a layer: a file in a tree of its own, see unionfs(8)."""
        hidden = layer / ".unionfs" / f"{name}_HIDDEN~"
        hidden.parent.mkdir(parents=True, exist_ok=True)
        hidden.touch()

    def attach(self, lower: Sequence[Path], upper: Path, work: Path, target: Path) -> None:
        """Mount by its one command."""
        branches = ":".join([f"{upper}=RW", *(f"{directory}=RO" for directory in lower)])
        options = "cow,hide_meta_files,allow_other,use_ino,default_permissions,dev,suid"
        self.commands.run(["unionfs", "-o", options, branches, target])


def candidates() -> list[Candidate]:
    """Give the one subject."""
    reason = "needs root" if os.geteuid() else missing("unionfs", "umount", "tar")
    return [Candidate("unionfs-fuse", reason, UnionfsFuse.opened)]
