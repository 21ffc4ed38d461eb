"""Makes the layers of an image out of their tables of contents alone, committed together."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple

from layerfs.digest import Digest
from layerfs.driver import Lazy, Seals, Usage
from layerfs.errors import NotFoundError, UnsupportedError
from layerfs.files import Lock
from layerfs.incoming import Incoming
from layerfs.layer_table import Draft, Facts
from layerfs.lazy.blob import LazyBlob, Sources
from layerfs.lazy.bodies_list import BodiesWriter, Body
from layerfs.lazy.fetching import Fetching, fetching_of
from layerfs.lazy.origin import LABEL, Origin, layer_names
from layerfs.leases import Lease
from layerfs.seekable.layer import IndexedLayer, open_layer
from layerfs.tree.absent import CAPABILITY, Mark
from layerfs.tree.entry import Entry
from layerfs.tree.extract import outline
from layerfs.tree.toc import TocWriter
from layerfs.tree.whiteouts import WhiteoutFormat
from layerfs.value import replace
from layerfs.worker import Worker, listen

if TYPE_CHECKING:
    from layerfs.blobs import Ingest
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
        driver = layers.driver
        if not isinstance(driver, Lazy):
            raise UnsupportedError(
                f"the driver {driver.name} cannot fetch files when they are read",
                hint="use --driver fuse, or mount without --lazy",
            )
        self._driver = driver

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
        # All threads have ended before processes are forked.
        with ThreadPoolExecutor(_INDEXES_AT_ONCE) as pool:
            indexes = list(pool.map(self._open, origins[done:]))
        layers, jobs = self._layers, []
        begun: list[Draft] = []
        with contextlib.ExitStack() as opened:
            try:
                parent: str | Draft | None = names[done - 1] if done else None
                for name, (indexed, origin) in zip(names[done:], indexes, strict=True):
                    labels = {LABEL: origin.pack()}
                    parent = layers.table.add_draft(name, parent, self._lease, labels=labels)
                    begun.append(parent)
                    toc = opened.enter_context(layers.blobs.ingest())
                    opened.enter_context(layers.lock(parent.driver_id))
                    jobs.append(_Job(parent, indexed, origin, toc, layers.table.stack(parent.row)[:-1]))
                self._fill_all(jobs)
                facts = []
                for job, diff_id in zip(jobs, diff_ids[done:], strict=True):
                    assert job.filled is not None
                    usage, digest, _ = job.filled
                    self._lease.add("blob", str(digest))
                    durable, labels = layers.durability != "none", {LABEL: job.origin.pack()}
                    blob = job.origin.descriptor.digest
                    facts.append((job.draft, Facts(usage, digest, diff_id, blob, durable, labels=labels)))
                layers.sync()
                for job in jobs:
                    job.toc.commit(synced=True)
                layers.blobs.sync_names()
                begun = layers.table.commit_drafts(facts)
            finally:
                for job in jobs:
                    if job.worker is not None:
                        job.worker.end()
                opened.close()
                for draft in reversed(begun):
                    layers.table.mark_unborn(draft.row)
                    layers.erase(draft.row, draft.driver_id)

    def _fill_all(self, jobs: Sequence[_Job]) -> None:
        """Fill layers, several at once where that is worth processes."""
        for job in jobs:
            # What is below may not be whole yet.
            self._driver.create(job.draft.driver_id, ())
        with self._knowing(jobs):
            self._run(jobs)
        for job in jobs:
            assert job.filled is not None
            if job.below and not job.filled.has_root:
                self._driver.inherit(job.draft.driver_id, job.below)
            if isinstance(self._driver, Seals):
                self._driver.seal(job.draft.driver_id)

    @contextlib.contextmanager
    def _knowing(self, jobs: Sequence[_Job]) -> Iterator[None]:
        """Let layers that are made look at those below, whose data may be absent, without the database.

        That is the parent's, where they are made by processes of their own.
        """
        table, driver = self._layers.table, self._driver
        origins = {layer: Origin.unpack(table.labels_of(layer)[LABEL]) for layer in jobs[0].below}
        origins |= {job.draft.driver_id: job.origin for job in jobs}

        def fetching(lazy: Sequence[str]) -> Fetching:
            found = {layer: origins[layer] for layer in lazy}
            return fetching_of(found, layers=self._layers, driver=driver, options=self._sources.options)

        before, driver.fetching = driver.fetching, fetching
        try:
            yield
        finally:
            driver.fetching = before

    def _run(self, jobs: Sequence[_Job]) -> None:
        processors = len(os.sched_getaffinity(0))
        running: list[_Job] = []
        for job in jobs:
            apart = job.origin.table is None and len(jobs) > 1 and processors > 1
            if apart:
                while len(running) > processors:
                    _listen(running)
                apart = self._fork(job, [each.gate for each in running])
            if apart:
                running.append(job)
            else:
                while running:
                    _listen(running)
                job.filled = self._fill(job, ())
        while running:
            _listen(running)

    def _fork(self, job: _Job, below: Sequence[int]) -> bool:
        """Have a layer filled by a process of its own; False where there can be none."""
        job.gate, end = os.pipe()
        try:
            job.worker = Worker(
                lambda tell: self._fill(job, below, warn=tell),
                hear=lambda words: self._warn(str(words)),
                keep=[job.toc.fileno(), end, *below],
            )
        except OSError:
            os.close(job.gate)
            job.gate = -1
            return False
        finally:
            os.close(end)
        return True

    def _open(self, origin: Origin) -> tuple[IndexedLayer, Origin]:
        layers = self._layers
        stored = layers.blobs.path(origin.descriptor.digest)
        blob = LazyBlob(origin, self._sources, stored=stored, budget=layers.budget)
        index = open_layer(blob, origin.descriptor, budget=layers.budget, warn=self._warn)
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

    def _fill(self, job: _Job, gates: Sequence[int], *, warn: Callable[[str], None] | None = None) -> _Filled:
        """Make a layer's tree, the list of its bodies, and its table of contents.

        Args:
            gates: closed at their other ends when the layers below are whole.
            warn: told what was odd.
        """
        layers, layer = self._layers, job.draft.driver_id
        told = warn or self._warn
        contents = TocWriter(job.toc.write)
        with open(self._driver.bodies_list(layer), "xb") as file:
            outlining = _Outlining(job.indexed, BodiesWriter(file), self._driver.absent_mark())

            def unpack(directory: int, *, lower: Callable[[], int] | None, whiteouts: WhiteoutFormat) -> None:
                def opens() -> int:
                    assert lower is not None
                    _wait_for_all(gates)
                    return lower()

                outline(
                    outlining.entries(), directory, leave_out=outlining.leave_out,
                    lower=None if lower is None else opens, whiteouts=whiteouts, budget=layers.budget,
                    warn=told, record=contents.add, squash=os.geteuid() != 0,
                )  # fmt: skip

            self._driver.apply(layer, job.below, unpack)
        contents.close()
        return _Filled(self._driver.usage(layer, job.below), job.toc.digest, contents.has_root)


class _Filled(NamedTuple):
    """What came of a layer: what it occupies, its table of contents, and whether that told of the root."""

    usage: Usage
    toc: Digest
    has_root: bool


class _Job:
    """One layer being made."""

    def __init__(
        self, draft: Draft, indexed: IndexedLayer, origin: Origin, toc: Ingest, below: Sequence[str]
    ) -> None:
        self.draft = draft
        self.indexed = indexed
        self.origin = origin
        self.toc = toc
        self.below = below
        self.worker: Worker[_Filled] | None = None
        # Closed at its other end when the process is gone.
        self.gate = -1
        self.filled: _Filled | None = None


def _listen(running: list[_Job]) -> None:
    """Wait until a process tells something, and take what those have made that ended."""
    workers = [job.worker for job in running if job.worker is not None]
    listen(workers)
    for job in list(running):
        if job.worker is not None and not job.worker.running:
            running.remove(job)
            os.close(job.gate)
            job.filled = job.worker.result()
            job.toc.catch_up(job.filled.toc)


def _wait_for_all(gates: Sequence[int]) -> None:
    """Wait until the processes at the other ends of these pipes are gone."""
    for gate in gates:
        poll = select.poll()
        poll.register(gate, 0)
        poll.poll()


class _Outlining:
    """The entries of a layer on their way into its tree: notes where each file's data is to be had."""

    def __init__(self, indexed: IndexedLayer, bodies: BodiesWriter, mark: bytes) -> None:
        self._indexed = indexed
        self._bodies = bodies
        self._mark = mark
        self._body: Body | None = None
        self._capable = False

    def entries(self) -> Iterator[tuple[Entry, str | None]]:
        """Give the entries, one after the other."""
        for entry, digest, extent in self._indexed.entries():
            self._body = None if extent is None else Body(extent, digest)
            self._capable = CAPABILITY.encode() in entry.xattrs
            yield entry, digest

    def leave_out(self, file: int) -> None:
        """Mark a file of which the data is not here."""
        assert self._body is not None
        place, length = self._bodies.add(self._body)
        mark = Mark(os.fstat(file).st_mtime_ns, place, length)
        if self._capable and CAPABILITY in os.listxattr(file):
            # Writing the data will take it away (capabilities(7)).
            mark = mark._replace(capabilities=os.getxattr(file, CAPABILITY))
        os.setxattr(file, self._mark, mark.pack())
