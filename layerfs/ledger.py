"""The ledger of mounts: each one is recorded before it is made, and judged later by what the kernel shows.

A record is *live* when its mount exists in its mount namespace, or when it is `held` and the
process that holds it runs. All others are stale, of a crash or of an unmount by other means. Stale
records are cleared by who holds the layer's lock (see `layers`) exclusively, or when their maker is
gone: else a mount that is just being made could be taken for a stale one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from layerfs import liveness
from layerfs.database import Database, now_ns
from layerfs.liveness import Owner
from layerfs.mount import Bind, Mount

if TYPE_CHECKING:
    from layerfs.mounting import MountInfo


class Record(NamedTuple):
    """One recorded mount; `layer` is the row of `layers`, `directory` that of a bind mount."""

    id: int
    layer: int
    target: bytes
    source: str
    directory: bytes | None
    read_only: bool
    held: bool
    namespace: int
    owner: Owner

    def __str__(self) -> str:
        if self.target:
            return f"mounted at {os.fsdecode(self.target)} by process {self.owner.pid}"
        return f"in use by process {self.owner.pid}"


_COLUMNS = "id, layer, target, source, directory, read_only, held, namespace, pid, start, boot"


class Ledger:
    """The records of one store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, layer: int, target: bytes, mount: Mount, *, read_only: bool, held: bool) -> int:
        """Write down a mount that is about to be made and give the record's id.

        An empty `target` stands for a mount that only the holder can reach.
        """
        directory = os.fsencode(mount.directory) if isinstance(mount, Bind) else None
        values = (
            layer, target, mount.source, directory, int(read_only), int(held),
            liveness.mount_namespace(), *liveness.this_process(), now_ns(),
        )  # fmt: skip
        with self._database.transaction() as connection:
            cursor = connection.execute(
                "INSERT INTO mounts (layer, target, source, directory, read_only, held, namespace, pid,"
                " start, boot, created_ns) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                values,
            )
            return int(cursor.lastrowid or 0)

    def forget(self, *records: int) -> None:
        """Strike records out, after their mounts are gone."""
        if records:
            with self._database.transaction() as connection:
                connection.executemany("DELETE FROM mounts WHERE id = ?", [(record,) for record in records])

    def live(self, layer: int, *, locked: bool = False) -> list[Record]:
        """Give the live mounts of a layer; `locked` says that the caller holds its lock exclusively."""
        return self._living(self._select("WHERE layer = ?", layer), locked=locked)

    def at(self, target: Path) -> list[Record]:
        """Give the live mounts at a target of this mount namespace, the newest first."""
        found = self._select(
            "WHERE target = ? AND namespace = ?", os.fsencode(target), liveness.mount_namespace()
        )
        return self._living(found)[::-1]

    def all(self) -> list[Record]:
        """Give every record, live or stale."""
        return self._select("")

    def abandoned(self) -> list[Record]:
        """Give the records of held mounts whose holder is gone, and of earlier boots."""
        found = self._select("WHERE held = 1 OR boot <> ?", liveness.boot_id())
        return [record for record in found if not liveness.alive(record.owner)]

    def exists(self, record: Record) -> bool:
        """Say whether a record's mount is there now, whoever made it."""
        if record.owner.boot != liveness.boot_id():
            return False
        if record.held and liveness.alive(record.owner):
            return True
        if not record.target:
            return False
        if record.namespace == liveness.mount_namespace():
            return shown(record) is not None
        if not record.held and (pid := _witness(record)) is not None:
            return shown(record, pid) is not None
        return False

    def _living(self, records: list[Record], *, locked: bool = False) -> list[Record]:
        living, stale = [], []
        for record in records:
            if self.exists(record):
                living.append(record)
            elif locked or not liveness.alive(record.owner):
                stale.append(record.id)
        self.forget(*stale)
        return living

    def _select(self, where: str, *values: object) -> list[Record]:
        rows = self._database.rows(f"SELECT {_COLUMNS} FROM mounts {where} ORDER BY id", *values)
        return [
            Record(
                number,
                layer,
                target,
                source,
                directory,
                bool(read_only),
                bool(held),
                namespace,
                Owner(*owner),
            )
            for number, layer, target, source, directory, read_only, held, namespace, *owner in rows
        ]


def shown(record: Record, pid: int | str = "self") -> MountInfo | None:
    """Find a record's mount in a process's table of mounts; None when it is not there."""
    from layerfs import mounting

    for info in mounting.mount_table(pid):
        if record.directory is None:
            if os.fsencode(info.source) == record.source.encode():
                return info
        elif info.target == record.target and (record.directory + b"/").endswith(
            info.root.rstrip(b"/") + b"/"
        ):
            return info
    return None


def _witness(record: Record) -> int | None:
    """Find a process that shares the record's mount namespace."""
    try:
        if liveness.alive(record.owner) and liveness.mount_namespace(record.owner.pid) == record.namespace:
            return record.owner.pid
    except OSError:
        pass
    return liveness.process_in_namespace(record.namespace)
