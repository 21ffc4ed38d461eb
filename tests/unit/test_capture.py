"""Containers committed by a copy of their layer: what the new layer holds, and the blob that it gives."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import linux, mounting
from layerfs.compression import Compression, open_decompressed
from layerfs.containers import Container
from layerfs.driver import Copies
from layerfs.errors import LayerError
from layerfs.layers import chain_ids
from layerfs.store import Store
from layerfs.testing.snapshot import differences, snapshot
from layerfs.tree.archive import write_layer


@pytest.fixture(params=["overlay2", "aufs", "vfs"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Store]:
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    for name in ("hosts", "passwd"):
        (tree / "etc" / name).write_text(name)
    (tree / "old" / "deep").mkdir(parents=True)
    (tree / "old" / "deep" / "file").write_bytes(os.urandom(5000))
    with Store.open(tmp_path / "root", driver=request.param) as opened:
        opened.import_tree(tree, "base")
        yield opened
    for info in reversed(mounting.mounts_below(tmp_path)):
        linux.umount(info.target, linux.MNT_DETACH)


@pytest.fixture
def box(store: Store) -> Container:
    """A container with every sort of change."""
    box = store.containers.create("base", name="box")
    with box.mounted() as place:
        (place / "big").write_bytes(os.urandom(3 << 20))
        (place / "small").write_bytes(b"x" * 300)
        (place / "empty").touch()
        with open(place / "sparse", "wb") as file:
            file.truncate(9 << 20)
            os.pwrite(file.fileno(), b"data", 5 << 20)
        os.link(place / "big", place / "link")
        os.symlink("big", place / "symlink")
        os.setxattr(place / "small", "user.note", b"kept")
        (place / "etc" / "passwd").unlink()
        (place / "etc" / "hosts").write_text("changed")
        subprocess.run(["rm", "-r", place / "old"], check=True)
        (place / "old").mkdir(mode=0o700)
        (place / "old" / "new").write_bytes(b"n" * 70_000)
    return box


def streamed(box: Container) -> bytes:
    """The layer's tar stream as it is without a copy."""
    buffer = io.BytesIO()
    write_layer(box.changes(), buffer.write, warn=lambda text: None)
    return buffer.getvalue()


@pytest.mark.parametrize("compression", list(Compression)[:3])
def test_the_layer_is_that_of_the_containers_changes(
    store: Store, box: Container, compression: Compression
) -> None:
    expected = streamed(box)
    with box.mounted(read_only=True) as place:
        seen = snapshot(place)
    image = box.commit("new", compression=compression)
    diff_id = image.config.diff_ids[-1]
    assert diff_id.hex == hashlib.sha256(expected).hexdigest()
    layer = image.manifest.layers[-1]
    with store.blobs.open(layer.digest) as blob:
        packed = blob.read(1 << 30)
        while more := blob.read(1 << 30):
            packed += more
    assert (len(packed), hashlib.sha256(packed).hexdigest()) == (layer.size, layer.digest.hex)
    with open_decompressed(io.BytesIO(packed)) as plain:
        assert b"".join(iter(lambda: plain.read(1 << 20), b"")) == expected
    with store.containers.create("new").mounted() as place:
        assert differences(snapshot(place), seen) == []
    assert store.check(contents=True).problems == ()


def test_the_data_of_an_unpacked_layer_is_on_the_disk_once(store: Store, box: Container) -> None:
    image = box.commit("new")
    layer = store.layers.stat(chain_ids(image.config.diff_ids)[-1])
    copies = isinstance(store.driver, Copies)
    assert store.blobs.is_whole(image.manifest.layers[-1].digest) is not copies
    assert (layer.skeleton is not None) is copies


def test_an_image_pushed_and_pulled_elsewhere_is_the_same(
    store: Store, box: Container, tmp_path: Path
) -> None:
    image = box.commit("new")
    with box.mounted(read_only=True) as place:
        seen = snapshot(place)
    store.push("new", f"oci:{tmp_path}/layout:new")
    with Store.open(tmp_path / "other", driver="vfs") as other:
        assert other.pull(f"oci:{tmp_path}/layout:new", "new").id == image.id
        with other.containers.create("new").mounted() as place:
            assert differences(snapshot(place), seen) == []


def test_the_container_goes_on_and_is_committed_again(store: Store, box: Container) -> None:
    first = box.commit("one")
    with box.mounted() as place:
        with open(place / "big", "r+b") as file:
            file.write(b"changed in place")
        (place / "small").unlink()
    second = box.commit("two")
    assert len(first.config.diff_ids) == len(second.config.diff_ids) == 2
    assert first.config.diff_ids != second.config.diff_ids
    assert box.commit("three").config.diff_ids == second.config.diff_ids
    assert store.check(contents=True).problems == ()


def test_changes_that_are_a_layer_already_are_committed_with_another_compression(
    store: Store, box: Container
) -> None:
    first = box.commit("packed", compression=Compression.GZIP)
    second = box.commit("plain")
    assert first.chain_ids == second.chain_ids
    layer = second.manifest.layers[-1].digest
    assert layer == second.config.diff_ids[-1] and store.blobs.has(layer)
    store.images.remove("packed")
    assert box.commit("again", compression=Compression.ZSTD).chain_ids == first.chain_ids
    assert store.check(contents=True).problems == ()


def test_what_layers_cannot_hold_is_left_out_or_refused(store: Store) -> None:
    warnings: list[str] = []
    store.containers.warn = warnings.append
    box = store.containers.create("base")
    with box.mounted() as place:
        os.mknod(place / "etc" / "hosts.new", stat.S_IFSOCK | 0o600)
        os.replace(place / "etc" / "hosts.new", place / "etc" / "hosts")
        (place / "kept").touch()
    box.commit("new")
    assert len(warnings) == 1 and "etc/hosts" in warnings[0]
    with store.containers.create("new").mounted() as place:
        assert (place / "etc" / "hosts").read_text() == "hosts"
    with box.mounted() as place:
        if store.driver.name == "aufs":
            return  # it has no such names
        (place / "etc" / ".wh.kept").touch()
    before = len(list(store.layers.walk()))
    with pytest.raises(LayerError, match="deletion"):
        box.commit("other")
    assert len(list(store.layers.walk())) == before
    assert sorted(store.driver.layers()) == sorted(layer.driver_id for layer in store.layers.walk())


def test_a_container_without_changes_gives_no_layer(store: Store) -> None:
    box = store.containers.create("base")
    before = len(list(store.layers.walk()))
    assert box.commit("new").config.diff_ids == store.images.get("base").config.diff_ids
    assert len(list(store.layers.walk())) == before
