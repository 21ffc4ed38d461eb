"""Containers and images that go to another driver: what they show, what goes along, and what is refused."""

from __future__ import annotations

import io
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import failpoints, linux, mounting
from layerfs.containers import Container
from layerfs.errors import InUseError, LayerError, LayerfsError, NotFoundError
from layerfs.store import Store
from layerfs.testing.snapshot import Snapshot, differences, snapshot

# All of them are tried in `python -m tests.reliability processes`.
PAIRS = [
    ("overlay2", "fuse"), ("overlay2", "vfs"), ("vfs", "overlay2"), ("aufs", "overlay2"), ("fuse", "aufs"),
    ("vfs", "fuse"),
]  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "root"
    for info in reversed(mounting.mounts_below(tmp_path)):
        linux.umount(info.target, linux.MNT_DETACH)


def fill(root: Path, driver: str) -> None:
    """Make an image of two layers, and a container with every sort of change on it."""
    tree = root.parent / "tree"
    (tree / "etc").mkdir(parents=True)
    for name in ("hosts", "passwd", "twin"):
        (tree / "etc" / name).write_text(name)
    os.link(tree / "etc/twin", tree / "etc/other")
    (tree / "old/deep").mkdir(parents=True)
    (tree / "old/deep/file").write_bytes(os.urandom(5000))
    with Store.open(root, driver=driver) as store:
        store.import_tree(tree, "base")
        first = store.containers.create("base", name="first")
        with first.mounted() as place:
            (place / "second").write_bytes(b"s" * 5000)
            (place / "etc/passwd").unlink()
        first.commit("app")
        store.containers.remove("first")
        store.images.remove("base")
        with store.containers.create("app", name="box").mounted() as place:
            (place / "big").write_bytes(os.urandom(1 << 20))
            with open(place / "sparse", "wb") as file:
                file.truncate(9 << 20)
                os.pwrite(file.fileno(), b"data", 5 << 20)
            os.link(place / "big", place / "link")
            os.symlink("big", place / "symlink")
            os.setxattr(place / "second", "user.note", b"kept")
            os.chown(place / "second", 7, 8)
            (place / "etc/hosts").write_text("changed")
            (place / "etc/other").unlink()
            subprocess.run(["rm", "-r", place / "old"], check=True)
            (place / "old").mkdir(mode=0o700)
            (place / "old/new").write_bytes(b"n" * 70_000)
            os.mkfifo(place / "fifo", 0o600)
            os.utime(place / "old", ns=(1, 1_000_000_001))


def seen(box: Container) -> tuple[Snapshot, list[tuple[str, bytes]]]:
    with box.mounted(read_only=True) as place:
        shown = snapshot(place)
    return shown, [(kind.value, path) for kind, path in box.diff()]


def held(root: Path, driver: str) -> list[str]:
    return sorted(os.listdir(root / "drivers" / driver))


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_a_container_shows_the_same_with_every_other_driver(root: Path, old: str, new: str) -> None:
    fill(root, old)
    with Store.open(root) as store:
        box = store.containers.get("box")
        before, listed = seen(box)
        done = store.convert("box", new)
        assert (done.kind, done.name, done.driver, done.former) == ("container", "box", new, (old,))
        assert done.renamed + done.copied + done.written == 3
        box = store.containers.get("box")
        assert box.driver == new
        after, now = seen(box)
        assert differences(before, after) == []
        assert now == listed
        assert held(root, old) == [] and len(held(root, new)) == 3
        assert store.check(contents=True).problems == ()
        with box.mounted() as place:
            (place / "etc/hosts").write_text("again")
        assert box.commit("app:2").size > 0
        store.push("app", f"oci:{root.parent}/layout:1")
        store.containers.remove("box")
        for image in store.images.list():
            store.images.remove(str(image.digest))
        store.collect(grace=0)
        assert held(root, new) == [] and list(store.blobs.list()) == []


@pytest.mark.parametrize(("old", "new"), [("overlay2", "fuse"), ("fuse", "overlay2")])
def test_directories_of_one_format_are_renamed(root: Path, old: str, new: str) -> None:
    fill(root, old)
    inodes = {name: os.stat(root / "drivers" / old / name).st_ino for name in held(root, old)}
    with Store.open(root) as store:
        done = store.convert("box", new)
    assert (done.renamed, done.copied, done.written) == (3, 0, 0)
    assert {name: os.stat(root / "drivers" / new / name).st_ino for name in held(root, new)} == inodes


@pytest.mark.parametrize(("old", "new"), [("overlay2", "fuse"), ("overlay2", "vfs")])
def test_layers_that_another_container_needs_stay_and_are_there_twice(root: Path, old: str, new: str) -> None:
    fill(root, old)
    with Store.open(root) as store:
        other = store.containers.create("app", name="other")
        before, _ = seen(other)
        done = store.convert("box", new)
        assert done.renamed == (1 if new == "fuse" else 0)
        assert done.copied + done.written == 3 - done.renamed
        assert len(done.kept) == 1 and done.kept[0].startswith(f"{old}: ")
        assert differences(before, seen(store.containers.get("other"))[0]) == []
        assert store.check(contents=True).problems == ()
        # The second one takes the rest along.
        last = store.convert("other", new)
        assert last.renamed + last.written == 1 and last.kept == ()
        assert held(root, old) == [] and len(held(root, new)) == 4
        assert store.check(contents=True).problems == ()


@pytest.mark.parametrize(("old", "new"), [("overlay2", "fuse"), ("overlay2", "vfs"), ("vfs", "aufs")])
def test_an_image_goes_without_being_unpacked_twice(root: Path, old: str, new: str) -> None:
    fill(root, old)
    with Store.open(root) as store:
        store.containers.remove("box")
        done = store.convert("app", new)
        assert (done.kind, done.name, done.former) == ("image", "app", (old,))
        assert held(root, old) == [] and len(held(root, new)) == 2
        assert store.check(contents=True).problems == ()
        again = store.convert("app", new)
        assert (again.renamed, again.copied, again.written, again.former) == (0, 0, 0, ())
    with Store.open(root, driver=new) as store:
        store.containers.create("app")
        assert len(held(root, new)) == 3
        data = io.BytesIO()
        store.save(["app"], data)
    with Store.open(root.parent / "second", driver="vfs") as store:
        data.seek(0)
        assert store.load(data)[0].names == ("app:latest",)


def test_an_image_that_is_a_containers_stays_for_that(root: Path) -> None:
    fill(root, "overlay2")
    with Store.open(root) as store:
        done = store.convert("app", "fuse")
        assert done.copied == 2 and len(done.kept) == 1
        with store.containers.get("box").mounted() as place:
            assert (place / "second").exists()


def test_who_is_in_use_is_refused(root: Path, tmp_path: Path) -> None:
    fill(root, "overlay2")
    (tmp_path / "place").mkdir()
    with Store.open(root) as store:
        box = store.containers.get("box")
        box.mount(tmp_path / "place", read_only=True)
        for new in ("fuse", "vfs"):
            with pytest.raises(InUseError, match="mounted at"):
                store.convert("box", new)
        box.unmount()
        with store.layers.held(box.id), pytest.raises(InUseError):
            store.convert("box", "fuse")
        with pytest.raises(NotFoundError, match="no container and no image none"):
            store.convert("none", "fuse")
        with pytest.raises(NotFoundError, match="no driver"):
            store.convert("box", "none")
        assert len(held(root, "overlay2")) == 3 and store.containers.get("box").driver == "overlay2"


def test_what_cannot_be_in_a_layer_leaves_all_as_it_was(root: Path) -> None:
    fill(root, "vfs")
    with Store.open(root) as store:
        box = store.containers.get("box")
        with box.mounted() as place:
            (place / ".wh.odd").touch()
        before, listed = seen(box)
        with pytest.raises(LayerError, match="act as a deletion"):
            store.convert("box", "overlay2")
        box = store.containers.get("box")
        assert box.driver == "vfs" and seen(box) == (before, listed)
        assert len(held(root, "vfs")) == 3
        assert not store.layers_of("overlay2").table.unfinished()
        assert store.check(contents=True).problems == ()


def test_sockets_stay_behind_and_that_is_said(root: Path) -> None:
    fill(root, "overlay2")
    said: list[str] = []
    with Store.open(root, warn=said.append) as store:
        box = store.containers.get("box")
        with box.mounted() as place, socket.socket(socket.AF_UNIX) as listening:
            os.chdir(place)
            listening.bind("sock")
            os.chdir("/")
        store.convert("box", "vfs")
        assert said == ["socket 'sock' left out: a layer cannot hold it"]
        store.convert("box", "fuse")


def test_all_of_a_store_goes_and_the_driver_stays_chosen(root: Path) -> None:
    fill(root, "overlay2")
    failures: list[tuple[str, LayerfsError]] = []
    with Store.open(root) as store:
        with store.layers.held(store.containers.get("box").id):
            done = store.convert_all("fuse", failed=lambda what, error: failures.append((what, error)))
        assert [what for what, _ in failures] == ["box"] and [one.name for one in done] == ["app:latest"]
        assert store.info().driver == "overlay2"
    with Store.open(root) as store:
        assert store.info().driver == "overlay2"
        assert store.convert_all("fuse", failed=lambda what, error: failures.append((what, error)))
        assert len(failures) == 1
    with Store.open(root) as store:
        assert store.info().driver == "fuse"
        assert held(root, "overlay2") == []


def test_a_blob_that_is_a_layers_parts_can_be_had_from_the_other_driver(root: Path) -> None:
    fill(root, "overlay2")
    with Store.open(root) as store:
        image = store.images.get("app")
        blobs = [layer.digest for layer in image.manifest.layers]
        assert not all(store.blobs.is_whole(blob) for blob in blobs)
        # Looked up before, opened after.
        known = store._assembly.all()
        store.containers.remove("box")
        store.convert("app", "fuse")
        assert {one.driver for one in known} == {"overlay2"}
        for blob in blobs:
            with store.blobs.open(blob) as content:
                while content.read(1 << 20):
                    pass


@pytest.mark.parametrize("step", ["transaction.commit", "transaction.committed"])
@pytest.mark.parametrize("new", ["fuse", "vfs"])
def test_a_failure_at_any_transaction_leaves_a_container_that_works(root: Path, step: str, new: str) -> None:
    fill(root, "overlay2")
    with Store.open(root) as store:
        before, listed = seen(store.containers.get("box"))
        for number in range(1, 40):
            failpoints.arm(f"{step}=error@{number}")
            try:
                store.convert("box", new)
                break
            except failpoints.Injected:
                pass
            finally:
                failpoints.arm("")
            box = store.containers.get("box")
            assert seen(box) == (before, listed), number
            if box.driver == new:
                store.convert("box", "overlay2")
        else:
            raise AssertionError("there is no end of transactions")
        assert seen(store.containers.get("box")) == (before, listed)
        store.collect(grace=0)
        assert store.check(contents=True).problems == ()
