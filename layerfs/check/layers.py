"""Checks the committed layers of one driver, several at once, and makes damaged ones anew."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from layerfs import failpoints
from layerfs.assembly import Assembly
from layerfs.blobs import Blobs
from layerfs.check.findings import REPAIR, Telling
from layerfs.check.layer_files import Compared, LayerFiles, found_at
from layerfs.check.refetching import Refetching
from layerfs.digest import Digest
from layerfs.driver import Lazy
from layerfs.errors import InUseError, LayerfsError, NotFoundError, VerificationError, printable
from layerfs.layers import Layer, Layers, State
from layerfs.progress import Progress
from layerfs.quarantine import Quarantine
from layerfs.worker import Worker, listen

# A process costs as much as looking at some thousand files.
_WORTH_A_PROCESS: Final = 5_000
# Each layer takes a descriptor for its lock.
_BATCH: Final = 256
_AGAIN: Final = "layerfs check --repair --from-registry, or pull or load the image again"
# What the disk has lost, or somebody has removed, cannot be kept.
_UNREADABLE: Final = frozenset({errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.ENOENT})

# What a process tells of a layer, by its row: what it compared, or in words why it could not.
Result = Compared | str


class LayersCheck:
    """The check of one driver's layers.

    Args:
        refetching: gets blobs from registries; None where none is to be asked.
        contents: read the data of every file.
        altered: rows of layers whose data has to be read whatever `contents` says.
    """

    def __init__(
        self,
        layers: Layers,
        blobs: Blobs,
        assembly: Assembly,
        telling: Telling,
        *,
        quarantine: Quarantine,
        refetching: Refetching | None,
        repair: bool,
        contents: bool,
        altered: set[int],
        progress: Progress,
    ) -> None:
        self._layers = layers
        self._blobs = blobs
        self._assembly = assembly
        self._telling = telling
        self._quarantine = quarantine
        self._refetching = refetching
        self._repair = repair
        self._contents = contents
        self._altered = altered
        self._progress = progress
        self._held: set[str] = set()
        # Of the layer that is being mended: how much of it is in the quarantine.
        self._kept = ""
        self.entries = 0

    def run(self) -> int:
        """Look at every layer of the driver; give how many there are."""
        self._held = set(self._layers.driver.layers())
        everything = list(self._layers.walk())
        committed = [layer for layer in everything if layer.state is State.COMMITTED]
        results: dict[int, Result] = {}
        with self._progress.task(f"check layers of {self._layers.driver.name}", len(committed)) as advance:
            for start in range(0, len(committed), _BATCH):
                results |= self._compare_together(committed[start : start + _BATCH], advance)
        mended: set[str] = set()
        for layer in committed:
            self._settle(layer, results.get(layer.row), mended)
        for layer in everything:
            matters = layer.state is State.ACTIVE or layer.parent is None
            if layer.state is not State.COMMITTED and matters and self._lacks_files(layer):
                self._tell_lost(layer)
        return len(everything)

    def check_one(self, layer: Layer) -> bool:
        """Look at one committed layer; say whether it is sound, maybe by a repair."""
        self._held = set(self._layers.driver.layers())
        problems = len(self._telling.problems)
        self._settle(layer, self._compare(layer), set())
        return all(problem.repaired for problem in self._telling.problems[problems:])

    def _tell_lost(self, layer: Layer) -> None:
        container = self._layers.table.container(layer.name)
        kind, subject = ("container", container) if container else ("layer", layer.name)
        what = f"the driver {self._layers.driver.name} has no files of it"
        self._telling.found(kind, subject, what, hint="remove the container; what it wrote is lost")

    # -- comparing

    def _compare_together(
        self, layers: Sequence[Layer], advance: Callable[[int], object]
    ) -> dict[int, Result]:
        """Compare layers, by processes of their own where that is worth it."""
        results: dict[int, Result] = {}

        def hear(message: object) -> None:
            assert isinstance(message, tuple)
            row, result = message
            results[row] = result
            advance(1)

        with contextlib.ExitStack() as held:
            ready = []
            for layer in layers:
                reason = self._unready(layer)
                if reason is not None:
                    if not self._is_unfinished(layer):
                        results[layer.row] = reason
                    continue
                try:
                    held.enter_context(self._layers.lock(layer.driver_id, shared=True, name=layer.name))
                except InUseError:
                    # It is being removed or made anew right now.
                    continue
                with contextlib.suppress(NotFoundError):  # it was removed meanwhile
                    ready.append((layer, self._layers.table.stack(layer.row)[:-1]))
            shares = _shares(ready)
            workers: list[Worker[None]] = []
            for share in shares[1:]:
                with contextlib.suppress(OSError):
                    worker: Worker[None] = Worker(
                        functools.partial(self._compare_share, share), hear=hear, keep=()
                    )
                    held.callback(worker.end)
                    workers.append(worker)
                    continue
                self._compare_share(share, hear)
            self._compare_share(shares[0], hear)
            while running := [worker for worker in workers if worker.running]:
                listen(running)
            for worker in workers:
                worker.result()
        return results

    def _compare_share(
        self, share: Iterable[tuple[Layer, tuple[str, ...]]], tell: Callable[[object], None]
    ) -> None:
        for layer, below in share:
            tell((layer.row, self._compare_files(layer, below)))

    def _compare(self, layer: Layer) -> Result:
        reason = self._unready(layer)
        if reason is not None:
            return reason
        with self._layers.lock(layer.driver_id, shared=True, name=layer.name):
            return self._compare_files(layer, self._layers.table.stack(layer.row)[:-1])

    def _unready(self, layer: Layer) -> str | None:
        if self._lacks_files(layer):
            return f"the driver {self._layers.driver.name} has no files of it"
        if layer.toc is None or not self._blobs.is_whole(layer.toc):
            return "its table of contents is missing"
        return None

    def _lacks_files(self, layer: Layer) -> bool:
        """Say whether the driver has nothing of a layer, which others may have made or removed by now."""
        if layer.driver_id in self._held or layer.driver_id in set(self._layers.driver.layers()):
            return False
        return self._is_there(layer)

    def _is_there(self, layer: Layer) -> bool:
        """Say whether a layer was neither removed nor replaced since it was looked up."""
        try:
            return self._layers.stat(layer.name).driver_id == layer.driver_id
        except NotFoundError:
            return False

    def _is_unfinished(self, layer: Layer) -> bool:
        """Say whether a lazy layer is still being made, so that nobody knows yet what belongs in it."""
        driver = self._layers.driver
        return (
            layer.toc is None
            and layer.driver_id in self._held
            and isinstance(driver, Lazy)
            and not driver.unfinished(layer.driver_id).is_whole
        )

    def _compare_files(self, layer: Layer, below: Sequence[str]) -> Result:
        assert layer.toc is not None
        contents = self._contents or layer.row in self._altered
        try:
            files = LayerFiles(
                self._layers, layer.driver_id, below, self._blobs.path(layer.toc), contents=contents
            )
            return files.compare()
        except (LayerfsError, OSError) as error:
            return f"it cannot be read: {error}"

    # -- repairing

    def _settle(self, layer: Layer, result: Result | None, mended: set[str]) -> None:
        """Tell what is wrong with a layer, and mend it; `mended` are the names of those that were by now."""
        if result is None:
            return
        if self._is_above(layer, mended):
            # Another layer below may have been all that was wrong, or have shared files with this one.
            self._held = set(self._layers.driver.layers())
            result = self._compare(layer)
            mended.add(layer.name)
        what = result if isinstance(result, str) else result.what
        self.entries += 0 if isinstance(result, str) else result.entries
        if what is None or not self._is_there(layer):
            return
        if not self._repair:
            self._telling.found("layer", layer.name, what, hint=REPAIR)
            return
        try:
            # First, as what is in the layer's directory goes with it.
            self._kept = self._keep_data(layer, result)
            how = self._mend(layer, keep=isinstance(result, str) and layer.driver_id in self._held)
        except (LayerfsError, OSError) as error:
            hint = f"{error}; {getattr(error, 'hint', None) or _AGAIN}"
            self._telling.found("layer", layer.name, what, hint=hint)
            return
        mended.add(layer.name)
        self._telling.repaired("layer", layer.name, what, how=how + self._kept)

    def _is_above(self, layer: Layer, names: set[str]) -> bool:
        return layer.parent is not None and layer.parent in names

    def _mend(self, layer: Layer, *, keep: bool) -> str:
        """Make a layer anew, from its blob, or from what a registry has, and say from which.

        Args:
            keep: nobody could say yet which of the files that are there are not the layer's.
        """
        before = functools.partial(self._keep_unknown, layer) if keep else None
        if layer.blob is None or layer.diff_id is None:
            if layer.driver_id in self._held and not (layer.toc and self._blobs.is_whole(layer.toc)):
                self._layers.describe(layer.name)
                return "its files as they are: a new table of contents was written"
            raise NotFoundError("it came from no blob", hint="remove it")
        failpoints.reach("check.layer")
        own = layer.skeleton is not None and not self._blobs.is_whole(layer.blob)
        try:
            self._layers.renew(layer.name, before=before)
            return "its skeleton and its other files" if own else "its blob"
        except (VerificationError, NotFoundError):
            if layer.skeleton is not None:
                # What it came from cannot be had from itself: it has to come in once more.
                self._assembly.drop(layer.row)
            if self._refetching is None:
                raise
        place = self._fetch(layer.blob)
        self._layers.renew(layer.name, before=before)
        return place

    def _fetch(self, blob: Digest) -> str:
        assert self._refetching is not None
        return self._refetching.fetch(blob)

    def _keep_unknown(self, layer: Layer, toc: Digest) -> None:
        """Keep what is no data of a layer by its new table of contents, where the old one was missing."""
        below = self._layers.table.stack(layer.row)[:-1]
        path = self._blobs.path(toc)
        try:
            result = LayerFiles(self._layers, layer.driver_id, below, path, contents=True).compare()
        except (LayerfsError, OSError):
            return  # then there is nothing that could be kept
        self._kept = self._keep_data(layer, result)

    def _keep_data(self, layer: Layer, result: Result) -> str:
        """Copy what is no data of the layer to the quarantine; say how much that is.

        Raises:
            LayerfsError, OSError: something cannot be copied that can be read.
        """
        if isinstance(result, str):
            return ""
        count = 0
        wrong = [one for one in result.wrong if one.keep]
        with self._opened(layer, wrong) as root:
            for path, _, _ in wrong:
                called = f"layer-{layer.driver_id}-{printable(path)}"
                try:
                    with found_at(root, path) as place:
                        if place is not None and self._quarantine.copy(called, *place) is not None:
                            count += 1
                except OSError as error:
                    if error.errno not in _UNREADABLE:
                        raise
        return f"; {count} of its files were copied to {self._quarantine.directory}" if count else ""

    @contextlib.contextmanager
    def _opened(self, layer: Layer, wrong: Sequence[object]) -> Iterator[int]:
        if wrong:
            with self._layers.opened(layer.name) as root:
                yield root
        else:
            yield -1


def _shares(
    layers: Sequence[tuple[Layer, tuple[str, ...]]],
) -> list[list[tuple[Layer, tuple[str, ...]]]]:
    """Share layers between as many processes as there are processors, by their files, the largest first."""
    count = len(os.sched_getaffinity(0))
    weights = [0] * count
    shares: list[list[tuple[Layer, tuple[str, ...]]]] = [[] for _ in range(count)]
    for layer, below in sorted(layers, key=lambda each: _files(each[0]), reverse=True):
        place = weights.index(min(weights))
        shares[place].append((layer, below))
        weights[place] += _files(layer)
    return shares if sum(weights) >= _WORTH_A_PROCESS else [list(layers)]


def _files(layer: Layer) -> int:
    return 1 if layer.usage is None else 1 + layer.usage.inodes
