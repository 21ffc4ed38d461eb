"""Makes the layers of an image out of their tables of contents alone, committed together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple

from layerfs.digest import Digest
from layerfs.driver import Lazy, Seals, Usage
from layerfs.errors import NotFoundError, UnsupportedError
from layerfs.files import Lock
from layerfs.incoming import Incoming
from layerfs.layer_table import Draft, Facts
from layerfs.lazy.blob import LazyBlob
from layerfs.lazy.kept import KeptRanges
from layerfs.lazy.origin import LABEL, Origin, layer_names
from layerfs.lazy.outlines import Job, Outlines
from layerfs.lazy.setting import Setting
from layerfs.lazy.sources import Sources
from layerfs.leases import Lease
from layerfs.seekable.layer import IndexedLayer, open_layer
from layerfs.seekable.ranges import Parted
from layerfs.seekable.top import Top, top_of_layer
from layerfs.tree.entry import Entry
from layerfs.tree.extract import outline
from layerfs.tree.whiteouts import WhiteoutFormat
from layerfs.value import replace

if TYPE_CHECKING:
    from layerfs.layers import Layers
    from layerfs.oci.config import ImageConfig
    from layerfs.oci.descriptor import Descriptor
    from layerfs.oci.manifest import Manifest
    from layerfs.seekable.tables import Tables

WAITING_FROM: Final = 1000
"""So many entries of all layers together take longer to make than a user likes to wait for a mount."""

# Indexes on their way at once: each takes some round trips and little else; and parts of one.
_INDEXES_AT_ONCE: Final = 8
_PARTS_AT_ONCE: Final = 12


class Making:
    """The lazy layers of one image.

    Args:
        layers: of a driver that is `driver.Lazy`.
        lease: what protects new things until the image is there.
        sources: where blobs are read from.
        tables: of seek points, of the store.
        warn: told what was odd.
    """

    def __init__(
        self,
        layers: Layers,
        lease: Lease,
        *,
        sources: Sources,
        tables: Tables,
        warn: Callable[[str], None],
    ) -> None:
        self._layers = layers
        self._lease = lease
        self._sources = sources
        self._tables = tables
        self._warn = warn
        driver = layers.driver
        if not isinstance(driver, Lazy):
            raise UnsupportedError(
                f"the driver {driver.name} cannot fetch files when they are read",
                hint="use --driver fuse, or mount without --lazy",
            )
        self._driver = driver
        self._indexes = ThreadPoolExecutor(_INDEXES_AT_ONCE)
        self._parts = ThreadPoolExecutor(_PARTS_AT_ONCE)
        self._coming: dict[Origin, Future[_Index]] = {}

    def close(self) -> None:
        """Wait for what was begun, and give up what was not; idempotent."""
        for pool in (self._indexes, self._parts):
            pool.shutdown(cancel_futures=True)

    def expect(self, layers: Sequence[Descriptor], place: str) -> None:
        """Hear which layers come next; indexes of those of which nothing is here are fetched from now on."""
        known = self._layers.table.have_blob
        self._begin_to_open([Origin(layer).had_from(place) for layer in layers if not known(layer.digest)])

    def _begin_to_open(self, origins: Sequence[Origin]) -> None:
        for origin in origins:
            if origin not in self._coming:
                self._coming[origin] = self._indexes.submit(self._open, origin)

    def make(self, manifest: Manifest, config: ImageConfig, place: str | None) -> list[str]:
        """See that the layers of an image are there, and give their names, bottom first.

        Args:
            manifest: of the image; its layers' blobs may be missing.
            config: the image's.
            place: where the blobs are to be had, as `transports.parse` takes it; None for the store alone.

        Raises:
            LayerError: an index is malformed.
            BudgetError: a layer asks for too much.
            VerificationError: an index is not the promised one.
        """
        names = layer_names(manifest.layers, config.diff_ids)
        origins = [Origin(layer).had_from(place) for layer in manifest.layers]
        table = self._layers.table
        done = table.present(names, self._lease)
        if done < len(names):
            lock = Lock(self._layers.root / "locks" / f"chain-{names[done].partition(':')[2]}")
            with lock:
                done = table.present(names, self._lease)
                if done < len(names):
                    self._make(names, origins, config.diff_ids, done)
                lock.path.unlink(missing_ok=True)
        if place is not None:
            for name in names[:done]:
                self._note_place(name, place)
        return names

    def _note_place(self, name: str, place: str) -> None:
        label = self._layers.stat(name).labels[LABEL]
        noted = Origin.unpack(label).had_from(place).pack()
        if noted != label:
            self._layers.label(name, {LABEL: noted})

    def _make(
        self, names: Sequence[str], origins: Sequence[Origin], diff_ids: Sequence[Digest], done: int
    ) -> None:
        self._begin_to_open(origins[done:])
        indexes = [self._coming[origin].result() for origin in origins[done:]]
        # Threads must have ended before processes are forked.
        self.close()
        begun: list[Draft] = []
        with contextlib.ExitStack() as opened:
            try:
                parent: str | Draft | None = names[done - 1] if done else None
                for name, index in zip(names[done:], indexes, strict=True):
                    labels = {LABEL: index.origin.pack()}
                    parent = self._layers.table.add_draft(name, parent, self._lease, labels=labels)
                    begun.append(parent)
                    opened.enter_context(self._layers.lock(parent.driver_id))
                    # What is below may not be whole yet.
                    self._driver.create(parent.driver_id, ())
                made = self._begin if _can_wait(indexes) else self._fill
                found = made(begun, indexes, opened)
                facts = [
                    self._facts(*each) for each in zip(begun, indexes, found, diff_ids[done:], strict=True)
                ]
                begun = self._layers.table.commit_drafts(facts)
            finally:
                opened.close()
                for draft in reversed(begun):
                    self._layers.table.mark_unborn(draft.row)
                    self._layers.erase(draft.row, draft.driver_id)

    def _facts(
        self, draft: Draft, index: _Index, found: tuple[Usage, Digest | None], diff_id: Digest
    ) -> tuple[Draft, Facts]:
        usage, toc = found
        durable, labels = self._layers.durability != "none", {LABEL: index.origin.pack()}
        blob = index.origin.descriptor.digest
        return draft, Facts(usage, toc, diff_id, blob, durable, labels=labels)

    def _fill(
        self, drafts: Sequence[Draft], indexes: Sequence[_Index], opened: contextlib.ExitStack
    ) -> list[tuple[Usage, Digest | None]]:
        """Make the outlines of layers; gives what they occupy, and their tables of contents."""
        layers, driver = self._layers, self._driver
        below = layers.table.stack(drafts[0].row)[:-1]
        jobs: list[Job] = []
        for draft, index in zip(drafts, indexes, strict=True):
            toc = opened.enter_context(layers.blobs.ingest())
            stack = (*below, *(job.layer for job in jobs))
            jobs.append(Job(draft.driver_id, index.layer, index.origin, toc, stack))
        origins = {layer: Origin.unpack(layers.table.labels_of(layer)[LABEL]) for layer in below}
        setting = Setting.of(layers, self._sources.options)
        Outlines(setting, driver, below=origins, warn=self._warn).fill(jobs)
        found: list[tuple[Usage, Digest | None]] = []
        for job in jobs:
            assert job.filled is not None
            if isinstance(driver, Seals):
                driver.seal(job.layer)
            self._lease.add("blob", str(job.filled.toc))
            found.append((job.filled.usage, job.filled.toc))
        layers.sync()
        for job in jobs:
            job.toc.commit(synced=True)
        layers.blobs.sync_names()
        return found

    def _begin(
        self, drafts: Sequence[Draft], indexes: Sequence[_Index], opened: contextlib.ExitStack
    ) -> list[tuple[Usage, Digest | None]]:
        """Make what stands in the roots, and keep what the rest is made of (`driver.Unfinished`)."""
        layers, driver = self._layers, self._driver
        below = list(layers.table.stack(drafts[0].row)[:-1])
        found: list[tuple[Usage, Digest | None]] = []
        for draft, index in zip(drafts, indexes, strict=True):
            assert index.top is not None
            entries, layer = index.top.entries, draft.driver_id
            driver.bodies_list(layer).touch(0o600)
            with open(driver.unfinished(layer).kept, "xb") as kept:
                index.kept.write(kept)

            def unpack(
                directory: int, *, lower: Callable[[], int] | None, whiteouts: WhiteoutFormat,
                entries: Sequence[Entry] = entries,
            ) -> None:  # fmt: skip
                outline(
                    ((entry, None) for entry in entries), directory, leave_out=_leave, lower=lower,
                    whiteouts=whiteouts, budget=layers.budget, warn=self._warn,
                )  # fmt: skip

            driver.apply(layer, (), unpack)
            if below and not any(entry.path == b"" for entry in entries):
                driver.inherit(layer, below)
            if isinstance(driver, Seals):
                driver.seal(layer)
            below.append(layer)
            found.append((driver.usage(layer, ()), None))
        layers.sync()
        return found

    def _open(self, origin: Origin) -> _Index:
        layers = self._layers
        stored = layers.blobs.path(origin.descriptor.digest)
        blob = LazyBlob(origin, self._sources, stored=stored, budget=layers.budget)
        kept = KeptRanges(Parted(blob, self._parts, most=_PARTS_AT_ONCE))
        index = open_layer(kept, origin.descriptor, budget=layers.budget, warn=self._warn)
        if index is not None:
            return _Index(index, origin, kept, top_of_layer(index, budget=layers.budget))
        table = self._tables.find(origin.descriptor.digest)
        if table is None:
            if not stored.exists():
                self._fetch(origin)
            table = self._tables.build(origin.descriptor.digest)
        return _Index(blob.with_table(layers.blobs.path(table)), replace(origin, table=table), kept, None)

    def _fetch(self, origin: Origin) -> None:
        """Get the whole blob of a layer that cannot be read otherwise into the store."""
        descriptor, blobs = origin.descriptor, self._layers.blobs
        if not origin.places:
            raise NotFoundError(f"nobody is known to have {descriptor.digest}", hint="name a registry")
        self._warn(
            f"layer {descriptor.digest.hex[:12]} has no table of contents: all of its {descriptor.size} bytes"
            " are fetched"
        )
        self._lease.add("blob", str(descriptor.digest))
        with (
            self._sources.open(origin.places[0]).open(descriptor) as stream,
            Incoming(blobs, descriptor.digest, descriptor.size, stream) as incoming,
        ):
            incoming.finish()
            assert incoming.ingest is not None
            incoming.ingest.commit()


class _Index(NamedTuple):
    """The index of a layer: what was read of it, and what it says of the root, where that is enough."""

    layer: IndexedLayer
    origin: Origin
    kept: KeptRanges
    top: Top | None


def _can_wait(indexes: Sequence[_Index]) -> bool:
    """Say whether outlines can be made, and are better made, while the tree is looked at."""
    if os.geteuid() != 0:
        # Who has no privilege cannot move directories that he may not write.
        return False
    tops = [index.top for index in indexes]
    return sum(top.number for top in tops if top is not None) >= WAITING_FROM and None not in tops


def _leave(file: int) -> None:
    """Nothing is noted before the outline is made."""
