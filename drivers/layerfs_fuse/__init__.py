"""Layers in overlayfs's format, merged by a FUSE server of our own where the kernel has no overlayfs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from layerfs.directories import probing
from layerfs.driver import Bodies, Change
from layerfs.errors import UnsupportedError
from layerfs.mount import Mount
from layerfs.overlay_layers import OverlayLayers, may_set_trusted
from layerfs.tree.absent import KEY, read_mark
from layerfs.tree.whiteouts import OverlayWhiteouts
from layerfs_fuse.mounts import Front, FuseMount
from layerfs_fuse.overlay_dialect import OverlayDialect
from layerfs_fuse.served import ServedLayers
from layerfs_fuse.trial import try_union

__all__ = ["FuseDriver", "FuseMount"]

# Beside the layer's other directories; records as `layerfs.lazy` writes them.
_BODIES: Final = "bodies"


class FuseDriver(ServedLayers, OverlayLayers):
    """The same directories as overlay2's: what one of the two has made, the other mounts."""

    name = "fuse"

    fetching: Callable[[Sequence[str]], Bodies] | None = None
    """Gives what gets the data of layers that came without it; the store sets it."""

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
        lazy = [each.parent.name for each in lowers if self.bodies_list(each.parent.name).exists()]
        bodies = self._fetching(lazy) if lazy else None
        return FuseMount(source, lowers, upper, work, dialect, self.front, log=log, bodies=bodies)

    def _fetching(self, lazy: Sequence[str]) -> Bodies:
        if self.front == "fusepy":
            raise UnsupportedError(
                "libfuse serves no layers whose files are still to be fetched",
                hint="leave LAYERFS_FUSE_FRONT unset",
            )
        if self.fetching is None:
            raise UnsupportedError("a layer's files are still to be fetched, and nobody here does that")
        return self.fetching(lazy)

    def bodies_list(self, layer: str) -> Path:
        """Say what describes where a layer's files have their data, if they came without it."""
        return self._directories.path(layer) / _BODIES

    def lacks(self, layer: str, path: bytes) -> bool:
        """Look for the mark of a file whose data is absent."""
        file = os.fsencode(self._diff(layer)) + b"/" + path
        return read_mark(file, self.absent_mark()) is not None

    def absent_mark(self) -> bytes:
        """Give the name of the attribute of files whose data is absent."""
        mark = OverlayDialect(self._user_xattrs).mark(KEY)
        assert mark is not None
        return mark

    def _is_plain(self, layer: str, *, read_only: bool) -> bool:
        return not self.bodies_list(layer).exists()

    def changes(self, layer: str, below: Sequence[str]) -> Iterator[Change]:
        """Read the changes out of ``diff``; of a layer whose files came without their data they cannot be."""
        if self.bodies_list(layer).exists():
            raise UnsupportedError(f"layer {layer} is not all here", hint="pull the image")
        return super().changes(layer, below)
