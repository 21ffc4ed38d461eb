"""Layers in overlayfs's format, merged by a FUSE server of our own where the kernel has no overlayfs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final

from layerfs import mounting
from layerfs.directories import probing
from layerfs.errors import MountError, UnsupportedError
from layerfs.mount import Bind, Mount
from layerfs.overlay_layers import OverlayLayers, may_set_trusted
from layerfs.tree.whiteouts import is_overlay_whiteout
from layerfs_fuse.mounts import FuseMount
from layerfs_fuse.options import KNOWN, Options

__all__ = ["FuseDriver", "FuseMount"]

# Beside a layer's other directories: it goes with the layer.
_LOG: Final = "server.log"


class FuseDriver(OverlayLayers):
    """The same directories as overlay2's: what one of the two has made, the other mounts."""

    name = "fuse"
    mount_options: ClassVar[Mapping[str, str]] = KNOWN

    @classmethod
    def check(cls, root: Path) -> None:
        """Serve a scratch tree below `root`, attached nowhere, and write through it."""
        with probing(root) as scratch:
            _try(scratch)

    def mount(self, layer: str, below: Sequence[str], *, read_only: bool) -> Mount:
        """Stack the layers; a single one is bound."""
        if below:
            return self.configured(layer, below, read_only=read_only, options=())
        self._directories.require(layer)
        return Bind(f"layerfs-{layer}", self._diff(layer), read_only=read_only)

    def configured(
        self, layer: str, below: Sequence[str], *, read_only: bool, options: Sequence[str]
    ) -> FuseMount:
        """Stack the layers, with options; a single one is served too."""
        chosen = Options.parse(options)
        self._directories.require(layer, *below)
        source, directory = f"layerfs-{layer}", self._directories.path(layer)
        lower = tuple(self._diff(each) for each in reversed(below))
        log = directory / _LOG
        if read_only:
            return FuseMount(source, (self._diff(layer), *lower), None, None, self._user_xattrs, chosen, log)
        work = directory / "work"
        return FuseMount(source, lower, self._diff(layer), work, self._user_xattrs, chosen, log)

    def logs(self) -> Iterable[Path]:
        """List what servers wrote about errors of their own."""
        return sorted(self.root.glob(f"*/{_LOG}"))

    def _open_stack(self, layers: Sequence[str]) -> int:
        if len(layers) == 1:
            return os.open(self._diff(layers[0]), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return mounting.open_mount(self.mount(layers[-1], layers[:-1], read_only=True))

    def _open_merged(self, layers: Sequence[str]) -> int:
        return self._open_stack(layers)


def _try(scratch: Path) -> None:
    """Do once what the driver relies on: copy up, hide a file, replace a directory.

    Raises:
        UnsupportedError: one of them failed.
    """
    lower, upper, work = (scratch / name for name in ("lower", "upper", "work"))
    for directory in (lower, upper, work, lower / "directory"):
        directory.mkdir()
    for name in ("changed", "deleted", "directory/below"):
        (lower / name).write_bytes(b"x")
    mount = FuseMount("layerfs-check", (lower,), upper, work, not may_set_trusted(scratch))
    try:
        root = mounting.open_mount(mount)
    except MountError as error:
        raise UnsupportedError(str(error), errno=error.errno, hint=error.hint) from error
    step = "copy a file up"
    try:
        os.close(os.open("changed", os.O_WRONLY | os.O_TRUNC, dir_fd=root))
        step = "delete a file of a lower layer"
        os.unlink("deleted", dir_fd=root)
        step = "replace a directory of a lower layer"
        os.unlink("directory/below", dir_fd=root)
        os.rmdir("directory", dir_fd=root)
        os.mkdir("directory", dir_fd=root)
    except OSError as error:
        raise UnsupportedError(
            f"the FUSE union cannot {step} here: {error.strerror}",
            errno=error.errno,
            hint="put the store on ext4, xfs, btrfs or tmpfs (--root)",
        ) from error
    finally:
        os.close(root)
    if not is_overlay_whiteout(os.lstat(upper / "deleted")):
        raise UnsupportedError("whiteouts cannot be made here")
