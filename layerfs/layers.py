"""Layers: their life in the database, their files in the driver, and the mounts that show them.

The life of a layer, each arrow one transaction::

    (none | committed) --prepare--> active --commit--> committed      active --remove--> gone
    (none | committed) --view-----> view   --remove--> gone           committed --remove--> gone, if no
                                                                      child, no lease and no mount
    an image's layers come in as drafts (see `unpacking`) and are committed together

Who may do what to a layer's files is settled by one advisory lock per layer, ROOT/locks/DRIVER-ID:
exclusive while it is written, sealed or removed, and while a writable mount of it is made or held.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from layerfs import failpoints, linux
from layerfs.blobs import Blobs
from layerfs.database import Database, Durability
from layerfs.digest import Digest
from layerfs.driver import Configures, Diffs, Driver, Logs, Measures, Seals, Usage
from layerfs.errors import ExistsError, InUseError, InvalidError, LayerfsError, NotFoundError, OptionError
from layerfs.files import Lock
from layerfs.layer_table import Facts, Layer, LayerTable, State, Step, check_name
from layerfs.leases import Lease
from layerfs.ledger import Ledger, Record, shown
from layerfs.mount import Bind, Mount
from layerfs.mount_options import GENERAL, MountOptions
from layerfs.progress import Progress, Silent
from layerfs.tree.budget import DEFAULT_BUDGET, Budget

# In the table `meta`: that files whose owners have no id in the user namespace are given to root.
SQUASH_OWNERS = "squash_owners"

if TYPE_CHECKING:
    from layerfs.outside import Outside
    from layerfs.tree.change import Change
    from layerfs.tree.owners import Owners
    from layerfs.unpacking import Chain

_PATIENCE_SECONDS = 0.1
_ANSWER_SECONDS = 1.0

__all__ = ["Layer", "Layers", "State", "Step", "chain_ids"]


class Layers:
    """The layers of one store under one driver."""

    def __init__(
        self,
        root: Path,
        database: Database,
        blobs: Blobs,
        driver: Driver,
        *,
        durability: Durability = "commit",
        budget: Budget = DEFAULT_BUDGET,
        warn: Callable[[str], None] | None = None,
        outside: Outside | None = None,
    ) -> None:
        self.root = root
        self.blobs = blobs
        self.driver = driver
        self.durability = durability
        self.budget = budget
        self.table = LayerTable(database, driver.name)
        self.ledger = Ledger(database, outside)
        self._database = database
        self._warn = warn or (lambda text: None)
        self._outside = outside

    def squashing(self) -> Owners | None:
        """Give what decides about owners that have no id here, if the store gives their files to root."""
        if self._database.get(SQUASH_OWNERS) is None:
            return None
        from layerfs.tree.owners import Owners

        return Owners.here()

    # -- life

    def prepare(
        self,
        key: str,
        parent: str | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        lease: Lease | None = None,
    ) -> Layer:
        """Make an empty writable layer on a committed one, or on nothing; it is added to `lease` if given.

        Raises:
            ExistsError: the key is taken.
            NotFoundError: there is no such parent.
            InvalidError: the parent is not committed, or the key cannot be one.
        """
        return self._begin(key, parent, State.ACTIVE, labels or {}, lease)

    def view(self, key: str, parent: str | None = None, *, labels: Mapping[str, str] | None = None) -> Layer:
        """Give a committed layer a second, removable name under which it can only be looked at.

        Raises as `prepare` does.
        """
        return self._begin(key, parent, State.VIEW, labels or {}, None)

    def commit(self, key: str, name: str, *, labels: Mapping[str, str] | None = None) -> Layer:
        """Turn an active layer into a committed one: the key disappears as the name appears.

        Its table of contents is written, and its files are on disk, before that. `labels`, when given,
        replace those of the key.

        Raises:
            NotFoundError: there is no such key.
            InvalidError: it is not active.
            InUseError: it is mounted.
            ExistsError: the name is taken.
        """
        check_name(name)
        layer = self.table.find(key)
        if layer.state is not State.ACTIVE:
            raise InvalidError(f"layer {key!r} is {layer.state.value}; only an active one is committed")
        with self.lock(layer.driver_id, name=key), Lease(self._database) as lease:
            self.refuse_live(layer, writable_only=True)
            if self.table.has(name):
                raise ExistsError(f"there is a layer {name!r} already")
            below = self.table.stack(layer.row)[:-1]
            toc = self._write_toc(layer, below, lease)
            failpoints.reach("freeze.described")
            if isinstance(self.driver, Seals):
                self.driver.seal(layer.driver_id)
            usage = self.measure(layer.driver_id, below)
            failpoints.reach("freeze.sealed")
            self.sync()
            facts = Facts(usage, toc, durable=self.durability != "none")
            failpoints.reach("freeze.commit")
            self.table.commit(layer, name, facts, layer.labels if labels is None else labels)
        return self.table.find(name)

    def remove(self, name: str, *, containers: bool = True) -> None:
        """Remove a layer that nothing needs: the name is free at once, the files go after it.

        Args:
            name: its key or name.
            containers: False leaves it alone if it is a container's.

        Raises:
            NotFoundError: there is no such layer.
            InUseError: it has children, is leased or mounted, or an image needs it.
        """
        layer = self.table.find(name)
        with self.lock(layer.driver_id, name=name) as lock:
            self.refuse_live(layer)
            failpoints.reach("layer.remove")
            self.table.mark(layer, containers=containers)
            failpoints.reach("layer.marked")
            self._erase(layer.row, layer.driver_id, lock)

    def give_up(self, name: str) -> None:
        """Remove a committed layer that images need, but have with another driver, too; see `remove`."""
        layer = self.table.find(name)
        with self.lock(layer.driver_id, name=name) as lock:
            self.refuse_live(layer)
            self.table.mark(layer, doubled=True)
            self._erase(layer.row, layer.driver_id, lock)

    def finish(self) -> int:
        """Finish removals and drop drafts that a process left behind; give how many layers went.

        Removals under way elsewhere, and drafts of living leases, are left alone.
        """
        self.table.mark_abandoned()
        # A process may be at it for as long as a large layer takes.
        return sum(self.erase(row, driver_id, patient=False) for row, driver_id in self.table.marked())

    def stat(self, name: str) -> Layer:
        """Look a layer up by its key or name.

        Raises:
            NotFoundError: there is none.
        """
        return self.table.find(name)

    def has(self, name: str) -> bool:
        """Say whether there is a layer of that key or name."""
        return self.table.has(name)

    def walk(
        self,
        *,
        state: State | None = None,
        parent: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Iterator[Layer]:
        """Give the layers that match every filter, oldest first, as they were when the walk began."""
        return self.table.walk(state=state, parent=parent, labels=labels or {})

    def label(self, name: str, labels: Mapping[str, str | None]) -> Layer:
        """Set labels, or take away those whose value is None; the others stay.

        Raises:
            NotFoundError: there is no such layer.
        """
        self.table.label(name, labels)
        return self.table.find(name)

    # -- content

    def apply(
        self, blob: Digest, diff_id: Digest, *, parent: str | None = None, progress: Progress | None = None
    ) -> Layer:
        """Unpack one stored layer on a committed one, as `apply_all` does for several."""
        return self.apply_all([Step(blob, diff_id)], parent=parent, progress=progress)

    def apply_all(
        self, steps: Sequence[Step], *, parent: str | None = None, progress: Progress | None = None
    ) -> Layer:
        """Unpack stored layers, bottom first, into committed layers named by chain ids; give the top one.

        What is here already is not unpacked again. The new layers appear together, after one sync of
        them all, or not at all. A second process that wants the same layers waits and then uses the first's.

        Raises:
            NotFoundError: a blob or the parent is missing.
            LayerError: a layer's stream cannot be accepted.
            VerificationError: a layer's uncompressed content is not the promised one.
        """
        names = chain_ids((step.diff_id for step in steps), parent=parent)
        if names and (found := self.table.committed(names[-1])) is not None:
            return found
        with (
            Lease(self._database) as lease,
            self.chain(steps, lease, parent=parent, progress=progress) as chain,
        ):
            chain.finish()
            return self.table.find(names[-1])

    def chain(
        self,
        steps: Sequence[Step],
        lease: Lease,
        *,
        parent: str | None = None,
        progress: Progress | None = None,
    ) -> Chain:
        """Begin to unpack the layers of an image, some of which may still be on their way in; see `Chain`."""
        from layerfs.unpacking import Chain

        if not steps:
            raise InvalidError("a chain of layers has at least one")
        names = chain_ids((step.diff_id for step in steps), parent=parent)
        return Chain(
            self, steps, lease, names=names, parent=parent, budget=self.budget, warn=self._warn,
            progress=progress or Silent(),
        )  # fmt: skip

    def renew(self, name: str, *, before: Callable[[Digest], object] | None = None) -> None:
        """Unpack a damaged committed layer once more from its blob, and put that in its place.

        Args:
            before: called before that, with the digest of the new table of contents; what it raises keeps the
                old files where they are.

        Raises:
            NotFoundError: there is no such layer, or its blob is not here.
            InUseError: something is mounted: it could be this layer's damaged files.
        """
        from layerfs.unpacking import Unpacking

        layer = self.table.find(name)
        if layer.blob is None or layer.diff_id is None:
            raise NotFoundError(
                f"layer {name!r} came from no blob", hint="it cannot be repaired, only removed"
            )
        for record in self.ledger.all():
            if self.ledger.exists(record):
                raise InUseError(f"a layer is {record}", hint="unmount everything before a repair")
        with Lease(self._database) as lease:
            unpacking = Unpacking(self, lease, budget=self.budget, warn=self._warn, progress=Silent())
            with self.lock(layer.driver_id, name=name), unpacking:
                unpacking.begin(Step(layer.blob, layer.diff_id), name, layer.parent, alone=True)
                unpacking.replace(layer, before=before)
            # The old files could not be removed under our own lock.
        self.finish()

    def describe(self, name: str) -> None:
        """Write the table of contents of a committed layer anew, from its files as they are.

        Raises:
            NotFoundError: there is no such layer.
            InUseError: it is being made anew or removed.
        """
        layer = self.table.find(name)
        with self.lock(layer.driver_id, name=name), Lease(self._database) as lease:
            toc = self._write_toc(layer, self.table.stack(layer.row)[:-1], lease)
            self.table.describe(layer, toc)

    def changes(self, name: str) -> Iterator[Change]:
        """Give what a layer changes against the layers below it, in the order of `tree.diff`.

        Raises:
            NotFoundError: there is no such layer.
        """
        layer = self.table.find(name)
        if layer.state is State.VIEW:
            return iter(())
        return self.changes_of(layer.driver_id, self.table.stack(layer.row)[:-1])

    def usage(self, name: str) -> Usage:
        """Give the bytes and inodes that a layer occupies by itself; of a committed one as counted then."""
        layer = self.table.find(name)
        if layer.usage is not None:
            return layer.usage
        if layer.state is State.VIEW:
            return Usage(0, 0)
        return self.measure(layer.driver_id, self.table.stack(layer.row)[:-1])

    # -- mounts

    def mount(
        self,
        name: str,
        target: Path,
        *,
        read_only: bool = False,
        options: MountOptions = MountOptions(),  # noqa: B008  a frozen value
    ) -> None:
        """Mount a layer's tree on a directory, where it stays until `unmount`.

        A committed layer or a view can only be mounted `read_only`. An ordinary user's layerfs, in its user
        namespace, mounts outside of it.

        Raises:
            NotFoundError: no such layer.
            FileNotFoundError: no such directory.
            InUseError: the layer is mounted writable already, or `target` has a mount of this store.
            OptionError: the driver has not all of these options.
            UnsupportedError: an ordinary user cannot mount with this driver.
            MountError: the kernel refused.
        """
        from layerfs import mounting
        from layerfs.mount import Restricted

        read_only = read_only or options.read_only
        self.clear(self.ledger.at(target.resolve()))
        # Outside, what is dead may be gone by now, while the copy of it in our namespace stays.
        target = target.resolve(strict=self._outside is None)
        with self._reserved(name, target, read_only=read_only, held=False, options=options) as mount:
            if len(self.ledger.at(target)) > 0:
                raise InUseError(
                    f"{target} has a mount of this store already", hint=f"layerfs umount {target}"
                )
            if self._outside is not None:
                mounting.attach_outside(mount, target, self._outside, options.general)
                return
            added, cleared = options.attributes
            if added or cleared:
                mount = Restricted(mount.source, mount, added, cleared)
            mounting.attach(mount, target)

    def check_target(self, target: Path) -> None:
        """Refuse a directory where a mount would hide the store, or a part of it, from everybody.

        Raises:
            InvalidError: it is the store, in the store, or above it.
        """
        place, root = target.resolve(), self.root.resolve()
        if place.is_relative_to(root) or root.is_relative_to(place):
            raise InvalidError(
                f"a mount at {target} would hide the store {self.root}",
                hint="choose a directory that is neither in the store nor above it",
            )

    def unmount(self, target: Path, *, force: bool = False) -> None:
        """Unmount what `mount` put on a directory.

        With `force` a mount in use leaves the tree at once, with what is mounted beneath it, and ends with
        its last user.

        Raises:
            NotFoundError: nothing of this store is mounted there.
            InUseError: files below it are open, and there is no `force`.
        """
        target = target.resolve()
        found = self.ledger.at(target)
        if not found:
            raise NotFoundError(
                f"nothing of this store is mounted at {target}, as we see it",
                hint=next(
                    (
                        f"process {pid} sees one there, in another mount namespace"
                        for pid in self.ledger.private(target)
                    ),
                    None,
                ),
            )
        failpoints.reach("unmount.begin")
        try:
            self._detach(found[0], target, lazy=self.ledger.dead(found[0]))
        except InUseError:
            if not force:
                raise
            self._detach(found[0], target, lazy=True)
        failpoints.reach("unmount.detached")
        self.ledger.forget(found[0].id)

    def is_dead(self, target: Path) -> bool:
        """Say whether the server of what `mount` put on a directory was killed.

        One that does not answer within a second counts as living.
        """
        import threading

        found = self.ledger.at(target)
        if not found:
            return False
        answers: list[bool] = []
        # The system call cannot be given up; a thread can.
        asking = threading.Thread(target=lambda: answers.append(self.ledger.dead(found[0])), daemon=True)
        asking.start()
        asking.join(_ANSWER_SECONDS)
        return answers == [True]

    def clear(self, records: Iterable[Record]) -> list[Record]:
        """Take the mounts among these whose server was killed away; give the records of the others."""
        living = []
        for record in records:
            if not self.ledger.dead(record):
                living.append(record)
                continue
            target = os.fsdecode(record.target)
            self._detach(record, Path(target), lazy=True)
            self.ledger.forget(record.id)
            self._warn(f"the server of {target} had died; the mount is cleared away")
        return living

    def logs(self, name: str) -> list[Path]:
        """Give the files in which processes that served a layer wrote down errors of their own."""
        if not isinstance(self.driver, Logs):
            return []
        driver_id = self.table.find(name).driver_id
        return [
            log
            for log in self.driver.logs()
            if driver_id in log.parts and log.read_text(errors="replace").strip()
        ]

    def mounts(self, name: str) -> list[Record]:
        """Give the live mounts of a layer."""
        return self.ledger.live(self.table.find(name).row)

    @contextlib.contextmanager
    def held(self, name: str, *, read_only: bool = False) -> Iterator[Mount]:
        """Reserve a layer and give its Mount, for a caller who attaches it where only it can see it.

        A writable layer is reserved for one holder. The reservation ends with the block, or with the process.

        Raises:
            InUseError: the layer is mounted writable already.
        """
        with self._reserved(name, None, read_only=read_only, held=True) as mount:
            yield mount

    @contextlib.contextmanager
    def mounted(self, name: str, *, read_only: bool = False) -> Iterator[Path]:
        """Mount a layer's tree on a directory of the store's own for the length of a block, and give that.

        Raises as `mount` does.
        """
        from layerfs import mounting

        target = self.root.resolve() / "tmp" / f"mount-{os.urandom(8).hex()}"
        with self._reserved(name, target, read_only=read_only, held=True) as mount:
            target.mkdir(0o700)
            try:
                failpoints.reach("mount.directory")
                mounting.attach(mount, target)
                try:
                    yield target
                finally:
                    mounting.detach(target)
            finally:
                target.rmdir()

    @contextlib.contextmanager
    def opened(self, name: str, *, read_only: bool = True) -> Iterator[int]:
        """Open the root of a layer's tree for the length of a block and give its descriptor.

        Nothing is attached anywhere; but where the layer is mounted already, that mount is what is
        seen, and written.

        Raises:
            InUseError: it is to be written, and in use where this process cannot reach it.
        """
        layer = self.table.find(name)
        writable = self._writable(layer, read_only)
        with contextlib.ExitStack() as stack:
            busy: InUseError | None = None
            try:
                stack.enter_context(self.lock(layer.driver_id, shared=not writable, name=name))
            except InUseError as error:
                busy = error
            live = self._reachable(layer)
            if live is not None:
                root = os.open(live.target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            else:
                if writable and busy is not None:
                    raise busy
                if writable:
                    self.refuse_live(layer, writable_only=True)
                root = self.open_root(self._mount_of(layer, read_only=not writable))
            stack.callback(os.close, root)
            yield root

    def recover(self) -> None:
        """Take down mounts whose holders died, and forget those of earlier boots."""
        from layerfs import mounting

        for record in self.ledger.abandoned():
            if record.target and record.held:
                if self.ledger.exists(record):
                    with contextlib.suppress(LayerfsError):
                        mounting.detach(Path(os.fsdecode(record.target)))
                with contextlib.suppress(OSError):
                    os.rmdir(record.target)
            if not self.ledger.exists(record):
                self.ledger.forget(record.id)

    def lost(self) -> list[str]:
        """Name the writable layers without files: after a power failure one that was just made or removed.

        Neither is synced, so the row may come back alone.
        """
        # In this order: a layer has its files before it is active.
        active = list(self.walk(state=State.ACTIVE))
        held = set(self.driver.layers())
        return [layer.name for layer in active if layer.driver_id not in held]

    def _detach(self, record: Record, target: Path, *, lazy: bool) -> None:
        if self._outside is not None and self.ledger.is_outside(record):
            self._outside.unmount(str(target), lazy=lazy)
            return
        from layerfs import mounting

        mounting.detach(target, lazy=lazy)

    # -- parts that `unpacking`, `removing`, `garbage` and `check` use too

    def lock(self, driver_id: str, *, shared: bool = False, name: str | None = None) -> Lock:
        """Give a layer's lock, not yet taken; taking it raises InUseError when it is not free soon."""
        called = functools.partial(self.table.called, name)
        return _LayerLock(self.root / "locks" / driver_id, called, shared=shared)

    def refuse_live(self, layer: Layer, *, writable_only: bool = False) -> None:
        """Raise InUseError for a live mount; the caller holds the layer's lock exclusively."""
        for record in self.clear(self.ledger.live(layer.row, locked=True)):
            if not (writable_only and record.read_only):
                raise self.ledger.refusal(self.table.called(layer.name), record)

    def erase(self, row: int, driver_id: str, *, patient: bool = True) -> bool:
        """Delete a layer that is marked as removed; False when another process does so, or it must wait."""
        try:
            path = self.root / "locks" / driver_id
            with self.lock(driver_id) if patient else Lock(path, blocking=False) as lock:
                if not self.table.is_marked(row):
                    return False
                self._erase(row, driver_id, lock)
        except InUseError:
            return False
        return True

    def changes_of(self, driver_id: str, below: Sequence[str]) -> Iterator[Change]:
        """Give what a layer changes, by the ids that the driver has for it and for those below it."""
        if isinstance(self.driver, Diffs):
            return self.driver.changes(driver_id, below)
        return self._changes_between(driver_id, below)

    def measure(self, driver_id: str, below: Sequence[str]) -> Usage:
        """Count what a layer occupies by itself."""
        if isinstance(self.driver, Measures):
            return self.driver.usage(driver_id, below)
        size = inodes = 0
        for change in self.changes_of(driver_id, below):
            if change.directory >= 0:
                found = os.stat(change.name, dir_fd=change.directory, follow_symlinks=False)
                size += found.st_blocks * 512
                inodes += 1
        return Usage(size, inodes)

    def sync(self) -> None:
        """Bring the driver's file system to disk (syncfs(2)), if the store's durability asks for it."""
        if self.durability != "none":
            root = os.open(self.driver.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                linux.syncfs(root)
            finally:
                os.close(root)

    def lower(self, below: Sequence[str]) -> Callable[[], int] | None:
        """Give what opens the merged tree of a stack; None for the empty stack."""
        if not below:
            return None
        return lambda: self.open_root(self.driver.mount(below[-1], below[:-1], read_only=True))

    def open_root(self, mount: Mount) -> int:
        """Open the root of a mount that is attached nowhere."""
        if isinstance(mount, Bind):
            # The directory itself serves, and needs no privilege.
            return os.open(mount.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        from layerfs import mounting

        return mounting.open_mount(mount)

    # -- inner parts

    def _begin(
        self, key: str, parent: str | None, state: State, labels: Mapping[str, str], lease: Lease | None
    ) -> Layer:
        if state is State.VIEW and parent is not None:
            return self.table.add(key, state, parent, labels, None)[0]
        with contextlib.ExitStack() as stack:
            held = lease or stack.enter_context(Lease(self._database))
            layer, below = self.table.add(key, state, parent, labels, held)
            try:
                failpoints.reach("layer.added")
                self.driver.create(layer.driver_id, below)
                failpoints.reach("layer.created")
            except BaseException:
                self.table.mark_unborn(layer.row)
                self.erase(layer.row, layer.driver_id)
                raise
            self.table.activate(layer)
            failpoints.reach("layer.activated")
        return layer

    def _write_toc(self, layer: Layer, below: Sequence[str], lease: Lease) -> Digest:
        """Write the table of contents of a layer that did not come from a stream."""
        from layerfs.contents import record
        from layerfs.tree.toc import TocWriter

        with self.blobs.ingest() as ingest:
            toc = TocWriter(ingest.write)
            record(self.changes_of(layer.driver_id, below), toc.add)
            toc.close()
            lease.add("blob", str(ingest.digest))
            return ingest.commit()

    def _changes_between(self, driver_id: str, below: Sequence[str]) -> Iterator[Change]:
        from layerfs.tree.diff import changes_between

        lower = self.lower(below)
        with contextlib.ExitStack() as stack:
            upper = self.open_root(self.driver.mount(driver_id, below, read_only=True))
            stack.callback(os.close, upper)
            base = None
            if lower is not None:
                base = lower()
                stack.callback(os.close, base)
            yield from changes_between(base, upper)

    def _erase(self, row: int, driver_id: str, lock: Lock) -> None:
        self.driver.remove(driver_id)
        failpoints.reach("layer.erased")
        self.table.delete(row)
        failpoints.reach("layer.deleted")
        # The id is never used again, and we hold the lock exclusively.
        lock.path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _reserved(
        self,
        name: str,
        target: Path | None,
        *,
        read_only: bool,
        held: bool,
        options: MountOptions | None = None,
    ) -> Iterator[Mount]:
        """Lock and record a mount; the record goes with a held block, or with a failed one."""
        layer = self.table.find(name)
        writable = self._writable(layer, read_only)
        place = b"" if target is None else os.fsencode(target)
        with self.lock(layer.driver_id, shared=not writable, name=name):
            if writable:
                self.refuse_live(layer, writable_only=True)
            mount = self._mount_of(layer, read_only=not writable, options=options)
            outside = options is not None and self._outside is not None
            failpoints.reach("mount.record")
            record = self.ledger.record(
                layer.row, place, mount, read_only=not writable, held=held, outside=outside
            )
            done = False
            try:
                failpoints.reach("mount.recorded")
                yield mount
                done = True
            finally:
                if (held or not done) and (target is None or not _is_mount(target)):
                    self.ledger.forget(record)

    def _mount_of(self, layer: Layer, *, read_only: bool, options: MountOptions | None = None) -> Mount:
        stack = self.table.stack(layer.row)
        if layer.state is State.VIEW and len(stack) > 1:
            stack = stack[:-1]
        if options is not None and (options.own or self._outside is not None):
            if isinstance(self.driver, Configures):
                return self.driver.configured(stack[-1], stack[:-1], read_only=read_only, options=options.own)
            if options.own:
                known = ", ".join(GENERAL)
                raise OptionError(
                    f"the driver {self.driver.name} has no mount option {', '.join(map(repr, options.own))}",
                    hint=f"it takes {known}",
                )
        return self.driver.mount(stack[-1], stack[:-1], read_only=read_only)

    def _writable(self, layer: Layer, read_only: bool) -> bool:
        if not read_only and layer.state is not State.ACTIVE:
            raise InvalidError(
                f"layer {layer.name!r} is {layer.state.value}: it can only be mounted read-only"
            )
        return not read_only

    def _reachable(self, layer: Layer) -> Record | None:
        """Find a live writable mount of the layer that this process can look into."""
        from layerfs import mounting

        for record in self.clear(self.ledger.live(layer.row)):
            if not record.target or record.read_only or not self.ledger.near(record):
                continue
            # What is mounted outside need not have come to our namespace too.
            if not self.ledger.is_outside(record) or shown(record, mounting.mount_table()):
                return record
        return None


class _LayerLock(Lock):
    """A layer's lock, waited for no longer than others need to look at it; `called` names it in the error."""

    def __init__(self, path: Path, called: Callable[[], str], *, shared: bool) -> None:
        super().__init__(path, shared=shared, blocking=False)
        self._called = called

    def acquire(self) -> _LayerLock:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                super().acquire()
                return self
            except InUseError as error:
                if time.monotonic() > deadline:
                    raise InUseError(
                        f"{self._called()} is in use by another process or thread",
                        hint="layerfs ps shows what runs and what is mounted",
                    ) from error
            time.sleep(0.005)


def _is_mount(target: Path) -> bool:
    from layerfs import mounting

    return mounting.mounted(target) is not None


def chain_ids(diff_ids: Iterable[Digest], *, parent: str | None = None) -> list[str]:
    """Name each layer of a stack by everything below it too (image-spec config.md, "Layer ChainID")."""
    names = []
    for diff_id in diff_ids:
        if parent is None:
            parent = str(diff_id)
        else:
            parent = "sha256:" + hashlib.sha256(f"{parent} {diff_id}".encode()).hexdigest()
        names.append(parent)
    return names
