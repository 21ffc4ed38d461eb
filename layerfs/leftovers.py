"""What stopped processes leave behind beside the database: harmless, and removed by garbage collection.

ROOT/tmp/ingest-...     partial blobs      ROOT/tmp/...     directories for mounts
ROOT/trash/...          half deleted       ROOT/locks/...   of layers and operations that are gone
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from layerfs import failpoints, files
from layerfs.blobs import Blobs, Partial
from layerfs.database import Database
from layerfs.errors import InUseError
from layerfs.ledger import Ledger

# What is in the trash is being deleted by whoever put it there, and is a crash's when it stays.
_TRASH_SECONDS: Final = 60.0


class Leftover(NamedTuple):
    """One of them: its kind, a path below the root, the bytes that it occupies, when it was last touched.

    It is `busy` while a living process uses it. `touched` is in seconds since 1970.
    """

    kind: str
    name: str
    bytes: int
    touched: float
    busy: bool

    @property
    def what(self) -> str:
        """What it is, in words."""
        return {
            "partial": "a part of a blob, which a pull may go on with",
            "temporary": "what a process needed for itself",
            "trash": "half deleted",
            "lock": "the lock of something that is gone",
            "lease": "what a process held that is gone",
            "layer": "half made, or half removed",
        }[self.kind]


class Leftovers:
    """Those of one store."""

    def __init__(self, root: Path, database: Database, blobs: Blobs) -> None:
        self._root = root
        self._database = database
        self._blobs = blobs

    def find(self) -> Iterator[Leftover]:
        """Give everything that is or may be a leftover."""
        for partial in self._blobs.partials():
            yield Leftover("partial", f"tmp/{partial.name}", *partial[1:])
        temporary = self._root.resolve() / "tmp"
        names = [name for name in _names(temporary) if not name.startswith("ingest-")]
        # Looked at in this order: a mount's directory is made after its record is written.
        in_use = {record.target for record in Ledger(self._database).all()}
        for name in names:
            yield from self._file("temporary", f"tmp/{name}", busy=os.fsencode(temporary / name) in in_use)
        for name in _names(self._root / "trash"):
            yield from self._file("trash", f"trash/{name}", busy=False)
        yield from self._locks()

    def remove(self, one: Leftover, *, older_than: float) -> bool:
        """Remove one that nobody uses and that was last touched before `older_than`; say whether it is gone.

        What is in the trash has to be a minute old, a lock nothing.
        """
        if not is_due(one, older_than=older_than):
            return False
        name = one.name.partition("/")[2]
        if one.kind == "lock":
            failpoints.reach("gc.locks")
        elif one.kind != "partial":
            failpoints.reach("gc.leftovers")
        if one.kind == "partial":
            partial = Partial(name, *one[2:])
            return self._blobs.drop(partial, older_than=older_than) > 0 or one.bytes == 0
        if one.kind == "lock":
            with contextlib.suppress(InUseError), files.Lock(self._root / one.name, blocking=False) as lock:
                lock.path.unlink(missing_ok=True)
                return True
            return False
        directory = os.open(
            self._root / one.name.partition("/")[0], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        )
        try:
            with contextlib.suppress(InUseError):
                files.remove_tree(directory, name)
                return True
            return False
        finally:
            os.close(directory)

    def _file(self, kind: str, name: str, *, busy: bool) -> Iterator[Leftover]:
        with contextlib.suppress(FileNotFoundError):
            found = os.lstat(self._root / name)
            yield Leftover(kind, name, found.st_blocks * 512, found.st_mtime, busy)

    def _locks(self) -> Iterator[Leftover]:
        directory = self._root / "locks"
        names = [name for name in _names(directory) if not name.startswith("store")]
        known = {driver_id for (driver_id,) in self._database.rows("SELECT driver_id FROM layers")}
        for name in names:
            if name not in known:
                yield from self._file("lock", f"locks/{name}", busy=is_locked(directory / name))


def is_due(one: Leftover, *, older_than: float) -> bool:
    """Say whether a leftover may go, by its age and use."""
    limit = {"trash": time.time() - _TRASH_SECONDS, "lock": float("inf")}.get(one.kind, older_than)
    return not one.busy and one.touched < limit


def is_locked(path: Path) -> bool:
    """Say whether somebody holds a lock on a file."""
    if not path.exists():
        return False
    try:
        with files.Lock(path, blocking=False):
            return False
    except InUseError:
        return True


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
