"""Mounts as data: what would make a layer's tree visible. Nothing here touches the kernel.

`layerfs.mounting` attaches and detaches them. A driver whose mounts are of another sort defines a
frozen value of its own and registers how it is attached (`mounting.attach.register`).
"""

from __future__ import annotations

from pathlib import Path

from layerfs.value import frozen


@frozen
class Mount:
    """A tree that can be attached; `source` is the name that /proc/self/mountinfo will show where it can."""

    source: str


@frozen
class Bind(Mount):
    """A directory shown as it is."""

    directory: Path
    read_only: bool


@frozen
class Overlay(Mount):
    """An overlayfs mount (kernel documentation, filesystems/overlayfs.rst).

    `lower` is top first, as in the kernel's ``lowerdir=``. `upper` and `work` are both None for
    a read-only mount. `options` are further ``name=value`` or bare flags, such as ``userxattr``.
    """

    lower: tuple[Path | str, ...]
    upper: Path | None
    work: Path | None
    options: tuple[str, ...] = ()


@frozen
class Restricted(Mount):
    """Another mount with other attributes: MOUNT_ATTR_ flags, set after some cleared (mount_setattr(2))."""

    mount: Mount
    added: int
    cleared: int
