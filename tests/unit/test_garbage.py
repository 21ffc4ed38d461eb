"""Garbage collection: what goes, what stays and why; and what du counts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import garbage
from layerfs.digest import Digest
from layerfs.directories import occupied
from layerfs.garbage import Report
from layerfs.leases import Lease
from layerfs.store import Store
from tests.support.tiny_images import TinyImage, layout_files, tar, write_files


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "root", driver="overlay2", durability="none") as opened:
        yield opened


def add_image(store: Store, tmp_path: Path, name: str, text: str = "text") -> None:
    (tmp_path / "tree").mkdir(exist_ok=True)
    (tmp_path / "tree/file").write_text(text)
    store.import_tree(tmp_path / "tree", name)


def reasons(report: Report) -> dict[str, str]:
    return {item.kind: item.reason for item in report.kept}


def test_a_store_in_use_loses_nothing(store: Store, tmp_path: Path) -> None:
    add_image(store, tmp_path, "app")
    box = store.containers.create("app")
    before = set(store.blobs.list()), set(store.driver.layers())
    report = store.collect(grace=0)
    assert report.removed == ()
    assert (set(store.blobs.list()), set(store.driver.layers())) == before
    kept = reasons(report)
    assert kept["image"] == "named docker.io/library/app:latest"
    by_name = {item.name: item.reason for item in report.kept}
    assert by_name[box.id] == "belongs to a container"
    assert "child" in by_name[store.images.get("app").chain_ids[0]]


def test_images_without_a_name_go_with_all_that_was_theirs(store: Store, tmp_path: Path) -> None:
    add_image(store, tmp_path, "app", "one")
    old = store.images.get("app")
    add_image(store, tmp_path, "app", "two")
    dry = store.collect(grace=0, dry_run=True)
    assert len(store.images.list()) == 2
    report = store.collect(grace=0)
    assert {(item.kind, item.name) for item in report.removed} == {
        (item.kind, item.name) for item in dry.removed
    }
    gone = {item.name for item in report.removed}
    assert {str(old.digest), str(old.id), old.chain_ids[0]} <= gone
    assert report.freed > 0
    assert [image.names for image in store.images.list()] == [("app:latest",)]
    assert len(list(store.driver.layers())) == 1
    assert store.collect(grace=0).removed == ()
    assert store.check().sound


def test_what_is_young_stays(store: Store, tmp_path: Path) -> None:
    add_image(store, tmp_path, "app", "one")
    add_image(store, tmp_path, "app", "two")
    report = store.collect()
    assert report.removed == ()
    assert "younger than the grace period" in {item.reason for item in report.kept}


def test_a_container_keeps_an_image_without_a_name(store: Store, tmp_path: Path) -> None:
    add_image(store, tmp_path, "app", "one")
    box = store.containers.create("app")
    add_image(store, tmp_path, "app", "two")
    assert store.collect(grace=0).removed == ()
    store.containers.remove(box.id)
    assert len(store.collect(grace=0).removed) >= 4


def test_leases_protect_blobs_layers_and_images(store: Store, tmp_path: Path) -> None:
    add_image(store, tmp_path, "app", "one")
    old = store.images.get("app")
    add_image(store, tmp_path, "app", "two")
    loose = store.blobs.put(b"loose")
    with Lease(store._database) as lease:
        lease.add("image", str(old.digest))
        lease.add("blob", str(loose))
        report = store.collect(grace=0)
        assert report.removed == ()
        assert reasons(report)["blob"]
    gone = {item.name for item in store.collect(grace=0).removed}
    assert {str(old.digest), str(loose)} <= gone


def test_a_lease_of_a_dead_process_protects_nothing(store: Store) -> None:
    loose = store.blobs.put(b"loose")
    Lease(store._database).add("blob", str(loose))
    with store._database.transaction() as connection:
        connection.execute("UPDATE leases SET start = 1")
    assert [item.name for item in store.collect(grace=0).removed] == [str(loose)]


def test_layers_of_users_of_the_library_stay(store: Store) -> None:
    store.layers.prepare("key")
    store.layers.commit("key", "name")
    store.layers.prepare("child", "name")
    store.layers.view("view", "name")
    assert store.collect(grace=0).removed == ()


def test_a_containers_layer_without_its_container_goes(store: Store, tmp_path: Path) -> None:
    add_image(store, tmp_path, "app")
    parent = store.images.get("app").chain_ids[0]
    store.layers.prepare("half", parent, labels={"layerfs.container": "1"})
    assert store.collect().removed == ()
    assert [item.name for item in store.collect(grace=0).removed] == ["half"]


def test_orphans_of_the_driver_go(store: Store) -> None:
    store.driver.create("orphan1", [])
    assert list(garbage.orphans(store.layers)) == ["orphan1"]
    # It may be all that is left of a container whose row was lost.
    assert [item.reason for item in store.collect().kept] == ["younger than the grace period"]
    dry = store.collect(dry_run=True, grace=0)
    assert [(item.kind, item.name) for item in dry.removed] == [("orphan", "orphan1")]
    assert dry.freed > 0
    store.collect(grace=0)
    assert list(store.driver.layers()) == []


def test_leftovers_of_a_crash_go(store: Store) -> None:
    root = store.root
    (root / "tmp/mount-dead").mkdir()
    (root / "tmp/ingest-dead").write_bytes(b"x" * 5000)
    (root / "trash/blob-dead").write_bytes(b"x" * 5000)
    (root / "locks/0123456789abcdef").write_bytes(b"")
    for path in ("tmp/mount-dead", "tmp/ingest-dead", "trash/blob-dead"):
        os.utime(root / path, (0, 0))
    report = store.collect()
    assert report.freed >= 10_000
    assert os.listdir(root / "tmp") == []
    assert os.listdir(root / "trash") == []
    assert "0123456789abcdef" not in os.listdir(root / "locks")


def test_a_half_removed_layer_goes(store: Store) -> None:
    store.layers.table.mark(store.layers.prepare("key"))
    assert [item.kind for item in store.collect().removed] == ["layer"]
    assert list(store.driver.layers()) == []


def test_disk_usage_tells_shared_exclusive_and_reclaimable_apart(store: Store, tmp_path: Path) -> None:
    add_image(store, tmp_path, "base", "x" * 100_000)
    for number in range(2):
        box = store.containers.create("base")
        with box.mounted() as place:
            (place / f"more{number}").write_bytes(b"y" * 50_000)
        box.commit(f"child{number}")
        if number:
            store.containers.remove(box.id)
    loose = store.blobs.put(b"loose")
    usage = store.disk_usage()
    by_name = {one.image.names[0]: one for one in usage.images}
    base, child = by_name["base:latest"], by_name["child1:latest"]
    assert base.exclusive == 0 and base.shared == base.bytes >= 100_000
    assert base.containers == 1 and base.reclaimable == 0
    assert child.shared == base.bytes
    assert child.exclusive == child.bytes - base.bytes == child.reclaimable >= 49_152
    assert child.inodes > base.inodes > 0
    (container,) = usage.containers
    assert container.bytes >= 49_152 and container.reclaimable == container.bytes
    assert usage.layer_bytes == base.bytes + by_name["child0:latest"].exclusive + child.exclusive
    assert usage.blob_count == len(list(store.blobs.list()))
    assert usage.blob_reclaimable == store.blobs.size(loose) == len(b"loose")
    assert Digest.of(b"loose") == loose


def test_a_dry_run_foresees_what_stays_for_a_blob(store: Store, tmp_path: Path) -> None:
    image = TinyImage(b"low" * 1000, compress=False)
    write_files(tmp_path / "layout", layout_files([image.entry(name="1")], image.blobs))
    store.pull(f"oci:{tmp_path}/layout:1", "app")
    with store._database.transaction() as connection:
        # An image with that blob whose own layer is not unpacked, as one of another driver may be.
        connection.execute("DELETE FROM image_layers")
        connection.execute("UPDATE layers SET updated_ns = 0")
    dry, real = (store.collect(grace=0, dry_run=dry_run) for dry_run in (True, False))
    assert dry.removed == real.removed == ()
    for report in (dry, real):
        (reason,) = (item.reason for item in report.kept if item.kind == "layer")
        assert "holds a blob that" in reason and "image" in reason


def test_partial_blobs_of_interrupted_pulls_stay_for_the_grace_period(store: Store) -> None:
    digest = Digest.of(b"whole")
    with store.blobs.ingest(digest, 5) as ingest:
        ingest.write(b"who")
        (item,) = store.collect(grace=0).kept
        assert (item.kind, item.reason) == ("partial", "in use by a running operation")
    (item,) = store.collect().kept
    assert (item.kind, item.reason) == ("partial", "younger than the grace period")
    with store.blobs.ingest(digest, 5) as ingest:
        assert ingest.offset == 3
    (partial,) = (store.root / "tmp").iterdir()
    os.utime(partial, (0, 0))
    (item,) = store.collect(dry_run=True).removed
    assert (item.kind, item.name) == ("partial", f"tmp/{partial.name}") and partial.exists()
    assert store.collect().freed > 0
    assert not partial.exists()


def test_a_dry_run_names_what_was_half_made(store: Store) -> None:
    layer = store.layers.prepare("key")
    store.layers.table.mark(layer)
    (item,) = store.collect(dry_run=True).removed
    assert (item.kind, item.name, item.reason) == ("layer", layer.driver_id, "half removed")
    assert list(store.driver.layers()) == [layer.driver_id]


def test_every_layer_is_counted_with_its_users(store: Store, tmp_path: Path) -> None:
    add_image(store, tmp_path, "base", "x" * 100_000)
    box = store.containers.create("base")
    with box.mounted() as place:
        (place / "more").write_bytes(b"y" * 50_000)
    box.commit("child")
    usage = store.disk_usage()
    assert [(one.images, one.containers, one.reclaimable) for one in usage.layers] == [
        (2, 1, 0),
        (1, 0, usage.layers[1].bytes),
    ]
    assert sum(one.bytes for one in usage.layers) == usage.layer_bytes
    assert usage.containers[0].shared == usage.layers[0].bytes
    store.driver.create("orphan1", [])
    assert store.disk_usage().orphans == (("overlay2", "orphan1"),)


def test_a_vfs_store_is_not_counted_twice(tmp_path: Path) -> None:
    with Store.open(tmp_path / "root", driver="vfs", durability="none") as store:
        image = TinyImage(tars=[tar({"low": b"x" * 200_000}), tar({"high": b"y" * 100_000})])
        write_files(tmp_path / "layout", layout_files([image.entry(name="1")], image.blobs))
        store.pull(f"oci:{tmp_path}/layout:1", "app")
        usage = store.disk_usage()
        low, high = (one.bytes for one in usage.layers)
        assert low >= 196_608 and 98_304 <= high < 196_608
        trees = [store.driver.root / store.layers.stat(one.name).driver_id / "tree" for one in usage.layers]
        assert occupied(trees) == (usage.layer_bytes, usage.layer_inodes)


def test_records_of_mounts_that_a_dead_process_never_made_go(store: Store, tmp_path: Path) -> None:
    add_image(store, tmp_path, "app")
    box = store.containers.create("app", name="box")
    row = store.layers.stat(box.id).row
    mount = store.driver.mount(store.layers.stat(box.id).driver_id, (), read_only=False)
    record = store.layers.ledger.record(row, b"/nowhere", mount, read_only=False, held=False)
    store.collect(grace=0)
    # Its maker lives, and may be about to mount.
    assert [each.id for each in store.layers.ledger.all()] == [record]
    with store._database.transaction() as connection:
        connection.execute("UPDATE mounts SET start = start - 1")
    store.collect(grace=0)
    assert store.layers.ledger.all() == []
    assert store.check().problems == ()


def test_what_the_trial_of_a_driver_left_is_no_driver_and_goes(tmp_path: Path) -> None:
    said: list[str] = []
    with Store.open(tmp_path / "root", driver="vfs", warn=said.append) as store:
        left = tmp_path / "root/drivers/.check-0"
        (left / "upper").mkdir(parents=True)
        assert [layers.driver.name for layers in store.all_layers()] == ["vfs"]
        store.collect()
        assert not left.exists() and said == []
