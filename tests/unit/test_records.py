"""The records beside the database: they say what it says, and never more."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from layerfs.compression import Compression
from layerfs.database import Database
from layerfs.errors import NotFoundError
from layerfs.rebuilding import Restoring
from layerfs.records import KINDS, describe, keys
from layerfs.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "root", driver="overlay2", durability="none") as opened:
        yield opened


def add_image(store: Store, tmp_path: Path, name: str, text: str = "text") -> None:
    (tmp_path / "tree").mkdir(exist_ok=True)
    (tmp_path / "tree/file").write_text(text)
    store.import_tree(tmp_path / "tree", name)


def said(store: Store) -> dict[str, dict[str, Any]]:
    """What the records say."""
    database = store._database
    return {kind: {one.key: one.body for one in database.records.read(kind)} for kind in KINDS}


def known(store: Store) -> dict[str, dict[str, Any]]:
    """What the database says."""
    with store._database.transaction() as connection:
        return {
            kind: {key: describe(connection, kind, key) for key in keys(connection, kind)} for kind in KINDS
        }


def test_records_follow_every_change(store: Store, tmp_path: Path) -> None:
    add_image(store, tmp_path, "one", "1")
    box = store.containers.create("one", name="box")
    assert said(store) == known(store)
    with box.mounted() as place:
        (place / "new").write_text("new")
    box.commit("two")
    add_image(store, tmp_path, "one", "another")
    store.images.tag("two", "three")
    assert said(store) == known(store)
    store.layers.prepare("key")
    store.layers.commit("key", "name/of a:library's")
    store.layers.view("view", "name/of a:library's")
    store.layers.label("view", {"a": "b"})
    assert said(store) == known(store)
    store.images.remove("three")
    store.images.remove("two")
    store.containers.remove("box")
    store.layers.remove("view")
    store.collect(grace=0)
    assert said(store) == known(store)
    assert said(store)["containers"] == {}
    assert len(said(store)["images"]) == 1


def test_a_transaction_that_fails_leaves_no_record_that_says_too_much(store: Store, tmp_path: Path) -> None:
    add_image(store, tmp_path, "one")
    trigger = "CREATE TRIGGER no BEFORE INSERT ON tags BEGIN SELECT RAISE(ABORT, 'no'); END"
    store._database._connection.execute(trigger)
    with pytest.raises(NotFoundError):
        store.images.tag("one", "two")
    store._database._connection.execute("DROP TRIGGER no")
    (record,) = said(store)["images"].values()
    assert list(record["names"]) == ["docker.io/library/one:latest"]
    assert store.check().problems == ()


def test_an_older_store_gets_its_records_when_it_is_opened(tmp_path: Path) -> None:
    with Store.open(tmp_path / "root", driver="overlay2", durability="none") as store:
        add_image(store, tmp_path, "one")
        store.containers.create("one")
        store._database._connection.executescript("DROP TABLE records_due; PRAGMA user_version = 4")
        before = said(store)
    shutil.rmtree(tmp_path / "root/records")
    with Store.open(tmp_path / "root") as store:
        assert said(store) == before == known(store)
        assert store._database.row("PRAGMA user_version") == (5,)


def test_what_a_stop_left_in_the_records_is_no_problem_and_is_completed(store: Store, tmp_path: Path) -> None:
    add_image(store, tmp_path, "one")
    store.containers.create("one")
    records = store.root / "records"
    next((records / "layers").iterdir()).unlink()
    next((records / "images").iterdir()).write_bytes(b"")
    (records / "images/.half-written").touch()
    assert store.check().problems == ()
    assert store.check(repair=True).problems == ()
    assert said(store) == known(store)
    assert not (records / "images/.half-written").exists()


@pytest.mark.parametrize("stopped", [False, True], ids=["full", "stopped"])
def test_a_record_that_was_not_written_is_when_the_store_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    with Store.open(tmp_path / "root", durability="none") as store:
        add_image(store, tmp_path, "one")
        with monkeypatch.context() as patch:
            if stopped:
                patch.setattr(Database, "_write_records", lambda self: None)
            else:
                patch.setattr("layerfs.records.write_atomic", full)
            store.images.tag("one", "two")
        assert said(store) != known(store)
    with Store.open(tmp_path / "root") as store:
        assert said(store) == known(store)


def test_records_of_layers_above_follow_a_repaired_one(tmp_path: Path) -> None:
    with Store.open(tmp_path / "root", driver="overlay2", durability="none") as store:
        add_image(store, tmp_path, "one")
        for name in ("two", "three"):
            box = store.containers.create("one" if name == "two" else "two")
            with box.mounted() as place:
                (place / name).write_text(name)
            box.commit(name, compression=Compression.GZIP)
        box = store.containers.create("three", name="box")
        with box.mounted() as place:
            (place / "precious").write_text("precious")
        damaged = store.layers.stat(str(store.images.get("two").chain_ids[-1]))
        (store.root / "drivers/overlay2" / damaged.driver_id / "diff/two").write_text("another")
        assert store.check(repair=True, contents=True).sound
        assert said(store) == known(store)
        before = said(store)
    for path in (tmp_path / "root").glob("layerfs.db*"):
        path.unlink()
    with Store.open(tmp_path / "root", rebuild=True) as store:
        assert store.check(repair=True, contents=True).sound
        assert said(store)["layers"].keys() == before["layers"].keys()
        with store.containers.get("box").mounted() as place:
            assert (place / "precious").read_text() == "precious"
            assert (place / "two").read_text() == "two"


def test_what_could_not_be_put_back_is_named(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with Store.open(root, driver="overlay2", durability="none") as store:
        add_image(store, tmp_path, "one")
        store.containers.create("one", name="box")
        digest = store.images.get("one").digest
    (root / "blobs/sha256" / digest.hex).unlink()
    for path in root.glob("layerfs.db*"):
        path.unlink()
    with Store.open(root, rebuild=True) as store:
        found = store.check(repair=True)
        assert not found.sound
        left = {(problem.kind, problem.subject) for problem in found.problems if not problem.repaired}
        assert left >= {("container", "box"), ("image", str(digest))}
    with Store.open(root) as store:
        assert store.check().sound


def test_records_that_are_behind_are_noted_and_of_which_nothing_can_be_made_are_kept(
    store: Store, tmp_path: Path
) -> None:
    add_image(store, tmp_path, "one")
    assert store.check().notes == ()
    (layer,) = (store.root / "records/layers").iterdir()
    body = json.loads(layer.read_bytes())
    layer.write_text(json.dumps({**body, "parent": "elsewhere"}))
    other = layer.with_name("f" * 26 + ".json")
    other.write_text(json.dumps({**body, "driver_id": "f" * 26, "parent": "elsewhere"}))
    found = store.check()
    assert found.sound
    assert [note.subject for note in found.notes] == ["records"]
    assert store.check(repair=True).notes == store.check().notes == ()
    assert said(store) == known(store)
    assert [path.name for path in (store.root / "quarantine").iterdir()] == [f"layers-{other.name}"]


def test_a_dry_restoration_changes_nothing(store: Store, tmp_path: Path) -> None:
    add_image(store, tmp_path, "one")
    database: Database = store._database
    with database.transaction() as connection:
        connection.execute("DELETE FROM tags")
    for _ in range(2):
        (lost,) = Restoring(database, store.blobs, store._held, anew=False).run(dry=True)
        assert lost.subject == "docker.io/library/one:latest"
    assert database.rows("SELECT * FROM tags") == []
