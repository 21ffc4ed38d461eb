"""Layers in overlayfs's format, merged by a FUSE server of our own where the kernel has no overlayfs."""

from __future__ import annotations

import functools
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
from layerfs_fuse.unfinished import TREE, UnfinishedLayer

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
        lazy = [each.parent.name for each in lowers if self._is_lazy(each.parent.name)]
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
        if layer in self._begun:
            return self.unfinished(layer).bodies_list
        return self._directories.path(layer) / _BODIES

    def get_ready(self) -> None:
        """Import what the server of a mount needs."""
        import layerfs_fuse.fetches
        import layerfs_fuse.server  # noqa: F401

    def unfinished(self, layer: str) -> UnfinishedLayer:
        """Give what is known of a layer's outline, as long as not all of that is there."""
        return UnfinishedLayer(
            self._directories.path(layer),
            bodies=_BODIES,
            mark=self.absent_mark(),
            begun=lambda: self._begun.add(layer),
        )

    @functools.cached_property
    def _begun(self) -> set[str]:
        """The layers whose outline is made by this process, beside what they show."""
        return set()

    def _diff(self, layer: str) -> Path:
        return self._directories.path(layer) / TREE if layer in self._begun else super()._diff(layer)

    def _lower(self, layers: Sequence[str]) -> tuple[str, ...]:
        if self._begun.isdisjoint(layers):
            return super()._lower(layers)
        return tuple(str(self._diff(layer)) for layer in reversed(layers))

    def _is_lazy(self, layer: str) -> bool:
        return self.bodies_list(layer).exists()

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
        return not self._is_lazy(layer)

    def changes(self, layer: str, below: Sequence[str]) -> Iterator[Change]:
        """Read the changes out of ``diff``; of a layer whose files came without their data they cannot be."""
        if self._is_lazy(layer):
            raise UnsupportedError(f"layer {layer} is not all here", hint="pull the image")
        return super().changes(layer, below)
