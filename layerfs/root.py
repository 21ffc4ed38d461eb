"""The directory of a store: what belongs in it, and in which format it is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

from layerfs import failpoints
from layerfs.database import Database
from layerfs.errors import StoreError
from layerfs.files import Lock, write_atomic

FORMAT_VERSION: Final = 1
_FORMAT: Final = "format.json"
_DIRECTORIES: Final = ("blobs", "drivers", "tmp", "trash", "locks", "logs")
_OURS: Final = frozenset(
    {
        *_DIRECTORIES,
        _FORMAT,
        "quarantine",
        "records",
        "layerfs.db",
        "layerfs.db-wal",
        "layerfs.db-shm",
        "layerfs.db-journal",
        "layerfs.reserve",
        "lost+found",
    }
)


def default() -> Path:
    """Say where the store is when nobody says: `Store.open`."""
    return Path("/var/lib/layerfs") if os.geteuid() == 0 else Path.home() / ".local/share/layerfs"


def check_format(root: Path, *, mend: bool) -> None:
    """Make a store where there is none, and refuse what is not ours; `mend` writes a damaged file anew.

    Raises:
        StoreError: the directory holds something else, or a store of another format.
    """
    try:
        text = (root / _FORMAT).read_bytes()
    except FileNotFoundError:
        _create(root)
        return
    except NotADirectoryError as error:
        raise StoreError(f"{root} is not a directory") from error
    try:
        version = json.loads(text)["layerfs"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if mend and (root / "blobs").is_dir() and (root / "drivers").is_dir():
            _write_format(root)
            return
        raise StoreError(
            f"{root / _FORMAT} cannot be read",
            hint="the store is damaged, or is none; `layerfs check --repair` writes the file anew",
        ) from error
    if version != FORMAT_VERSION:
        raise StoreError(
            f"{root} is a store of format {version}, this layerfs knows {FORMAT_VERSION}",
            hint="use the layerfs that made it, or another --root",
        )


def _create(root: Path) -> None:
    root.mkdir(0o700, parents=True, exist_ok=True)
    # Another process may be about to make the store, too.
    foreign = sorted(name for name in set(os.listdir(root)) - _OURS if not name.startswith(f".{_FORMAT}."))
    if foreign:
        raise StoreError(
            f"{root} is not a store, and not empty: it holds {foreign[0]!r}", hint="choose another --root"
        )
    root.chmod(0o700)
    (root / "locks").mkdir(0o700, exist_ok=True)
    with Lock(root / "locks" / "store"):
        if not (root / _FORMAT).exists():
            for name in _DIRECTORIES:
                (root / name).mkdir(0o700, exist_ok=True)
            failpoints.reach("store.directories")
            Database.create(root / "layerfs.db")
            failpoints.reach("store.database")
            # Last: a store without it was never finished, and is made again.
            _write_format(root)


def _write_format(root: Path) -> None:
    write_atomic(root / _FORMAT, json.dumps({"layerfs": FORMAT_VERSION}).encode() + b"\n")
