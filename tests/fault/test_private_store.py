"""What a store holds is for nobody else: a setuid file of a layer is not for other users to run."""

from __future__ import annotations

import contextlib
import gzip
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import Store, UnsupportedError
from tests.support.commandline import CommandLine
from tests.support.estargz_images import EstargzImage
from tests.support.tiny_images import TinyImage, layout_files, old_docker_archive, tar, write_files

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(params=[0o000, 0o077], ids=["umask 000", "umask 077"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def shared(root: Path) -> list[str]:
    """List what has other modes than it should, but for trees of layers, which lie in directories of 0700."""
    found = []
    for parent, directories, names in os.walk(root):
        # What is mounted for a moment shows a tree.
        directories[:] = [name for name in directories if not name.startswith("mount-")]
        for name in (".", *directories, *names):
            path = os.path.join(parent, name)
            status = os.lstat(path)
            wanted = 0o700 if stat.S_ISDIR(status.st_mode) else 0o600
            mode = stat.S_IMODE(status.st_mode)
            if not stat.S_ISLNK(status.st_mode) and mode != wanted:
                found.append(f"{mode:o} {path}")
        if os.path.basename(parent) == "drivers":
            # A layer's files have the modes that the layer says, behind a directory of 0700.
            directories.clear()
    return found


@pytest.mark.parametrize("driver", ["overlay2", "fuse", "aufs", "vfs"])
def test_a_store_is_private_after_whatever_was_done(tmp_path: Path, driver: str, umask: int) -> None:
    plain = tar({"bin/su": b"program", "a/b": b"x" * 100_000})
    image, lazy = TinyImage(b"one", b"two"), EstargzImage(plain)
    with outside(umask):
        (tmp_path / "image.tar").write_bytes(tar(old_docker_archive(image, ["old:1"])))
        write_files(tmp_path / "layout", layout_files([lazy.entry(name="new:1")], lazy.blobs))
        (tmp_path / "plain.tar.gz").write_bytes(gzip.compress(plain))
        (tmp_path / "target").mkdir()
        (tmp_path / "out").mkdir()
    root = tmp_path / "store"

    def check() -> None:
        assert shared(root) == []

    try:
        store = Store.open(root, driver=driver)
    except UnsupportedError as error:
        pytest.skip(str(error))
    with store:
        check()
        store.load(tmp_path / "image.tar")
        check()
        store.pull(f"oci:{tmp_path / 'layout'}:new:1", "new:1")
        check()
        store.import_tree(tmp_path / "plain.tar.gz", "imported:1")
        store.images.tag("imported:1", "again:1")
        check()
        box = store.containers.create("imported:1", name="box")
        with box.mounted() as place, outside(umask):
            (place / "made").write_bytes(b"made")
            (place / "bin/su").chmod(0o4755)
            check()
        box.copy_in(tmp_path / "image.tar", b"/a/copied")
        box.copy_out(b"/a", tmp_path / "out")
        box.commit("committed:1")
        check()
        store.mount("committed:1", tmp_path / "target")
        check()
        store.unmount(tmp_path / "target")
        store.push("committed:1", f"oci:{tmp_path / 'pushed'}:a")
        store.save(["committed:1"], tmp_path / "saved.tar")
        with store.read_image("imported:1") as tree:
            assert b"".join(tree.read(b"a/b")) == b"x" * 100_000
        check()
        store.containers.remove("box", force=True)
        store.images.remove("old:1")
        store.collect(grace=0)
        store.check(repair=True)
        check()
    check()


def test_a_command_leaves_it_private_too(tmp_path: Path, umask: int) -> None:
    with outside(umask):
        (tmp_path / "plain.tar").write_bytes(tar({"a": b"x"}))
    layerfs = CommandLine(tmp_path / "store")
    layerfs.good("import", tmp_path / "plain.tar", "a:1")
    layerfs.good("create", "a:1", "x")
    layerfs.good("cat", "a:1:/a")
    assert shared(tmp_path / "store") == []


@contextlib.contextmanager
def outside(umask: int) -> Iterator[None]:
    """Do what is not the store's with a usual umask."""
    os.umask(0o022)
    try:
        yield
    finally:
        os.umask(umask)
