"""Tries on a scratch directory whether the kernel's aufs can be mounted and written here."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from layerfs import linux, mounting
from layerfs.directories import opened
from layerfs.errors import MountError
from layerfs.tree.whiteouts import AufsWhiteouts
from layerfs_aufs.mounts import AufsMount


def is_known() -> bool:
    """Say whether the kernel knows aufs, its modules included; where that cannot be asked, yes."""
    try:
        os.close(linux.fsopen("aufs"))
    except OSError as error:
        return error.errno != errno.ENODEV
    return True


def try_kernel(scratch: Path) -> None:
    """Do once what the driver relies on: copy up, hide a file.

    Args:
        scratch: an empty directory on the file system of the layers.

    Raises:
        MountError: one of them failed; its `errno` says how.
    """
    lower, upper = scratch / "kernel-lower", scratch / "kernel-upper"
    for directory in (lower, upper):
        directory.mkdir()
    for name in ("changed", "deleted"):
        (lower / name).write_bytes(b"x")
    root = mounting.open_mount(AufsMount("layerfs-check", (upper, lower), writable=True))
    try:
        os.close(os.open("changed", os.O_WRONLY | os.O_TRUNC, dir_fd=root))
        os.unlink("deleted", dir_fd=root)
    except OSError as error:
        raise MountError(f"aufs cannot write here: {error.strerror}", errno=error.errno) from error
    finally:
        os.close(root)
    with opened(upper) as written:
        if not AufsWhiteouts().hides(written, b"deleted"):
            raise MountError("aufs writes whiteouts that layerfs does not know", errno=errno.EINVAL)
