"""Removes the layers of an image together: the names in one transaction, the files by two processes.

Who does not want to wait leaves the files to a process of its own. It holds the layers' locks; whoever opens
the store finishes what it did not, and deletes the rows.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from typing import Final

from layerfs import failpoints
from layerfs.driver import Driver
from layerfs.errors import InUseError, LayerfsError, NotFoundError
from layerfs.layers import Layer, Layers
from layerfs.worker import Worker, detach, listen

# A process costs as much as the removal of some hundred files.
_WORTH_A_PROCESS: Final = 2_000
# Each layer takes a descriptor, and many processes may have no more than 1,024.
_BATCH: Final = 256


def remove_together(layers: Layers, names: Iterable[str], *, wait: bool = True) -> list[Layer]:
    """Remove layers that nothing else needs, children first, up to the first that is needed; give them.

    As after `Layers.remove` their names are free at once. Files that cannot be removed now, `Layers.finish`
    removes later.

    Args:
        names: each a child of the next one; what is not there is passed over.
        wait: until the files are gone, too; else many of them are left to another process.
    """
    waiting = list(names)
    removed: list[Layer] = []
    while waiting:
        batch, waiting = waiting[:_BATCH], waiting[_BATCH:]
        gone, needed = _remove_batch(layers, batch, wait=wait)
        removed += gone
        if needed:
            break
    return removed


def _remove_batch(layers: Layers, names: Iterable[str], *, wait: bool) -> tuple[list[Layer], bool]:
    """Remove layers; give them, and whether one was met that is needed."""
    with contextlib.ExitStack() as held:
        locks = {}
        free: list[Layer] = []
        needed = False
        for name in names:
            try:
                layer = layers.stat(name)
                locks[layer.row] = held.enter_context(layers.lock(layer.driver_id, name=name))
                layers.refuse_live(layer)
            except NotFoundError:
                continue
            except InUseError:
                needed = True
                break
            free.append(layer)
        failpoints.reach("layers.mark")
        marked = layers.table.mark_together(free)
        failpoints.reach("layers.marked")
        needed = needed or len(marked) < len(free)
        if not wait and sum(map(_files, marked)) >= _WORTH_A_PROCESS:
            keep = [locks[layer.row].fileno() for layer in marked]
            if detach(lambda: _remove_each(layers.driver, marked), keep=keep):
                return marked, needed
        gone = _delete_files(layers.driver, marked)
        failpoints.reach("layers.erased")
        layers.table.delete(*(layer.row for layer in gone))
        for layer in gone:
            # The id is never used again, and we hold the lock exclusively.
            locks[layer.row].path.unlink(missing_ok=True)
    return marked, needed or len(gone) < len(free)


def _delete_files(driver: Driver, layers: Sequence[Layer]) -> list[Layer]:
    """Delete the files of layers; give those that are gone, up to the first that is not."""
    ours, theirs = _halves(layers)
    with contextlib.ExitStack() as stack:
        if theirs and (os.cpu_count() or 1) > 1:
            # Without a process to be had we do all of it.
            with contextlib.suppress(OSError):
                worker: Worker[None] = Worker(
                    lambda tell: _remove_each(driver, theirs), hear=lambda message: None, keep=()
                )
                stack.callback(worker.end)
                _remove_each(driver, ours)
                while worker.running:
                    listen([worker])
        gone = []
        for layer in layers:
            # Again where it was done: that costs nothing, and tells what is in the way.
            try:
                driver.remove(layer.driver_id)
            except InUseError:
                break
            gone.append(layer)
    return gone


def _remove_each(driver: Driver, layers: Iterable[Layer]) -> None:
    for layer in layers:
        with contextlib.suppress(LayerfsError, OSError):
            driver.remove(layer.driver_id)


def _halves(layers: Sequence[Layer]) -> tuple[list[Layer], list[Layer]]:
    """Share layers between two processes by their files, the largest first; few files leave one with none."""
    halves: tuple[list[Layer], list[Layer]] = ([], [])
    weights = [0, 0]
    for layer in sorted(layers, key=_files, reverse=True):
        place = int(weights[1] < weights[0])
        halves[place].append(layer)
        weights[place] += _files(layer)
    return halves if sum(weights) >= _WORTH_A_PROCESS else (list(layers), [])


def _files(layer: Layer) -> int:
    return 0 if layer.usage is None else layer.usage.inodes
