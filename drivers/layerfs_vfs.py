"""Layers as full copies: works on every file system, at the price of space and time.

On disk: ``<layer>/tree`` is the whole tree, ``<layer>/marker`` a file whose ctime is later than that of all
that was copied and not later than that of any edit since. Layers that are unpacked, and so never written to
again, share their unchanged files by hard links. ``<layer>/links`` stands where files are shared so: it
holds the inode numbers, eight bytes each, of the files that have several names within the one tree.
"""

from __future__ import annotations

import array
import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from layerfs.directories import LayerDirectories, occupied, opened, probing
from layerfs.driver import Driver, Usage
from layerfs.files import write_atomic
from layerfs.mount import Bind, Mount
from layerfs.tree.change import Change
from layerfs.tree.links import Several, linked_inodes, several_names
from layerfs.tree.unpack import Unpack
from layerfs.tree.whiteouts import AufsWhiteouts, WhiteoutFormat

_TICK: Final = 0.001
# What link(2) answers for a file that has as many names as it can, or where links are not to be had.
_NO_LINKS: Final = frozenset({errno.EMLINK, errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP})


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
                        copy_tree(source, target, several=self._several(below[-1]))
                else:
                    _begin(target)
                _mark(directory / "marker", os.fstat(target).st_ctime_ns)

    def draft(self, layer: str, below: Sequence[str]) -> None:
        """Link the files of the layer right below instead of copying them, where the file system can."""
        from layerfs.tree.copy import link_tree

        self._directories.require(*below)
        try:
            with self._directories.making(layer) as directory:
                tree = directory / "tree"
                os.mkdir(tree, 0o700)
                with opened(tree) as target:
                    if below:
                        _write_links(directory / "links", self._links(below[-1]))
                        with opened(self._tree(below[-1])) as source:
                            link_tree(source, target)
                    else:
                        _write_links(directory / "links", set())
                        _begin(target)
                    _mark(directory / "marker", os.fstat(target).st_ctime_ns)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self.create(layer, below)

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
        place = self._directories.path(layer) / "links"
        known = _read_links(place)

        def counted(directory: int, *, lower: Callable[[], int] | None, whiteouts: WhiteoutFormat) -> None:
            unpack(directory, lower=lower, whiteouts=whiteouts)
            if known is not None:
                # Nothing of this layer is shared yet.
                known.update(linked_inodes(directory))

        with opened(self._tree(layer)) as tree:
            if not below:
                counted(tree, lower=None, whiteouts=AufsWhiteouts())
            else:
                from layerfs.tree.merge import unpack_in_place

                unpack_in_place(tree, counted)
        if known is not None:
            _write_links(place, known)

    def changes(self, layer: str, below: Sequence[str]) -> Iterator[Change]:
        """Compare the copy with what it was copied from, reading only files touched since."""
        from layerfs.tree.diff import changes_between

        self._directories.require(layer, *below)
        with opened(self._tree(layer)) as upper:
            after = _carried(self._several(layer))
            if not below:
                yield from changes_between(None, upper, several=(after, after))
                return
            marker = os.stat(self._directories.path(layer) / "marker")
            with opened(self._tree(below[-1])) as lower:
                yield from changes_between(
                    lower,
                    upper,
                    touched_since_ns=marker.st_ctime_ns,
                    several=(_carried(self._several(below[-1])), after),
                )

    def usage(self, layer: str, below: Sequence[str]) -> Usage:
        """Count the tree without the files that it shares with other layers.

        A layer is measured before others are made on it, so what all share counts for the lowest.
        """
        self._directories.require(layer)
        return Usage(*occupied([self._tree(layer)], own=True))

    def sweep(self) -> int:
        """Delete what stopped processes left half made or half removed."""
        return self._directories.sweep()

    def _tree(self, layer: str) -> Path:
        return self._directories.path(layer) / "tree"

    def _several(self, layer: str) -> Several:
        """Say which files of a layer may have several names in it; what is shared has them elsewhere."""
        inodes = _read_links(self._directories.path(layer) / "links")
        return lambda found: inodes is None or found.st_ino in inodes

    def _links(self, layer: str) -> set[int]:
        """Give the inode numbers of the files with several names in a layer that is about to be shared."""
        place = self._directories.path(layer) / "links"
        inodes = _read_links(place)
        if inodes is None:
            with opened(self._tree(layer)) as tree:
                inodes = linked_inodes(tree)
            _write_links(place, inodes)
        return inodes


def _carried(several: Several) -> Several:
    """Leave out what a layer cannot carry the names of."""
    return lambda found: several_names(found) and several(found)


def _begin(root: int) -> None:
    """Give the root of a base layer its attributes."""
    os.fchmod(root, 0o755)
    os.utime(root, (0, 0))


def _read_links(place: Path) -> set[int] | None:
    try:
        return set(array.array("Q", place.read_bytes()))
    except FileNotFoundError:
        return None


def _write_links(place: Path, inodes: set[int]) -> None:
    write_atomic(place, array.array("Q", sorted(inodes)).tobytes(), sync=False)


def _mark(marker: Path, after_ns: int) -> None:
    """Make a file with a ctime later than `after_ns`; file systems' clocks tick every few milliseconds."""
    descriptor = os.open(marker, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        while os.fstat(descriptor).st_ctime_ns <= after_ns:
            time.sleep(_TICK)
            os.utime(descriptor)
    finally:
        os.close(descriptor)
