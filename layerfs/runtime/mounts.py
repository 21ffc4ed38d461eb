"""Makes the file systems of a container and attaches them at open descriptors, never at path strings."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Final

from layerfs import linux
from layerfs.mounting import set_options

NOSUID: Final = linux.MOUNT_ATTR_NOSUID
NODEV: Final = linux.MOUNT_ATTR_NODEV
NOEXEC: Final = linux.MOUNT_ATTR_NOEXEC
RDONLY: Final = linux.MOUNT_ATTR_RDONLY


def new(fstype: str, options: Sequence[str] = (), *, source: str | None = None, attributes: int = 0) -> int:
    """Give the descriptor of a new, detached mount; options are ``name=value`` or flags."""
    context = linux.fsopen(fstype)
    try:
        linux.fsconfig_set_string(context, "source", source or fstype)
        set_options(context, options)
        linux.fsconfig_create(context)
        return linux.fsmount(context, attributes)
    finally:
        os.close(context)


def clone(
    directory: int, path: str | bytes, *, attributes: int = 0, recursive: bool = False, follow: bool = False
) -> int:
    """Give the descriptor of a new, detached, private bind mount; `path` may be empty."""
    deep = linux.AT_RECURSIVE if recursive else 0
    flags = linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | linux.AT_EMPTY_PATH | deep
    tree = linux.open_tree(directory, path, flags | (0 if follow else linux.AT_SYMLINK_NOFOLLOW))
    try:
        linux.mount_setattr(
            tree,
            b"",
            linux.AT_EMPTY_PATH | deep,
            set_attributes=attributes,
            propagation=linux.MS_PRIVATE,
        )
    except OSError:
        os.close(tree)
        raise
    return tree


def attach(tree: int, target: int) -> None:
    """Attach a detached mount on an open descriptor."""
    flags = linux.MOVE_MOUNT_F_EMPTY_PATH | linux.MOVE_MOUNT_T_EMPTY_PATH
    linux.move_mount(tree, b"", target, b"", flags)


def put(tree: int, directory: int, name: str | bytes) -> None:
    """Attach a detached mount on a name in an open directory, a symlink there not followed; close it."""
    try:
        linux.move_mount(tree, b"", directory, name, linux.MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(tree)


def restrict(mount: int, attributes: int) -> None:
    """Set attributes of an attached mount, given as a descriptor of its root."""
    linux.mount_setattr(mount, b"", linux.AT_EMPTY_PATH, set_attributes=attributes)


def make_read_only(mount: int, *, recursive: bool = False) -> None:
    """Refuse writes through a mount, given as a descriptor of its root."""
    flags = linux.AT_EMPTY_PATH | (linux.AT_RECURSIVE if recursive else 0)
    linux.mount_setattr(mount, b"", flags, set_attributes=RDONLY)


def is_missing(error: OSError) -> bool:
    """Say whether a path that may be absent was: kernels differ in what /proc and /sys hold."""
    return error.errno in (errno.ENOENT, errno.ENOTDIR)
