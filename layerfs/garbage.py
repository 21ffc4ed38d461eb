"""Garbage collection: what may go, what stays and why; and what everything occupies.

What stays: an image with a name or a container, a layer that an image, a child, a container or a user of
the library needs, a blob that an image or a layer refers to, everything under a living process's
lease, and what is younger than the grace period.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from layerfs import failpoints, leases
from layerfs.blobs import Blobs
from layerfs.database import Database
from layerfs.digest import Digest
from layerfs.directories import LayerDirectories, occupied
from layerfs.driver import Sweeps
from layerfs.errors import InUseError, InvalidError, NotFoundError
from layerfs.layers import Layers
from layerfs.leases import leased
from layerfs.leftovers import Leftovers, is_due, is_locked
from layerfs.removing import remove_together
from layerfs.value import frozen

GRACE_SECONDS: Final = 3600.0
_YOUNG: Final = "younger than the grace period"
_CONTAINER_ID: Final = re.compile("[0-9a-f]{64}")


class Item(NamedTuple):
    """One thing that was looked at: what it is, what it occupies in bytes, whether it goes, and why (not)."""

    kind: str
    name: str
    bytes: int
    removed: bool
    reason: str


@frozen
class Report:
    """What a collection did, or would do in a dry run."""

    items: tuple[Item, ...]
    dry_run: bool

    @property
    def removed(self) -> tuple[Item, ...]:
        """What goes."""
        return tuple(item for item in self.items if item.removed)

    @property
    def kept(self) -> tuple[Item, ...]:
        """What stays."""
        return tuple(item for item in self.items if not item.removed)

    @property
    def young(self) -> tuple[Item, ...]:
        """What stays though nothing needs it, as it is younger than the grace period."""
        return tuple(item for item in self.items if item.reason == _YOUNG)

    @property
    def freed(self) -> int:
        """The bytes of what goes."""
        return sum(item.bytes for item in self.removed)


class Garbage:
    """The collector of one store; `all_layers` gives the layers of every driver."""

    def __init__(
        self, root: Path, database: Database, blobs: Blobs, *, all_layers: Callable[[], Sequence[Layers]]
    ) -> None:
        self._root = root
        self._database = database
        self._blobs = blobs
        self._all_layers = all_layers

    def collect(self, *, dry_run: bool = False, grace: float = GRACE_SECONDS) -> Report:
        """Remove what nothing needs and is older than `grace` seconds; safe in several processes at once."""
        leases.expire(self._database)
        failpoints.reach("gc.begin")
        before = time.time() - grace
        items: list[Item] = []
        drivers = self._all_layers()
        if not dry_run:
            # Where drivers are tried.
            LayerDirectories(self._root / "drivers").sweep()
            for layers in drivers:
                layers.recover()
                layers.clear(layers.ledger.all())
                layers.ledger.forget_stale()
                left = _left(layers)
                if isinstance(layers.driver, Sweeps):
                    layers.driver.sweep()
                items += [item for item in left if not os.path.lexists(layers.driver.root / item.name)]
                gone = layers.finish()
                items += [Item("layer", "half-made or half-removed", 0, True, "left behind")] * gone
        else:
            items += self._half_made()
            items += [item for layers in drivers for item in _left(layers)]
        failpoints.reach("gc.images")
        gone_images = self._images(items, before, dry_run=dry_run)
        gone_indexes = self._indexes(items, before, dry_run=dry_run)
        failpoints.reach("gc.layers")
        gone_layers: set[int] = set()
        for layers in drivers:
            gone_layers |= self._layers(layers, items, gone_images, before, dry_run=dry_run)
        failpoints.reach("gc.blobs")
        self._unused_blobs(items, gone_images | gone_indexes, gone_layers, before, dry_run=dry_run)
        for layers in drivers:
            self._orphans(layers, items, before, dry_run=dry_run)
        self._leftovers(items, before, dry_run=dry_run)
        if not dry_run:
            self._logs()
        return Report(tuple(items), dry_run)

    def reclaim(self, chain_ids: Iterable[str], blobs: Iterable[Digest], *, wait: bool) -> list[str]:
        """Remove what a deleted image needed and nothing else does, at once; say so in docker's lines.

        Args:
            chain_ids: of its layers, bottom first.
            blobs: its manifest, config and layers.
            wait: see `removing.remove_together`.
        """
        lines = []
        candidates = set(blobs) | self._unnamed_indexes()
        names = list(chain_ids)[::-1]
        for layers in self._all_layers():
            # Where one is needed, what lies below is needed too.
            for layer in remove_together(layers, names, wait=wait):
                candidates |= {blob for blob in (layer.blob, layer.toc, layer.skeleton) if blob is not None}
                lines.append(f"Deleted: {layer.name}")
        for blob in candidates:
            self._remove_blob(blob)
        return lines

    def _unnamed_indexes(self) -> set[Digest]:
        """Remove the indexes that have no name any more; give the blobs that they needed."""
        unnamed = "SELECT digest FROM indexes WHERE digest NOT IN (SELECT digest FROM index_tags)"
        blobs = set()
        for (digest,) in self._database.rows(unnamed):
            rows = self._database.rows("SELECT blob FROM index_links WHERE digest = ?", digest)
            if self._delete_index(digest):
                blobs |= {Digest.parse(blob) for (blob,) in rows}
        return blobs

    def _half_made(self) -> list[Item]:
        """Say which drafts and half-removed layers a collection would finish with."""
        rows = self._database.rows(
            "SELECT driver_id, COALESCE(bytes, 0), state FROM layers WHERE state = 'removing'"
            " OR (state = 'draft' AND NOT EXISTS (SELECT 1 FROM leases WHERE leases.id = layers.lease))"
        )
        return [
            Item("layer", driver_id, size, True, "half removed" if state == "removing" else "half made")
            for driver_id, size, state in rows
            if not is_locked(self._root / "locks" / driver_id)  # another process is at it
        ]

    def _images(self, items: list[Item], before: float, *, dry_run: bool) -> set[str]:
        rows = self._database.rows(
            "SELECT i.manifest, i.created_ns, (SELECT name FROM tags WHERE manifest = i.manifest),"
            " (SELECT name FROM containers WHERE image = i.manifest),"
            " (SELECT 1 FROM lease_items WHERE kind = 'image' AND item = i.manifest) FROM images i"
        )
        gone = set()
        for manifest, created_ns, tag, container, lease in rows:
            if tag is not None:
                items.append(Item("image", manifest, 0, False, f"named {tag}"))
            elif container is not None:
                items.append(Item("image", manifest, 0, False, f"used by container {container}"))
            elif lease is not None:
                items.append(Item("image", manifest, 0, False, "leased by a running operation"))
            elif created_ns / 1e9 >= before:
                items.append(Item("image", manifest, 0, False, _YOUNG))
            elif dry_run or self._delete_image(manifest):
                gone.add(manifest)
                items.append(Item("image", manifest, 0, True, "no name and no container"))
        return gone

    def _delete_image(self, manifest: str) -> bool:
        with self._database.transaction(durable=True) as connection:
            cursor = connection.execute(
                "DELETE FROM images WHERE manifest = ?1"
                " AND NOT EXISTS (SELECT 1 FROM tags WHERE manifest = ?1)"
                " AND NOT EXISTS (SELECT 1 FROM containers WHERE image = ?1)"
                " AND NOT EXISTS (SELECT 1 FROM lease_items WHERE kind = 'image' AND item = ?1)",
                (manifest,),
            )
            self._database.records.keep(connection, "images", manifest)
        return cursor.rowcount == 1

    def _indexes(self, items: list[Item], before: float, *, dry_run: bool) -> set[str]:
        rows = self._database.rows(
            "SELECT digest, created_ns, (SELECT name FROM index_tags WHERE digest = i.digest) FROM indexes i"
        )
        gone = set()
        for digest, created_ns, tag in rows:
            if tag is not None:
                items.append(Item("index", digest, 0, False, f"named {tag}"))
            elif created_ns / 1e9 >= before:
                items.append(Item("index", digest, 0, False, _YOUNG))
            elif dry_run or self._delete_index(digest):
                gone.add(digest)
                items.append(Item("index", digest, 0, True, "no name"))
        return gone

    def _delete_index(self, digest: str) -> bool:
        with self._database.transaction(durable=True) as connection:
            cursor = connection.execute(
                "DELETE FROM indexes WHERE digest = ?1"
                " AND NOT EXISTS (SELECT 1 FROM index_tags WHERE digest = ?1)",
                (digest,),
            )
            self._database.records.keep(connection, "indexes", digest)
        return cursor.rowcount == 1

    def _layers(
        self, layers: Layers, items: list[Item], gone_images: set[str], before: float, *, dry_run: bool
    ) -> set[int]:
        rows = self._database.rows(
            "SELECT id, name, state, parent, diff_id, updated_ns, COALESCE(bytes, 0), labels, driver_id"
            " FROM layers WHERE driver = ? AND state IN ('active', 'view', 'committed')",
            layers.driver.name,
        )
        needed: dict[str, str] = {}
        for manifest, chain_id in self._database.rows("SELECT manifest, chain_id FROM image_layers"):
            if manifest not in gone_images:
                needed[chain_id] = f"belongs to image {manifest}"
        containers = {name for (name,) in self._database.rows("SELECT id FROM containers")}
        children: dict[int, set[int]] = {}
        for number, _, _, parent, *_ in rows:
            children.setdefault(parent, set()).add(number)
        names = {row[0]: row[1] for row in rows}
        gone: set[int] = set()
        decided: set[int] = set()
        # Children first; the numbers do not tell the order when two processes unpacked the same image.
        pending = list(reversed(rows))
        while pending:
            later = []
            for row in pending:
                number, name, state, _, diff_id, updated_ns, size, labels, driver_id = row
                own = children.get(number, set())
                if own - decided:
                    later.append(row)
                    continue
                decided.add(number)
                reason = None
                if own - gone:
                    reason = f"has a child, {names[min(own - gone)]}"
                elif name in needed:
                    reason = needed[name]
                elif name in containers:
                    reason = "belongs to a container"
                elif state != "committed" and "layerfs.container" not in labels:
                    reason = f"{state}, made by a user of the library"
                elif state == "committed" and diff_id is None:
                    reason = "committed by a user of the library"
                elif updated_ns / 1e9 >= before:
                    reason = _YOUNG
                elif self._database.row(
                    "SELECT 1 FROM lease_items WHERE kind = 'layer' AND item = ?", driver_id
                ):
                    reason = "leased by a running operation"
                elif (user := self._blob_user(number, gone_images, gone)) is not None:
                    reason = f"holds a blob that {user} needs"
                elif not dry_run:
                    try:
                        layers.remove(name, containers=False)
                    except NotFoundError:
                        gone.add(number)
                        continue
                    except InUseError as error:
                        reason = str(error)
                if reason is None:
                    gone.add(number)
                items.append(Item("layer", name, size, reason is None, reason or "nothing needs it"))
            pending = later
        return gone

    def _blob_user(self, row: int, gone_images: set[str], gone_layers: set[int]) -> str | None:
        """Say who needs the blob that a layer holds in parts, and no layer that stays does."""
        found = self._database.row(
            "SELECT blob FROM layers WHERE id = ? AND skeleton IS NOT NULL AND state = 'committed'", row
        )
        if found is None:
            return None
        others = self._database.rows(
            "SELECT id FROM layers WHERE blob = ? AND skeleton IS NOT NULL AND state = 'committed'", *found
        )
        if {number for (number,) in others} - gone_layers - {row}:
            return None
        images = self._database.rows("SELECT manifest FROM links WHERE blob = ?", *found)
        users = [manifest for (manifest,) in images if manifest not in gone_images]
        return f"image {users[0]}" if users else None

    def _unused_blobs(
        self, items: list[Item], gone: set[str], gone_layers: set[int], before: float, *, dry_run: bool
    ) -> None:
        needed: dict[str, str] = {}
        for name, number, *blobs in self._database.rows("SELECT name, id, blob, toc, skeleton FROM layers"):
            if number not in gone_layers:
                needed.update({blob: f"of layer {name}" for blob in blobs if blob is not None})
        for digest, blob in self._database.rows("SELECT digest, blob FROM index_links"):
            if digest not in gone:
                needed[blob] = f"of index {digest}"
        for manifest, blob in self._database.rows("SELECT manifest, blob FROM links"):
            if manifest not in gone:
                needed[blob] = f"of image {manifest}"
        tables = dict(self._database.rows("SELECT seek, blob FROM seek_tables"))
        # A table after its blob, with which it goes.
        for held in sorted(self._blobs.list(), key=lambda each: str(each) in tables):
            try:
                found = os.stat(self._blobs.path(held))
            except FileNotFoundError:
                continue
            size, name = found.st_size, str(held)
            blob = tables.get(name)
            if blob is not None and (blob in needed or not self._gone(blob, items)):
                needed[name] = f"of blob {blob}"
            if name in needed:
                items.append(Item("blob", name, size, False, needed[name]))
            elif found.st_mtime >= before:
                items.append(Item("blob", name, size, False, _YOUNG))
            elif dry_run or self._remove_blob(held):
                items.append(Item("blob", name, size, True, "nothing refers to it"))
            else:
                items.append(Item("blob", name, size, False, "leased by a running operation"))

    def _gone(self, blob: str, items: list[Item]) -> bool:
        """Say whether a blob is here no more, or is to go."""
        if not self._blobs.is_whole(Digest.parse(blob)):
            return True
        return any(item.kind == "blob" and item.name == blob and item.removed for item in items)

    def _remove_blob(self, digest: Digest) -> bool:
        """Delete a blob that nothing refers to and no lease protects, and its table of seek points."""
        name = str(digest)
        table = self._database.row("SELECT seek FROM seek_tables WHERE blob = ?", name)
        if not self._remove_one(name, digest):
            return False
        if table is not None:
            seek = Digest.parse(table[0])
            self._remove_one(str(seek), seek)
        return True

    def _remove_one(self, name: str, digest: Digest) -> bool:
        # Whoever is about to use the blob leases it first and looks for it then; so the file has to go, in
        # one rename, before this transaction ends; the freeing of its blocks comes after.
        with self._database.transaction() as connection:
            used = connection.execute(
                "SELECT EXISTS (SELECT 1 FROM links WHERE blob = ?1)"
                " OR EXISTS (SELECT 1 FROM index_links WHERE blob = ?1)"
                " OR EXISTS (SELECT 1 FROM layers WHERE blob = ?1 OR toc = ?1 OR skeleton = ?1)"
                " OR EXISTS (SELECT 1 FROM seek_tables WHERE seek = ?1 AND (blob IN (SELECT blob FROM links)"
                " OR blob IN (SELECT blob FROM layers)))",
                (name,),
            ).fetchone()
            if used != (0,) or leased(connection, "blob", name):
                return False
            connection.execute("DELETE FROM seek_tables WHERE blob = ?1 OR seek = ?1", (name,))
            trash = self._root / "trash" / f"blob-{os.urandom(8).hex()}"
            try:
                os.rename(self._blobs.path(digest), trash)
            except FileNotFoundError:
                return True
            failpoints.reach("gc.trash")
        failpoints.reach("gc.free")
        trash.unlink(missing_ok=True)
        return True

    def _orphans(self, layers: Layers, items: list[Item], before: float, *, dry_run: bool) -> None:
        for driver_id in orphans(layers):
            size, touched = _measure(layers.driver.root / driver_id)
            reason = None
            if touched >= before:
                reason = _YOUNG
            elif not dry_run:
                try:
                    with layers.lock(driver_id) as lock:
                        failpoints.reach("gc.orphans")
                        layers.driver.remove(driver_id)
                        lock.path.unlink(missing_ok=True)
                except (InUseError, InvalidError) as error:
                    reason = str(error)
            known = f"{layers.driver.name} holds it, the database does not know it"
            items.append(Item("orphan", driver_id, size, reason is None, reason or known))

    def _leftovers(self, items: list[Item], before: float, *, dry_run: bool) -> None:
        """Remove what stopped processes left in ROOT/tmp, ROOT/trash and ROOT/locks."""
        leftovers = Leftovers(self._root, self._database, self._blobs)
        for one in list(leftovers.find()):
            due = is_due(one, older_than=before)
            if due and (dry_run or leftovers.remove(one, older_than=before)):
                if one.kind != "lock":
                    items.append(Item(one.kind, one.name, one.bytes, True, one.what))
            elif one.kind != "lock":
                reason = "in use by a running operation" if one.busy else _YOUNG
                items.append(Item(one.kind, one.name, one.bytes, False, reason))

    def _logs(self) -> None:
        """Remove what containers wrote that are gone: whoever removed them may have been killed."""
        # In this order: a container is there before its log is.
        try:
            found = list((self._root / "logs").iterdir())
        except FileNotFoundError:
            return
        known = {name for (name,) in self._database.rows("SELECT id FROM containers")}
        for log in found:
            # Whatever else somebody keeps there is his.
            if _CONTAINER_ID.fullmatch(log.name) and log.name not in known:
                log.unlink(missing_ok=True)


def orphans(layers: Layers) -> Iterator[str]:
    """Find the layers that a driver holds and the database does not know."""
    # In this order: a layer's row is there before its files are.
    held = list(layers.driver.layers())
    known = layers.table.driver_ids()
    unknown = [driver_id for driver_id in held if driver_id not in known]
    # A row goes after its files: what was being removed is gone by now.
    still = set(layers.driver.layers()) if unknown else ()
    return (driver_id for driver_id in unknown if driver_id in still)


def half_made(root: Path) -> Iterator[Path]:
    """Give the directories that a driver was making or removing when its process was stopped."""
    for name in os.listdir(root):
        if not name.startswith("."):
            continue
        with contextlib.suppress(OSError):
            descriptor = os.open(root / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                # Whoever is at it holds the lock exclusively.
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                yield root / name
            finally:
                os.close(descriptor)


def _left(layers: Layers) -> list[Item]:
    """Say what a driver's stopped processes left half made or half removed."""
    return [
        Item("layer", path.name, _measure(path)[0], True, "left behind")
        for path in half_made(layers.driver.root)
    ]


def _measure(path: Path) -> tuple[int, float]:
    """Give the bytes that a layer's directory occupies, and when it was last touched (seconds since 1970)."""
    try:
        found = path.lstat()
        return (occupied([path])[0] if path.is_dir() else found.st_size), max(found.st_mtime, found.st_ctime)
    except FileNotFoundError:
        return 0, 0.0
