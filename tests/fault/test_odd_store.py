"""What lies in a store may be anything after a fault: a check neither waits, follows, fails, nor loses it."""

from __future__ import annotations

import errno
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfs import files
from layerfs.store import Store
from tests.support.damages import layers
from tests.support.tiny_images import TinyImage, layout_files, write_files


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    image = TinyImage(tars=layers())
    write_files(tmp_path / "layout", layout_files([image.entry(name="1")], image.blobs))
    with Store.open(tmp_path / "root", driver="overlay2", durability="none") as opened:
        opened.pull(f"oci:{tmp_path}/layout:1", "app")
        yield opened


def place(store: Store) -> Path:
    layer = store.layers.stat(store.images.get("app").chain_ids[0])
    return store.driver.root / layer.driver_id / "diff"


def to_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def to_endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def to_deep(path: Path) -> None:
    path.write_bytes(b"[" * 200_000)


@pytest.mark.parametrize("change", [to_fifo, to_endless])
def test_a_blob_that_is_no_file_is_named_and_moved_aside(
    store: Store, change: Callable[[Path], None]
) -> None:
    image = store.images.get("app")
    for digest in (image.id, image.digest, image.manifest.layers[0].digest):
        change(store.blobs.path(digest))
        assert not store.blobs.has(digest)
        assert not store.check().sound
        assert not store.check(repair=True).sound
        assert not os.path.lexists(store.blobs.path(digest))


@pytest.mark.parametrize("change", [to_fifo, to_endless, to_deep])
@pytest.mark.parametrize("kind", ["layers", "images"])
def test_a_record_that_is_none_is_moved_aside_and_written_anew(
    store: Store, kind: str, change: Callable[[Path], None]
) -> None:
    path = next((store.root / "records" / kind).iterdir())
    before = path.read_bytes()
    change(path)
    assert [problem.kind for problem in store.check().problems] == ["record"]
    assert store.check(repair=True).sound
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("images", "media_type", "\ud800"),
        ("images", "created_ns", 10**30),
        ("images", "names", {"\ud800": 1}),
        ("layers", "name", "\ud800"),
        ("layers", "parent", []),
        ("layers", "bytes", 10**30),
        ("layers", "blob", {}),
        ("layers", "toc", "../../x"),
        ("layers", "labels", "[]"),
        ("layers", "labels", "half"),
        ("layers", "bytes", 1.5),
    ],
)
def test_a_lost_database_is_made_anew_whatever_a_record_says(
    store: Store, kind: str, field: str, value: object
) -> None:
    path = next((store.root / "records" / kind).iterdir())
    path.write_text(json.dumps({**json.loads(path.read_bytes()), field: value}))
    store.close()
    for each in store.root.glob("layerfs.db*"):
        each.unlink()
    with Store.open(store.root, rebuild=True) as again:
        again.check(repair=True)
        assert len(list(again.images.list())) == 1


def test_foreign_data_under_a_long_name_is_kept(store: Store) -> None:
    (place(store) / "etc" / ("é" * 120)).write_text("somebody's")
    assert store.check(repair=True).sound
    (kept,) = (store.root / "quarantine").iterdir()
    assert kept.read_text() == "somebody's"


def test_a_layer_is_not_made_anew_while_its_foreign_data_cannot_be_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = place(store) / "etc/foreign"
    foreign.write_text("somebody's")

    def full(*_: object, **__: object) -> bool:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files, "copy_data", full)
        assert not store.check(repair=True).sound
    assert foreign.read_text() == "somebody's"
    assert list((store.root / "quarantine").iterdir()) == []
    assert store.check(repair=True).sound
    (kept,) = (store.root / "quarantine").iterdir()
    assert kept.read_text() == "somebody's"


def test_a_layer_of_replaced_paths_is_checked_by_what_came_last(store: Store, tmp_path: Path) -> None:
    names = ["d/f/x", "d/f", "g/h", "g", "g/h", "d/k/y", "d/k", "d/k/z"]
    with tarfile.open(tmp_path / "twice.tar", "w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    store.import_tree(tmp_path / "twice.tar", "twice")
    assert store.check(contents=True).problems == ()


def test_a_layer_that_says_everything_twice_is_checked_in_linear_time(store: Store, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "twice.tar", "w") as archive:
        for number in [*range(8_000)] * 2:
            archive.addfile(tarfile.TarInfo(f"d{number % 100}/f{number}"))
    store.import_tree(tmp_path / "twice.tar", "twice")
    begun = time.process_time()
    assert store.check().sound
    # Quadratic, it took more than seven seconds of the processor; it takes less than one.
    assert time.process_time() - begun < 4


def test_who_was_killed_while_removing_leaves_nothing_that_is_not_counted(store: Store) -> None:
    driver, layer = store.driver, store.layers.stat(store.images.get("app").chain_ids[-1])
    gone = driver.root / f".gone-{layer.driver_id}-00000000"
    store.images.remove("app")
    (gone / "diff").mkdir(parents=True)
    (gone / "diff/file").write_bytes(bytes(1 << 20))
    assert store.collect(dry_run=True).freed >= 1 << 20
    assert "half" in next(one.what for one in store.check().leftovers if one.kind == "layer")
    assert store.collect().freed >= 1 << 20
    assert not gone.exists()


def test_the_next_opening_removes_what_a_killed_removal_left(store: Store) -> None:
    driver, layer = store.driver, store.layers.stat(store.images.get("app").chain_ids[-1])
    gone = driver.root / f".gone-{layer.driver_id}-00000000"
    (driver.root / layer.driver_id).rename(gone)
    with store._database.transaction() as connection:
        connection.execute("UPDATE layers SET state = 'removing' WHERE driver_id = ?", (layer.driver_id,))
    store.close()
    with Store.open(store.root):
        assert not gone.exists()


def test_collection_leaves_what_is_somebody_elses(store: Store) -> None:
    digest = store.images.get("app").id
    kept = [store.root / "logs/notes", store.root / "blobs/sha256/notes", store.root / "blobs/notes"]
    for path in kept:
        path.write_text("somebody's")
        os.utime(path, (0, 0))
    directory = store.blobs.path(digest).with_name("0" * 64)
    directory.mkdir()
    os.utime(directory, (0, 0))
    (store.root / "logs" / ("0" * 64)).write_text("of a container that is gone")
    store.collect(grace=0)
    assert [path.name for path in kept if not path.exists()] == []
    assert directory.is_dir()
    assert not (store.root / "logs" / ("0" * 64)).exists()


@pytest.mark.parametrize("change", [to_fifo, Path.unlink])
def test_a_database_that_is_no_file_is_made_anew_whatever_lies_between_the_blobs(
    store: Store, change: Callable[[Path], None]
) -> None:
    os.mkfifo(store.root / "blobs/sha256" / ("0" * 64))
    (store.root / "blobs/sha256" / ("1" * 64)).mkdir()
    (store.root / "blobs/notes").touch()
    for each in [*(store.root / "records").rglob("*.json")]:
        each.unlink()
    store.close()
    change(store.root / "layerfs.db")
    with Store.open(store.root, rebuild=True) as again:
        assert len(again.images.list()) == 1


def test_foreign_data_is_kept_where_the_table_of_contents_is_lost(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = place(store) / "etc/foreign"
    foreign.write_text("somebody's")
    layer = store.layers.stat(store.images.get("app").chain_ids[0])
    assert layer.toc is not None
    store.blobs.path(layer.toc).unlink()

    def full(*_: object, **__: object) -> bool:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files, "copy_data", full)
        assert not store.check(repair=True).sound
    assert foreign.read_text() == "somebody's"
    assert store.check(repair=True).sound
    (kept,) = (store.root / "quarantine").iterdir()
    assert kept.read_text() == "somebody's"
