"""Makes the outlines of layers that show their topmost names only, beside the server that shows them.

A process of its own does it, at a lower priority, and ends with the server; whatever it has done by then the
next mount of these layers does again, or goes on with. Only one process at a time is at a layer. It has no
database: what becomes known of a layer waits in a file until somebody who has one takes it over.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from layerfs.driver import Lazy, Usage
from layerfs.errors import StoreError
from layerfs.files import Lock
from layerfs.lazy.blob import LazyBlob
from layerfs.lazy.kept import read_kept
from layerfs.lazy.origin import Origin
from layerfs.lazy.outlines import Job, Outlines
from layerfs.lazy.setting import Setting
from layerfs.lazy.sources import Sources
from layerfs.leases import Lease
from layerfs.seekable.layer import open_layer
from layerfs.value import frozen

if TYPE_CHECKING:
    from layerfs.layers import Layers

_NICE: Final = 5
_PIECE: Final = 1 << 18


@frozen
class Unfinished:
    """Layers whose outlines are to be made; picklable.

    `stack` are the driver's ids of all layers of an image, bottom first, with `Origin.pack`; `layers` those
    of them that are meant.
    """

    setting: Setting
    driver: str
    stack: tuple[tuple[str, str], ...]
    layers: tuple[str, ...]

    def finish(self, show: Callable[[], object]) -> None:
        """Make the outlines; `show` returns when they may be shown. For a process that does nothing else.

        Raises:
            LayerfsError, OSError: they cannot be made.
        """
        from layerfs import plugins

        os.nice(_NICE)
        driver = plugins.load(self.driver, self.setting.root / "drivers")
        assert isinstance(driver, Lazy)
        with _locked(self.setting.root, self.layers):
            # Another process may have been first.
            _show(self.layers, self.setting, driver)
            left = [layer for layer in self.layers if not driver.unfinished(layer).is_whole]
            if left:
                self._make(left, driver)
            show()
            _show(left, self.setting, driver)

    def _make(self, left: Sequence[str], driver: Lazy) -> None:
        origins = {layer: Origin.unpack(packed) for layer, packed in self.stack}
        below = {layer: origin for layer, origin in origins.items() if layer not in left}
        order = list(origins)
        setting = self.setting
        with contextlib.ExitStack() as opened:
            sources = Sources(
                spool=tempfile.TemporaryFile, budget=setting.budget, warn=_ignore, options=setting.options
            )
            opened.enter_context(contextlib.closing(sources))
            jobs = []
            for layer in left:
                stored = setting.blobs.path(origins[layer].descriptor.digest)
                blob = LazyBlob(origins[layer], sources, stored=stored, budget=setting.budget)
                kept = read_kept(driver.unfinished(layer).kept, blob)
                indexed = open_layer(kept, origins[layer].descriptor, budget=setting.budget)
                if indexed is None:
                    raise StoreError(f"nothing is left of the index of layer {layer}")
                toc = opened.enter_context(setting.blobs.ingest())
                jobs.append(Job(layer, indexed, origins[layer], toc, order[: order.index(layer)]))
            for job in jobs:
                driver.unfinished(job.layer).begin()
            Outlines(setting, driver, below=below, warn=_ignore).fill(jobs)
            for job in jobs:
                _note(job, driver)
            setting.sync()
            for job in jobs:
                driver.unfinished(job.layer).note_whole()


def unfinished_of(origins: Mapping[str, Origin], *, setting: Setting, driver: Lazy) -> Unfinished | None:
    """Say which layers of a stack lack a part of their outlines; None if none does.

    Waits for another process that is at them. What only has to be shown is shown before this returns.

    Args:
        origins: of all its layers, by the driver's ids, bottom first.
    """
    left = [layer for layer in origins if not driver.unfinished(layer).is_whole]
    if left:
        with _locked(setting.root, left):
            _show(left, setting, driver)
            left = [layer for layer in left if not driver.unfinished(layer).is_whole]
    if not left:
        return None
    stack = tuple((layer, origin.pack()) for layer, origin in origins.items())
    return Unfinished(setting, driver.name, stack, tuple(left))


def take_over(layers: Layers) -> None:
    """Note in the database what processes without it have found out of layers."""
    driver = layers.driver
    if not isinstance(driver, Lazy):
        return
    for layer in layers.table.without_contents():
        found = driver.unfinished(layer).found
        with (
            contextlib.suppress(FileNotFoundError),
            open(found, "rb") as file,
            Lease(layers.table.database) as lease,
        ):
            usage = Usage(*json.loads(file.readline()))
            with layers.blobs.ingest() as toc:
                while data := file.read(_PIECE):
                    toc.write(data)
                lease.add("blob", str(toc.digest))
                toc.commit()
                layers.table.note_contents(layer, usage, toc.digest)
            found.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(root: Path, layers: Sequence[str]) -> Iterator[None]:
    """Be the only one who is at these layers; everybody locks from the bottom up."""
    with contextlib.ExitStack() as locks:
        for layer in layers:
            lock = locks.enter_context(Lock(root / "locks" / f"outline-{layer}"))
            locks.callback(lock.path.unlink, missing_ok=True)
        yield


def _note(job: Job, driver: Lazy) -> None:
    """Write down what is known now of a layer."""
    assert job.filled is not None
    found = driver.unfinished(job.layer).found
    part = found.with_suffix(".part")
    with open(part, "wb") as file:
        file.write(json.dumps(job.filled.usage).encode() + b"\n")
        offset = 0
        while data := job.toc.read_back(_PIECE, offset):
            file.write(data)
            offset += len(data)
    part.rename(found)


def _show(layers: Sequence[str], setting: Setting, driver: Lazy) -> None:
    """Show the outlines that are made of these layers."""
    moving = [layer for layer in layers if driver.unfinished(layer).is_moving]
    for layer in moving:
        driver.unfinished(layer).show()
    if moving:
        setting.sync()
    for layer in moving:
        driver.unfinished(layer).end()


def _ignore(words: str) -> None:
    """Nobody is there to be told."""
