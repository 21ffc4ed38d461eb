"""What a check names and what a repair does, beyond the list of damages (tests/fault/test_damage.py)."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.errors import InUseError, StoreError
from layerfs.leftovers import Leftover
from layerfs.store import Store
from tests.support.damages import layers
from tests.support.tiny_images import TinyImage, layout_files, write_files

ROOT = str(Path(__file__).parents[2])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    image = TinyImage(tars=layers())
    write_files(tmp_path / "layout", layout_files([image.entry(name="1")], image.blobs))
    with Store.open(tmp_path / "root", driver="overlay2", durability="none") as opened:
        opened.pull(f"oci:{tmp_path}/layout:1", "app")
        yield opened


def place(store: Store, number: int = 0) -> Path:
    """The directory of one of the image's layers."""
    layer = store.layers.stat(store.images.get("app").chain_ids[number])
    return store.driver.root / layer.driver_id / "diff"


def test_a_foreign_files_data_is_in_quarantine_after_the_repair(store: Store) -> None:
    foreign = place(store) / "etc/foreign"
    foreign.write_text("somebody's")
    (problem,) = store.check(repair=True).problems
    assert problem.repaired and "quarantine" in problem.how
    (kept,) = (store.root / "quarantine").iterdir()
    assert kept.read_text() == "somebody's"
    assert not (place(store) / "etc/foreign").exists()
    assert store.check(contents=True).problems == ()
    usage = store.disk_usage()
    assert usage.quarantine_inodes == 1 and usage.quarantine_bytes > 0
    store.collect(grace=0)
    assert kept.exists()


def test_an_orphan_is_moved_aside_and_not_deleted(store: Store) -> None:
    store.driver.create("orphan1", [])
    (store.driver.root / "orphan1/diff/mine").write_text("mine")
    (problem,) = store.check(repair=True).problems
    assert problem.kind == "orphan" and problem.repaired
    (kept,) = (store.root / "quarantine").rglob("mine")
    assert kept.read_text() == "mine"
    assert store.check().problems == ()


def test_a_damaged_blob_is_told_with_the_names_of_its_images(store: Store) -> None:
    store.images.tag("app", "other:2")
    digest = store.images.get("app").manifest.config.digest
    path = store.root / "blobs" / digest.algorithm / digest.hex
    path.write_bytes(path.read_bytes().replace(b"rootfs", b"rootFS"))
    (problem,) = [one for one in store.check().problems if one.kind == "blob"]
    assert problem.subject == str(digest)
    assert problem.what.endswith(" (of app:latest, other:2)")


def test_several_files_are_named_and_the_rest_counted(store: Store) -> None:
    for name in ("file0", "file1", "file2", "file5", "file6"):
        (place(store) / "usr" / name).chmod(0o600)
    (problem,) = store.check().problems
    assert problem.what.count("its mode") == 3
    assert problem.what.endswith("and 2 more")


def test_a_layer_that_came_from_no_blob_gets_a_new_table_of_contents(store: Store) -> None:
    store.layers.prepare("key")
    with store.layers.mounted("key") as tree:
        (tree / "file").write_text("text")
    layer = store.layers.commit("key", "name")
    assert layer.toc is not None
    store.blobs.path(layer.toc).unlink()
    (problem,) = store.check(repair=True).problems
    assert problem.repaired and "new table of contents" in problem.how
    (store.driver.root / layer.driver_id / "diff/file").write_text("other")
    assert not store.check().sound


def test_without_a_registry_it_is_said_that_one_is_needed(store: Store) -> None:
    store.blobs.path(store.images.get("app").manifest.layers[0].digest).unlink()
    (problem,) = store.check(repair=True).problems
    assert not problem.repaired and "pull or load" in problem.hint


def test_many_files_are_compared_by_several_processes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from layerfs.check import layers as checked

    (place(store) / "etc/plain").chmod(0o777)
    (place(store, 1) / "usr/file4").chmod(0o777)
    alone = store.check()
    monkeypatch.setattr(checked, "_WORTH_A_PROCESS", 0)
    assert store.check() == alone
    assert len(alone.problems) == 2 and alone.files > 20


def test_a_lost_database_is_not_made_anew_unless_asked(store: Store, tmp_path: Path) -> None:
    store.close()
    (tmp_path / "root/layerfs.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(StoreError, match="not a database") as caught:
        Store.open(tmp_path / "root")
    assert caught.value.hint and "check --repair" in caught.value.hint
    assert (tmp_path / "root/layerfs.db").read_bytes() == b"garbage" * 1000


def test_a_damaged_database_in_use_is_left_alone(store: Store, tmp_path: Path) -> None:
    script = (
        "import sys; from layerfs.store import Store; Store.open(sys.argv[1]); print(1, flush=True); input()"
    )
    user = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "root"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": ROOT},
    )  # fmt: skip
    try:
        assert user.stdout is not None and user.stdout.readline() == b"1\n"
        store._database._connection.execute("DROP TABLE image_layers")
        store.close()
        with pytest.raises(InUseError, match=str(user.pid)):
            Store.open(tmp_path / "root", rebuild=True)
    finally:
        user.kill()
        user.wait()
    with Store.open(tmp_path / "root", rebuild=True) as again:
        findings = again.check(contents=True)
        assert findings.sound and findings.problems[0].kind == "database"
        assert [image.names for image in again.images.list()] == [("app:latest",)]


def test_a_store_made_anew_works_on(store: Store, tmp_path: Path) -> None:
    box = store.containers.create("app", name="box")
    with box.mounted() as tree:
        (tree / "mine").write_text("mine")
    store.layers.prepare("key", store.images.get("app").chain_ids[0])
    store.close()
    for name in ("layerfs.db", "layerfs.db-wal", "layerfs.db-shm"):
        (tmp_path / "root" / name).unlink(missing_ok=True)
    with Store.open(tmp_path / "root", rebuild=True) as again:
        box = again.containers.get("box")
        assert box.status == "created" and again.layers.has("key")
        with box.mounted() as tree:
            assert (tree / "mine").read_text() == "mine"
        assert again.collect(grace=0).removed == ()
        box.commit("next")
        again.containers.remove("box")
        again.images.remove("next")
        assert again.check(contents=True).sound


def empty_index(path: Path, name: str, definition: str) -> None:
    """Take all rows out of an index: build it as one of no rows, and let it be called what it was."""
    for where in (" WHERE 0", ""):
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (definition + where, name))
        connection.commit()
        connection.close()
        if where:
            connection = sqlite3.connect(path)
            connection.execute(f"REINDEX {name}")
            connection.close()


def test_damage_of_an_index_alone_is_mended_in_place(store: Store, tmp_path: Path) -> None:
    store.close()
    empty_index(tmp_path / "root/layerfs.db", "links_blob", "CREATE INDEX links_blob ON links (blob)")
    with Store.open(tmp_path / "root") as damaged:
        assert {problem.kind for problem in damaged.check().problems} == {"database"}
    with Store.open(tmp_path / "root", rebuild=True) as again:
        findings = again.check()
        assert findings.sound and [problem.kind for problem in findings.problems] == ["database"]
        assert not (tmp_path / "root/quarantine").exists()


def test_remains_of_stopped_processes_are_no_problem(store: Store) -> None:
    partial = store.root / "tmp/ingest-sha256-abc"
    partial.write_bytes(b"x" * 5000)
    os.utime(partial, (0, 0))
    findings = store.check()
    assert findings.sound and [one.kind for one in findings.leftovers] == ["partial"]
    # A pull may go on with a young one.
    os.utime(partial)
    assert store.check(repair=True).leftovers and partial.exists()
    os.utime(partial, (0, 0))
    store.check(repair=True)
    assert not partial.exists()


TRACE = 'Traceback (most recent call last):\n  File "x.py"\nValueError: a mistake of ours\n'
LATER = "2026-01-01T00:00:00Z\n"


@pytest.mark.parametrize("with_fault", [False, True], ids=["fetches that failed", "a fault besides"])
def test_a_servers_log_is_told_until_a_repair_moves_it_aside(tmp_path: Path, with_fault: bool) -> None:
    (tmp_path / "tree").mkdir()
    with Store.open(tmp_path / "store", driver="vfs", durability="none") as store:
        store.import_tree(tmp_path / "tree", "tree:1")
    with Store.open(tmp_path / "store", driver="aufs", durability="none") as store:
        store.containers.create("tree:1", driver="aufs")
        (layer, *_) = (path for path in (store.root / "drivers/aufs").iterdir() if path.name.isalnum())
        log = layer / "server.log"
        failed = "cannot fetch /etc/passwd: the registry cannot be reached"
        log.write_text((LATER + TRACE if with_fault else "") + f"{LATER}{failed}\n")
        found = store.check()
        assert found.sound is not with_fault
        (told,) = found.problems or found.notes
        assert told.subject == str(log) and "layerfs check --repair` moves the log aside" in told.hint
        assert told.what == (
            "a process of the driver aufs met an error of its own: ValueError: a mistake of ours"
            if with_fault
            else failed
        )
        (repaired,) = store.check(repair=True).problems
        assert repaired.repaired and not log.exists()
        assert Path(repaired.how.removeprefix("moved to ")).read_text().endswith(f"{failed}\n")
        found = store.check()
        assert (found.sound, found.notes) == (True, ())


@pytest.mark.parametrize("kind", ["partial", "temporary", "trash", "lock", "lease", "layer"])
def test_everything_that_is_left_behind_can_be_told_in_words(kind: str) -> None:
    assert Leftover(kind, "name", 0, 0.0, False).what
