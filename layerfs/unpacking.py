"""Turning the layers of an image, stored or on their way in, into committed layers of a driver.

Layers are unpacked as drafts under a lease, then brought to disk by one sync, then committed together
by one transaction: whatever happens before that leaves nothing but drafts, which the next opening
of the store removes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from layerfs import compression
from layerfs.blobs import Blobs, Ingest
from layerfs.digest import Digest
from layerfs.driver import Applies, Drafts, Driver, Seals, Unpack
from layerfs.errors import LayerError, VerificationError
from layerfs.files import Lock
from layerfs.flushing import Flusher
from layerfs.hashing import Hasher
from layerfs.incoming import Incoming
from layerfs.layer_table import Draft, Facts, Layer, LayerTable, Step
from layerfs.leases import Lease
from layerfs.progress import Progress, Silent
from layerfs.tree.budget import Budget
from layerfs.tree.extract import extract
from layerfs.tree.merge import unpack_in_place
from layerfs.tree.skeleton import SkeletonWriter
from layerfs.tree.toc import TocWriter
from layerfs.tree.whiteouts import WhiteoutFormat
from layerfs.value import replace

if TYPE_CHECKING:
    from layerfs.compression import Readable
    from layerfs.layers import Layers

# How many partial blobs are open at once: each is a file descriptor.
_OPEN_INGESTS = 64
# Pieces of 1 MiB to go on with while large files are hashed, or many small ones are made.
_AHEAD = 16


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
        self._drafts: list[tuple[Draft, Facts]] = []
        # Whole and verified, to be made visible after a sync of them all.
        self._ingests: list[Ingest] = []
        self._begun: list[Draft] = []
        self._flusher: Flusher | None = None

    def __enter__(self) -> Unpacking:
        if self._layers.durability != "none":
            self._flusher = self._open.enter_context(Flusher(self._driver.root, self._blobs.root))
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()
        for draft in reversed(self._begun):
            self._table.mark_unborn(draft.row)
            self._layers.erase(draft.row, draft.driver_id)

    @property
    def begun(self) -> bool:
        """Whether there is anything to commit."""
        return bool(self._drafts)

    def unpack(self, step: Step, name: str, parent: str | None, *, incoming: Incoming | None = None) -> bool:
        """Unpack one layer on the one before it, on `parent` if it is the first.

        Its blob is read from the store, or is the `incoming` one, which is entered and left here and
        becomes visible with `commit`: whole if it is compressed, else as a skeleton.

        Returns:
            Whether the blob is kept; an uncompressed one that came in, and whose files are not all in the
            layer, is not.

        Raises:
            NotFoundError: the blob is not in the store.
            LayerError: the layer's stream cannot be accepted.
            VerificationError: the incoming blob or its uncompressed content is not the promised one.
        """
        if incoming is not None:
            self._open.enter_context(incoming)
        draft = self._table.add_draft(name, self._begun[-1] if self._begun else parent, self._lease)
        self._begun.append(draft)
        self._lease.add("blob", str(step.blob))
        # The table of contents stays a partial blob until everything is synced at once.
        toc = self._open.enter_context(self._blobs.ingest())
        below = self._table.stack(draft.row)[:-1]
        with self._layers.lock(draft.driver_id):
            if isinstance(self._driver, Drafts):
                self._driver.draft(draft.driver_id, below)
            else:
                self._driver.create(draft.driver_id, below)
            if incoming is None:
                skeleton = self._fill_from_store(draft, below, step, toc)
            else:
                skeleton = self._fill_while_storing(draft, below, step, toc, incoming)
            if isinstance(self._driver, Seals):
                self._driver.seal(draft.driver_id)
            usage = self._layers.measure(draft.driver_id, below)
        facts = Facts(usage, toc.digest, step.diff_id, step.blob, self._layers.durability != "none")
        self._lease.add("blob", str(facts.toc))
        self._ingests.append(toc)
        if skeleton is not None:
            size = self._blobs.size(step.blob) if incoming is None else incoming.size
            facts = replace(facts, skeleton=skeleton.digest, blob_size=size)
            self._lease.add("blob", str(facts.skeleton))
            self._ingests.append(skeleton)
        self._drafts.append((draft, facts))
        if len(self._ingests) >= _OPEN_INGESTS:
            self._commit_blobs()
        return incoming is None or incoming.ingest is not None or skeleton is not None

    def commit(self) -> None:
        """Bring everything to disk, then make it visible."""
        self._commit_blobs()
        self._begun = self._table.commit_drafts(self._drafts)
        self._drafts = []

    def replace(self, layer: Layer) -> None:
        """Give a committed layer the files that were just unpacked instead of its own, which are removed."""
        self._commit_blobs()
        ((draft, facts),) = self._drafts
        self._table.replace(layer, draft, facts)
        # What was the draft now has the old files, and goes the way of every draft that is not needed.
        self._begun = [replace(draft, driver_id=layer.driver_id)]
        self._drafts = []

    def _commit_blobs(self) -> None:
        """Sync all that was written so far, then make the blobs visible."""
        if self._flusher is not None:
            self._flusher.sync()
        for ingest in self._ingests:
            ingest.commit(synced=True)
        for algorithm in {ingest.digest.algorithm for ingest in self._ingests}:
            self._blobs.sync_names(algorithm)
        self._ingests.clear()

    def _fill_from_store(self, draft: Draft, below: Sequence[str], step: Step, toc: Ingest) -> Ingest | None:
        size = self._blobs.size(step.blob)
        with self._blobs.open(step.blob) as file:
            if self._blobs.is_whole(step.blob):
                self._fill(draft, below, step, toc, None, file, size)
                return None
            # Another layer gives it now, but need not be there as long as this one.
            skeleton = self._open.enter_context(self._blobs.ingest())
            if self._fill(draft, below, step, toc, skeleton, file, size):
                return skeleton
        with self._blobs.open(step.blob) as again:
            incoming = self._open.enter_context(Incoming(self._blobs, step.blob, size, again))
            incoming.finish()
            self._keep(incoming)
        return None

    def _fill_while_storing(
        self, draft: Draft, below: Sequence[str], step: Step, toc: Ingest, incoming: Incoming
    ) -> Ingest | None:
        skeleton = None
        if incoming.ingest is None:
            skeleton = self._open.enter_context(self._blobs.ingest())
        try:
            known = incoming.ingest is None and step.diff_id == incoming.digest
            whole = self._fill(draft, below, step, toc, skeleton, incoming, incoming.size, known=known)
        except (LayerError, VerificationError):
            # A blob that was damaged on its way says so here, and is not gone on with the next time.
            incoming.finish()
            raise
        incoming.finish()
        self._keep(incoming)
        return skeleton if whole else None

    def _keep(self, incoming: Incoming) -> None:
        if incoming.ingest is not None:
            self._ingests.append(incoming.ingest)

    def _fill(
        self,
        draft: Draft,
        below: Sequence[str],
        step: Step,
        toc: Ingest,
        skeleton: Ingest | None,
        stream: Readable,
        size: int,
        *,
        known: bool = False,
    ) -> bool:
        """Unpack a stream; say whether it can be put together again, if a skeleton is wanted.

        `known` says that the stream is uncompressed, and compares itself with the diff id.
        """
        # What comes in is shown by whoever copies it.
        progress = Silent() if isinstance(stream, Incoming) else self._progress
        with progress.task(f"unpack {step.diff_id.hex[:12]}", size) as advance, Hasher() as hasher:
            contents = TocWriter(toc.write)
            plain = compression.open_decompressed(_Counted(stream.read, advance), budget=self._budget)
            hashed = None if known else _Hashed(plain.read, step.diff_id, hasher)
            # Inflating and hashing in threads of their own overlap with making files here.
            ahead = compression.readahead(hashed or plain, depth=_AHEAD)
            bones = None if skeleton is None else SkeletonWriter(ahead, skeleton.write)
            layer: Readable = ahead if bones is None else bones

            def unpack(directory: int, *, lower: Callable[[], int] | None, whiteouts: WhiteoutFormat) -> None:
                extract(
                    layer, directory, lower=lower, whiteouts=whiteouts, budget=self._budget, warn=self._warn,
                    record=contents.add, skeleton=bones, hasher=hasher, squash=os.geteuid() != 0,
                )  # fmt: skip

            try:
                if isinstance(self._driver, Applies):
                    self._driver.apply(draft.driver_id, below, unpack)
                else:
                    self._apply_through_mount(draft.driver_id, below, unpack)
                while layer.read(1 << 20):
                    pass
            finally:
                ahead.close()
                plain.close()
            if hashed is not None:
                hashed.verify()
            contents.close()
            if bones is not None:
                bones.close()
            return bones is not None and bones.whole

    def _apply_through_mount(self, driver_id: str, below: Sequence[str], unpack: Unpack) -> None:
        """Unpack through the layer's own mount, for drivers whose format is unknown here."""
        root = self._layers.open_root(self._driver.mount(driver_id, below, read_only=False))
        try:
            unpack_in_place(root, unpack)
        finally:
            os.close(root)


class Chain:
    """The layers of one image on their way into the store; a context manager.

    They are unpacked bottom first: each that comes in while it does (`arrive`), the others from their stored
    blobs. What is here already is not unpacked again. The new layers appear together, after one sync of them
    all, with `finish`, or not at all. A second process that wants the same layers waits when it
    enters, and then uses the first's.

    Raises:
        NotFoundError: entering or later: the parent or a blob is missing.
        LayerError: a layer's stream cannot be accepted.
        VerificationError: a layer's uncompressed content is not the promised one.
    """

    def __init__(
        self,
        layers: Layers,
        steps: Sequence[Step],
        lease: Lease,
        *,
        names: Sequence[str],
        parent: str | None,
        budget: Budget,
        warn: Callable[[str], None],
        progress: Progress,
    ) -> None:
        self._layers = layers
        self._steps = steps
        self.names = names
        self._parent = parent
        self._lease = lease
        self._new = Unpacking(layers, lease, budget=budget, warn=warn, progress=progress)
        self._open = contextlib.ExitStack()
        self._done = 0

    def __enter__(self) -> Chain:
        try:
            self._begin()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def _begin(self) -> None:
        names = self.names
        self._done = self._layers.table.present(names, self._lease)
        if self._done == len(names):
            return
        # Whoever lacks any of these layers lacks this one too, and waits here.
        digest = names[self._done].partition(":")[2]
        lock = self._open.enter_context(Lock(self._layers.root / "locks" / f"chain-{digest}"))
        self._open.callback(lock.path.unlink, missing_ok=True)
        self._done = self._layers.table.present(names, self._lease)
        if self._done:
            self._parent = names[self._done - 1]
        if self._done < len(names):
            self._open.enter_context(self._new)

    def lacks(self, number: int) -> bool:
        """Say whether a layer, counted from 0 at the bottom, has still to be unpacked."""
        return number >= self._done

    def arrive(self, number: int, incoming: Incoming) -> bool:
        """Unpack a lacking layer while its blob comes in; those below it are unpacked first.

        Says whether the blob is kept, as `Unpacking.unpack` does.
        """
        self._unpack_stored(number)
        return self._unpack(incoming)

    def finish(self) -> None:
        """Unpack what is left and commit all."""
        if self.lacks(len(self.names) - 1) or self._new.begun:
            self._unpack_stored(len(self.names))
            self._new.commit()

    def _unpack_stored(self, end: int) -> None:
        while self._done < end:
            self._unpack(None)

    def _unpack(self, incoming: Incoming | None) -> bool:
        number = self._done
        kept = self._new.unpack(self._steps[number], self.names[number], self._parent, incoming=incoming)
        self._done += 1
        return kept


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
    """A reader that has what passes hashed."""

    def __init__(self, read: Callable[[int], bytes], expected: Digest, hasher: Hasher) -> None:
        self._read = read
        self._expected = expected
        self._hasher = hasher
        self._hash = hasher.begin(expected.algorithm)

    def read(self, size: int, /) -> bytes:
        data = self._read(size)
        if data:
            self._hasher.update(self._hash, data)
        return data

    def verify(self) -> None:
        """Compare, once all was read."""
        self._hasher.end(self._hash)
        found = Digest(self._expected.algorithm, str(self._hash))
        if found != self._expected:
            raise VerificationError(
                f"the layer's uncompressed content is {found}, its diff id promises {self._expected}"
            )
