"""Layers as full copies: works on every file system, at the price of space and time.

On disk: ``<layer>/tree`` is the whole tree, ``<layer>/marker`` a file whose ctime is later than that of all
that was copied and not later than that of any edit since.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from layerfs.directories import LayerDirectories, occupied, opened, probing
from layerfs.driver import Driver, Usage
from layerfs.mount import Bind, Mount
from layerfs.tree.change import Change
from layerfs.tree.unpack import Unpack
from layerfs.tree.whiteouts import AufsWhiteouts

_TICK: Final = 0.001


class VfsDriver(Driver):
    """Plain directories; files share their data where the file system has reflinks (btrfs, xfs)."""

    name = "vfs"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._directories = LayerDirectories(root)

    @classmethod
    def check(cls, root: Path) -> None:
        """Make and remove a directory below `root`; nothing more is needed."""
        with probing(root):
            pass

    def create(self, layer: str, below: Sequence[str]) -> None:
        """Copy the tree of the layer right below, which holds what the others hold too."""
        self._directories.require(*below)
        with self._directories.making(layer) as directory:
            tree = directory / "tree"
            os.mkdir(tree, 0o700)
            with opened(tree) as target:
                if below:
                    from layerfs.tree.copy import copy_tree

                    with opened(self._tree(below[-1])) as source:
                        copy_tree(source, target)
                else:
                    os.fchmod(target, 0o755)
                    os.utime(target, (0, 0))
                _mark(directory / "marker", os.fstat(target).st_ctime_ns)

    def mount(self, layer: str, below: Sequence[str], *, read_only: bool) -> Mount:
        """Bind the tree."""
        self._directories.require(layer, *below)
        return Bind(f"layerfs-{layer}", self._tree(layer), read_only=read_only)

    def remove(self, layer: str) -> None:
        """Delete the copy."""
        self._directories.remove(layer)

    def layers(self) -> Iterable[str]:
        """List the layers that have a tree."""
        return self._directories.ids()

    def apply(self, layer: str, below: Sequence[str], unpack: Unpack) -> None:
        """Unpack a base layer into its tree directly, any other beside it and move the changes in."""
        with opened(self._tree(layer)) as tree:
            if not below:
                unpack(tree, lower=None, whiteouts=AufsWhiteouts())
                return
            from layerfs.tree.merge import unpack_in_place

            unpack_in_place(tree, unpack)

    def changes(self, layer: str, below: Sequence[str]) -> Iterator[Change]:
        """Compare the copy with what it was copied from, reading only files touched since."""
        from layerfs.tree.diff import changes_between

        self._directories.require(layer, *below)
        with opened(self._tree(layer)) as upper:
            if not below:
                yield from changes_between(None, upper)
                return
            marker = os.stat(self._directories.path(layer) / "marker")
            with opened(self._tree(below[-1])) as lower:
                yield from changes_between(lower, upper, touched_since_ns=marker.st_ctime_ns)

    def usage(self, layer: str, below: Sequence[str]) -> Usage:
        """Count the whole copy; extents that it shares with other layers are counted too."""
        self._directories.require(layer)
        return Usage(*occupied([self._tree(layer)]))

    def sweep(self) -> int:
        """Delete what stopped processes left half made or half removed."""
        return self._directories.sweep()

    def _tree(self, layer: str) -> Path:
        return self._directories.path(layer) / "tree"


def _mark(marker: Path, after_ns: int) -> None:
    """Make a file with a ctime later than `after_ns`; file systems' clocks tick every few milliseconds."""
    descriptor = os.open(marker, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        while os.fstat(descriptor).st_ctime_ns <= after_ns:
            time.sleep(_TICK)
            os.utime(descriptor)
    finally:
        os.close(descriptor)
