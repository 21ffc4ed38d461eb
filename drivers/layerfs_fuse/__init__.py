"""Layers in overlayfs's format, merged by a FUSE server of our own where the kernel has no overlayfs."""

from __future__ import annotations

import sys
from pathlib import Path

from layerfs.directories import probing
from layerfs.mount import Mount
from layerfs.overlay_layers import OverlayLayers, may_set_trusted
from layerfs.tree.whiteouts import OverlayWhiteouts
from layerfs_fuse.mounts import Front, FuseMount
from layerfs_fuse.overlay_dialect import OverlayDialect
from layerfs_fuse.served import ServedLayers
from layerfs_fuse.trial import try_union

__all__ = ["FuseDriver", "FuseMount"]


class FuseDriver(ServedLayers, OverlayLayers):
    """The same directories as overlay2's: what one of the two has made, the other mounts."""

    name = "fuse"

    front: Front = "kernel" if sys.platform == "linux" else "fusepy"
    """What serves the trees: the kernel's own protocol, which is Linux's, or libfuse 2 through fusepy."""

    @classmethod
    def check(cls, root: Path) -> None:
        """Serve a scratch tree below `root`, attached nowhere, and write through it."""
        with probing(root) as scratch:
            user = not may_set_trusted(scratch)
            try_union(scratch, OverlayDialect(user), OverlayWhiteouts(user=user), front=cls.front)

    def _union(self, source: str, lower: tuple[str, ...], upper: Path | None, work: Path | None) -> Mount:
        return self._served(source, lower, upper, work)

    def _served(
        self, source: str, lower: tuple[str, ...], upper: Path | None, work: Path | None
    ) -> FuseMount:
        dialect = OverlayDialect(self._user_xattrs)
        lowers = tuple(map(Path, lower))
        log = self._log(upper or lowers[0])
        return FuseMount(source, lowers, upper, work, dialect, self.front, log=log)
