"""What holds of a store whatever has happened to it, and what it occupies when it is at rest."""

from __future__ import annotations

import os
import stat
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

from layerfs import liveness, mounting
from layerfs.store import Store

_TABLES: Final = (
    "layers", "images", "tags", "links", "image_layers", "containers", "leases", "lease_items", "mounts",
    "indexes", "index_links", "index_tags", "seek_tables",
)  # fmt: skip
# The age of the store decides what of these there is; what is in quarantine stays for its owner.
_NOT_COUNTED: Final = ("layerfs.db", "layerfs.db-wal", "layerfs.db-shm", "quarantine")


class Contents(NamedTuple):
    """What users have in a store: images by name, and the changes of each container by its name."""

    images: dict[str, str]
    containers: dict[str, tuple[str, ...]]


def contents(store: Store) -> Contents:
    """Look at what users have."""
    return Contents(
        {name: str(image.digest) for image in store.images.list() for name in image.names},
        {
            container.name: tuple(f"{kind.value} {path!r}" for kind, path in container.diff())
            for container in store.containers.list()
        },
    )


def lost(before: Contents, store: Store, *, but: tuple[str, ...]) -> list[str]:
    """Say what of that is not there any more, or another, besides what was to be removed."""
    now = contents(store)
    problems = []
    for kind, old, new in (
        ("image", before.images, now.images),
        ("container", before.containers, now.containers),
    ):
        for name, what in old.items():
            if name not in but and new.get(name) != what:
                problems.append(f"{kind} {name} was {what} and is {new.get(name)}")
    return problems


def unsound(store: Store, places: tuple[Path, ...], *, swept: bool) -> list[str]:
    """Say what does not hold of a store that was just opened; garbage is none of it unless it was `swept`."""
    problems = []
    for found in store.check(contents=True).problems:
        # What a killed process leaves behind goes with the next collection.
        if swept or found.kind not in ("orphan", "mount"):
            problems.append(f"check: {found.kind} {found.subject}: {found.what}")
    if store.layers.table.unfinished():
        problems.append("a draft, or a half-removed layer, is left")
    problems += [f"mounted, and not recorded: {target}" for target in _forgotten(store, places)]
    for container in store.containers.list():
        if not store.layers_of(container.driver).has(container.id):
            problems.append(f"container {container.name} has no layer")
        if container.status == "running":
            problems.append(f"container {container.name} is running")
    database = store._database
    for lease, *owner in database.rows("SELECT id, pid, start, boot FROM leases"):
        if swept or liveness.alive(liveness.Owner(*owner)):
            problems.append(f"lease {lease} is left")
    return problems


def _forgotten(store: Store, places: tuple[Path, ...]) -> list[str]:
    """Find mounts at or below these places that the ledger does not know."""
    known = {os.fsdecode(record.target) for record in store.layers.ledger.all()}
    found = []
    for place in places:
        for info in mounting.mounts_below(place):
            target = os.fsdecode(info.target)
            if target not in known:
                found.append(target)
    return found


def inventory(root: Path) -> Counter[str]:
    """Count everything below the root, without names that are made up: kind, place, size, allocated bytes."""
    counted: Counter[str] = Counter()
    for directory, names, files in os.walk(os.fsencode(root)):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            parts = [os.fsdecode(part) for part in os.path.relpath(path, os.fsencode(root)).split(b"/")]
            if parts[0] in _NOT_COUNTED:
                continue
            found = os.lstat(path)
            size = found.st_size if stat.S_ISREG(found.st_mode) else 0
            counted[f"{_anonymous(parts)} {stat.filemode(found.st_mode)} {size}"] += 1
    return counted


def _anonymous(parts: list[str]) -> str:
    """Leave out what differs from run to run: digests, and the ids of layers."""
    if parts[0] == "blobs":
        return "/".join([*parts[:2], *("*" for _ in parts[2:])])
    if parts[0] == "records":
        return "/".join([*parts[:2], *("*" for _ in parts[2:])])
    if parts[0] == "drivers":
        return "/".join([*parts[:2], *("*" for _ in parts[2:3]), *parts[3:]])
    if parts[0] == "locks" and parts[-1] != "store":
        return "locks/*"
    return "/".join(parts)


def rows(store: Store) -> Counter[str]:
    """Count the rows of each table."""
    counts: Counter[str] = Counter()
    for table in _TABLES:
        found = store._database.row(f"SELECT COUNT(*) FROM {table}")
        assert found is not None
        counts[f"rows of {table}"] = found[0]
    return counts


def leaked(now: Counter[str], clean: Counter[str]) -> list[str]:
    """Compare what is there with what is there after a run without faults."""
    return [f"too much: {count} x {what}" for what, count in (now - clean).items()] + [
        f"too little: {count} x {what}" for what, count in (clean - now).items()
    ]
