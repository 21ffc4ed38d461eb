"""The ledger of mounts: each one is recorded before it is made, and judged later by what the kernel shows.

A record is *live* when its mount exists in its mount namespace, or when it is `held` and the
process that holds it runs. All others are stale, of a crash or of an unmount by other means. Stale
records are cleared by who holds the layer's lock (see `layers`) exclusively, or when their maker is
gone: else a mount that is just being made could be taken for a stale one.

A mount is *dead* when it is there and the process that served it is not (a FUSE server that was killed). It
shows nothing and writes nothing, and whoever needs its layer or its place takes it away.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from layerfs import liveness
from layerfs.database import Database, now_ns
from layerfs.liveness import Owner
from layerfs.mount import Bind, Mount
from layerfs.value import frozen

if TYPE_CHECKING:
    from layerfs.mounting import MountInfo
    from layerfs.outside import Outside


@frozen
class Record:
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
    """The records of one store; `outside` is the mount namespace beside our own that we can act in."""

    def __init__(self, database: Database, outside: Outside | None = None) -> None:
        self._database = database
        self._outside = outside

    def record(
        self, layer: int, target: bytes, mount: Mount, *, read_only: bool, held: bool, outside: bool = False
    ) -> int:
        """Write down a mount that is about to be made and give the record's id.

        An empty `target` stands for a mount that only the holder can reach; with `outside` it is made there.
        """
        here = liveness.mount_namespace()
        namespace = self._outside.namespace if outside and self._outside is not None else here
        directory = os.fsencode(mount.directory) if isinstance(mount, Bind) else None
        values = (
            layer, target, mount.source, directory, int(read_only), int(held),
            namespace, *liveness.this_process(), now_ns(),
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
        found = [each for each in self._select("WHERE target = ?", os.fsencode(target)) if self.near(each)]
        return self._living(found)[::-1]

    def near(self, record: Record) -> bool:
        """Say whether a record's mount is in a namespace that we can act in: our own, or the one outside."""
        return record.namespace == liveness.mount_namespace() or self.is_outside(record)

    def is_outside(self, record: Record) -> bool:
        """Say whether a record's mount was made outside of our user namespace."""
        return self._outside is not None and record.namespace == self._outside.namespace

    def dead(self, record: Record) -> bool:
        """Say whether a mount that is there, near and not held has lost the process that served it.

        Of one that another mount hides nobody can say.
        """
        if record.held or not self.near(record):
            return False
        top = None
        for info in self._table(record):
            top = info if info.target == record.target else top
        if top is None or not top.fstype.startswith("fuse") or shown(record, [top]) is None:
            return False
        from layerfs import mounting

        return mounting.is_dead(record.target)

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
        if self.near(record):
            return self._shown(record) is not None
        if not record.held and (pid := _witness(record)) is not None:
            from layerfs import mounting

            return shown(record, mounting.mount_table(pid)) is not None
        return False

    def _shown(self, record: Record) -> MountInfo | None:
        return shown(record, self._table(record))

    def _table(self, record: Record) -> list[MountInfo]:
        if self._outside is not None and self.is_outside(record):
            return self._outside.mount_table()
        from layerfs import mounting

        return mounting.mount_table()

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


def shown(record: Record, table: Iterable[MountInfo]) -> MountInfo | None:
    """Find a record's mount in a table of mounts; None when it is not there."""
    for info in table:
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
