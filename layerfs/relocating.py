"""Layers go from one driver to another by renaming their directories, where both have one format.

What is about to be renamed is written down first. The renames are made within the transaction that tells
the database, and taken back with it; whoever opens the store after a kill brings both together.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from layerfs.database import Database
from layerfs.driver import Driver, Shares
from layerfs.errors import InUseError, NotFoundError
from layerfs.files import Lock, sync_directory
from layerfs.layers import Layer, Layers, State
from layerfs.leases import leased

PREFIX: Final = "relocating:"
"""How the keys of `meta` begin that tell of renames under way."""

_LOCK: Final = "store-relocating"


def share_format(one: Driver, other: Driver) -> bool:
    """Say whether two drivers can take layers from each other as they are."""
    if not (isinstance(one, Shares) and isinstance(other, Shares)) or one.format != other.format:
        return False
    return os.stat(one.root).st_dev == os.stat(other.root).st_dev


def relocate(
    database: Database,
    root: Path,
    source: Layers,
    target: Layers,
    layers: Sequence[Layer],
    *,
    parent: str | None,
) -> None:
    """Make layers of one driver those of another, which is like it; with a container's layer the container.

    A kill at any moment leaves all of them with one driver or all with the other.

    Args:
        database: of the store.
        root: of the store.
        source: of the driver that has them.
        target: of the driver that gets them.
        layers: bottom first, each on the one before; the caller holds their locks.
        parent: the committed layer of the target that the lowest stands on.

    Raises:
        InUseError: another layer stands on one of them, a lease protects one, or the container runs.
        NotFoundError: one of them, or the parent, is gone.
        OSError: the directories cannot be renamed; nothing has changed.
    """
    assert isinstance(source.driver, Shares) and isinstance(target.driver, Shares)
    ids = [layer.driver_id for layer in layers]
    key = PREFIX + os.urandom(8).hex()
    note = json.dumps({"drivers": [source.driver.name, target.driver.name], "layers": ids})
    with Lock(root / "locks" / _LOCK):
        with database.transaction(durable=True) as connection:
            connection.execute("INSERT INTO meta (key, value) VALUES (?, ?)", (key, note))
        try:
            with database.transaction(durable=True) as connection:
                _tell(connection, source.driver.name, target.driver.name, layers, parent=parent)
                database.records.keep(connection, "layers", *ids)
                if layers[-1].state is State.ACTIVE:
                    database.records.keep(connection, "containers", layers[-1].name)
                for each in ids:
                    os.rename(source.driver.place(each), target.driver.place(each))
                _sync(target, source)
        finally:
            # Nothing to do, unless something failed.
            _settle(database, ids, (source, target))
            _forget(database, key)


def recover(database: Database, root: Path, layers_of: Callable[[str], Layers]) -> None:
    """Put directories where the database has them, after a kill; what is under way is left alone."""
    # Of the living one waits for nothing: the lock is taken for moments.
    with contextlib.suppress(InUseError), Lock(root / "locks" / _LOCK, blocking=False):
        for key, value in database.rows("SELECT key, value FROM meta WHERE key GLOB ?", f"{PREFIX}*"):
            note = json.loads(value)
            _settle(database, note["layers"], [layers_of(name) for name in note["drivers"]])
            _forget(database, key)


def _settle(database: Database, ids: Sequence[str], drivers: Sequence[Layers]) -> None:
    """Put the directories of layers where the database says that they are."""
    moved = False
    for each in ids:
        row = database.row("SELECT driver FROM layers WHERE driver_id = ?", each)
        places = {}
        for layers in drivers:
            assert isinstance(layers.driver, Shares)
            places[layers.driver.name] = layers.driver.place(each)
        home = None if row is None else places.pop(row[0], None)
        if home is None or home.exists():
            continue
        for place in places.values():
            if place.is_dir():
                os.rename(place, home)
                moved = True
    if moved:
        _sync(*drivers)


def _tell(
    connection: sqlite3.Connection, source: str, target: str, layers: Sequence[Layer], *, parent: str | None
) -> None:
    base = None
    if parent is not None:
        query = "SELECT id FROM layers WHERE driver = ? AND name = ? AND state = 'committed'"
        found = connection.execute(query, (target, parent)).fetchone()
        if found is None:
            raise NotFoundError(f"there is no layer {parent!r}")
        base = int(found[0])
    rows = {layer.row for layer in layers}
    for layer in layers:
        query = "SELECT driver, state FROM layers WHERE id = ? AND driver_id = ?"
        if connection.execute(query, (layer.row, layer.driver_id)).fetchone() != (source, layer.state.value):
            raise NotFoundError(f"there is no layer {layer.name!r}")
        for child, name in connection.execute("SELECT id, name FROM layers WHERE parent = ?", (layer.row,)):
            if child not in rows:
                raise InUseError(f"layer {layer.name!r} has a child, {name!r}")
        if leased(connection, "layer", layer.driver_id):
            raise InUseError(f"layer {layer.name!r} is leased by a running operation")
        query = "SELECT 1 FROM containers WHERE id = ? AND status = 'running'"
        if connection.execute(query, (layer.name,)).fetchone() is not None:
            raise InUseError(f"the container of layer {layer.name!r} runs")
        try:
            connection.execute("UPDATE layers SET driver = ? WHERE id = ?", (target, layer.row))
        except sqlite3.IntegrityError as error:
            raise InUseError(f"{target} has a layer {layer.name!r} by now") from error
        connection.execute("UPDATE containers SET driver = ? WHERE id = ?", (target, layer.name))
    connection.execute("UPDATE layers SET parent = ? WHERE id = ?", (base, layers[0].row))


def _sync(*drivers: Layers) -> None:
    for layers in drivers:
        if layers.durability != "none":
            sync_directory(layers.driver.root)


def _forget(database: Database, key: str) -> None:
    with database.transaction() as connection:
        connection.execute("DELETE FROM meta WHERE key = ?", (key,))
