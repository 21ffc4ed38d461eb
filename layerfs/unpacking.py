"""Turning the stored layers of an image into committed layers of a driver.

Layers are unpacked as drafts under a lease, then brought to disk by one sync, then committed together
by one transaction: whatever happens before that leaves nothing but drafts, which the next opening
of the store removes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from layerfs import compression
from layerfs.blobs import Blobs, Ingest
from layerfs.digest import Digest
from layerfs.driver import Applies, Driver, Seals, Unpack
from layerfs.errors import VerificationError
from layerfs.flushing import Flusher
from layerfs.layer_table import Draft, Facts, Layer, LayerTable, Step
from layerfs.leases import Lease
from layerfs.progress import Progress
from layerfs.tree.budget import Budget
from layerfs.tree.extract import extract
from layerfs.tree.merge import unpack_in_place
from layerfs.tree.toc import TocWriter
from layerfs.tree.whiteouts import WhiteoutFormat

if TYPE_CHECKING:
    from layerfs.layers import Layers


class Unpacking:
    """The unpacking of one chain of layers; a context manager that removes what was not committed."""

    def __init__(
        self, layers: Layers, lease: Lease, *, budget: Budget, warn: Callable[[str], None], progress: Progress
    ) -> None:
        self._layers = layers
        self._table: LayerTable = layers.table
        self._blobs: Blobs = layers.blobs
        self._driver: Driver = layers.driver
        self._lease = lease
        self._budget = budget
        self._warn = warn
        self._progress = progress
        self._open = contextlib.ExitStack()
        self._drafts: list[tuple[Draft, Facts, Ingest]] = []
        self._begun: list[Draft] = []
        self._flusher: Flusher | None = None

    def __enter__(self) -> Unpacking:
        if self._layers.durability != "none":
            self._flusher = self._open.enter_context(Flusher(self._driver.root))
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()
        for draft in reversed(self._begun):
            self._table.mark_unborn(draft.row)
            self._layers.erase(draft.row, draft.driver_id)

    def unpack(self, step: Step, name: str, parent: str | None) -> None:
        """Unpack one layer on the one before it, on `parent` if it is the first."""
        draft = self._table.add_draft(name, self._begun[-1] if self._begun else parent, self._lease)
        self._begun.append(draft)
        self._lease.add("blob", str(step.blob))
        # The table of contents stays a partial blob until everything is synced at once.
        ingest = self._open.enter_context(self._blobs.ingest())
        below = self._table.stack(draft.row)[:-1]
        with self._layers.lock(draft.driver_id):
            self._driver.create(draft.driver_id, below)
            self._fill(draft, below, step, ingest)
            if isinstance(self._driver, Seals):
                self._driver.seal(draft.driver_id)
            usage = self._layers.measure(draft.driver_id, below)
        facts = Facts(usage, ingest.digest, step.diff_id, step.blob, self._layers.durability != "none")
        self._drafts.append((draft, facts, ingest))

    def commit(self) -> None:
        """Bring everything to disk, then make it visible."""
        self._sync()
        for draft, facts, ingest in self._drafts:
            del draft
            self._lease.add("blob", str(facts.toc))
            ingest.commit(synced=True)
        self._blobs.sync_names()
        spare = self._table.commit_drafts([(draft, facts) for draft, facts, _ in self._drafts])
        self._begun = spare
        self._drafts = []

    def replace(self, layer: Layer) -> None:
        """Give a committed layer the files that were just unpacked instead of its own, which are removed."""
        self._sync()
        ((draft, facts, ingest),) = self._drafts
        self._lease.add("blob", str(facts.toc))
        ingest.commit(synced=True)
        self._blobs.sync_names()
        self._table.replace(layer, draft, facts)
        # What was the draft now has the old files, and goes the way of every draft that is not needed.
        self._begun = [dataclasses.replace(draft, driver_id=layer.driver_id)]
        self._drafts = []

    def _sync(self) -> None:
        if self._flusher is not None:
            self._flusher.finish()

    def _fill(self, draft: Draft, below: Sequence[str], step: Step, ingest: Ingest) -> None:
        label = f"unpack {step.diff_id.hex[:12]}"
        with (
            self._blobs.open(step.blob) as file,
            self._progress.task(label, self._blobs.size(step.blob)) as advance,
        ):
            toc = TocWriter(ingest.write)
            plain = compression.open_decompressed(_Counted(file.read, advance), budget=self._budget)
            hashed = _Hashed(plain.read, step.diff_id)
            # Inflating and hashing in a thread of its own overlaps with making files here.
            ahead = compression.readahead(hashed)

            def unpack(directory: int, *, lower: Callable[[], int] | None, whiteouts: WhiteoutFormat) -> None:
                extract(
                    ahead, directory, lower=lower, whiteouts=whiteouts, budget=self._budget, warn=self._warn,
                    record=toc.add, squash=os.geteuid() != 0,
                )  # fmt: skip

            try:
                if isinstance(self._driver, Applies):
                    self._driver.apply(draft.driver_id, below, unpack)
                else:
                    self._apply_through_mount(draft.driver_id, below, unpack)
                while ahead.read(1 << 20):
                    pass
            finally:
                ahead.close()
                plain.close()
            hashed.verify()
            toc.close()

    def _apply_through_mount(self, driver_id: str, below: Sequence[str], unpack: Unpack) -> None:
        """Unpack through the layer's own mount, for drivers whose format is unknown here."""
        root = self._layers.open_root(self._driver.mount(driver_id, below, read_only=False))
        try:
            unpack_in_place(root, unpack)
        finally:
            os.close(root)


class _Counted:
    """A reader that reports how much was read."""

    def __init__(self, read: Callable[[int], bytes], advance: Callable[[int], object]) -> None:
        self._read = read
        self._advance = advance

    def read(self, size: int) -> bytes:
        data = self._read(size)
        self._advance(len(data))
        return data


class _Hashed:
    """A reader that hashes what passes."""

    def __init__(self, read: Callable[[int], bytes], expected: Digest) -> None:
        self._read = read
        self._expected = expected
        self._hasher = expected.hasher()

    def read(self, size: int) -> bytes:
        data = self._read(size)
        self._hasher.update(data)
        return data

    def verify(self) -> None:
        found = Digest(self._expected.algorithm, self._hasher.hexdigest())
        if found != self._expected:
            raise VerificationError(
                f"the layer's uncompressed content is {found}, its diff id promises {self._expected}"
            )
