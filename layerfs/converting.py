"""Containers and images go from one driver to another, in place: verified before the old copy goes.

Where both drivers have one format (overlay2 and fuse), directories are renamed, or copied where something
else of the old driver still needs them. Else images' layers are unpacked from their blobs, and what a
container changed is written again; then both are compared, and one transaction says which of them counts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from layerfs.blobs import Blobs
from layerfs.database import Database
from layerfs.driver import Seals, Shares
from layerfs.errors import InUseError, NotFoundError, StoreError, UnsupportedError
from layerfs.layer_table import Draft, Facts
from layerfs.layers import Layer, Layers, State, Step, chain_ids
from layerfs.lazy.origin import PREFIX as LAZY
from layerfs.leases import Lease
from layerfs.progress import Progress
from layerfs.relocating import relocate, share_format
from layerfs.transferring import Place, compare_changes, compare_contents, compare_trees, transfer
from layerfs.value import frozen

if TYPE_CHECKING:
    from layerfs.containers import Container
    from layerfs.images import Image

# How often somebody may begin to use what was about to go.
_ATTEMPTS = 5


@frozen
class Converted:
    """What became of a container or an image.

    `renamed`, `copied` and `written` count the layers, a container's own among them, that went by a rename,
    were copied file by file, or were unpacked or written anew; `driver` had the others. `kept` says of former
    drivers why they have layers of it still.
    """

    kind: str
    name: str
    driver: str
    former: tuple[str, ...]
    renamed: int
    copied: int
    written: int
    kept: tuple[str, ...]


class Converting:
    """One conversion to one driver; see `Store.convert`."""

    def __init__(
        self,
        root: Path,
        database: Database,
        blobs: Blobs,
        target: Layers,
        *,
        warn: Callable[[str], None],
        progress: Progress,
    ) -> None:
        self._root = root
        self._database = database
        self._blobs = blobs
        self._target = target
        self._warn = warn
        self._progress = progress
        self._renamed = self._copied = self._written = 0
        self._kept: list[str] = []

    def container(self, container: Container, source: Layers) -> Converted:
        """Convert a container, which is of the driver of `source`, with what it alone needs there."""
        called = f"container {container.name}"
        if source is self._target:
            return self._result("container", container.name, ())
        if container.status == "running":
            raise InUseError(f"{called} is running", hint=f"layerfs stop {container.name}")
        layer = source.stat(container.id)
        chain = source.table.ancestors(layer)
        if any(each.name.startswith(LAZY) for each in chain):
            raise UnsupportedError(
                f"{called} was made with --lazy, and is the driver {source.driver.name}'s",
                hint="pull its image and commit the container; then convert the new image",
            )
        with Lease(self._database) as lease, source.lock(layer.driver_id, name=layer.name):
            source.refuse_live(layer)
            if share_format(source.driver, self._target.driver):
                self._relocate(source, [*chain, layer], lease)
            else:
                self._bring(source, chain, lease)
                self._rewrite(source, layer, lease, called)
        source.finish()
        self._drop(source, chain)
        return self._result("container", container.name, (source.driver.name,))

    def image(self, image: Image, name: str, sources: Sequence[Layers]) -> Converted:
        """Convert an image's layers, which the drivers of `sources` may have."""
        former = []
        with Lease(self._database) as lease:
            lease.add("image", str(image.digest))
            for source in sources:
                if source is self._target:
                    continue
                # What another conversion takes away meanwhile, its blobs give.
                with contextlib.suppress(NotFoundError):
                    chain = [source.stat(each) for each in image.chain_ids if source.has(each)]
                    if not chain:
                        continue
                    if share_format(source.driver, self._target.driver):
                        self._relocate(source, chain, lease)
                    else:
                        self._bring(source, chain, lease)
                    former.append((source, chain))
            pairs = zip(image.manifest.layers, image.config.diff_ids, strict=True)
            steps = [Step(layer.digest, diff_id) for layer, diff_id in pairs]
            if steps and not self._target.has(image.chain_ids[-1]):
                self._unpack(steps, lease)
        for source, chain in former:
            self._drop(source, chain)
        return self._result("image", name, tuple(source.driver.name for source, _ in former))

    def _result(self, kind: str, name: str, former: tuple[str, ...]) -> Converted:
        return Converted(
            kind, name, self._target.driver.name, former, self._renamed, self._copied, self._written,
            tuple(self._kept),
        )  # fmt: skip

    # -- drivers of one format

    def _relocate(self, source: Layers, layers: Sequence[Layer], lease: Lease) -> None:
        """Rename the topmost of these layers, as many as nothing else needs, and copy those below."""
        for attempt in range(_ATTEMPTS):
            with contextlib.ExitStack() as locks:
                going = self._free(source, layers, locks)
                staying = layers[: len(layers) - len(going)]
                self._bring(source, [each for each in staying if each.state is State.COMMITTED], lease)
                if not going:
                    return
                parent = staying[-1].name if staying else None
                try:
                    relocate(self._database, self._root, source, self._target, going, parent=parent)
                except InUseError:
                    # Somebody was faster; now it is known what is needed.
                    if attempt == _ATTEMPTS - 1:
                        raise
                    continue
                self._renamed += len(going)
                return

    def _free(self, source: Layers, layers: Sequence[Layer], locks: contextlib.ExitStack) -> list[Layer]:
        """Give the topmost of these layers that nothing else needs, bottom first, and lock them."""
        going: list[Layer] = []
        rows: set[int] = set()
        for layer in reversed(layers):
            if layer.state is State.COMMITTED:
                if self._target.has(layer.name) or source.table.needed(layer, besides=rows):
                    break
                try:
                    locks.enter_context(source.lock(layer.driver_id, name=layer.name))
                    source.refuse_live(layer)
                except InUseError:
                    break
            going.append(layer)
            rows.add(layer.row)
        return going[::-1]

    # -- committed layers

    def _bring(self, source: Layers, chain: Sequence[Layer], lease: Lease) -> None:
        """See that the target has these layers of a stack, bottom first, and lease them here and there."""
        names = [layer.name for layer in chain]
        lease.add("layer", *(layer.driver_id for layer in chain))
        for layer in chain:
            source.stat(layer.name)
        done = self._target.table.present(names, lease)
        missing = chain[done:]
        if not missing:
            return
        if not share_format(source.driver, self._target.driver) and (steps := self._steps(chain)):
            self._unpack(steps, lease)
            top = Place(self._target, *self._ids(self._target, chain[-1].name))
            compare_trees(Place(source, *self._ids(source, chain[-1].name)), top, f"layer {chain[-1].name}")
        else:
            for layer in missing:
                self._make(source, layer, lease)
        self._target.table.present(names, lease)

    def _steps(self, chain: Sequence[Layer]) -> list[Step] | None:
        """Say how layers are unpacked from their blobs; None where that cannot be done."""
        steps = []
        for layer in chain:
            if layer.blob is None or layer.diff_id is None or not self._blobs.has(layer.blob):
                return None
            steps.append(Step(layer.blob, layer.diff_id))
        names = [layer.name for layer in chain]
        return steps if chain_ids(step.diff_id for step in steps) == names else None

    def _unpack(self, steps: Sequence[Step], lease: Lease) -> None:
        names = chain_ids(step.diff_id for step in steps)
        before = {name for name in names if self._target.has(name)}
        with self._target.chain(steps, lease, progress=self._progress) as unpacked:
            unpacked.finish()
        for name in names:
            if name not in before:
                layer = self._target.stat(name)
                compare_contents(layer, Place(self._target, *self._ids(self._target, name)), f"layer {name}")
                self._written += 1

    def _make(self, source: Layers, layer: Layer, lease: Lease) -> None:
        """Copy a committed layer, or write it again, on its parent that the target has."""
        target = self._target
        if layer.toc is None:
            raise StoreError(f"layer {layer.name!r} has no table of contents", hint="layerfs check --repair")
        lease.add(
            "blob", *(str(each) for each in (layer.toc, layer.skeleton, layer.blob) if each is not None)
        )
        with self._draft(layer, lease) as draft:
            old = Place(source, *self._ids(source, layer.name))
            new = Place(target, draft.driver_id, target.table.stack(draft.row)[:-1])
            copied = self._copy(old, new)
            if copied:
                compare_changes(old, new, f"layer {layer.name}")
                compare_contents(layer, new, f"layer {layer.name}")
            else:
                self._write(old, new, f"layer {layer.name}")
            if isinstance(target.driver, Seals):
                target.driver.seal(draft.driver_id)
            facts = Facts(
                target.measure(draft.driver_id, new.below), layer.toc, layer.diff_id, layer.blob,
                target.durability != "none", layer.skeleton, source.table.blob_size(layer),
                dict(layer.labels),
            )  # fmt: skip
            target.sync()
            if not target.table.commit_drafts([(draft, facts)]):
                self._copied += copied
                self._written += not copied

    # -- a container's own layer

    def _rewrite(self, source: Layers, layer: Layer, lease: Lease, called: str) -> None:
        """Write what a container changed again, compare, and let the container have that."""
        target = self._target
        with self._draft(layer, lease) as draft:
            old = Place(source, *self._ids(source, layer.name))
            new = Place(target, draft.driver_id, target.table.stack(draft.row)[:-1])
            self._write(old, new, called)
            target.sync()
            source.table.supersede(layer, draft, driver=target.driver.name)
            self._written += 1

    # -- parts

    @contextlib.contextmanager
    def _draft(self, layer: Layer, lease: Lease) -> Iterator[Draft]:
        """Add a draft on what the target has of a layer's parent; what is still one in the end is removed."""
        target = self._target
        draft = target.table.add_draft(layer.name, layer.parent, lease)
        try:
            with target.lock(draft.driver_id):
                yield draft
        finally:
            if target.table.is_draft(draft.row):
                target.table.mark_unborn(draft.row)
                target.erase(draft.row, draft.driver_id)

    def _copy(self, old: Place, new: Place) -> bool:
        """Copy a layer's directory; False where it has to be written again."""
        source, target = old.layers.driver, new.layers.driver
        if not share_format(source, target):
            return False
        assert isinstance(source, Shares) and isinstance(target, Shares)
        return target.copy_from(new.driver_id, source.place(old.driver_id), new.below, warn=self._warn)

    def _write(self, old: Place, new: Place, called: str) -> None:
        """Write a layer's changes again, and compare."""
        new.layers.driver.create(new.driver_id, new.below)
        with self._progress.task(f"convert {called}", None) as advance:
            transfer(old, new, warn=self._warn, advance=advance)
        compare_trees(old, new, called)

    def _ids(self, layers: Layers, name: str) -> tuple[str, tuple[str, ...]]:
        stack = layers.table.stack(layers.stat(name).row)
        return stack[-1], stack[:-1]

    def _drop(self, source: Layers, chain: Sequence[Layer]) -> None:
        """Remove what the target has by now, the topmost first, down to what the old driver needs."""
        for layer in reversed(chain):
            try:
                source.give_up(layer.name)
            except NotFoundError:
                continue
            except InUseError as error:
                self._kept.append(f"{source.driver.name}: {error}")
                return
