"""The ledger of mounts: each one is recorded before it is made, and judged later by what the kernel shows.

A record is *live* when its mount exists in its mount namespace, or when it is `held` and the
process that holds it runs. All others are stale, of a crash or of an unmount by other means. Stale
records are cleared by who holds the layer's lock (see `layers`) exclusively, or when their maker is
gone: else a mount that is just being made could be taken for a stale one.

A mount is *dead* when it is there and the process that served it is not (a FUSE server that was killed). It
shows nothing and writes nothing, and whoever needs its layer or its place takes it away.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from layerfs import liveness
from layerfs.database import Database, now_ns
from layerfs.errors import InUseError
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
        if not self.target:
            return f"in use by process {self.owner.pid}"
        # Most mounts outlive the process that made them.
        by = f" by process {self.owner.pid}" if liveness.alive(self.owner) else ""
        return f"mounted at {os.fsdecode(self.target)}{by}"


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

    def private(self, target: Path) -> Iterator[int]:
        """Give processes that see a live mount at a target of a mount namespace which we cannot act in."""
        for record in self._select("WHERE target = ?", os.fsencode(target)):
            if not record.held and not self.near(record) and (pid := self.witness(record)) is not None:
                yield pid

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

    def forget_stale(self) -> None:
        """Strike out the records of mounts that are not there, and whose maker cannot make them any more."""
        stale = [each for each in self.all() if not liveness.alive(each.owner) and not self.exists(each)]
        self.forget(*(record.id for record in stale))

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
        return not record.held and self.witness(record) is not None

    def witness(self, record: Record) -> int | None:
        """Find a process that sees a mount in a namespace which we cannot act in; None when none does."""
        owners = [record.owner.pid] if liveness.alive(record.owner) else []
        for pid in itertools.chain(owners, liveness.processes_in_namespace(record.namespace)):
            if _sees(pid, record):
                return pid
        return None

    def refusal(self, called: str, record: Record) -> InUseError:
        """Make the error for who needs what a live mount has; `called` names that."""
        if record.target and not record.held and not self.near(record):
            pid, advice = self.witness(record), None
            if pid == record.owner.pid:
                advice = f"end process {pid}"
            elif pid is not None:
                # That one may be anybody's, who has nothing to do with the mount.
                advice = f"unmount it in the mount namespace of process {pid}"
            return InUseError(f"{called} is {record}, in another mount namespace", hint=advice)
        hint = f"layerfs umount {os.fsdecode(record.target)}" if record.target else None
        return InUseError(f"{called} is {record}", hint=hint)

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


def _sees(pid: int, record: Record) -> bool:
    """Say whether a process sees a record's mount in its namespace, or in one that nobody tells us."""
    from layerfs import mounting

    try:
        with contextlib.suppress(PermissionError):
            if liveness.mount_namespace(pid) != record.namespace:
                return False
        return shown(record, mounting.mount_table(pid)) is not None
    except OSError:
        return False
