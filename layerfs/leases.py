"""Leases: what a living process is working with, so that garbage collection leaves it alone."""

from __future__ import annotations

import os
import sqlite3
from typing import Literal

from layerfs import failpoints, liveness
from layerfs.database import Database, now_ns
from layerfs.liveness import Owner

Leased = Literal["blob", "layer", "image"]


class Lease:
    """Protects what is added to it until it is left, or until its process is gone; a context manager.

    Entering writes nothing: the row comes with the first item. Items are names: a blob's or an
    image's digest, a layer's driver id.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.id = os.urandom(12).hex()
        self._owner: Owner | None = None

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._owner is not None:
            self._owner = None
            failpoints.reach("lease.end")
            with self._database.transaction() as connection:
                connection.execute("DELETE FROM leases WHERE id = ?", (self.id,))

    def add(self, kind: Leased, *items: str) -> None:
        """Protect items from now on; before looking whether they exist, so that none vanishes in between."""
        with self._database.transaction() as connection:
            self.add_in(connection, kind, *items)

    def add_in(self, connection: sqlite3.Connection, kind: Leased, *items: str) -> None:
        """Protect items within the caller's transaction."""
        owner = self._owner = self._owner or liveness.this_process()
        connection.execute("INSERT OR IGNORE INTO leases VALUES (?, ?, ?, ?, ?)", (self.id, *owner, now_ns()))
        connection.executemany(
            "INSERT OR IGNORE INTO lease_items VALUES (?, ?, ?)", [(self.id, kind, item) for item in items]
        )


def leased(connection: sqlite3.Connection, kind: Leased, item: str) -> bool:
    """Say, within the caller's transaction, whether any lease protects an item."""
    query = "SELECT 1 FROM lease_items WHERE kind = ? AND item = ? LIMIT 1"
    return connection.execute(query, (kind, item)).fetchone() is not None


def dead(database: Database) -> list[tuple[str, int]]:
    """Give the leases of processes that are gone: id, and when it began in nanoseconds since 1970."""
    found = database.rows("SELECT id, created_ns, pid, start, boot FROM leases")
    return [(str(lease), begun) for lease, begun, *owner in found if not liveness.alive(Owner(*owner))]


def expire(database: Database) -> list[str]:
    """End the leases of processes that are gone; give their ids."""
    gone = [lease for lease, _ in dead(database)]
    if gone:
        failpoints.reach("lease.expire")
        with database.transaction() as connection:
            connection.executemany("DELETE FROM leases WHERE id = ?", [(lease,) for lease in gone])
    return gone
