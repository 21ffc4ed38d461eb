"""Every name and link of a store, in SQLite: the schema, the connection and its transactions.

What the rows mean is the business of `layers`, `images`, `containers`, `ledger` and `leases`.

A transaction is short: it never spans a copy, an unpack or a walk. Writers take the lock at once
(BEGIN IMMEDIATE), so that none fails half-way for having read first.

Durability: SQLite in WAL mode never loses its consistency in a power failure, only the last
transactions, unless these are synced. What promises something to the user (a committed layer, an
image, a name) or comes before files are deleted is a *durable* transaction and is synced; a
container's changes of state are not, as their loss undoes them as a whole. With durability
``full`` every transaction is synced, with ``none`` no one is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

from layerfs import failpoints
from layerfs.errors import InUseError, StoreError
from layerfs.records import Kind, Records
from layerfs.reserve import Reserve

SCHEMA_VERSION: Final = 5
BUSY_SECONDS: Final = 30.0

Durability = Literal["none", "commit", "full"]

# What opening takes on the disk, and a little more.
_NEEDED: Final = 128 << 10
# By which SQLite allocates what it maps.
_PAGE: Final = 4096
RESERVE: Final = "layerfs.reserve"
# The table of seek points of a layer's blob; it goes with the blob.
_SEEK_TABLES: Final = (
    """
CREATE TABLE seek_tables (
    blob TEXT PRIMARY KEY,
    seek TEXT NOT NULL
) STRICT, WITHOUT ROWID
""",
    "CREATE INDEX seek_tables_seek ON seek_tables (seek)",
)
# An index that came with all of its platforms, the blobs that it needs, itself included, and the names that
# it has; each is the name of an image, too, and goes with it.
_INDEXES: Final = (
    """
CREATE TABLE indexes (
    digest TEXT PRIMARY KEY,
    media_type TEXT NOT NULL,
    created_ns INTEGER NOT NULL
) STRICT, WITHOUT ROWID
""",
    """
CREATE TABLE index_links (
    digest TEXT NOT NULL REFERENCES indexes (digest) ON DELETE CASCADE,
    blob TEXT NOT NULL,
    PRIMARY KEY (digest, blob)
) STRICT, WITHOUT ROWID
""",
    "CREATE INDEX index_links_blob ON index_links (blob)",
    """
CREATE TABLE index_tags (
    name TEXT PRIMARY KEY REFERENCES tags (name) ON DELETE CASCADE,
    digest TEXT NOT NULL REFERENCES indexes (digest)
) STRICT, WITHOUT ROWID
""",
    "CREATE INDEX index_tags_digest ON index_tags (digest)",
)
# The records (see `records`) that are to be written since what they tell of was committed.
_DUE: Final = """
CREATE TABLE records_due (
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    PRIMARY KEY (kind, key)
) STRICT, WITHOUT ROWID
"""
_SCHEMA: Final = """
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- `name` is the key while a layer is active or a view, and the name of a committed one. A draft is
-- being unpacked under a lease. `driver_id` is the driver's name of it; a view on a parent has
-- nothing in the driver. `durable` says that its files were synced before it was committed. A layer
-- with a `skeleton` holds its blob of `blob_size` bytes in parts.
CREATE TABLE layers (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    driver TEXT NOT NULL,
    name TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('draft', 'active', 'view', 'committed', 'removing')),
    driver_id TEXT NOT NULL UNIQUE,
    parent INTEGER REFERENCES layers (id),
    labels TEXT NOT NULL,
    created_ns INTEGER NOT NULL,
    updated_ns INTEGER NOT NULL,
    lease TEXT,
    diff_id TEXT,
    blob TEXT,
    toc TEXT,
    bytes INTEGER,
    inodes INTEGER,
    durable INTEGER NOT NULL DEFAULT 0,
    boot TEXT,
    skeleton TEXT,
    blob_size INTEGER,
    UNIQUE (driver, name)
) STRICT;
CREATE INDEX layers_parent ON layers (parent);
CREATE INDEX layers_blob ON layers (blob) WHERE skeleton IS NOT NULL;
CREATE INDEX layers_unfinished ON layers (state) WHERE state IN ('draft', 'removing');

CREATE TABLE images (
    manifest TEXT PRIMARY KEY,
    media_type TEXT NOT NULL,
    config TEXT NOT NULL,
    created_ns INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX images_config ON images (config);

CREATE TABLE tags (
    name TEXT PRIMARY KEY,
    manifest TEXT NOT NULL REFERENCES images (manifest),
    updated_ns INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX tags_manifest ON tags (manifest);

-- Which blobs an image's manifest needs, itself included.
CREATE TABLE links (
    manifest TEXT NOT NULL REFERENCES images (manifest) ON DELETE CASCADE,
    blob TEXT NOT NULL,
    PRIMARY KEY (manifest, blob)
) STRICT, WITHOUT ROWID;
CREATE INDEX links_blob ON links (blob);

-- The chain ids of an image's layers, whether or not they are unpacked.
CREATE TABLE image_layers (
    manifest TEXT NOT NULL REFERENCES images (manifest) ON DELETE CASCADE,
    chain_id TEXT NOT NULL,
    PRIMARY KEY (manifest, chain_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX image_layers_chain_id ON image_layers (chain_id);

CREATE TABLE containers (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    driver TEXT NOT NULL,
    image TEXT NOT NULL REFERENCES images (manifest),
    image_name TEXT NOT NULL,
    settings TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('created', 'running', 'exited')),
    exit_code INTEGER,
    created_ns INTEGER NOT NULL,
    started_ns INTEGER,
    finished_ns INTEGER,
    pid INTEGER,
    start INTEGER,
    boot TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX containers_image ON containers (image);
CREATE INDEX containers_running ON containers (status) WHERE status = 'running';

CREATE TABLE leases (
    id TEXT PRIMARY KEY,
    pid INTEGER NOT NULL,
    start INTEGER NOT NULL,
    boot TEXT NOT NULL,
    created_ns INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE lease_items (
    lease TEXT NOT NULL REFERENCES leases (id) ON DELETE CASCADE,
    kind TEXT NOT NULL CHECK (kind IN ('blob', 'layer', 'image')),
    item TEXT NOT NULL,
    PRIMARY KEY (lease, kind, item)
) STRICT, WITHOUT ROWID;
CREATE INDEX lease_items_item ON lease_items (kind, item);

-- A mount is recorded before it is made. `held` mounts end with the process that made them.
CREATE TABLE mounts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    layer INTEGER NOT NULL REFERENCES layers (id) ON DELETE CASCADE,
    target BLOB NOT NULL,
    source TEXT NOT NULL,
    directory BLOB,
    read_only INTEGER NOT NULL,
    held INTEGER NOT NULL,
    namespace INTEGER NOT NULL,
    pid INTEGER NOT NULL,
    start INTEGER NOT NULL,
    boot TEXT NOT NULL,
    created_ns INTEGER NOT NULL
) STRICT;
CREATE INDEX mounts_layer ON mounts (layer);
CREATE INDEX mounts_target ON mounts (target);
"""

# What makes a database of the version before one of the next.
_UPGRADES: Final = {
    1: (
        "ALTER TABLE layers ADD COLUMN skeleton TEXT",
        "ALTER TABLE layers ADD COLUMN blob_size INTEGER",
        "CREATE INDEX layers_blob ON layers (blob) WHERE skeleton IS NOT NULL",
    ),
    2: _INDEXES,
    3: _SEEK_TABLES,
    # From here on there are records beside the database, which an older layerfs would not keep.
    4: (_DUE,),
}


class Database:
    """One connection, shared by the threads of a process; several processes may have one each."""

    def __init__(self, path: Path, *, durability: Durability = "commit") -> None:
        """Open a database that `create` has made.

        Raises:
            StoreError: it is missing, damaged, or of another version.
        """
        self._path = path
        self.records = Records(path.parent)
        self._durability = durability
        self._lock = threading.RLock()
        self._synced = durability == "full"
        if not path.exists():
            raise StoreError(
                f"{path} is missing", hint="`layerfs check --repair` makes it anew from what lies beside it"
            )
        self._reserve = Reserve(path.with_name(RESERVE))
        self._has_small_blocks = os.statvfs(path).f_frsize < _PAGE
        if not self._has_room():
            raise _unreadable(path, None)
        try:
            version = self._open()
        except sqlite3.DatabaseError as error:
            # Even a reader needs the index of the write-ahead log, which is a file beside it.
            if not (_is_full(path) and self._reserve.release()):
                raise _unreadable(path, error) from error
            try:
                version = self._open()
            except sqlite3.DatabaseError as again:
                raise _unreadable(path, again) from again
        self._reserve.keep()
        if version != SCHEMA_VERSION:
            self._connection.close()
            newer = "a newer layerfs made it" if version > SCHEMA_VERSION else "it is not a layerfs database"
            raise StoreError(
                f"{path} has schema version {version}, this layerfs knows {SCHEMA_VERSION}",
                hint=f"{newer}; use that version, or another --root",
            )
        level = {"none": "OFF", "commit": "NORMAL", "full": "FULL"}[durability]
        self._connection.execute(f"PRAGMA synchronous = {level}")
        self._connection.execute("PRAGMA foreign_keys = ON")
        self._is_due = False
        # Without the table the database is damaged, which a check tells.
        with contextlib.suppress(sqlite3.OperationalError):
            self._is_due = self.row("SELECT 1 FROM records_due") is not None
        if not self.records.root.is_dir():
            with self.transaction() as connection:
                self.records.write_all(connection)
        elif self._is_due:
            self._write_records()

    def _open(self) -> int:
        self._connection = _connect(self._path)
        try:
            version = self._version()
            if version in _UPGRADES:
                version = self._upgrade()
        except BaseException:
            self._connection.close()
            raise
        return version

    def _has_room(self) -> bool:
        """See that SQLite can write to its index of the write-ahead log, which it has mapped into memory.

        It allocates that by one byte a page. Where blocks are smaller than pages the rest is allocated when
        it is first written, and without a free block the kernel kills the process (SIGBUS) instead of
        refusing (mmap(2)).
        """
        if not self._has_small_blocks or not _is_full(self._path):
            return True
        return self._reserve.release() or self._reserve.probe(_NEEDED)

    def _version(self) -> int:
        version: int = self._connection.execute("PRAGMA user_version").fetchone()[0]
        return version

    def _upgrade(self) -> int:
        """Bring an older database up to date, all at once; another process may be doing so."""
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            version = self._version()
            while version in _UPGRADES:
                for statement in _UPGRADES[version]:
                    self._connection.execute(statement)
                version += 1
            self._connection.execute(f"PRAGMA user_version = {version}")
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        return version

    @classmethod
    def create(cls, path: Path) -> None:
        """Make an empty database; what is there already stays. The caller holds a lock against others.

        Raises:
            OSError: ENOSPC, EIO.
        """
        connection = _connect(path)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            if connection.execute("PRAGMA user_version").fetchone() == (0,):
                schema = f"{_SCHEMA} {'; '.join((*_INDEXES, *_SEEK_TABLES, _DUE))};"
                connection.executescript(
                    f"BEGIN IMMEDIATE; {schema} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
                )
        except sqlite3.OperationalError as error:
            raise _of_the_system(path, error) from error
        finally:
            connection.close()
        path.chmod(0o600)

    @contextlib.contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """Run the body as one transaction; a `durable` one is on disk before this returns.

        An exception in the body undoes it. Not to be nested.

        Raises:
            OSError: ENOSPC, the file system is full; EIO.
            InUseError: another process keeps all others from writing.
        """
        with self._lock:
            if not self._has_room():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            connection = self._connection
            synced = self._durability == "full" or (durable and self._durability == "commit")
            if synced != self._synced:
                connection.execute(f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}")
                self._synced = synced
            try:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    failpoints.reach("transaction.begin")
                    yield connection
                    failpoints.reach("transaction.commit")
                    connection.execute("COMMIT")
                    failpoints.reach("transaction.committed")
                except BaseException:
                    self._is_due = False
                    # SQLite may have undone it by itself, and a failed COMMIT has not.
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
            except sqlite3.OperationalError as error:
                found = _of_the_system(self._path, error)
                if isinstance(found, OSError) and found.errno == errno.ENOSPC:
                    # What comes next may well be the removal that makes room.
                    self._reserve.release()
                if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                    raise InUseError(
                        f"another process has been writing to {self._path} for {BUSY_SECONDS:g} seconds",
                        hint=f"`fuser -v {self._path}` shows who has it open; try again",
                    ) from error
                raise found from error
            except sqlite3.DatabaseError as error:
                raise _of_the_system(self._path, error) from error
            if self._is_due:
                self._write_records()

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run one SELECT and give all of its rows; raises OSError as `transaction` does."""
        with self._lock:
            try:
                return self._connection.execute(statement, values).fetchall()
            except sqlite3.DatabaseError as error:
                raise _of_the_system(self._path, error) from error

    def row(self, statement: str, *values: object) -> tuple[Any, ...] | None:
        """Run one SELECT and give its first row, None when there is none; raises as `rows` does."""
        with self._lock:
            try:
                found: tuple[Any, ...] | None = self._connection.execute(statement, values).fetchone()
            except sqlite3.DatabaseError as error:
                raise _of_the_system(self._path, error) from error
            return found

    def get(self, key: str) -> str | None:
        """Read a value of `meta`."""
        found = self.row("SELECT value FROM meta WHERE key = ?", key)
        return None if found is None else str(found[0])

    def set(self, key: str, value: str) -> None:
        """Write a value of `meta`, in a transaction of its own."""
        with self.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, value))

    def note(self, connection: sqlite3.Connection, kind: Kind, *keys: str) -> None:
        """Have records of what begins or changes (see `records`) written when this transaction is committed.

        A record says no more than is known. One that was not written, as its process was stopped or the disk
        is full, is with the next transaction that notes something, or when the database is opened.
        """
        connection.executemany(
            "INSERT OR IGNORE INTO records_due VALUES (?, ?)", [(kind, key) for key in keys]
        )
        self._is_due = True

    def _write_records(self) -> None:
        self._is_due = False
        with contextlib.suppress(OSError, InUseError), self.transaction() as connection:
            query = "DELETE FROM records_due RETURNING kind, key"
            for kind, key in connection.execute(query).fetchall():
                self.records.keep(connection, kind, key)

    def problems(self) -> list[str]:
        """Let SQLite check the whole file; each line is one fault, none when it is sound."""
        try:
            found = [str(line) for (line,) in self.rows("PRAGMA integrity_check(20)") if line != "ok"]
            with self._lock:
                return found + list(missing_tables(self._connection))
        except StoreError as error:
            return [str(error)]

    def dangling(self) -> list[str]:
        """Find rows that refer to rows which are not there; each line is one table's."""
        broken = self.rows("PRAGMA foreign_key_check")
        kinds = sorted({(table, other) for table, _, other, _ in broken})
        return [f"rows of {table} refer to missing rows of {other}" for table, other in kinds]

    def close(self) -> None:
        """Close the connection; closing twice does nothing."""
        with self._lock:
            self._connection.close()


def now_ns() -> int:
    """Give the time in nanoseconds since 1970, as rows hold it."""
    return time.time_ns()


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Say whether SQLite found the file itself to be damaged, or none of its own."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or str(error).startswith("no such table")


def missing_tables(connection: sqlite3.Connection) -> Iterator[str]:
    """Say which tables a database of this version should have, and has not."""
    found = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    wanted = re.findall(r"CREATE TABLE (\w+)", " ".join((_SCHEMA, *_INDEXES, *_SEEK_TABLES, _DUE)))
    return (f"it has no table {name}" for name in wanted if name not in found)


def _is_full(path: Path) -> bool:
    space = os.statvfs(path)
    return space.f_bavail * space.f_frsize < _NEEDED


def _of_the_system(path: Path, error: sqlite3.DatabaseError) -> Exception:
    """Give the system's error that SQLite met, or say that the file is damaged; else the error itself."""
    if is_damage(error):
        return _unreadable(path, error)
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _is_full(path)):
        number = errno.ENOSPC
    elif code == sqlite3.SQLITE_IOERR:
        number = errno.EIO
    else:
        return error
    return OSError(number, os.strerror(number), str(path))


def _unreadable(path: Path, error: sqlite3.DatabaseError | None) -> StoreError:
    if _is_full(path):
        return StoreError(
            f"{path} cannot be read: its file system is full",
            hint=f"free {_NEEDED >> 10} KiB on it by other means, then use `layerfs rmi` and `layerfs gc`",
        )
    if not os.access(path.parent, os.W_OK):
        return StoreError(
            f"{path} cannot be read: its directory cannot be written to",
            hint="the store must lie where it can be written: choose one with --root",
        )
    return StoreError(
        f"{path} cannot be read: {error}",
        hint="if it is damaged, `layerfs check --repair` makes it anew from what lies beside it",
    )


def _connect(path: Path) -> sqlite3.Connection:
    # Autocommit: transactions begin and end where `transaction` says so.
    return sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
