"""Turning the layers of an image, stored or on their way in, into committed layers of a driver.

Layers are unpacked as drafts under a lease, then brought to disk by one sync, then committed together
by one transaction: whatever happens before that leaves nothing but drafts, which the next opening
of the store removes. Where the driver allows it (`driver.Independent`), several are unpacked at once, each by
a process of its own.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from layerfs import failpoints, forking
from layerfs.blobs import Blobs, Ingest
from layerfs.compression import import_codecs
from layerfs.driver import Drafts, Driver, Independent, Seals
from layerfs.files import Lock
from layerfs.filling import Filled, Filling
from layerfs.flushing import Flusher
from layerfs.incoming import Incoming
from layerfs.layer_table import Draft, Facts, Layer, LayerTable, Step
from layerfs.leases import Lease
from layerfs.progress import Progress
from layerfs.tree.budget import Budget
from layerfs.value import replace
from layerfs.worker import Tell, Worker, listen

if TYPE_CHECKING:
    from layerfs.compression import Readable
    from layerfs.digest import Digest
    from layerfs.layers import Layers

# How many partial blobs are open at once: each is a file descriptor.
_OPEN_INGESTS: Final = 64
# Processes at once: more than there are processors, since layers differ in size and some wait for the disk;
# but each takes some 12 MB.
_MOST_WORKERS: Final = 6
# A blob of fewer bytes is unpacked sooner than a process is forked.
_WORTH_A_WORKER: Final = 1 << 17
# Bytes between two messages about progress.
_STEP: Final = 1 << 22


class _Job:
    """One layer being unpacked: what is open for it, and the process that does it, if one does."""

    def __init__(self, draft: Draft, below: Sequence[str], step: Step) -> None:
        self.draft = draft
        self.below = below
        self.step = step
        self.open = contextlib.ExitStack()
        self.lock: Lock
        self.filling: Filling
        self.incoming: Incoming | None = None
        self.advance: Callable[[int], object]
        self.worker: Worker[Filled] | None = None
        # Closed at its other end when the process is gone.
        self.gate = -1
        self.filled: Filled | None = None
        self.facts: Facts | None = None
        self.kept = False


class Unpacking:
    """The unpacking of one chain of layers; a context manager that removes what was not committed."""

    def __init__(
        self, layers: Layers, lease: Lease, *, budget: Budget, warn: Callable[[str], None], progress: Progress
    ) -> None:
        self._layers = layers
        self._table: LayerTable = layers.table
        self._blobs: Blobs = layers.blobs
        self._driver: Driver = layers.driver
        self._independent = layers.driver if isinstance(layers.driver, Independent) else None
        self._lease = lease
        self._budget = budget
        self._warn = warn
        self._progress = progress
        self._open = contextlib.ExitStack()
        self._jobs: list[_Job] = []
        self._running: list[_Job] = []
        # How many of the jobs are finished, with all below them.
        self._finished = 0
        # Whole and verified, to be made visible after a sync of them all.
        self._ingests: list[Ingest] = []
        # Stored for as long as they came, and not to be kept.
        self._passing: list[Ingest] = []
        self._begun: list[Draft] = []
        self._flusher: Flusher | None = None

    def __enter__(self) -> Unpacking:
        if self._layers.durability != "none":
            self._flusher = self._open.enter_context(Flusher(self._driver.root, self._blobs.root))
        return self

    def __exit__(self, *exception: object) -> None:
        for job in self._running:
            self._stop(job)
        for job in self._jobs:
            job.open.close()
        self._open.close()
        for draft in reversed(self._begun):
            failpoints.reach("layer.undo")
            self._table.mark_unborn(draft.row)
            self._layers.erase(draft.row, draft.driver_id)

    @property
    def begun(self) -> bool:
        """Whether there is anything to commit."""
        return bool(self._jobs)

    def begin(
        self,
        step: Step,
        name: str,
        parent: str | None,
        *,
        incoming: Incoming | None = None,
        advance: Callable[[int], object] | None = None,
        done: Callable[[], object] | None = None,
        alone: bool = False,
    ) -> None:
        """Unpack one layer on the one before it, on `parent` if it is the first; it may take until `commit`.

        Args:
            incoming: its blob, which is entered and left here and becomes visible with `commit`: whole if it
                is compressed, else as a skeleton; None if it is in the store.
            advance: told how many bytes of the blob were read; shown as progress of its own if left out.
            done: called when the blob was read, or given up.
            alone: no other layer comes after it.

        Raises:
            NotFoundError: the blob is not in the store.
            LayerError: this or another layer's stream cannot be accepted.
            VerificationError: an incoming blob or its uncompressed content is not the promised one.
        """
        job = self._add(step, name, parent)
        self._jobs.append(job)
        if done is not None:
            job.open.callback(done)
        self._get_ready(job, incoming)
        if advance is None:
            task = self._progress.task(f"unpack {step.diff_id.hex[:12]}", self._size(job))
            advance = job.open.enter_context(task)
        job.advance = advance
        alone = alone and not self._running
        if self._independent is None or alone or self._size(job) < _WORTH_A_WORKER or not self._fork(job):
            job.filled = job.filling.run(advance=advance, warn=self._warn, ready=self._wait)
            self._take(job)

    def wait(self, number: int) -> bool:
        """Wait for one layer, counted from 0 by `begin`.

        Returns:
            Whether its blob is kept; an uncompressed one that came in, and whose files are not all in the
            layer, is not.

        Raises as `begin` does.
        """
        job = self._jobs[number]
        while job in self._running:
            self._listen()
        return job.kept

    def commit(self) -> None:
        """Bring everything to disk, then make it visible."""
        drafts = self._finish()
        failpoints.reach("layer.commit")
        self._begun = self._table.commit_drafts(drafts)
        failpoints.reach("layer.committed")
        self._jobs = []

    def replace(self, layer: Layer, *, before: Callable[[Digest], object] | None = None) -> None:
        """Give a committed layer the files that were just unpacked instead of its own, which are removed.

        Args:
            before: called first, with the digest of the new table of contents, while the old files are there.
        """
        ((draft, facts),) = self._finish()
        if before is not None and facts.toc is not None:
            before(facts.toc)
        failpoints.reach("layer.replace")
        self._table.replace(layer, draft, facts)
        failpoints.reach("layer.replaced")
        # What was the draft now has the old files, and goes the way of every draft that is not needed.
        self._begun = [replace(draft, driver_id=layer.driver_id)]
        self._jobs = []

    def _finish(self) -> list[tuple[Draft, Facts]]:
        self._wait()
        self._commit_blobs()
        return [(job.draft, job.facts) for job in self._jobs if job.facts is not None]

    # -- one layer

    def _add(self, step: Step, name: str, parent: str | None) -> _Job:
        draft = self._table.add_draft(name, self._begun[-1] if self._begun else parent, self._lease)
        self._begun.append(draft)
        failpoints.reach("layer.drafted")
        self._lease.add("blob", str(step.blob))
        return _Job(draft, self._table.stack(draft.row)[:-1], step)

    def _get_ready(self, job: _Job, incoming: Incoming | None) -> None:
        """Have the driver make the layer, and open what it is filled from and what else is written."""
        layer = job.draft.driver_id
        job.lock = job.open.enter_context(self._layers.lock(layer))
        if self._independent is not None:
            # What is below may not be whole yet.
            self._driver.create(layer, ())
        elif isinstance(self._driver, Drafts):
            self._driver.draft(layer, job.below)
        else:
            self._driver.create(layer, job.below)
        failpoints.reach("layer.ready")
        # Partial blobs stay such until everything is synced at once.
        toc = self._open.enter_context(self._blobs.ingest())
        skeleton = None
        if incoming is not None:
            job.incoming = self._open.enter_context(incoming)
            whole = incoming.begun and incoming.kept is not None
            stream: Readable = incoming
        else:
            stream = job.open.enter_context(self._blobs.open(job.step.blob))
            # Else another layer gives it now, but need not be there as long as this one.
            whole = self._blobs.is_whole(job.step.blob)
        if not whole:
            skeleton = self._open.enter_context(self._blobs.ingest())
        job.filling = Filling(
            self._layers, layer, job.below, job.step, stream=stream, toc=toc, skeleton=skeleton,
            budget=self._budget,
        )  # fmt: skip

    def _size(self, job: _Job) -> int:
        return self._blobs.size(job.step.blob) if job.incoming is None else job.incoming.size

    def _take(self, job: _Job) -> None:
        """Take note of a layer that is filled."""
        filled, filling = job.filled, job.filling
        failpoints.reach("layer.filled")
        assert filled is not None
        self._lease.add("blob", str(filled.toc))
        self._ingests.append(filling.toc)
        durable = self._layers.durability != "none"
        facts = Facts(filled.usage, filled.toc, job.step.diff_id, job.step.blob, durable)
        if filled.skeleton is not None:
            assert filling.skeleton is not None
            self._lease.add("blob", str(filled.skeleton))
            self._ingests.append(filling.skeleton)
            facts = replace(facts, skeleton=filled.skeleton, blob_size=self._size(job))
        elif filling.skeleton is not None:
            filling.skeleton.discard()
            if job.incoming is None:
                self._keep_whole(job)
        if job.incoming is not None and job.incoming.ingest is not None:
            kept = filled.blob is not None
            (self._ingests if kept else self._passing).append(job.incoming.ingest)
        job.facts = facts
        job.kept = job.incoming is None or filled.blob is not None or filled.skeleton is not None
        job.open.close()
        self._finish_lowest()
        if len(self._ingests) + len(self._passing) >= _OPEN_INGESTS:
            self._commit_blobs()

    def _keep_whole(self, job: _Job) -> None:
        """Copy a blob that another layer gives, as this one cannot."""
        with self._blobs.open(job.step.blob) as again:
            incoming = self._open.enter_context(
                Incoming(self._blobs, job.step.blob, self._blobs.size(job.step.blob), again)
            )
            incoming.finish()
            assert incoming.ingest is not None
            self._ingests.append(incoming.ingest)

    def _finish_lowest(self) -> None:
        """Do what has to wait for the layers below."""
        while self._finished < len(self._jobs) and self._jobs[self._finished].facts is not None:
            job = self._jobs[self._finished]
            self._finished += 1
            layer = job.draft.driver_id
            with self._layers.lock(layer):
                if self._independent is not None and job.below and not (job.filled and job.filled.has_root):
                    failpoints.reach("layer.inherit")
                    self._independent.inherit(layer, job.below)
                failpoints.reach("layer.seal")
                if isinstance(self._driver, Seals):
                    self._driver.seal(layer)

    def _commit_blobs(self) -> None:
        """Sync all that was written so far, then make the blobs visible."""
        for ingest in self._passing:
            ingest.discard()
        self._passing.clear()
        failpoints.reach("layer.sync")
        if self._flusher is not None:
            self._flusher.sync()
        failpoints.reach("layer.synced")
        for ingest in self._ingests:
            ingest.commit(synced=True)
        for algorithm in {ingest.digest.algorithm for ingest in self._ingests}:
            self._blobs.sync_names(algorithm)
        self._ingests.clear()

    # -- processes

    def _fork(self, job: _Job) -> bool:
        """Have a layer filled by a process of its own, if one can be had and can read the blob."""
        processors = len(os.sched_getaffinity(0))
        if processors < 2:
            return False
        try:
            descriptors = job.filling.descriptors()
        except OSError:
            return False
        while len(self._running) >= min(_MOST_WORKERS, processors + 2):
            self._listen()
        below = [other.gate for other in self._running]
        if threading.active_count() > 1:
            import_codecs()
        with forking.alone:
            gate, end = os.pipe()
            try:
                job.worker = Worker(
                    lambda tell: job.filling.run_apart(
                        advance=_Steps(tell), warn=tell, ready=lambda: _wait_for_all(below)
                    ),
                    hear=lambda message: self._hear(job, message),
                    keep=[*descriptors, *below, end, job.lock.fileno()],
                )
            except OSError:
                os.close(gate)
                return False
            finally:
                os.close(end)
        job.gate = gate
        self._running.append(job)
        return True

    def _hear(self, job: _Job, message: object) -> None:
        if isinstance(message, int):
            job.advance(message)
        else:
            self._warn(str(message))

    def _wait(self) -> None:
        """Wait for all processes."""
        while self._running:
            self._listen()

    def _listen(self) -> None:
        """Wait until one of the processes tells something; take note of those that have ended."""
        listen([job.worker for job in self._running if job.worker is not None])
        for job in list(self._running):
            if job.worker is not None and not job.worker.running:
                # The lowest first: a layer that failed may have misled those above it.
                job.filled = job.worker.result()
                self._leave(job)
                job.filling.catch_up(job.filled)
                self._take(job)

    def _stop(self, job: _Job) -> None:
        assert job.worker is not None
        job.worker.end()
        job.filling.catch_up(None)
        os.close(job.gate)

    def _leave(self, job: _Job) -> None:
        self._running.remove(job)
        os.close(job.gate)


class _Steps:
    """Tells how much was read, in large steps."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._waiting = 0

    def __call__(self, count: int) -> None:
        self._waiting += count
        if self._waiting >= _STEP or (not count and self._waiting):
            self._tell(self._waiting)
            self._waiting = 0


def _wait_for_all(gates: Sequence[int]) -> None:
    """Wait until the processes at the other ends of these pipes are gone."""
    for gate in gates:
        poll = select.poll()
        poll.register(gate, 0)
        poll.poll()


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
        self._present = self._done = 0

    def __enter__(self) -> Chain:
        try:
            self._enter()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def _enter(self) -> None:
        names = self.names
        self._done = self._layers.table.present(names, self._lease)
        while self._done < len(names):
            # Whoever lacks any of these layers lacks this one too, and waits here.
            lacking = self._done
            digest = names[lacking].partition(":")[2]
            lock = self._open.enter_context(Lock(self._layers.root / "locks" / f"chain-{digest}"))
            self._open.callback(lock.path.unlink, missing_ok=True)
            self._done = self._layers.table.present(names, self._lease)
            if self._done == lacking:
                break
            # Somebody made a part of them while we waited; the next one may be in work elsewhere.
            self._open.close()
        self._present = self._done
        if self._done:
            self._parent = names[self._done - 1]
        if self._done < len(names):
            self._open.enter_context(self._new)

    def lacks(self, number: int) -> bool:
        """Say whether a layer, counted from 0 at the bottom, has still to be unpacked."""
        return number >= self._done

    def begin(
        self,
        number: int,
        incoming: Incoming,
        *,
        advance: Callable[[int], object] = lambda count: None,
        done: Callable[[], object] | None = None,
    ) -> None:
        """Begin to unpack a lacking layer while its blob comes in, as `Unpacking.begin` does."""
        self._begin_stored(number)
        self._begin_next(incoming, advance, done)

    def arrive(self, number: int, incoming: Incoming) -> bool:
        """Unpack a lacking layer while its blob comes in.

        Says whether the blob is kept, as `Unpacking.wait` does.
        """
        self.begin(number, incoming)
        return self.wait(number)

    def wait(self, number: int) -> bool:
        """Wait for a layer that was begun; says whether its blob is kept, as `Unpacking.wait` does."""
        return self._new.wait(number - self._present)

    def finish(self) -> None:
        """Unpack what is left and commit all."""
        if self.lacks(len(self.names) - 1) or self._new.begun:
            self._begin_stored(len(self.names))
            self._new.commit()

    def _begin_stored(self, end: int) -> None:
        while self._done < end:
            self._begin_next(None, None, None)

    def _begin_next(
        self,
        incoming: Incoming | None,
        advance: Callable[[int], object] | None,
        done: Callable[[], object] | None,
    ) -> None:
        number = self._done
        self._new.begin(
            self._steps[number], self.names[number], self._parent, incoming=incoming, advance=advance,
            done=done, alone=number + 1 == len(self.names),
        )  # fmt: skip
        self._done += 1
