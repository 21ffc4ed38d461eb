"""Plain layers that are kept as their files and a skeleton: given back byte for byte, or refused."""

from __future__ import annotations

import json
import os
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import linux, mounting
from layerfs.digest import Digest
from layerfs.errors import InUseError, NotFoundError, VerificationError
from layerfs.images import Image
from layerfs.store import Store
from tests.support.tiny_images import TinyImage, layout_files, old_docker_archive, tar, write_files

LOW = random.Random(1).randbytes(100_000)
HIGH = random.Random(2).randbytes(3_000)


@pytest.fixture(params=["overlay2", "vfs"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Store]:
    with Store.open(tmp_path / "root", driver=request.param, durability="none") as opened:
        yield opened
    for info in reversed(mounting.mounts_below(tmp_path)):
        linux.umount(info.target, linux.MNT_DETACH)


def archive(place: Path, image: TinyImage, name: str = "app:1") -> Path:
    place.write_bytes(tar(old_docker_archive(image, [name])))
    return place


def load(store: Store, tmp_path: Path, *texts: bytes, name: str = "app:1") -> tuple[TinyImage, Image]:
    tiny = TinyImage(*texts, compress=False)
    (image,) = store.load(archive(tmp_path / "archive.tar", tiny, name))
    return tiny, image


def blobs(place: Path, image: Image) -> list[bytes]:
    return [(place / "blobs/sha256" / layer.digest.hex).read_bytes() for layer in image.manifest.layers]


def spoil(store: Store, layer: str, name: str) -> Path:
    """Change a byte of a file of a layer, and leave its size and its time as they were."""
    driver_id = store.layers.stat(layer).driver_id
    (path,) = (path for path in (store.driver.root / driver_id).rglob(name) if path.is_file())
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return path


def test_a_plain_layer_is_on_the_disk_once_and_goes_out_as_it_came(store: Store, tmp_path: Path) -> None:
    tiny, image = load(store, tmp_path, LOW, HIGH)
    for layer in image.manifest.layers:
        assert not store.blobs.is_whole(layer.digest)
        assert store.blobs.has(layer.digest)
        assert store.blobs.size(layer.digest) == layer.size
    assert sum(store.blobs.size(digest) for digest in store.blobs.list()) < len(LOW) // 4
    store.push("app:1", f"oci:{tmp_path}/layout")
    assert blobs(tmp_path / "layout", image) == tiny.plain
    store.save(["app:1"], tmp_path / "saved.tar")
    with Store.open(tmp_path / "other", driver="vfs", durability="none") as other:
        (again,) = other.load(tmp_path / "saved.tar")
        assert again.digest == image.digest
    findings = store.check(contents=True)
    assert findings.problems == ()
    assert findings.blobs == len(list(store.blobs.list())) + 2


def test_a_second_load_reads_and_stores_nothing(store: Store, tmp_path: Path) -> None:
    load(store, tmp_path, LOW)
    before = sorted(store.blobs.list())
    load(store, tmp_path, LOW)
    assert sorted(store.blobs.list()) == before
    assert len(list(store.layers.walk())) == 1


def test_an_archive_in_which_a_file_comes_twice_is_kept_whole(store: Store, tmp_path: Path) -> None:
    tiny = TinyImage(LOW, compress=False)
    twice = tar([("file0", HIGH), ("file0", LOW)])
    config = json.loads(tiny.config)
    digest = str(Digest.of(twice))
    config["rootfs"]["diff_ids"] = [digest]
    tiny.plain, tiny.config = [twice], json.dumps(config).encode()
    (image,) = store.load(archive(tmp_path / "archive.tar", tiny))
    assert store.blobs.is_whole(Digest.parse(digest))
    store.push("app:1", f"oci:{tmp_path}/layout")
    assert blobs(tmp_path / "layout", image) == [twice]
    assert os.listdir(store.root / "tmp") == []
    assert store.check(contents=True).problems == ()


@pytest.mark.parametrize("how", ["changed", "shorter", "missing", "link"])
def test_altered_files_give_an_error_and_no_wrong_bytes(store: Store, tmp_path: Path, how: str) -> None:
    _, image = load(store, tmp_path, LOW)
    path = spoil(store, image.chain_ids[0], "file0")
    if how == "shorter":
        os.truncate(path, 50)
    elif how != "changed":
        path.unlink()
        if how == "link":
            path.symlink_to("/etc/passwd")
    with pytest.raises(VerificationError, match="put together") as caught:
        store.save(["app:1"], tmp_path / "saved.tar")
    assert caught.value.hint and "load or pull the image again" in caught.value.hint
    assert not (tmp_path / "saved.tar").exists()


def test_an_altered_file_cannot_mend_itself_and_is_mended_by_a_second_load(
    store: Store, tmp_path: Path
) -> None:
    tiny, image = load(store, tmp_path, LOW, HIGH)
    digest = image.manifest.layers[0].digest
    path = spoil(store, image.chain_ids[0], "file0")
    # Size and time are as they were: only reading tells.
    assert store.check().problems == ()
    assert {problem.kind for problem in store.check(contents=True).problems} == {"blob", "layer"}
    findings = store.check(repair=True, contents=True)
    assert not findings.sound
    assert any("load or pull the image again" in problem.hint for problem in findings.problems)
    assert not store.blobs.has(digest)
    with pytest.raises(NotFoundError):
        store.save(["app:1"], tmp_path / "saved.tar")
    # Nothing is hidden: until the image has come again every check says so.
    assert not store.check(contents=True).sound
    load(store, tmp_path, LOW, HIGH)
    assert store.blobs.is_whole(digest)
    assert store.check(repair=True, contents=True).sound
    assert store.check(contents=True).problems == ()
    store.push("app:1", f"oci:{tmp_path}/layout")
    assert blobs(tmp_path / "layout", image) == tiny.plain
    assert path.parent.parent.name not in os.listdir(store.driver.root)


def test_altered_attributes_are_mended_from_the_layer_itself(store: Store, tmp_path: Path) -> None:
    tiny, image = load(store, tmp_path, LOW)
    driver_id = store.layers.stat(image.chain_ids[0]).driver_id
    (path,) = (store.driver.root / driver_id).rglob("file0")
    path.chmod(0o777)
    findings = store.check(repair=True)
    assert findings.sound and [problem.kind for problem in findings.problems] == ["layer"]
    assert store.check(contents=True).problems == ()
    assert not store.blobs.is_whole(image.manifest.layers[0].digest)
    store.push("app:1", f"oci:{tmp_path}/layout")
    assert blobs(tmp_path / "layout", image) == tiny.plain


def test_a_lost_layer_is_mended_by_a_second_load(store: Store, tmp_path: Path) -> None:
    _, image = load(store, tmp_path, LOW)
    store.driver.remove(store.layers.stat(image.chain_ids[0]).driver_id)
    assert not store.check(repair=True).sound
    load(store, tmp_path, LOW)
    assert store.check(repair=True).sound
    assert store.check(contents=True).problems == ()


def test_a_damaged_skeleton_is_a_missing_blob(store: Store, tmp_path: Path) -> None:
    _, image = load(store, tmp_path, LOW)
    skeleton = store.layers.stat(image.chain_ids[0]).skeleton
    assert skeleton is not None
    store.blobs.path(skeleton).write_bytes(b"damaged")
    assert not store.check(repair=True).sound
    load(store, tmp_path, LOW)
    assert store.check(contents=True).problems == ()


def test_the_same_layer_on_another_one_has_a_skeleton_of_its_own(store: Store, tmp_path: Path) -> None:
    first, _ = load(store, tmp_path, LOW)
    # Its second layer is the first image's only one: it is not read from the archive.
    second = TinyImage(b"below", LOW, compress=False)
    second.plain[1] = first.plain[0]
    config = json.loads(second.config)
    config["rootfs"]["diff_ids"][1] = str(Digest.of(first.plain[0]))
    second.config = json.dumps(config).encode()
    (image,) = store.load(archive(tmp_path / "second.tar", second, "second:1"))
    shared = image.manifest.layers[1].digest
    assert [layer.skeleton is not None for layer in store.layers.walk()].count(True) >= 2
    store.images.remove("app:1")
    assert store.blobs.has(shared)
    store.push("second:1", f"oci:{tmp_path}/layout")
    assert blobs(tmp_path / "layout", image) == second.plain
    store.images.remove("second:1")
    assert not store.blobs.has(shared)
    assert list(store.blobs.list()) == []
    assert list(store.layers.walk()) == []


def test_a_layer_stays_while_an_image_needs_its_blob(store: Store, tmp_path: Path) -> None:
    first, image = load(store, tmp_path, LOW)
    (layer,) = store.layers.walk()
    with store._database.transaction() as connection:
        # An image with that blob whose own layer is not unpacked, as one of another driver may be.
        connection.execute("DELETE FROM image_layers")
    with pytest.raises(InUseError, match="needs"):
        store.layers.remove(layer.name)
    report = store.collect(grace=0)
    assert store.layers.has(layer.name), report
    assert store.blobs.has(image.manifest.layers[0].digest)
    del first


def test_another_driver_unpacks_from_what_the_first_one_has(store: Store, tmp_path: Path) -> None:
    tiny, image = load(store, tmp_path, LOW, HIGH)
    other = "vfs" if store.driver.name == "overlay2" else "overlay2"
    with Store.open(store.root, driver=other, durability="none") as second:
        box = second.containers.create("app:1")
        with box.mounted(read_only=True) as place:
            assert (place / "file0").read_bytes() == LOW
            assert (place / "file1").read_bytes() == HIGH
        assert all(layer.skeleton for layer in second.layers.walk() if layer.blob)
        # One of the two may be damaged now.
        spoil(second, image.chain_ids[0], "file0")
        findings = second.check(repair=True, contents=True)
        assert findings.sound, findings
        assert {problem.kind for problem in findings.problems} == {"blob", "layer"}
        assert second.check(contents=True).problems == ()
        second.containers.remove(box.id)
    store.push("app:1", f"oci:{tmp_path}/layout")
    assert blobs(tmp_path / "layout", image) == tiny.plain
    store.images.remove("app:1")
    assert list(store.blobs.list()) == []


def test_a_plain_layer_of_a_layout_is_kept_so_too(store: Store, tmp_path: Path) -> None:
    tiny = TinyImage(LOW, HIGH, compress=False)
    write_files(tmp_path / "in", layout_files([tiny.entry(name="1")], tiny.blobs))
    image = store.pull(f"oci:{tmp_path}/in:1", "app")
    assert not any(store.blobs.is_whole(layer.digest) for layer in image.manifest.layers)
    store.push("app", f"oci:{tmp_path}/out:1")
    assert blobs(tmp_path / "out", image) == tiny.plain


def test_a_wrong_plain_layer_leaves_nothing(store: Store, tmp_path: Path) -> None:
    tiny = TinyImage(LOW, HIGH, compress=False)
    good = archive(tmp_path / "good.tar", tiny)
    raw = good.read_bytes()
    at = raw.index(HIGH)
    (tmp_path / "bad.tar").write_bytes(raw[:at] + b"!" + raw[at + 1 :])
    with pytest.raises(VerificationError, match="was promised"):
        store.load(tmp_path / "bad.tar")
    assert list(store.layers.walk()) == []
    assert list(store.driver.layers()) == []
    assert store.images.list() == []
    store.load(good)
    assert store.check(contents=True).problems == ()


def test_a_store_of_the_version_before_is_brought_up_to_date(tmp_path: Path) -> None:
    place = tmp_path / "root"
    with Store.open(place, driver="vfs", durability="none") as store:
        load(store, tmp_path, LOW)
    connection = sqlite3.connect(place / "layerfs.db")
    # What an older layerfs wrote: the blob as one file, and no word of skeletons.
    connection.executescript(
        "DROP INDEX layers_blob; ALTER TABLE layers DROP COLUMN skeleton;"
        " DROP TABLE index_tags; DROP TABLE index_links; DROP TABLE indexes; DROP TABLE seek_tables;"
        " DROP TABLE records_due;"
        " ALTER TABLE layers DROP COLUMN blob_size; PRAGMA user_version = 1"
    )
    connection.close()
    (layer,) = TinyImage(LOW, compress=False).plain
    with Store.open(place, durability="none") as store:
        store.blobs.put(layer)
        assert store.check(contents=True).problems == ()
        store.save(["app:1"], tmp_path / "saved.tar")
        load(store, tmp_path, HIGH, name="new:1")
        assert [layer.skeleton is None for layer in store.layers.walk()] == [True, False]
