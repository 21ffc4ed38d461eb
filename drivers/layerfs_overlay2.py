"""Layers as the kernel's overlayfs stacks them: one directory of changes per layer, and no copies."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from layerfs import mounting
from layerfs.directories import opened, probing
from layerfs.errors import MountError, UnsupportedError
from layerfs.mount import Mount, Overlay
from layerfs.overlay_layers import OverlayLayers, may_set_trusted
from layerfs.tree.whiteouts import OverlayWhiteouts, is_overlay_whiteout

# OVL_MAX_STACK in the kernel's fs/overlayfs/params.h.
_DEEPEST: Final = 500
# Our own mounts make neither, but a tree that another program wrote may have both.
_FOLLOWING: Final = ("redirect_dir=follow", "metacopy=on")


class Overlay2Driver(OverlayLayers):
    """The kernel's overlayfs; needs Linux, and root or a user namespace of one's own."""

    name = "overlay2"

    @classmethod
    def check(cls, root: Path) -> None:
        """Mount an overlay on a scratch directory below `root`, attached nowhere, and write through it."""
        with probing(root) as scratch:
            _try(scratch)

    def _union(self, source: str, lower: tuple[str, ...], upper: Path | None, work: Path | None) -> Mount:
        if len(lower) > _DEEPEST:
            raise UnsupportedError(
                f"overlayfs stacks {_DEEPEST} layers at most, this image has {len(lower)}",
                hint="commit fewer, larger layers, or use another driver (`layerfs drivers`)",
            )
        return Overlay(source, lower, upper, work, _options(self._user_xattrs))

    def _open_merged(self, layers: Sequence[str]) -> int:
        """Open the merged tree with redirects and metadata-only copies followed, whoever made them."""
        options = _options(True) if self._user_xattrs else (*_FOLLOWING, "index=off")
        mount = Overlay(f"layerfs-{layers[-1]}", self._lower(layers), None, None, options)
        return mounting.open_mount(mount)


def _options(user_xattrs: bool) -> tuple[str, ...]:
    """Give the options of every mount, whatever the kernel's defaults are.

    index=off: layers are shared between mounts and copied between file systems, an index survives neither.
    redirect_dir=off: none are made, those that are there are followed. userxattr excludes the option.
    """
    if user_xattrs:
        return ("index=off", "userxattr")
    return ("index=off", "redirect_dir=off", "metacopy=off")


def _try(scratch: Path) -> None:
    """Do once what the driver relies on: copy up, hide a file, make a directory opaque.

    Raises:
        UnsupportedError: one of them failed.
    """
    lower, other, upper, work = (scratch / name for name in ("lower", "other", "upper", "work"))
    for directory in (lower, other, upper, work, lower / "directory"):
        directory.mkdir()
    for name in ("changed", "deleted", "directory/below"):
        (lower / name).write_bytes(b"x")
    user_xattrs = not may_set_trusted(scratch)
    mount = Overlay("layerfs-check", (other, lower), upper, work, _options(user_xattrs))
    try:
        root = mounting.open_mount(mount)
    except MountError as error:
        raise UnsupportedError(
            str(error), errno=error.errno, hint=error.hint or _hint(error.errno)
        ) from error
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
            f"overlayfs cannot {step} here: {error.strerror}", errno=error.errno, hint=_hint(error.errno)
        ) from error
    finally:
        os.close(root)
    with opened(upper / "directory") as descriptor:
        opaque = OverlayWhiteouts(user=user_xattrs).is_opaque(descriptor)
    if not opaque or not is_overlay_whiteout(os.lstat(upper / "deleted")):
        raise UnsupportedError(
            "overlayfs writes whiteouts in a format that layerfs does not know here", hint=_hint(None)
        )


def _hint(number: int | None) -> str:
    if number == errno.ENODEV:
        return "the kernel has no overlayfs: try `modprobe overlay`"
    if number in (errno.EPERM, errno.EACCES):
        return "run as root, or in a user and mount namespace of one's own (Linux 5.11)"
    return "put the store on ext4, xfs, btrfs or tmpfs (--root): overlayfs cannot write to this file system"
