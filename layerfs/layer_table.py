"""The rows of layers: which states they are in and how these change, one short transaction each.

No file is touched here; `layers` and `unpacking` do that before or after.
"""

from __future__ import annotations

import enum
import json
import os
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from layerfs.database import Database, now_ns
from layerfs.digest import Digest
from layerfs.driver import Usage
from layerfs.errors import ExistsError, InUseError, InvalidError, NotFoundError
from layerfs.leases import Lease, leased
from layerfs.liveness import boot_id
from layerfs.value import field, frozen


class State(enum.Enum):
    """Where a layer stands in its life."""

    ACTIVE = "active"
    VIEW = "view"
    COMMITTED = "committed"


@frozen
class Layer:
    """What the store knows of a layer.

    `name` is the key of an active layer or a view, and the name of a committed one; an image's layers are
    named by their chain id (image-spec config.md). `usage` is what the layer occupies by itself, counted
    when it was committed. `blob` is the layer that it came from, kept for repair, whole or, with a
    `skeleton`, in parts; `toc` the blob with its table of contents. `row` and `driver_id` are the names that
    the database and the driver give it.
    """

    name: str
    state: State
    parent: str | None
    driver: str
    labels: Mapping[str, str]
    created_ns: int
    updated_ns: int
    diff_id: Digest | None
    blob: Digest | None
    toc: Digest | None
    skeleton: Digest | None
    usage: Usage | None
    driver_id: str
    row: int


@frozen
class Step:
    """One layer of an image to be unpacked: the blob as it is stored, and the digest of its plain tar."""

    blob: Digest
    diff_id: Digest


@frozen
class Facts:
    """What becomes known of a layer when it is committed; one without `toc` has to be finished yet."""

    usage: Usage
    toc: Digest | None
    diff_id: Digest | None = None
    blob: Digest | None = None
    durable: bool = True
    skeleton: Digest | None = None
    blob_size: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)


@frozen
class Draft:
    """A layer that is being unpacked, to be committed as `name`."""

    name: str
    driver_id: str
    row: int


_VISIBLE: Final = "l.state IN ('active', 'view', 'committed')"
_SELECT: Final = (
    "SELECT l.id, l.name, l.state, p.name, l.driver, l.driver_id, l.labels, l.created_ns, l.updated_ns,"
    " l.diff_id, l.blob, l.toc, l.skeleton, l.bytes, l.inodes FROM layers l"
    " LEFT JOIN layers p ON p.id = l.parent"
    f" WHERE {_VISIBLE} AND l.driver = ?"
)
_STACK: Final = """
WITH RECURSIVE up (driver_id, parent, depth) AS (
    SELECT driver_id, parent, 0 FROM layers WHERE id = ?
    UNION ALL
    SELECT l.driver_id, l.parent, up.depth + 1 FROM layers l JOIN up ON l.id = up.parent
)
SELECT driver_id FROM up ORDER BY depth DESC
"""
_INSERT: Final = (
    "INSERT INTO layers (driver, name, state, driver_id, parent, labels, created_ns, updated_ns, lease)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
# It needs its blobs no longer, while its files may take a while to go.
_MARK: Final = (
    "UPDATE layers SET state = 'removing', name = '~removing:' || driver_id, blob = NULL, toc = NULL,"
    " skeleton = NULL"
)


class LayerTable:
    """The layers of one store that belong to one driver."""

    def __init__(self, database: Database, driver: str) -> None:
        self.database = database
        self.driver = driver

    def find(self, name: str) -> Layer:
        """Look a layer up by its key or name.

        Raises:
            NotFoundError: there is none.
        """
        row = self.database.row(f"{_SELECT} AND l.name = ?", self.driver, name)
        if row is None:
            raise _missing(name)
        return _layer(row)

    def committed(self, name: str) -> Layer | None:
        """Look a committed layer up by its name; None when there is none."""
        row = self.database.row(f"{_SELECT} AND l.name = ? AND l.state = 'committed'", self.driver, name)
        return None if row is None else _layer(row)

    def has(self, name: str) -> bool:
        """Say whether a key or name is taken."""
        return self.database.row(f"{_SELECT} AND l.name = ?", self.driver, name) is not None

    def walk(self, *, state: State | None, parent: str | None, labels: Mapping[str, str]) -> Iterator[Layer]:
        """Give the layers that match, oldest first, as they were when the walk began."""
        statement, values = _SELECT, [self.driver]
        if state is not None:
            statement += " AND l.state = ?"
            values.append(state.value)
        if parent is not None:
            statement += " AND p.name = ?"
            values.append(parent)
        layers = map(_layer, self.database.rows(f"{statement} ORDER BY l.id", *values))
        return (layer for layer in layers if labels.items() <= layer.labels.items())

    def stack(self, row: int) -> tuple[str, ...]:
        """Give the driver ids of a layer and of all below it, bottom first.

        Raises:
            NotFoundError: the layer was removed since it was looked up.
        """
        found = tuple(driver_id for (driver_id,) in self.database.rows(_STACK, row))
        if not found:
            raise NotFoundError("the layer was removed meanwhile")
        return found

    def needed(self, layer: Layer, *, besides: Collection[int]) -> bool:
        """Say whether a lease protects a layer, or one that is not among the rows `besides` stands on it."""
        children = self.database.rows("SELECT id FROM layers WHERE parent = ?", layer.row)
        if any(child not in besides for (child,) in children):
            return True
        query = "SELECT 1 FROM lease_items WHERE kind = 'layer' AND item = ? LIMIT 1"
        return self.database.row(query, layer.driver_id) is not None

    def is_draft(self, row: int) -> bool:
        """Say whether a draft is neither committed nor removed yet."""
        return self.database.row("SELECT state FROM layers WHERE id = ?", row) == ("draft",)

    def ancestors(self, layer: Layer) -> list[Layer]:
        """Give the layers below one, bottom first."""
        found: list[Layer] = []
        while layer.parent is not None:
            layer = self.find(layer.parent)
            found.append(layer)
        return found[::-1]

    def blob_size(self, layer: Layer) -> int | None:
        """Give the length in bytes of the blob that a layer holds in parts, None if it does not."""
        row = self.database.row("SELECT blob_size FROM layers WHERE id = ?", layer.row)
        return None if row is None else row[0]

    def driver_ids(self) -> set[str]:
        """Give the driver ids of every row of any driver, in whatever state.

        A layer may just be on its way from one driver to another.
        """
        return {value for (value,) in self.database.rows("SELECT driver_id FROM layers")}

    def own_driver_ids(self) -> set[str]:
        """Give the driver ids of this driver's rows, in whatever state."""
        rows = self.database.rows("SELECT driver_id FROM layers WHERE driver = ?", self.driver)
        return {value for (value,) in rows}

    def place(self, driver_id: str) -> tuple[int, tuple[str, ...]]:
        """Give a layer's row and its stack, by the driver's id of it.

        Raises:
            NotFoundError: there is none.
        """
        row = self.database.row(
            "SELECT id FROM layers WHERE driver = ? AND driver_id = ?", self.driver, driver_id
        )
        if row is None:
            raise _missing(driver_id)
        return int(row[0]), self.stack(row[0])

    def describe(self, layer: Layer, toc: Digest) -> None:
        """Let a committed layer have another table of contents, durably."""
        with self.database.transaction(durable=True) as connection:
            connection.execute("UPDATE layers SET toc = ? WHERE id = ?", (str(toc), layer.row))
            self.database.note(connection, "layers", layer.driver_id)

    def labels_of(self, driver_id: str) -> Mapping[str, str]:
        """Give the labels of a layer by the driver's id of it.

        Raises:
            NotFoundError: there is none.
        """
        row = self.database.row(
            "SELECT labels FROM layers WHERE driver = ? AND driver_id = ?", self.driver, driver_id
        )
        if row is None:
            raise _missing(driver_id)
        return MappingProxyType(json.loads(row[0]))

    def add(
        self, key: str, state: State, parent: str | None, labels: Mapping[str, str], lease: Lease | None
    ) -> tuple[Layer, tuple[str, ...]]:
        """Add an active layer or a view; give it and the driver ids below it.

        With a lease the key is taken, but the layer is hidden until `activate`: its files come first.

        Raises:
            ExistsError, NotFoundError, InvalidError: as `Layers.prepare` says.
        """
        check_name(key)
        driver_id, now = _new_id(), now_ns()
        text = json.dumps(dict(labels), sort_keys=True)
        below: tuple[str, ...] = ()
        with self.database.transaction() as connection:
            base = None
            if parent is not None:
                base = self._committed(connection, parent)
                below = tuple(value for (value,) in connection.execute(_STACK, (base,)))
            first, lease_id = (state.value, None) if lease is None else ("draft", lease.id)
            try:
                cursor = connection.execute(
                    _INSERT, (self.driver, key, first, driver_id, base, text, now, now, lease_id)
                )
            except sqlite3.IntegrityError as error:
                raise _taken(key) from error
            if lease is not None:
                lease.add_in(connection, "layer", driver_id)
            else:
                self.database.note(connection, "layers", driver_id)
        row = int(cursor.lastrowid or 0)
        frozen = MappingProxyType(dict(labels))
        layer = Layer(
            key, state, parent, self.driver, frozen, now, now, None, None, None, None, None, driver_id, row
        )
        return layer, below

    def activate(self, layer: Layer) -> None:
        """Show a layer that was added under a lease, now that its files are there."""
        with self.database.transaction() as connection:
            connection.execute(
                "UPDATE layers SET state = ?, lease = NULL WHERE id = ? AND state = 'draft'",
                (layer.state.value, layer.row),
            )
            self.database.note(connection, "layers", layer.driver_id)

    def commit(self, layer: Layer, name: str, facts: Facts, labels: Mapping[str, str]) -> None:
        """Turn an active layer into a committed one, durably.

        Raises:
            ExistsError: the name is taken.
            NotFoundError: the layer was removed meanwhile.
        """
        check_name(name)
        with self.database.transaction(durable=True) as connection:
            self._commit(connection, layer.row, "active", name, facts, labels)
            self.database.note(connection, "layers", layer.driver_id)

    def label(self, name: str, labels: Mapping[str, str | None]) -> None:
        """Set labels, or take away those whose value is None."""
        with self.database.transaction() as connection:
            row = connection.execute(
                "SELECT l.id, l.labels, l.driver_id FROM layers l"
                f" WHERE l.driver = ? AND l.name = ? AND {_VISIBLE}",
                (self.driver, name),
            ).fetchone()
            if row is None:
                raise _missing(name)
            merged = {**json.loads(row[1]), **labels}
            kept = {key: value for key, value in merged.items() if value is not None}
            connection.execute(
                "UPDATE layers SET labels = ?, updated_ns = ? WHERE id = ?",
                (json.dumps(kept, sort_keys=True), now_ns(), row[0]),
            )
            self.database.note(connection, "layers", row[2])

    # -- drafts

    def present(self, names: Sequence[str], lease: Lease) -> int:
        """Count how many layers of a chain are committed, bottom first, and lease the topmost of these."""
        with self.database.transaction() as connection:
            for count in range(len(names), 0, -1):
                row = connection.execute(
                    "SELECT driver_id FROM layers WHERE driver = ? AND name = ? AND state = 'committed'",
                    (self.driver, names[count - 1]),
                ).fetchone()
                if row is not None:
                    lease.add_in(connection, "layer", row[0])
                    return count
        return 0

    def add_draft(
        self,
        name: str,
        parent: str | Draft | None,
        lease: Lease,
        *,
        labels: Mapping[str, str] = MappingProxyType({}),
    ) -> Draft:
        """Add a layer that is about to be unpacked, on a committed layer or on another draft."""
        driver_id, now, text = _new_id(), now_ns(), json.dumps(dict(labels), sort_keys=True)
        with self.database.transaction() as connection:
            if isinstance(parent, Draft):
                base: int | None = parent.row
            else:
                base = None if parent is None else self._committed(connection, parent)
            values = (self.driver, f"~draft:{driver_id}", "draft", driver_id, base, text, now, now, lease.id)
            cursor = connection.execute(_INSERT, values)
            lease.add_in(connection, "layer", driver_id)
        return Draft(name, driver_id, int(cursor.lastrowid or 0))

    def commit_drafts(self, drafts: Sequence[tuple[Draft, Facts]]) -> list[Draft]:
        """Commit a chain of drafts, bottom first, all at once and durably.

        Where another process was first its layer serves instead; gives the drafts that are not needed then.
        """
        spare = []
        with self.database.transaction(durable=True) as connection:
            below: int | None = None
            for draft, facts in drafts:
                if below is not None:
                    connection.execute("UPDATE layers SET parent = ? WHERE id = ?", (below, draft.row))
                query = "SELECT id FROM layers WHERE driver = ? AND name = ?"
                theirs = connection.execute(query, (self.driver, draft.name)).fetchone()
                if theirs is not None:
                    spare.append(draft)
                    below = int(theirs[0])
                else:
                    self._commit(connection, draft.row, "draft", draft.name, facts, facts.labels)
                    below = draft.row
            self.database.note(
                connection, "layers", *(draft.driver_id for draft, _ in drafts if draft not in spare)
            )
        return spare

    def replace(self, layer: Layer, draft: Draft, facts: Facts) -> None:
        """Let a committed layer have a draft's files from now on; the draft gets the old ones, to be removed.

        Raises:
            NotFoundError: the layer is gone.
        """
        with self.database.transaction(durable=True) as connection:
            for driver_id, row in ((f"~{layer.driver_id}", layer.row), (layer.driver_id, draft.row)):
                connection.execute("UPDATE layers SET driver_id = ? WHERE id = ?", (driver_id, row))
            cursor = connection.execute(
                "UPDATE layers SET driver_id = ?, toc = ?, bytes = ?, inodes = ?, durable = ?, boot = ?,"
                " skeleton = ?, blob_size = ? WHERE id = ? AND state = 'committed'",
                (
                    draft.driver_id, str(facts.toc), *facts.usage, int(facts.durable), boot_id(),
                    _text(facts.skeleton), facts.blob_size, layer.row,
                ),
            )  # fmt: skip
            if cursor.rowcount != 1:
                raise _missing(layer.name)
            self.database.records.keep(connection, "layers", layer.driver_id)
            # The records of those above name it.
            above = connection.execute("SELECT driver_id FROM layers WHERE parent = ?", (layer.row,))
            self.database.note(connection, "layers", draft.driver_id, *(each for (each,) in above.fetchall()))

    def have_blob(self, blob: Digest) -> bool:
        """Say whether a committed layer came from a blob."""
        statement = "SELECT 1 FROM layers WHERE driver = ? AND state = 'committed' AND blob = ? LIMIT 1"
        return self.database.row(statement, self.driver, str(blob)) is not None

    def without_contents(self) -> list[str]:
        """Give the committed layers of which no table of contents is known yet, by the driver's ids."""
        statement = "SELECT driver_id FROM layers WHERE driver = ? AND state = 'committed' AND toc IS NULL"
        return [driver_id for (driver_id,) in self.database.rows(statement, self.driver)]

    def note_contents(self, driver_id: str, usage: Usage, toc: Digest) -> None:
        """Note what a committed layer occupies, and its table of contents, by the driver's id."""
        with self.database.transaction(durable=True) as connection:
            connection.execute(
                "UPDATE layers SET bytes = ?, inodes = ?, toc = ? WHERE driver = ? AND driver_id = ?",
                (*usage, str(toc), self.driver, driver_id),
            )
            self.database.note(connection, "layers", driver_id)

    def called(self, name: str | None) -> str:
        """Say in words which layer it is; a container's goes by the container's name, which users know."""
        container = self.container(name)
        if container is not None:
            return f"container {container}"
        return "the layer" if name is None else f"layer {name!r}"

    def container(self, name: str | None) -> str | None:
        """Give the name of the container whose layer this is, None if it is none's."""
        row = self.database.row("SELECT name FROM containers WHERE id = ?", name)
        return None if row is None else str(row[0])

    # -- removal

    def mark(self, layer: Layer, *, containers: bool = True, doubled: bool = False) -> None:
        """Take a layer's name away for good, and its container with it; its files are to be removed next.

        Args:
            layer: as it was found.
            containers: False leaves it alone if it is a container's.
            doubled: take it away from an image that has the same layer with another driver.

        Raises:
            NotFoundError: it is gone already.
            InUseError: it has a child, a lease, or an image that needs it.
        """
        # Files must not vanish before the row does, or a power failure would bring the name back alone.
        with self.database.transaction(durable=layer.state is State.COMMITTED) as connection:
            self._mark(connection, layer, containers=containers, going=(), doubled=doubled)

    def supersede(self, layer: Layer, draft: Draft, *, driver: str) -> None:
        """Let a draft of another driver be the container's writable layer from now on, and mark the old one.

        Raises:
            NotFoundError: one of them is gone.
            InUseError: the container runs.
        """
        with self.database.transaction(durable=True) as connection:
            query = "SELECT status FROM containers WHERE id = ? AND driver = ?"
            status = connection.execute(query, (layer.name, self.driver)).fetchone()
            if status is None:
                raise _missing(layer.name)
            if status == ("running",):
                raise InUseError("the container runs")
            old = connection.execute(f"{_MARK} WHERE id = ? AND state = 'active'", (layer.row,))
            new = connection.execute(
                "UPDATE layers SET state = 'active', lease = NULL, name = ?, labels = ?, created_ns = ?,"
                " updated_ns = ? WHERE id = ? AND state = 'draft'",
                (
                    layer.name, json.dumps(dict(layer.labels), sort_keys=True), layer.created_ns, now_ns(),
                    draft.row,
                ),
            )  # fmt: skip
            if (old.rowcount, new.rowcount) != (1, 1):
                raise _missing(layer.name)
            connection.execute("UPDATE containers SET driver = ? WHERE id = ?", (driver, layer.name))
            self.database.records.keep(connection, "layers", layer.driver_id)
            self.database.note(connection, "layers", draft.driver_id)
            self.database.note(connection, "containers", layer.name)

    def mark_together(self, layers: Sequence[Layer]) -> list[Layer]:
        """Mark committed layers, children first, as `mark` does; give those before the first that stays."""
        marked: list[Layer] = []
        with self.database.transaction(durable=True) as connection:
            for layer in layers:
                try:
                    self._mark(connection, layer, containers=True, going={each.row for each in marked})
                except NotFoundError:
                    continue
                except InUseError:
                    break
                marked.append(layer)
        return marked

    def _mark(
        self,
        connection: sqlite3.Connection,
        layer: Layer,
        *,
        containers: bool,
        going: Collection[int],
        doubled: bool = False,
    ) -> None:
        is_container = _mark(connection, layer, containers=containers, going=going, doubled=doubled)
        self.database.records.keep(connection, "layers", layer.driver_id)
        if is_container:
            self.database.records.keep(connection, "containers", layer.name)

    def mark_unborn(self, row: int) -> None:
        """Take away a layer that never came to be; nobody else knows it."""
        with self.database.transaction() as connection:
            query = f"{_MARK} WHERE id = ? RETURNING driver_id"
            for (driver_id,) in connection.execute(query, (row,)).fetchall():
                # It may have been committed a moment ago.
                self.database.records.keep(connection, "layers", driver_id)

    def mark_abandoned(self) -> None:
        """Take away the drafts whose lease has ended."""
        with self.database.transaction() as connection:
            connection.execute(
                f"{_MARK} WHERE state = 'draft' AND driver = ?"
                " AND NOT EXISTS (SELECT 1 FROM leases WHERE leases.id = layers.lease)",
                (self.driver,),
            )

    def marked(self) -> list[tuple[int, str]]:
        """Give row and driver id of the layers that are marked as removed, children before parents."""
        statement = (
            "SELECT id, driver_id FROM layers WHERE state = 'removing' AND driver = ? ORDER BY id DESC"
        )
        return [(row, driver_id) for row, driver_id in self.database.rows(statement, self.driver)]

    def is_marked(self, row: int) -> bool:
        """Say whether a layer is marked as removed, still there, and without children."""
        statement = (
            "SELECT state FROM layers l WHERE id = ?"
            " AND NOT EXISTS (SELECT 1 FROM layers WHERE parent = l.id)"
        )
        return self.database.row(statement, row) == ("removing",)

    def unfinished(self) -> bool:
        """Say whether there are drafts or half-removed layers, as cheaply as can be."""
        statement = "SELECT 1 FROM layers WHERE state IN ('draft', 'removing') LIMIT 1"
        return self.database.row(statement) is not None

    def delete(self, *rows: int) -> None:
        """Delete the rows of marked layers, children first, after their files are gone."""
        with self.database.transaction() as connection:
            for row in rows:
                connection.execute("DELETE FROM layers WHERE id = ? AND state = 'removing'", (row,))

    def _committed(self, connection: sqlite3.Connection, name: str) -> int:
        row = connection.execute(
            "SELECT id, state FROM layers WHERE driver = ? AND name = ?", (self.driver, name)
        ).fetchone()
        if row is None:
            raise _missing(name)
        if row[1] != "committed":
            raise InvalidError(f"layer {name!r} is {row[1]}; only a committed one can be a parent")
        return int(row[0])

    def _commit(
        self,
        connection: sqlite3.Connection,
        row: int,
        state: str,
        name: str,
        facts: Facts,
        labels: Mapping[str, str],
    ) -> None:
        values = (
            name, now_ns(), json.dumps(dict(labels), sort_keys=True), _text(facts.diff_id), _text(facts.blob),
            _text(facts.toc), *facts.usage, int(facts.durable), boot_id(), _text(facts.skeleton),
            facts.blob_size, row, state,
        )  # fmt: skip
        try:
            cursor = connection.execute(
                "UPDATE layers SET state = 'committed', lease = NULL, name = ?, updated_ns = ?, labels = ?,"
                " diff_id = ?, blob = ?, toc = ?, bytes = ?, inodes = ?, durable = ?, boot = ?,"
                " skeleton = ?, blob_size = ? WHERE id = ? AND state = ?",
                values,
            )
        except sqlite3.IntegrityError as error:
            raise _taken(name) from error
        if cursor.rowcount != 1:
            raise NotFoundError(f"the layer that was to become {name!r} was removed meanwhile")


def _mark(
    connection: sqlite3.Connection,
    layer: Layer,
    *,
    containers: bool,
    going: Collection[int],
    doubled: bool = False,
) -> bool:
    """Mark a layer as removed, and say whether it was a container's.

    Its children among the rows `going` are no obstacle.
    """
    state = connection.execute("SELECT state FROM layers WHERE id = ?", (layer.row,)).fetchone()
    if state != (layer.state.value,):
        raise _missing(layer.name)
    for row, name in connection.execute("SELECT id, name FROM layers WHERE parent = ?", (layer.row,)):
        if row not in going:
            raise InUseError(f"layer {layer.name!r} has a child, {name!r}")
    image = connection.execute("SELECT 1 FROM image_layers WHERE chain_id = ?", (layer.name,)).fetchone()
    twin = "SELECT 1 FROM layers WHERE name = ? AND driver <> ? AND state = 'committed'"
    if image is not None and not (
        doubled and connection.execute(twin, (layer.name, layer.driver)).fetchone() is not None
    ):
        raise InUseError(f"layer {layer.name!r} belongs to an image")
    query = "SELECT name FROM containers WHERE id = ?"
    if not containers and connection.execute(query, (layer.name,)).fetchone() is not None:
        raise InUseError(f"layer {layer.name!r} belongs to a container")
    if leased(connection, "layer", layer.driver_id):
        raise InUseError(f"layer {layer.name!r} is leased by a running operation")
    if (user := sole_holder(connection, layer.row)) is not None:
        raise InUseError(f"layer {layer.name!r} holds a blob that {user} needs")
    connection.execute(f"{_MARK} WHERE id = ?", (layer.row,))
    # A container must not outlive its layer, not even if we are killed right here.
    return connection.execute("DELETE FROM containers WHERE id = ?", (layer.name,)).rowcount > 0


def sole_holder(connection: sqlite3.Connection, row: int) -> str | None:
    """Say who needs the blob that a layer holds in parts, and no other layer does; None if nobody."""
    others = (
        "SELECT 1 FROM layers WHERE blob = l.blob AND skeleton IS NOT NULL AND id <> l.id"
        " AND state = 'committed'"
    )
    found = connection.execute(
        "SELECT (SELECT manifest FROM links WHERE blob = l.blob),"
        " EXISTS (SELECT 1 FROM lease_items WHERE kind = 'blob' AND item = l.blob)"
        f" FROM layers l WHERE id = ? AND skeleton IS NOT NULL AND NOT EXISTS ({others})",
        (row,),
    ).fetchone()
    if found is None or found == (None, 0):
        return None
    return "a running operation" if found[0] is None else f"image {found[0]}"


def check_name(name: str) -> None:
    """Refuse what cannot be a key or a name: the empty string, NULs, and ``~`` in front.

    Raises:
        InvalidError: it is one of these.
    """
    if not name or name.startswith("~") or "\0" in name:
        raise InvalidError(f"{name!r} cannot name a layer")


def _layer(row: tuple[Any, ...]) -> Layer:
    (number, name, state, parent, driver, driver_id, labels, created, updated, diff_id, blob, toc, skeleton,
     size, inodes) = row  # fmt: skip
    return Layer(
        name=name,
        state=State(state),
        parent=parent,
        driver=driver,
        labels=MappingProxyType({} if labels == "{}" else json.loads(labels)),
        created_ns=created,
        updated_ns=updated,
        diff_id=None if diff_id is None else Digest.parse(diff_id),
        blob=None if blob is None else Digest.parse(blob),
        toc=None if toc is None else Digest.parse(toc),
        skeleton=None if skeleton is None else Digest.parse(skeleton),
        usage=None if size is None else Usage(size, inodes),
        driver_id=driver_id,
        row=number,
    )


def _text(digest: Digest | None) -> str | None:
    return None if digest is None else str(digest)


def _new_id() -> str:
    return os.urandom(8).hex()


def _missing(name: str) -> NotFoundError:
    return NotFoundError(f"there is no layer {name!r}")


def _taken(name: str) -> ExistsError:
    return ExistsError(f"there is a layer {name!r} already")
