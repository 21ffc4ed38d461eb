"""Fills layers with their outlines: names and attributes out of an index, and where each file's data is."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from layerfs.driver import Lazy, Usage
from layerfs.lazy.bodies_list import BodiesWriter, Body
from layerfs.lazy.fetching import Fetching, fetching_of
from layerfs.tree.absent import CAPABILITY, Mark
from layerfs.tree.extract import outline
from layerfs.tree.toc import TocWriter
from layerfs.worker import Worker, listen

if TYPE_CHECKING:
    from layerfs.blobs import Ingest
    from layerfs.digest import Digest
    from layerfs.lazy.origin import Origin
    from layerfs.lazy.setting import Setting
    from layerfs.seekable.layer import IndexedLayer
    from layerfs.tree.entry import Entry
    from layerfs.tree.whiteouts import WhiteoutFormat


class Filled(NamedTuple):
    """What came of a layer: what it occupies, its table of contents, and whether that told of the root."""

    usage: Usage
    toc: Digest
    has_root: bool


class Job:
    """One layer to be filled.

    Args:
        layer: the driver's id of it.
        toc: takes its table of contents; entered.
        below: the driver's ids of the layers below it, bottom first.
    """

    def __init__(
        self, layer: str, indexed: IndexedLayer, origin: Origin, toc: Ingest, below: Sequence[str]
    ) -> None:
        self.layer = layer
        self.indexed = indexed
        self.origin = origin
        self.toc = toc
        self.below = below
        self.worker: Worker[Filled] | None = None
        # Closed at its other end when the process is gone.
        self.gate = -1
        self.filled: Filled | None = None


class Outlines:
    """Fills layers of one stack, several at once where that is worth processes.

    Args:
        below: whence come the layers below the lowest one, by the driver's ids; data there may be absent.
        warn: told what was odd.
    """

    def __init__(
        self, setting: Setting, driver: Lazy, *, below: Mapping[str, Origin], warn: Callable[[str], None]
    ) -> None:
        self._setting = setting
        self._driver = driver
        self._below = below
        self._warn = warn

    def fill(self, jobs: Sequence[Job]) -> None:
        """Fill layers that the driver has empty, bottom first; each has its `filled` then.

        Raises:
            LayerError: an index is malformed.
            BudgetError: a layer asks for too much.
        """
        try:
            with self._knowing(jobs):
                self._run(jobs)
        finally:
            for job in jobs:
                if job.worker is not None:
                    job.worker.end()
        for job in jobs:
            assert job.filled is not None
            if job.below and not job.filled.has_root:
                self._driver.inherit(job.layer, job.below)

    @contextlib.contextmanager
    def _knowing(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Let layers that are filled look at those below without the database.

        That is the parent's, where they are filled by processes of their own.
        """
        driver = self._driver
        origins = {**self._below, **{job.layer: job.origin for job in jobs}}

        def fetching(lazy: Sequence[str]) -> Fetching:
            found = {layer: origins[layer] for layer in lazy}
            return fetching_of(found, setting=self._setting, driver=driver)

        before, driver.fetching = driver.fetching, fetching
        try:
            yield
        finally:
            driver.fetching = before

    def _run(self, jobs: Sequence[Job]) -> None:
        processors = len(os.sched_getaffinity(0))
        running: list[Job] = []
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

    def _fork(self, job: Job, below: Sequence[int]) -> bool:
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

    def _fill(self, job: Job, gates: Sequence[int], *, warn: Callable[[str], None] | None = None) -> Filled:
        """Make a layer's tree, the list of its bodies, and its table of contents.

        Args:
            gates: closed at their other ends when the layers below are whole.
            warn: told what was odd.
        """
        layer = job.layer
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
                    lower=None if lower is None else opens, whiteouts=whiteouts, budget=self._setting.budget,
                    warn=told, record=contents.add, squash=os.geteuid() != 0,
                )  # fmt: skip

            self._driver.apply(layer, job.below, unpack)
        contents.close()
        return Filled(self._driver.usage(layer, job.below), job.toc.digest, contents.has_root)


def _listen(running: list[Job]) -> None:
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
