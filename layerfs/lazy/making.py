"""Makes the layers of an image out of their tables of contents alone, committed together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from layerfs.digest import Digest
from layerfs.driver import Applies, Lazy, Seals, Usage
from layerfs.errors import NotFoundError, UnsupportedError
from layerfs.files import Lock
from layerfs.incoming import Incoming
from layerfs.layer_table import Draft, Facts
from layerfs.lazy.blob import LazyBlob, Sources
from layerfs.lazy.bodies_list import BodiesWriter, Body
from layerfs.lazy.origin import LABEL, Origin, layer_names
from layerfs.leases import Lease
from layerfs.seekable.layer import IndexedLayer, open_layer
from layerfs.tree.absent import Mark
from layerfs.tree.entry import Entry
from layerfs.tree.extract import outline
from layerfs.tree.toc import TocWriter
from layerfs.tree.whiteouts import WhiteoutFormat
from layerfs.value import replace

if TYPE_CHECKING:
    from layerfs.layers import Layers
    from layerfs.oci.config import ImageConfig
    from layerfs.oci.manifest import Manifest
    from layerfs.seekable.tables import Tables

# Indexes on their way at once: each takes some round trips and little else.
_INDEXES_AT_ONCE: Final = 8


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
        if not isinstance(layers.driver, Lazy) or not isinstance(layers.driver, Applies):
            raise UnsupportedError(
                f"the driver {layers.driver.name} cannot fetch files when they are read",
                hint="use --driver fuse, or mount without --lazy",
            )
        self._driver: Lazy = layers.driver

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
        layers, drafts = self._layers, []
        begun: list[Draft] = []
        with contextlib.ExitStack() as opened:
            pool = opened.enter_context(ThreadPoolExecutor(_INDEXES_AT_ONCE))
            indexes = [pool.submit(self._open, origin) for origin in origins[done:]]
            try:
                parent: str | Draft | None = names[done - 1] if done else None
                for number, index in enumerate(indexes, done):
                    indexed, origin = index.result()
                    labels = {LABEL: origin.pack()}
                    parent = layers.table.add_draft(names[number], parent, self._lease, labels=labels)
                    begun.append(parent)
                    toc = opened.enter_context(layers.blobs.ingest())
                    usage = self._fill(parent, indexed, toc.write)
                    self._lease.add("blob", str(toc.digest))
                    facts = Facts(
                        usage, toc.digest, diff_ids[number], origin.descriptor.digest,
                        layers.durability != "none", labels=labels,
                    )  # fmt: skip
                    drafts.append((parent, facts, toc))
                layers.sync()
                for _, _, toc in drafts:
                    toc.commit(synced=True)
                layers.blobs.sync_names()
                begun = layers.table.commit_drafts([(draft, facts) for draft, facts, _ in drafts])
            finally:
                for future in indexes:
                    future.cancel()
                for draft in reversed(begun):
                    layers.table.mark_unborn(draft.row)
                    layers.erase(draft.row, draft.driver_id)

    def _open(self, origin: Origin) -> tuple[IndexedLayer, Origin]:
        layers = self._layers
        stored = layers.blobs.path(origin.descriptor.digest)
        blob = LazyBlob(origin, self._sources, stored=stored, budget=layers.budget)
        index = open_layer(
            blob, origin.descriptor, budget=layers.budget, trusted=stored.exists(), warn=self._warn
        )
        if index is not None:
            return index, origin
        table = self._tables.find(origin.descriptor.digest)
        if table is None:
            if not stored.exists():
                self._fetch(origin)
            table = self._tables.build(origin.descriptor.digest)
        return blob.with_table(layers.blobs.path(table)), replace(origin, table=table)

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

    def _fill(self, draft: Draft, indexed: IndexedLayer, write: Callable[[bytes], object]) -> Usage:
        """Make a layer's tree, the list of its bodies, and its table of contents."""
        layers, layer = self._layers, draft.driver_id
        assert isinstance(layers.driver, Applies)
        below = layers.table.stack(draft.row)[:-1]
        with layers.lock(layer):
            layers.driver.create(layer, below)
            contents = TocWriter(write)
            with open(self._driver.bodies_list(layer), "xb") as file:
                outlining = _Outlining(indexed, BodiesWriter(file), self._driver.absent_mark())

                def unpack(
                    directory: int, *, lower: Callable[[], int] | None, whiteouts: WhiteoutFormat
                ) -> None:
                    outline(
                        outlining.entries(), directory, leave_out=outlining.leave_out, lower=lower,
                        whiteouts=whiteouts, budget=layers.budget, warn=self._warn, record=contents.add,
                        squash=os.geteuid() != 0,
                    )  # fmt: skip

                layers.driver.apply(layer, below, unpack)
            contents.close()
            if isinstance(layers.driver, Seals):
                layers.driver.seal(layer)
            return layers.measure(layer, below)


class _Outlining:
    """The entries of a layer on their way into its tree: notes where each file's data is to be had."""

    def __init__(self, indexed: IndexedLayer, bodies: BodiesWriter, mark: bytes) -> None:
        self._indexed = indexed
        self._bodies = bodies
        self._mark = mark
        self._body: Body | None = None

    def entries(self) -> Iterator[tuple[Entry, str | None]]:
        """Give the entries, one after the other."""
        for entry, digest, extent in self._indexed.entries():
            self._body = None if extent is None else Body(extent, digest)
            yield entry, digest

    def leave_out(self, file: int) -> None:
        """Mark a file of which the data is not here."""
        assert self._body is not None
        place, length = self._bodies.add(self._body)
        os.setxattr(file, self._mark, Mark(os.fstat(file).st_mtime_ns, place, length).pack())
