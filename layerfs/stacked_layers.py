"""What drivers that keep one directory of changes per layer and stack those share: all but format and mount.

On disk: ``<layer>/diff`` holds changes in the driver's format, ``<layer>/work`` is scratch space while the
layer is mounted writable. Whatever mounts them, a layer looks the same.
"""

from __future__ import annotations

import abc
import functools
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from layerfs import files, mounting
from layerfs.directories import LayerDirectories, occupied, opened
from layerfs.driver import Driver, Usage
from layerfs.mount import Bind, Mount
from layerfs.tree.attributes import belongs_in_layers
from layerfs.tree.unpack import Unpack
from layerfs.tree.whiteouts import WhiteoutFormat


class _OwnWaysError(Exception):
    """A layer that shows files of other places, and must be read through its mount."""


class StackedLayers(Driver):
    """A driver that lacks its format, its union mount, and the reading of a layer's changes."""

    own_xattrs: ClassVar[tuple[bytes, ...]] = ()
    """What the names of the format's own attributes begin with."""

    copied_xattrs: ClassVar[frozenset[bytes]] = frozenset()
    """How those go on that hide what is below; of the others none is needed."""

    odd_xattrs: ClassVar[frozenset[bytes]] = frozenset()
    """How those go on by which a file shows what is in another place."""

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
                        self._copy_attributes(source, target)
                else:
                    os.fchmod(target, 0o755)
                    os.utime(target, (0, 0))

    def copy(self, layer: str, source: str, below: Sequence[str], *, warn: Callable[[str], None]) -> bool:
        """Copy ``diff`` without what the union notes there for itself; data is shared where it can be."""
        self._directories.require(source)
        return self.copy_from(layer, self.place(source), below, warn=warn)

    def copy_from(
        self, layer: str, source: Path, below: Sequence[str], *, warn: Callable[[str], None]
    ) -> bool:
        """Do the same with a layer of the same format that is somewhere else."""
        from layerfs.tree.copy import copy_changes

        self._directories.require(*below)
        try:
            with self._directories.making(layer) as directory:
                os.mkdir(directory / "work", 0o700)
                diff = directory / "diff"
                os.mkdir(diff, 0o700)
                with opened(diff) as target, opened(source / "diff") as changes:
                    copy_changes(changes, target, keep=self._belongs_to_copy, warn=warn)
        except _OwnWaysError:
            return False
        return True

    def place(self, layer: str) -> Path:
        """Say where a layer's directories are."""
        return self._directories.path(layer)

    def mount(self, layer: str, below: Sequence[str], *, read_only: bool) -> Mount:
        """Stack the layers; a single one is bound where its directory holds nothing of the format."""
        self._directories.require(layer, *below)
        if read_only:
            return self._stack((*below, layer))
        source = f"layerfs-{layer}"
        if not below and self._is_plain(layer, read_only=False):
            return Bind(source, self._diff(layer), read_only=False)
        work = self._directories.path(layer) / "work"
        return self._union(source, self._lower(below), self._diff(layer), work)

    def remove(self, layer: str) -> None:
        """Delete a layer's directories."""
        self._directories.remove(layer)

    def layers(self) -> Iterable[str]:
        """List the layers that have directories."""
        return self._directories.ids()

    def apply(self, layer: str, below: Sequence[str], unpack: Unpack) -> None:
        """Unpack into ``diff`` directly, with whiteouts as the format has them."""
        with opened(self._diff(layer)) as directory:
            unpack(
                directory,
                lower=functools.partial(self._open_stack, below) if below else None,
                whiteouts=self._whiteouts,
            )

    def inherit(self, layer: str, below: Sequence[str]) -> None:
        """Let the root take after the root of the layer right below."""
        with opened(self._diff(below[-1])) as source, opened(self._diff(layer)) as target:
            self._copy_attributes(source, target)

    def usage(self, layer: str, below: Sequence[str]) -> Usage:
        """Count ``diff``, each file once however many names it has."""
        self._directories.require(layer)
        return Usage(*occupied([self._diff(layer)]))

    def sweep(self) -> int:
        """Delete what stopped processes left half made or half removed."""
        return self._directories.sweep()

    @property
    @abc.abstractmethod
    def _whiteouts(self) -> WhiteoutFormat:
        """Give the format of the layers."""

    @abc.abstractmethod
    def _union(self, source: str, lower: tuple[str, ...], upper: Path | None, work: Path | None) -> Mount:
        """Describe the mount of layers, top first; read-only when there is no upper directory."""

    def _is_plain(self, layer: str, *, read_only: bool) -> bool:
        """Say whether a layer without others below shows, bound as it is, what its union would."""
        return True

    def _diff(self, layer: str) -> Path:
        return self._directories.path(layer) / "diff"

    def _belongs_to_copy(self, xattr: bytes) -> bool:
        for prefix in self.own_xattrs:
            if xattr.startswith(prefix):
                rest = xattr[len(prefix) :]
                if rest in self.odd_xattrs:
                    raise _OwnWaysError
                return rest in self.copied_xattrs
        return belongs_in_layers(xattr)

    def _lower(self, layers: Sequence[str]) -> tuple[str, ...]:
        # Text, as a deep stack's paths take longer to parse than the kernel needs to mount them.
        root = str(self.root)
        return tuple(f"{root}/{layer}/diff" for layer in reversed(layers))

    def _stack(self, layers: Sequence[str]) -> Mount:
        """Describe the merged tree of a stack, read-only."""
        source = f"layerfs-{layers[-1]}"
        if len(layers) == 1 and self._is_plain(layers[0], read_only=True):
            return Bind(source, self._diff(layers[0]), read_only=True)
        return self._union(source, self._lower(layers), None, None)

    def _open_stack(self, layers: Sequence[str]) -> int:
        """Open the merged tree of a stack."""
        mount = self._stack(layers)
        if isinstance(mount, Bind):
            return os.open(mount.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return mounting.open_mount(mount)

    def _copy_attributes(self, source: int, target: int) -> None:
        found = os.fstat(source)
        os.fchown(target, found.st_uid, found.st_gid)
        os.fchmod(target, stat.S_IMODE(found.st_mode))
        for name, value in files.read_xattrs(source).items():
            if not name.startswith(self.own_xattrs):
                files.write_xattr(target, name, value)
        os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
