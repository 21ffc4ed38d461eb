"""What the database knows of each layer, image, index and container, once more: a small JSON file for each.

    ROOT/records/layers/DRIVER-ID.json     ROOT/records/images/ALGORITHM-HEX.json
    ROOT/records/indexes/ALGORITHM-HEX.json     ROOT/records/containers/ID.json

The database is the truth; out of these files it is made anew when it is lost (see `rebuilding`). A record
never claims what the database does not say: what ends is taken out before its transaction is, what begins is
put in after it. So a stop in between leaves a record that says too little, and one that says more means that
rows were lost. What is to be put in is noted in the transaction, and done when the database is opened next if
it was not at once: a full disk must not keep things from being removed. Records are not synced, but compared
with the rows when a store is opened for the first time since the machine was started.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from layerfs.digest import Digest
from layerfs.errors import InvalidError
from layerfs.files import open_regular, sync_directory, write_atomic

Kind = Literal["layers", "images", "indexes", "containers"]
Body = dict[str, Any]

DIRECTORY: Final = "records"
KINDS: Final[tuple[Kind, ...]] = ("layers", "images", "indexes", "containers")
_VERSION: Final = 1
# No record is longer: a container's settings are by far the longest thing in one.
_LONGEST: Final = 64 << 20
_WHOLE: Final = range(-(1 << 63), 1 << 63)  # what SQLite takes for a number
_LAYER: Final = (
    "driver, name, state, driver_id, labels, created_ns, updated_ns, diff_id, blob, toc, bytes, inodes,"
    " skeleton, blob_size"
)
_CONTAINER: Final = "id, name, driver, image, image_name, settings, created_ns"


class Record(NamedTuple):
    """One record on the disk; `body` is None where it cannot be read, `empty` if nothing is in it."""

    kind: Kind
    key: str
    path: Path
    body: Body | None
    empty: bool = False


class Records:
    """The records of one store; every method is called within a transaction, which keeps others out."""

    def __init__(self, root: Path) -> None:
        """Use those below a store's root."""
        self.root = root / DIRECTORY

    def keep(self, connection: sqlite3.Connection, kind: Kind, *keys: str) -> None:
        """Write records as the rows are now, and remove those without a row.

        Args:
            keys: driver ids of layers, digests of images and indexes, ids of containers.
        """
        for key in keys:
            path = self.path(kind, key)
            body = describe(connection, kind, key)
            try:
                if body is not None:
                    write_atomic(path, pack(kind, body), sync=False)
                    continue
            except OSError:
                # It must not go on to say what may not be so any more, and is written when there is room.
                connection.execute("INSERT OR IGNORE INTO records_due VALUES (?, ?)", (kind, key))
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def behind(self, connection: sqlite3.Connection) -> int:
        """Count the records that are not as the rows are, and that nobody is about to write."""
        due = set(connection.execute("SELECT kind, key FROM records_due").fetchall())
        said = {(kind, one.key): one.body for kind in KINDS for one in self.read(kind)}
        return sum(
            said.get((kind, key)) != describe(connection, kind, key)
            for kind in KINDS
            for key in keys(connection, kind)
            if (kind, key) not in due
        )

    def sync(self, *kinds: Kind) -> None:
        """Bring the names of records to disk, for what is removed for good."""
        for kind in kinds:
            with contextlib.suppress(OSError):
                sync_directory(self.root / kind)

    def write_all(self, connection: sqlite3.Connection) -> None:
        """Write every record, for a store that has none yet."""
        self.root.mkdir(0o700, exist_ok=True)
        self.renew(connection)

    def renew(self, connection: sqlite3.Connection) -> list[Record]:
        """Write the records that are not as the rows are; give those of what has no row.

        What was being written when its process was stopped is removed.
        """
        idle = []
        for kind in KINDS:
            (self.root / kind).mkdir(0o700, exist_ok=True)
            for name in os.listdir(self.root / kind):
                if name.startswith("."):
                    (self.root / kind / name).unlink(missing_ok=True)
            waiting = set(keys(connection, kind))
            for record in self.read(kind):
                body = describe(connection, kind, record.key)
                if body is None:
                    idle.append(record)
                elif record.body == body:
                    waiting.discard(record.key)
            self.keep(connection, kind, *waiting)
        return idle

    def read(self, kind: Kind) -> Iterator[Record]:
        """Give the records of a kind, in the order of their names; what is no record's name is left out."""
        try:
            names = sorted(os.listdir(self.root / kind))
        except FileNotFoundError:
            return
        for name in names:
            stem, dot, suffix = name.rpartition(".")
            if stem.startswith(".") or (dot, suffix) != (".", "json"):
                continue
            path = self.root / kind / name
            key = stem.replace("-", ":", 1) if kind in ("images", "indexes") else stem
            try:
                data = _read(path)
            except FileNotFoundError:
                continue  # what it tells of was removed meanwhile
            except OSError:
                yield Record(kind, key, path, None)
                continue
            yield Record(kind, key, path, _unpack(kind, key, data), empty=not data.strip(b"\0"))

    def path(self, kind: Kind, key: str) -> Path:
        """Say where a record is, or would be."""
        return self.root / kind / f"{key.replace(':', '-')}.json"


def pack(kind: Kind, body: Body) -> bytes:
    """Give a record's bytes."""
    return json.dumps({"record": _VERSION, "kind": kind, **body}, sort_keys=True).encode() + b"\n"


def keys(connection: sqlite3.Connection, kind: Kind) -> list[str]:
    """Name everything of a kind that has a row, and so a record."""
    statement = {
        "layers": "SELECT driver_id FROM layers WHERE state IN ('active', 'view', 'committed')",
        "images": "SELECT manifest FROM images",
        "indexes": "SELECT digest FROM indexes",
        "containers": "SELECT id FROM containers",
    }[kind]
    return [key for (key,) in connection.execute(statement)]


def describe(connection: sqlite3.Connection, kind: Kind, key: str) -> Body | None:
    """Say what the rows say of one thing; None where there are none."""
    if kind == "layers":
        return _layer(connection, key)
    if kind == "images":
        return _image(connection, key)
    if kind == "indexes":
        return _index(connection, key)
    return _one(connection, f"SELECT {_CONTAINER} FROM containers WHERE id = ?", key)


def _layer(connection: sqlite3.Connection, key: str) -> Body | None:
    return _one(
        connection,
        f"SELECT {_LAYER}, (SELECT driver_id FROM layers WHERE id = l.parent) AS parent FROM layers l"
        " WHERE driver_id = ? AND state IN ('active', 'view', 'committed')",
        key,
    )


def _image(connection: sqlite3.Connection, key: str) -> Body | None:
    body = _one(
        connection, "SELECT manifest, media_type, config, created_ns FROM images WHERE manifest = ?", key
    )
    if body is not None:
        body["names"] = dict(
            connection.execute("SELECT name, updated_ns FROM tags WHERE manifest = ? ORDER BY name", (key,))
        )
        body["links"] = _column(connection, "SELECT blob FROM links WHERE manifest = ? ORDER BY blob", key)
        body["layers"] = _column(
            connection, "SELECT chain_id FROM image_layers WHERE manifest = ? ORDER BY chain_id", key
        )
    return body


def _index(connection: sqlite3.Connection, key: str) -> Body | None:
    body = _one(connection, "SELECT digest, media_type, created_ns FROM indexes WHERE digest = ?", key)
    if body is not None:
        body["names"] = _column(connection, "SELECT name FROM index_tags WHERE digest = ? ORDER BY name", key)
        body["links"] = _column(
            connection, "SELECT blob FROM index_links WHERE digest = ? ORDER BY blob", key
        )
    return body


def _one(connection: sqlite3.Connection, statement: str, key: str) -> Body | None:
    cursor = connection.execute(statement, (key,))
    row = cursor.fetchone()
    return None if row is None else dict(zip((name for name, *_ in cursor.description), row, strict=True))


def _column(connection: sqlite3.Connection, statement: str, key: str) -> list[str]:
    return [value for (value,) in connection.execute(statement, (key,))]


def _read(path: Path) -> bytes:
    """Read a record, whatever may have come in its place.

    Raises:
        OSError: it is no file, too long for one, or cannot be read.
    """
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        descriptor = open_regular(directory, path.name)
    finally:
        os.close(directory)
    with open(descriptor, "rb") as file:
        data = file.read(_LONGEST + 1)
    if len(data) > _LONGEST:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return data


def _unpack(kind: Kind, key: str, data: bytes) -> Body | None:
    """Read a record; None for what is none, or not of this thing."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict) or body.pop("record", None) != _VERSION or body.pop("kind", None) != kind:
        return None
    own = {"layers": "driver_id", "images": "manifest", "indexes": "digest", "containers": "id"}[kind]
    return body if body.get(own) == key and _is_well_formed(kind, body) else None


def _is_well_formed(kind: Kind, body: Body) -> bool:
    text = {
        "layers": ("driver", "name", "state", "labels"),
        "images": ("media_type", "config"),
        "indexes": ("media_type",),
        "containers": ("name", "driver", "image", "image_name", "settings"),
    }[kind]
    lists = {"images": ("links", "layers"), "indexes": ("links", "names")}.get(kind, ())
    digests = {
        "layers": ("diff_id", "blob", "toc", "skeleton"),
        "images": ("config",),
        "indexes": (),
        "containers": ("image",),
    }[kind]
    objects = {"layers": ("labels",), "containers": ("settings",)}.get(kind, ())
    return (
        all(_can_be_stored(value) for name, value in body.items() if name != "names")
        and all(map(_can_be_stored, body.get("names", ())))
        and all(isinstance(body.get(name), str) for name in text)
        and all(body.get(name) is None or _is_digest(body[name]) for name in digests)
        and all(_is_object(body[name]) for name in objects)
        and (kind != "layers" or isinstance(body.get("parent", 0), str | None))
        and isinstance(body.get("created_ns"), int)
        and all(isinstance(body.get(name), list) for name in lists)
        and all(isinstance(each, str) for name in lists for each in body[name])
        and (kind != "images" or isinstance(body.get("names"), dict))
    )


def _is_digest(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(Digest.parse(value))
    except InvalidError:
        return False


def _is_object(text: str) -> bool:
    """Say whether a text is a JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _can_be_stored(value: object) -> bool:
    """Say whether the database takes a value, and all that is in it."""
    if isinstance(value, list):
        return all(map(_can_be_stored, value))
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)
    return value is None or (isinstance(value, int) and value in _WHOLE)
