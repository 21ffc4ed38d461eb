"""Tries on a scratch directory whether the union can be served and written here."""

from __future__ import annotations

import os
from pathlib import Path

from layerfs import mounting
from layerfs.directories import opened
from layerfs.errors import MountError, UnsupportedError
from layerfs.tree.whiteouts import WhiteoutFormat
from layerfs_fuse.dialect import Dialect
from layerfs_fuse.mounts import Front, FuseMount


def try_union(scratch: Path, dialect: Dialect, whiteouts: WhiteoutFormat, *, front: Front) -> None:
    """Do once what drivers rely on: copy up, hide a file, replace a directory.

    Args:
        scratch: an empty directory on the file system of the layers.
        dialect: the format that the union writes.
        whiteouts: the same format, to read it back.
        front: what serves it; see `FuseMount`.

    Raises:
        UnsupportedError: one of them failed.
    """
    lower, upper, work = (scratch / name for name in ("lower", "upper", "work"))
    for directory in (lower, upper, work, lower / "directory"):
        directory.mkdir()
    for name in ("changed", "deleted", "directory/below"):
        (lower / name).write_bytes(b"x")
    try:
        root = mounting.open_mount(FuseMount("layerfs-check", (lower,), upper, work, dialect, front))
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
    with opened(upper) as written, opened(upper / "directory") as replaced:
        if not (whiteouts.hides(written, b"deleted") and whiteouts.is_opaque(replaced)):
            raise UnsupportedError("whiteouts cannot be made here")
