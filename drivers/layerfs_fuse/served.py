"""What drivers share whose layers a server of ours merges: options of mounts, and logs of servers."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final

from layerfs.errors import UnsupportedError
from layerfs.stacked_layers import StackedLayers
from layerfs.value import replace
from layerfs_fuse.mounts import FuseMount
from layerfs_fuse.options import KNOWN, Options

# Beside a layer's other directories: it goes with the layer.
_LOG: Final = "server.log"


class ServedLayers(StackedLayers):
    """A driver that lacks its format."""

    mount_options: ClassVar[Mapping[str, str]] = KNOWN

    def configured(
        self, layer: str, below: Sequence[str], *, read_only: bool, options: Sequence[str]
    ) -> FuseMount:
        """Stack the layers, with options; a single one is served too."""
        chosen = Options.parse(options)
        self._directories.require(layer, *below)
        source, lower = f"layerfs-{layer}", self._lower(below)
        if read_only:
            mount = self._served(source, (str(self._diff(layer)), *lower), None, None)
        else:
            work = self._directories.path(layer) / "work"
            mount = self._served(source, lower, self._diff(layer), work)
        if options and mount.front == "fusepy":
            raise UnsupportedError(
                f"libfuse has no mount option {', '.join(map(repr, options))}",
                hint="leave LAYERFS_FUSE_FRONT unset",
            )
        return replace(mount, options=chosen)

    def logs(self) -> Iterable[Path]:
        """List what servers wrote about errors of their own."""
        return sorted(self.root.glob(f"*/{_LOG}"))

    def _log(self, layer: Path) -> Path:
        """Say where the server of a mount writes, of which this is the topmost layer's ``diff``."""
        return layer.parent / _LOG

    @abc.abstractmethod
    def _served(
        self, source: str, lower: tuple[str, ...], upper: Path | None, work: Path | None
    ) -> FuseMount:
        """Describe the mount of layers, top first, by a server of ours."""
