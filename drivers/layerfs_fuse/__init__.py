"""Layers in overlayfs's format, merged by a FUSE server of our own where the kernel has no overlayfs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final

from layerfs.directories import probing
from layerfs.errors import UnsupportedError
from layerfs.overlay_layers import OverlayLayers, may_set_trusted
from layerfs.tree.whiteouts import OverlayWhiteouts
from layerfs_fuse.mounts import Front, FuseMount
from layerfs_fuse.options import KNOWN, Options
from layerfs_fuse.overlay_dialect import OverlayDialect
from layerfs_fuse.trial import try_union

__all__ = ["FuseDriver", "FuseMount"]

# Beside a layer's other directories: it goes with the layer.
_LOG: Final = "server.log"


class FuseDriver(OverlayLayers):
    """The same directories as overlay2's: what one of the two has made, the other mounts."""

    name = "fuse"
    mount_options: ClassVar[Mapping[str, str]] = KNOWN

    front: Front = "kernel" if sys.platform == "linux" else "fusepy"
    """What serves the trees: the kernel's own protocol, which is Linux's, or libfuse 2 through fusepy."""

    @classmethod
    def check(cls, root: Path) -> None:
        """Serve a scratch tree below `root`, attached nowhere, and write through it."""
        with probing(root) as scratch:
            user = not may_set_trusted(scratch)
            try_union(scratch, OverlayDialect(user), OverlayWhiteouts(user=user), front=cls.front)

    def configured(
        self, layer: str, below: Sequence[str], *, read_only: bool, options: Sequence[str]
    ) -> FuseMount:
        """Stack the layers, with options; a single one is served too."""
        chosen = Options.parse(options)
        if options and self.front == "fusepy":
            raise UnsupportedError(
                f"there is no mount option {options[0]!r} through libfuse",
                hint="leave LAYERFS_FUSE_FRONT unset",
            )
        self._directories.require(layer, *below)
        source, lower = f"layerfs-{layer}", self._lower(below)
        if read_only:
            mount = self._union(source, (self._diff(layer), *lower), None, None)
        else:
            work = self._directories.path(layer) / "work"
            mount = self._union(source, lower, self._diff(layer), work)
        return dataclasses.replace(mount, options=chosen)

    def logs(self) -> Iterable[Path]:
        """List what servers wrote about errors of their own."""
        return sorted(self.root.glob(f"*/{_LOG}"))

    def _union(
        self, source: str, lower: tuple[Path, ...], upper: Path | None, work: Path | None
    ) -> FuseMount:
        log = (upper or lower[0]).parent / _LOG
        dialect = OverlayDialect(self._user_xattrs)
        return FuseMount(source, lower, upper, work, dialect, self.front, log=log)
