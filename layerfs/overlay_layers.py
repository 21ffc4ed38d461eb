"""What drivers that keep layers in overlayfs's format share: all but their mounts.

On disk: ``<layer>/diff`` holds changes (kernel documentation, filesystems/overlayfs.rst), ``<layer>/work``
is scratch space while the layer is mounted writable. Whatever mounts them, a layer looks the same.
"""

from __future__ import annotations

import abc
import errno
import functools
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from layerfs import files
from layerfs.directories import LayerDirectories, occupied, opened
from layerfs.driver import Driver, Usage
from layerfs.tree.change import Change
from layerfs.tree.unpack import Unpack
from layerfs.tree.whiteouts import OverlayWhiteouts

_OVERLAY_XATTRS: Final = (b"trusted.overlay.", b"user.overlay.")


class OverlayLayers(Driver):
    """A driver without its mounts."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._directories = LayerDirectories(root)

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

    @abc.abstractmethod
    def _open_stack(self, layers: Sequence[str]) -> int:
        """Open the merged tree of a stack."""

    @abc.abstractmethod
    def _open_merged(self, layers: Sequence[str]) -> int:
        """Open the merged tree with redirects and metadata-only copies followed, whoever made them."""

    @functools.cached_property
    def _user_xattrs(self) -> bool:
        return not may_set_trusted(self.root)

    @property
    def _whiteouts(self) -> OverlayWhiteouts:
        return OverlayWhiteouts(user=self._user_xattrs)


def may_set_trusted(directory: Path) -> bool:
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
