"""Makes the database anew when it is lost, and rows that are missing in it, out of what lies beside it.

First of all that are the records (see `records`): they have names, images, layers and containers. An image of
which there is no record is found by its manifest, when all of its blobs are here.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from layerfs import liveness
from layerfs.blobs import Blobs
from layerfs.database import SCHEMA_VERSION, Database, is_damage, missing_tables
from layerfs.digest import Digest
from layerfs.errors import InUseError, InvalidError, LayerfsError
from layerfs.files import Lock
from layerfs.images import DOCUMENT_MAXIMUM, Images
from layerfs.oci.manifest import Manifest
from layerfs.quarantine import Quarantine
from layerfs.records import KINDS, Body, Kind, Record, Records
from layerfs.reference import Reference

FILE: Final = "layerfs.db"
_BESIDE: Final = ("", "-wal", "-shm", "-journal")
# What says of an image, an index or a layer that is not there what nobody needs to know any more.
_DANGLING: Final = (
    "DELETE FROM tags WHERE manifest NOT IN (SELECT manifest FROM images)",
    "DELETE FROM links WHERE manifest NOT IN (SELECT manifest FROM images)",
    "DELETE FROM image_layers WHERE manifest NOT IN (SELECT manifest FROM images)",
    "DELETE FROM index_tags WHERE digest NOT IN (SELECT digest FROM indexes)"
    " OR name NOT IN (SELECT name FROM tags)",
    "DELETE FROM index_links WHERE digest NOT IN (SELECT digest FROM indexes)",
    "DELETE FROM lease_items WHERE lease NOT IN (SELECT id FROM leases)",
    "DELETE FROM mounts WHERE layer NOT IN (SELECT id FROM layers)",
)
_RECOVERED: Final = "localhost/recovered"

# Gives the ids of the layers that a driver, called by its name, holds.
Held = Callable[[str], Collection[str]]


class Restored(NamedTuple):
    """One thing that was put back into the database: what kind of thing, how it is called, what was lost.

    With a `hint` it could not be put back.
    """

    kind: str
    subject: str
    what: str
    hint: str = ""


class Renewed(NamedTuple):
    """What was wrong with a database, and whether it is empty now."""

    what: str
    empty: bool


def renew_database(root: Path) -> Renewed | None:
    """Replace a database that is missing or damaged by an empty one; the old files go to the quarantine.

    Damage of indexes alone is mended in place.

    Returns:
        None if nothing was wrong with it, or nothing that a new one would help.

    Raises:
        InUseError: a process has it open.
    """
    path = root / FILE
    what = _fault(path)
    if what is None:
        return None
    if _reindexed(path):
        return Renewed(what, empty=False)
    with Lock(root / "locks" / "store"):
        user = _user_of(path)
        if user is not None:
            raise InUseError(
                f"{path} is damaged ({what}), and process {user} has it open",
                hint=f"end process {user} first",
            )
        quarantine = Quarantine(root)
        for suffix in _BESIDE:
            with contextlib.suppress(FileNotFoundError):
                quarantine.take(path.with_name(path.name + suffix))
        Database.create(path)
    return Renewed(what, empty=True)


def _fault(path: Path) -> str | None:
    if not path.exists():
        return "it is missing"
    if not path.is_file():
        return "it is no file"
    connection = sqlite3.connect(path, timeout=30, isolation_level=None)
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            return None
        problems = [line for (line,) in connection.execute("PRAGMA integrity_check(20)") if line != "ok"]
        if problems:
            return str(problems[0])
        # Older ones have fewer tables, and are upgraded when they are opened.
        if version in (0, SCHEMA_VERSION):
            return next(missing_tables(connection), None)
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            return str(error)
    finally:
        connection.close()
    return None


def _reindexed(path: Path) -> bool:
    """Mend what is wrong in indexes alone."""
    if not path.is_file():
        return False
    with contextlib.suppress(sqlite3.DatabaseError):
        connection = sqlite3.connect(path, timeout=30, isolation_level=None)
        try:
            connection.execute("REINDEX")
        finally:
            connection.close()
        return _fault(path) is None
    return False


def _user_of(path: Path) -> int | None:
    """Find a process that has a database open in WAL mode: it holds a lock on the index of the log."""
    try:
        found = os.stat(f"{path}-shm")
    except FileNotFoundError:
        return None
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        # "1: POSIX  ADVISORY  READ 1234 fd:01:5678 128 128"; "->" marks those who wait.
        fields = line.replace("->", "").split()
        if len(fields) > 5 and fields[5] == place and int(fields[4]) > 0:
            return int(fields[4])
    return None


class Restoring:
    """Puts back what the records have and the database has not.

    Args:
        held: says which layers a driver holds.
        anew: the database was lost, so that a layer may come back whose files are to be unpacked again.
    """

    def __init__(self, database: Database, blobs: Blobs, held: Held, *, anew: bool) -> None:
        self._database = database
        self._records: Records = database.records
        self._blobs = blobs
        self._held = held
        self._anew = anew
        self._quarantine = Quarantine(self._records.root.parent)
        self.restored: list[Restored] = []

    def run(self, *, dry: bool = False) -> list[Restored]:
        """Restore everything that can be, and bring the records up to date; say what was restored.

        Args:
            dry: only say what would be.
        """
        with contextlib.suppress(_DryError), self._database.transaction(durable=True) as connection:
            self._layers(connection)
            self._images(connection)
            self._indexes(connection)
            self._containers(connection)
            if dry:
                raise _DryError
            for record in self._records.renew(connection):
                self._give_up(record)
        return self.restored

    def _give_up(self, record: Record) -> None:
        """Move a record aside of which nothing could be made."""
        path = record.path
        with contextlib.suppress(OSError):
            path = self._quarantine.take(path, called=f"{path.parent.name}-{path.name}")
        if self._anew:
            body = record.body or {}
            self.restored.append(
                Restored(
                    {"indexes": "index"}.get(record.kind, record.kind.removesuffix("s")),
                    str(body.get("name") or record.key),
                    f"it could not be put back, as what it is made of is missing; its record is {path} now",
                    "load or pull the image again; files of layers that nobody knows go to ROOT/quarantine",
                )
            )

    def _tell(self, kind: str, subject: str, what: str) -> None:
        self.restored.append(Restored(kind, subject, what))

    def _read(self, kind: Kind) -> dict[str, Body]:
        return {record.key: record.body for record in self._records.read(kind) if record.body is not None}

    # -- one kind each

    def _layers(self, connection: sqlite3.Connection) -> None:
        rows = connection.execute("SELECT driver_id, id FROM layers")
        known: dict[str, int] = dict(rows.fetchall())
        lost = {key: body for key, body in self._read("layers").items() if key not in known}
        held: dict[str, Collection[str]] = {}
        while lost:
            ready = [key for key, body in lost.items() if body["parent"] is None or body["parent"] in known]
            if not ready:
                return
            for key in ready:
                body = lost.pop(key)
                driver = body["driver"]
                if driver not in held:
                    held[driver] = self._held(driver)
                if key in held[driver] or body["state"] == "view" or self._can_be_unpacked(body):
                    row = _insert_layer(connection, body, known)
                    if row is not None:
                        known[key] = row
                        self._tell("layer", body["name"], "its row of the database was lost")

    def _can_be_unpacked(self, body: Body) -> bool:
        return self._anew and body["state"] == "committed" and _is_here(self._blobs, body.get("blob") or "")

    def _images(self, connection: sqlite3.Connection) -> None:
        known = {name for (name,) in connection.execute("SELECT manifest FROM images")}
        records = self._read("images")
        for key, body in records.items():
            new = key not in known
            if new:
                if not all(_is_here(self._blobs, digest) for digest in (key, body["config"])):
                    continue
                connection.execute(
                    "INSERT INTO images (manifest, media_type, config, created_ns) VALUES (?, ?, ?, ?)",
                    (key, body["media_type"], body["config"], body["created_ns"]),
                )
                known.add(key)
                self._tell("image", key, "its row of the database was lost")
            lost = _add_missing(connection, "links", "manifest", "blob", key, body["links"])
            lost += _add_missing(connection, "image_layers", "manifest", "chain_id", key, body["layers"])
            if lost and not new:
                self._tell("image", key, f"{lost} of its rows of the database were lost")
        self._names(connection, {key: body for key, body in records.items() if key in known})

    def _names(self, connection: sqlite3.Connection, records: Mapping[str, Body]) -> None:
        taken = {name for (name,) in connection.execute("SELECT name FROM tags")}
        claims = [
            (when, name, key)
            for key, body in records.items()
            for name, when in body["names"].items()
            if isinstance(when, int) and name not in taken and _is_name(name)
        ]
        for when, name, key in sorted(claims, reverse=True):
            if name not in taken:
                taken.add(name)
                connection.execute("INSERT INTO tags VALUES (?, ?, ?)", (name, key, when))
                self._tell("name", name, "its row of the database was lost")

    def _indexes(self, connection: sqlite3.Connection) -> None:
        known = {name for (name,) in connection.execute("SELECT digest FROM indexes")}
        for key, body in self._read("indexes").items():
            if key not in known:
                if not _is_here(self._blobs, key):
                    continue
                connection.execute(
                    "INSERT INTO indexes VALUES (?, ?, ?)", (key, body["media_type"], body["created_ns"])
                )
                self._tell("index", key, "its row of the database was lost")
            lost = _add_missing(connection, "index_links", "digest", "blob", key, body["links"])
            for name in body["names"]:
                free = "SELECT 1 FROM tags WHERE name = ?1 AND name NOT IN (SELECT name FROM index_tags)"
                if connection.execute(free, (name,)).fetchone() is not None:
                    connection.execute("INSERT INTO index_tags VALUES (?, ?)", (name, key))
                    lost += 1
            if lost and key in known:
                self._tell("index", key, f"{lost} of its rows of the database were lost")

    def _containers(self, connection: sqlite3.Connection) -> None:
        for key, body in self._read("containers").items():
            row = connection.execute(
                "SELECT EXISTS (SELECT 1 FROM containers WHERE id = ?1),"
                " EXISTS (SELECT 1 FROM layers WHERE driver = ?2 AND name = ?1 AND state = 'active'),"
                " EXISTS (SELECT 1 FROM images WHERE manifest = ?3)",
                (key, body["driver"], body["image"]),
            ).fetchone()
            if row != (0, 1, 1):
                continue
            name, number = body["name"], 1
            while connection.execute("SELECT 1 FROM containers WHERE name = ?", (name,)).fetchone():
                number += 1
                name = f"{body['name']}-{number}"
            connection.execute(
                "INSERT INTO containers (id, name, driver, image, image_name, settings, status, created_ns)"
                " VALUES (?, ?, ?, ?, ?, ?, 'created', ?)",
                (
                    key, name, body["driver"], body["image"], body["image_name"], body["settings"],
                    body["created_ns"],
                ),
            )  # fmt: skip
            self._tell("container", name, "its row of the database was lost")


class _DryError(Exception):
    """Undoes the transaction of a dry run."""


def drop_dangling(database: Database) -> None:
    """Remove rows about images, indexes, leases and layers that are gone."""
    with database.transaction(durable=True) as connection:
        for statement in _DANGLING:
            connection.execute(statement)


def unreadable(records: Records) -> list[Record]:
    """Give the records that were altered: neither empty, as a power failure leaves them, nor a record."""
    return [
        record for kind in KINDS for record in records.read(kind) if record.body is None and not record.empty
    ]


def find_images(database: Database, blobs: Blobs, images: Images) -> list[Restored]:
    """Add images that no record tells of, by their manifests; each gets a name, or it would be garbage."""
    linked = {name for (name,) in database.rows("SELECT blob FROM links UNION SELECT blob FROM index_links")}
    found = []
    for digest in list(blobs.list()):
        if str(digest) in linked or blobs.size(digest) > DOCUMENT_MAXIMUM:
            continue
        with contextlib.suppress(LayerfsError, ValueError):
            raw = blobs.read(digest, limit=DOCUMENT_MAXIMUM)
            if not raw.lstrip().startswith(b"{"):
                continue
            manifest = Manifest.parse(raw, None)
            name = f"{_RECOVERED}:{digest.hex[:12]}"
            images.put(raw, manifest.media_type, [name])
            found.append(Restored("image", name, "no record told of it; it was found by its manifest"))
    return found


def _insert_layer(connection: sqlite3.Connection, body: Body, known: Mapping[str, int]) -> int | None:
    """Add a layer's row; None where its name is another's by now, or the record makes no sense."""
    parent = None if body["parent"] is None else known[body["parent"]]
    values = (
        body["driver"], body["name"], body["state"], body["driver_id"], parent, body["labels"],
        body["created_ns"], body.get("updated_ns", body["created_ns"]), body.get("diff_id"),
        body.get("blob"), body.get("toc"), body.get("bytes"), body.get("inodes"), body.get("skeleton"),
        body.get("blob_size"), liveness.boot_id(),
    )  # fmt: skip
    try:
        cursor = connection.execute(
            "INSERT INTO layers (driver, name, state, driver_id, parent, labels, created_ns, updated_ns,"
            " diff_id, blob, toc, bytes, inodes, skeleton, blob_size, boot, durable)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1)",
            values,
        )
    except sqlite3.IntegrityError:
        return None
    return int(cursor.lastrowid or 0)


def _add_missing(
    connection: sqlite3.Connection, table: str, key_column: str, column: str, key: str, values: list[str]
) -> int:
    """Add rows that a record has and a table has not; give their number."""
    count = 0
    for value in values:
        cursor = connection.execute(
            f"INSERT OR IGNORE INTO {table} ({key_column}, {column}) VALUES (?, ?)", (key, value)
        )
        count += cursor.rowcount
    return count


def _is_here(blobs: Blobs, digest: str) -> bool:
    try:
        return blobs.is_whole(Digest.parse(digest))
    except InvalidError:
        return False


def _is_name(name: str) -> bool:
    try:
        return str(Reference.parse(name)) == name
    except InvalidError:
        return False
