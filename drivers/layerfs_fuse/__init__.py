"""Layers in overlayfs's format, merged by a FUSE server of our own where the kernel has no overlayfs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from layerfs import mounting
from layerfs.directories import probing
from layerfs.errors import MountError, UnsupportedError
from layerfs.mount import Bind, Mount
from layerfs.overlay_layers import OverlayLayers, may_set_trusted
from layerfs.tree.whiteouts import is_overlay_whiteout
from layerfs_fuse.mounts import FuseMount
from layerfs_fuse.overlay_dialect import OverlayDialect

__all__ = ["FuseDriver", "FuseMount"]


class FuseDriver(OverlayLayers):
    """The same directories as overlay2's: what one of the two has made, the other mounts."""

    name = "fuse"

    front: Literal["kernel", "fusepy"] = "kernel" if sys.platform == "linux" else "fusepy"
    """What serves the trees: the kernel's own protocol, which is Linux's, or libfuse 2 through fusepy."""

    @classmethod
    def check(cls, root: Path) -> None:
        """Serve a scratch tree below `root`, attached nowhere, and write through it."""
        with probing(root) as scratch:
            _try(scratch, cls.front)

    def mount(self, layer: str, below: Sequence[str], *, read_only: bool) -> Mount:
        """Stack the layers; a single one is bound."""
        self._directories.require(layer, *below)
        if read_only:
            return self._stack((*below, layer))
        source = f"layerfs-{layer}"
        if not below:
            return Bind(source, self._diff(layer), read_only=False)
        lower = tuple(self._diff(each) for each in reversed(below))
        work = self._directories.path(layer) / "work"
        return FuseMount(source, lower, self._diff(layer), work, self._dialect, self.front)

    def _stack(self, layers: Sequence[str]) -> Mount:
        source = f"layerfs-{layers[-1]}"
        lower = tuple(self._diff(layer) for layer in reversed(layers))
        if len(lower) == 1:
            return Bind(source, lower[0], read_only=True)
        return FuseMount(source, lower, None, None, self._dialect, self.front)

    def _open_stack(self, layers: Sequence[str]) -> int:
        if len(layers) == 1:
            return os.open(self._diff(layers[0]), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return mounting.open_mount(self._stack(layers))

    @property
    def _dialect(self) -> OverlayDialect:
        return OverlayDialect(self._user_xattrs)

    def _open_merged(self, layers: Sequence[str]) -> int:
        return self._open_stack(layers)


def _try(scratch: Path, front: Literal["kernel", "fusepy"]) -> None:
    """Do once what the driver relies on: copy up, hide a file, replace a directory.

    Raises:
        UnsupportedError: one of them failed.
    """
    lower, upper, work = (scratch / name for name in ("lower", "upper", "work"))
    for directory in (lower, upper, work, lower / "directory"):
        directory.mkdir()
    for name in ("changed", "deleted", "directory/below"):
        (lower / name).write_bytes(b"x")
    dialect = OverlayDialect(not may_set_trusted(scratch))
    mount = FuseMount("layerfs-check", (lower,), upper, work, dialect, front)
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
