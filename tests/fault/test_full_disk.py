"""A file system without a free byte: what is committed stays, removals work, and room comes back."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.filesystem import fresh
from layerfs.store import Store
from tests.support.commandline import CommandLine
from tests.support.tiny_images import TinyImage, layout_files, write_files

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a file system")

MEBIBYTE = 1 << 20


@pytest.fixture
def small() -> Iterator[Path]:
    with fresh("ext4", size=48 * MEBIBYTE) as place:
        yield place


def fill(place: Path) -> None:
    """Take every block that is left, those that only root may have included."""
    with contextlib.suppress(OSError), open(place / "ballast", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def free(place: Path) -> int:
    found = os.statvfs(place)
    return found.f_bfree * found.f_frsize


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(os.urandom(6 * MEBIBYTE))
    return tree


def test_a_store_on_a_full_file_system_opens_and_gives_room_back(small: Path, tree: Path) -> None:
    with Store.open(small / "store") as store:
        store.import_tree(tree, "app:1")
    fill(small)
    with pytest.raises(OSError), open(small / "probe", "wb", buffering=0) as probe:
        probe.write(bytes(4096))
    with Store.open(small / "store") as store:
        assert store.images.get("app:1").names == ("app:1",)
        with contextlib.suppress(OSError):
            store.images.remove("app:1")
    with Store.open(small / "store") as store:
        if store.images.list():
            store.images.remove("app:1")
        store.collect(grace=0)
        assert store.images.list() == []
        assert store.check().problems == ()
    assert free(small) > 6 * MEBIBYTE


def test_nobody_is_killed_where_blocks_are_smaller_than_pages(small: Path, tree: Path) -> None:
    with Store.open(small / "store") as store:
        store.import_tree(tree, "app:1")
        store.containers.create("app:1", name="box")
    assert os.statvfs(small).f_frsize < 4096
    fill(small)
    script = (
        "import sys; from layerfs.store import Store\n"
        "with Store.open(sys.argv[1]) as store:\n"
        "    print(len(store.images.list())); store.containers.remove('box')"
    )
    # Enough for one block of each page that SQLite maps. The kernel kills who writes to the others: SIGBUS.
    os.truncate(small / "ballast", (small / "ballast").stat().st_size - (9 << 10))
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", script, small / "store"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    with Store.open(small / "store") as store:
        assert store.containers.list() == []
        assert store.check().problems == ()


@pytest.mark.parametrize("driver", ["overlay2", "aufs", "vfs"])
def test_an_import_that_does_not_fit_fails_and_leaves_the_rest_whole(
    small: Path, tree: Path, tmp_path: Path, driver: str
) -> None:
    with Store.open(small / "store", driver=driver) as store:
        store.import_tree(tree, "app:1")
        before = free(small)
        for number in range(4):
            (tree / f"more{number}").write_bytes(os.urandom(6 * MEBIBYTE))
        with pytest.raises(OSError) as caught:
            store.import_tree(tree, "app:2")
        assert caught.value.errno == errno.ENOSPC
    with Store.open(small / "store") as store:
        store.collect(grace=0)
        assert [image.names for image in store.images.list()] == [("app:1",)]
        assert store.check(contents=True).problems == ()
        assert free(small) > before - MEBIBYTE
        container = store.containers.create("app:1")
        with container.mounted() as seen:
            assert (seen / "file").read_bytes() == (tree / "file").read_bytes()


def test_a_copy_that_does_not_fit_says_where_and_leaves_no_part(small: Path, tmp_path: Path) -> None:
    image = TinyImage(b"small", os.urandom(4 * MEBIBYTE))
    write_files(tmp_path / "from", layout_files([image.entry(name="1")], image.blobs))
    fill(small)
    os.truncate(small / "ballast", os.stat(small / "ballast").st_size - MEBIBYTE)
    layerfs = CommandLine(tmp_path / "store")
    for target in (f"oci:{small}/to:1", f"oci-archive:{small}/to.tar:1"):
        done = layerfs.run("copy", "-q", f"oci:{tmp_path}/from:1", target)
        assert done.status == 1
        place = target.removesuffix(":1").partition(":")[2]
        message, hint = done.err.splitlines()
        assert message == f"layerfs: {place}: No space left on device"
        assert hint.startswith("hint: make room there; ")
    assert not [path for path in small.rglob("*") if path.name.startswith((".layerfs", ".to"))]
    assert not (small / "to" / "index.json").exists()
    assert free(small) > MEBIBYTE // 2
