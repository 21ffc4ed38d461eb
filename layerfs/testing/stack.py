"""Drives a driver as the store does, without a store: layers applied, mounted, edited and compared."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from layerfs import mounting
from layerfs.driver import Applies, Copies, Diffs, Drafts, Driver, Independent, Seals, Unpack
from layerfs.mount import Bind
from layerfs.testing.items import Item, tar
from layerfs.testing.snapshot import Snapshot, snapshot
from layerfs.tree.archive import write_layer
from layerfs.tree.change import Change
from layerfs.tree.diff import changes_between, listing
from layerfs.tree.entry import Entry
from layerfs.tree.extract import extract
from layerfs.tree.merge import unpack_in_place


class Stack:
    """Layers of one driver, bottom first; grows with each layer that is applied or edited.

    `directory` is where trees are mounted; it is the caller's, and empty again after each call.
    """

    def __init__(self, driver: Driver, directory: Path, layers: Sequence[str] = ()) -> None:
        self.driver = driver
        self.directory = directory
        self.layers = list(layers)
        self.warnings: list[str] = []
        # Whether the layer unpacked last had an entry for its root.
        self._has_root = False

    def _note(self, entry: Entry, digest: object) -> None:
        self._has_root = self._has_root or not entry.path

    def fork(self, depth: int | None = None) -> Stack:
        """Give a second stack on the lowest `depth` layers of this one, on all of them without a number."""
        return Stack(self.driver, self.directory, self.layers[:depth])

    def create(self) -> str:
        """Make an empty layer on the stack, which is not part of it before `finish`."""
        layer = new_id()
        self.driver.create(layer, self.layers)
        return layer

    def finish(self, layer: str) -> str:
        """Put a layer on the stack."""
        if isinstance(self.driver, Seals):
            self.driver.seal(layer)
        self.layers.append(layer)
        return layer

    def apply(self, items: Iterable[Item] | bytes) -> str:
        """Put a layer on the stack that is unpacked from a tar stream, given as such or as its items."""
        unpack = self.unpack_of(items)
        layer = new_id()
        if isinstance(self.driver, Independent):
            self.driver.create(layer, ())
        elif isinstance(self.driver, Drafts):
            self.driver.draft(layer, self.layers)
        else:
            self.driver.create(layer, self.layers)
        try:
            self._has_root = False
            self.unpack(layer, unpack)
            if isinstance(self.driver, Independent) and self.layers and not self._has_root:
                self.driver.inherit(layer, self.layers)
        except BaseException:
            self.driver.remove(layer)
            raise
        return self.finish(layer)

    def copied(self) -> Stack | None:
        """Give a stack that has a copy of the top layer in its place; None where the driver makes none."""
        if not isinstance(self.driver, Copies):
            return None
        copy = self.fork(len(self.layers) - 1)
        layer = new_id()
        if not self.driver.copy(layer, self.layers[-1], copy.layers, warn=self.warnings.append):
            return None
        copy.finish(layer)
        return copy

    def unpack(self, layer: str, unpack: Unpack) -> None:
        """Fill a layer that `create` made, in the way that the driver offers."""
        if isinstance(self.driver, Applies):
            self.driver.apply(layer, self.layers, unpack)
            return
        with self._opened(layer, self.layers, read_only=False) as root:
            unpack_in_place(root, unpack)

    def unpack_of(self, items: Iterable[Item] | bytes) -> Unpack:
        """Give what unpacks a tar stream, or a layer of these items; what it is warned of is kept."""
        data = items if isinstance(items, bytes) else tar(items)

        def unpack(directory: int, **how: object) -> None:
            extract(
                io.BytesIO(data), directory, warn=self.warnings.append, record=self._note, **how,  # type: ignore[arg-type]
            )  # fmt: skip

        return unpack

    @contextlib.contextmanager
    def edited(self) -> Iterator[Path]:
        """Mount a new layer writable for the length of a block, then put it on the stack."""
        layer = self.create()
        with self.mounted(layer, self.layers) as place:
            yield place
        self.finish(layer)

    @contextlib.contextmanager
    def seen(self) -> Iterator[Path]:
        """Mount the stack read-only for the length of a block."""
        with self.mounted(self.layers[-1], self.layers[:-1], read_only=True) as place:
            yield place

    @contextlib.contextmanager
    def mounted(self, layer: str, below: Sequence[str], *, read_only: bool = False) -> Iterator[Path]:
        """Mount a layer for the length of a block and give the directory."""
        mount = self.driver.mount(layer, below, read_only=read_only)
        place = self.directory / new_id()
        place.mkdir()
        try:
            mounting.attach(mount, place)
            try:
                yield place
            finally:
                mounting.detach(place)
        finally:
            place.rmdir()

    def tree(self) -> Snapshot:
        """Describe what is seen on top of the stack."""
        with self.seen() as place:
            return snapshot(place)

    def changes(self) -> Iterator[Change]:
        """Give the changes of the top layer, in the way that the driver offers."""
        if isinstance(self.driver, Diffs):
            return self.driver.changes(self.layers[-1], self.layers[:-1])
        return self.compared()

    def compared(self) -> Iterator[Change]:
        """Give the changes of the top layer by comparing both trees, byte by byte."""
        with contextlib.ExitStack() as opened:
            upper = opened.enter_context(self._opened(self.layers[-1], self.layers[:-1]))
            lower = None
            if len(self.layers) > 1:
                lower = opened.enter_context(self._opened(self.layers[-2], self.layers[:-2]))
            yield from changes_between(lower, upper)

    def listed(self) -> list[str]:
        """List the changes of the top layer as ``A /path``; other than ``docker diff``, in byte order."""
        return [f"{kind.value} {os.fsdecode(path)}" for kind, path in listing(self.changes())]

    def archive(self, changes: Iterable[Change] | None = None) -> bytes:
        """Write the changes of the top layer as a layer's tar stream."""
        stream = io.BytesIO()
        write_layer(self.changes() if changes is None else changes, stream.write, warn=self.warnings.append)
        return stream.getvalue()

    @contextlib.contextmanager
    def _opened(self, layer: str, below: Sequence[str], *, read_only: bool = True) -> Iterator[int]:
        mount = self.driver.mount(layer, below, read_only=read_only)
        if isinstance(mount, Bind):
            root = os.open(mount.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        else:
            root = mounting.open_mount(mount)
        try:
            yield root
        finally:
            os.close(root)


_numbers = itertools.count()


def new_id() -> str:
    """Give an id that no other layer has, in this process or another."""
    return f"{next(_numbers):06x}{os.getpid():06x}{os.urandom(4).hex()}"
