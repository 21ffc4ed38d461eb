"""Layers as the kernel's overlayfs stacks them: one directory of changes per layer, and no copies.

On disk: ``<layer>/diff`` holds the changes in overlayfs's format, ``<layer>/work`` is the kernel's
scratch space while the layer is mounted writable (kernel documentation, filesystems/overlayfs.rst).
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from layerfs import files, mounting
from layerfs.directories import LayerDirectories, occupied, opened, probing
from layerfs.driver import Driver, Usage
from layerfs.errors import MountError, UnsupportedError
from layerfs.mount import Bind, Mount, Overlay
from layerfs.tree.change import Change
from layerfs.tree.unpack import Unpack
from layerfs.tree.whiteouts import OverlayWhiteouts, is_overlay_whiteout

# OVL_MAX_STACK in the kernel's fs/overlayfs/params.h.
_DEEPEST: Final = 500
_OVERLAY_XATTRS: Final = (b"trusted.overlay.", b"user.overlay.")
# Our own mounts make neither, but a tree that another program wrote may have both.
_FOLLOWING: Final = ("redirect_dir=follow", "metacopy=on")


class Overlay2Driver(Driver):
    """The kernel's overlayfs; needs Linux, and root or a user namespace of one's own."""

    name = "overlay2"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._directories = LayerDirectories(root)

    @classmethod
    def check(cls, root: Path) -> None:
        """Mount an overlay on a scratch directory below `root`, attached nowhere, and write through it."""
        with probing(root) as scratch:
            _try(scratch)

    def create(self, layer: str, below: Sequence[str]) -> None:
        """Make the two directories of a layer; its root takes after the root of the layer right below."""
        self._directories.require(*below)
        with self._directories.making(layer) as directory:
            os.mkdir(directory / "work", 0o700)
            diff = directory / "diff"
            os.mkdir(diff, 0o700)
            with opened(diff) as target:
                if below:
                    with opened(self._diff(below[-1])) as source:
                        _copy_attributes(source, target)
                else:
                    os.fchmod(target, 0o755)
                    os.utime(target, (0, 0))

    def mount(self, layer: str, below: Sequence[str], *, read_only: bool) -> Mount:
        """Stack the layers; a single one is bound, since overlayfs wants two directories at least."""
        self._directories.require(layer, *below)
        if read_only:
            return self._stack((*below, layer))
        source = f"layerfs-{layer}"
        if not below:
            return Bind(source, self._diff(layer), read_only=False)
        work = self._directories.path(layer) / "work"
        return Overlay(source, self._lower(below), self._diff(layer), work, self._options)

    def remove(self, layer: str) -> None:
        """Delete a layer's directories."""
        self._directories.remove(layer)

    def layers(self) -> Iterable[str]:
        """List the layers that have directories."""
        return self._directories.ids()

    def apply(self, layer: str, below: Sequence[str], unpack: Unpack) -> None:
        """Unpack into ``diff`` directly, with whiteouts as overlayfs writes them."""
        with opened(self._diff(layer)) as directory:
            unpack(
                directory,
                lower=functools.partial(self._open_stack, below) if below else None,
                whiteouts=self._whiteouts,
            )

    def changes(self, layer: str, below: Sequence[str]) -> Iterator[Change]:
        """Read the changes out of ``diff``, looking below only at the names that stand in it."""
        from layerfs.tree.overlay_diff import overlay_changes

        self._directories.require(layer, *below)
        with opened(self._diff(layer)) as upper:
            yield from overlay_changes(
                upper,
                open_lower=functools.partial(self._open_stack, below) if below else None,
                open_merged=functools.partial(self._open_merged, (*below, layer)),
                whiteouts=self._whiteouts,
            )

    def usage(self, layer: str, below: Sequence[str]) -> Usage:
        """Count ``diff``, each file once however many names it has."""
        self._directories.require(layer)
        return Usage(*occupied([self._diff(layer)]))

    def sweep(self) -> int:
        """Delete what stopped processes left half made or half removed."""
        return self._directories.sweep()

    def _diff(self, layer: str) -> Path:
        return self._directories.path(layer) / "diff"

    def _lower(self, layers: Sequence[str]) -> tuple[Path, ...]:
        if len(layers) > _DEEPEST:
            raise UnsupportedError(
                f"overlayfs stacks {_DEEPEST} layers at most, this image has {len(layers)}",
                hint="commit fewer, larger layers, or use another driver (`layerfs drivers`)",
            )
        return tuple(self._diff(layer) for layer in reversed(layers))

    def _stack(self, layers: Sequence[str]) -> Mount:
        source = f"layerfs-{layers[-1]}"
        lower = self._lower(layers)
        if len(lower) == 1:
            return Bind(source, lower[0], read_only=True)
        return Overlay(source, lower, None, None, self._options)

    def _open_stack(self, layers: Sequence[str]) -> int:
        """Open the merged tree of a stack."""
        if len(layers) == 1:
            return os.open(self._diff(layers[0]), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return mounting.open_mount(self._stack(layers))

    def _open_merged(self, layers: Sequence[str]) -> int:
        """Open the merged tree with redirects and metadata-only copies followed, whoever made them."""
        options = self._options if self._user_xattrs else (*_FOLLOWING, "index=off")
        mount = Overlay(f"layerfs-{layers[-1]}", self._lower(layers), None, None, options)
        return mounting.open_mount(mount)

    @functools.cached_property
    def _user_xattrs(self) -> bool:
        return not _may_set_trusted(self.root)

    @property
    def _options(self) -> tuple[str, ...]:
        return _options(self._user_xattrs)

    @property
    def _whiteouts(self) -> OverlayWhiteouts:
        return OverlayWhiteouts(user=self._user_xattrs)


def _options(user_xattrs: bool) -> tuple[str, ...]:
    """Give the options of every mount, whatever the kernel's defaults are.

    index=off: layers are shared between mounts and copied between file systems, an index survives neither.
    redirect_dir=off: none are made, those that are there are followed. userxattr excludes the option.
    """
    if user_xattrs:
        return ("index=off", "userxattr")
    return ("index=off", "redirect_dir=off", "metacopy=off")


def _may_set_trusted(directory: Path) -> bool:
    """Try to set an attribute that only CAP_SYS_ADMIN outside of user namespaces may set."""
    try:
        os.setxattr(directory, "trusted.layerfs.probe", b"")
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENOTSUP):
            return False
        raise
    try:
        os.removexattr(directory, "trusted.layerfs.probe")
    except OSError as error:
        if error.errno != errno.ENODATA:  # another process has probed at the same time
            raise
    return True


def _copy_attributes(source: int, target: int) -> None:
    found = os.fstat(source)
    os.fchown(target, found.st_uid, found.st_gid)
    os.fchmod(target, stat.S_IMODE(found.st_mode))
    for name, value in files.read_xattrs(source).items():
        if not name.startswith(_OVERLAY_XATTRS):
            files.write_xattr(target, name, value)
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))


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
    user_xattrs = not _may_set_trusted(scratch)
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
