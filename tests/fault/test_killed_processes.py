"""A process is killed at some system call; the next one finds a store that is sound, and can do the work."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import linux, mounting
from layerfs.store import Store
from tests.support.tiny_images import TinyImage, layout_files, old_docker_archive, tar, write_files

ROOT = Path(__file__).parents[2]
POINTS = 6
# The second layer is large enough to come in several pieces.
PAGES = (b"low", bytes(range(256)) * 20000, b"high")

# Counts the calls that change files, and dies before the one whose number is given.
SCRIPT = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
root, tree, work, limit = sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])
from layerfs import database
from layerfs.store import Store
count = 0
def step():
    global count
    count += 1
    if count == limit:
        os.kill(os.getpid(), signal.SIGKILL)
def counted(function):
    def call(*args, **kwargs):
        step()
        return function(*args, **kwargs)
    return call
store = Store.open(root)
for name in ("rename", "mkdir", "rmdir", "unlink", "fsync", "fdatasync", "link", "symlink", "mknod", "utime",
             "setxattr", "chown", "fchown", "chmod", "fchmod", "write", "ftruncate"):
    setattr(os, name, counted(getattr(os, name)))
transaction = database.Database.transaction
import contextlib
@contextlib.contextmanager
def watched(self, *, durable=False):
    step()
    with transaction(self, durable=durable) as connection:
        yield connection
        step()
    step()
database.Database.transaction = watched
if work == "import":
    store.import_tree(tree, "app:2")
elif work == "commit":
    store.containers.get("box").commit("app:3")
elif work == "create":
    store.containers.create("app:1", name="new")
elif work == "mount":
    with store.containers.get("box").mounted() as place:
        (place / "more").write_text("more")
elif work == "remove":
    store.containers.remove("box")
    store.images.remove("app:1")
elif work == "load":
    store.load(tree + ".tar")
elif work == "pull":
    store.pull("oci:" + tree + ".layout:latest")
elif work == "collect":
    store.images.remove("app:1", force=True)
    store.containers.remove("box")
    store.collect(grace=0)
print(count)
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "directory").mkdir(parents=True)
    for number in range(4):
        (tree / "directory" / f"file{number}").write_bytes(os.urandom(3000))
    (tree / "link").symlink_to("directory")
    plain, packed = TinyImage(b"low", b"high", compress=False), TinyImage(*PAGES)
    members = tar(old_docker_archive(plain, ["plain:1"]))
    tree.with_suffix(".tar").write_bytes(members)
    write_files(tree.with_suffix(".layout"), layout_files([packed.entry(name="latest")], packed.blobs))
    return tree


@pytest.fixture
def roots(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for info in reversed(mounting.mounts_below(tmp_path)):
        linux.umount(info.target, linux.MNT_DETACH)


def fill(root: Path, driver: str, tree: Path) -> None:
    with Store.open(root, driver=driver) as store:
        store.import_tree(tree, "app:1")
        box = store.containers.create("app:1", name="box")
        with box.mounted() as place:
            (place / "directory/file0").unlink()
            (place / "new").write_text("new")
    (tree / "another").write_text("another")


def work(root: Path, tree: Path, name: str, limit: int) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-c", SCRIPT, str(ROOT), str(root), str(tree), name, str(limit)]
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("driver", ["overlay2", "vfs"])
@pytest.mark.parametrize("name", ["import", "commit", "create", "mount", "remove", "collect", "load", "pull"])
def test_a_kill_at_any_step_leaves_a_sound_store(roots: Path, tree: Path, driver: str, name: str) -> None:
    fill(roots / "whole", driver, tree)
    done = work(roots / "whole", tree, name, 0)
    assert done.returncode == 0, done.stderr
    steps = int(done.stdout)
    assert steps > 3
    points = sorted({1 + (steps - 1) * number // (POINTS - 1) for number in range(POINTS)})
    for point in points:
        root = roots / f"killed{point}"
        fill(root, driver, tree)
        killed = work(root, tree, name, point)
        # vfs touches its marker until the clock has ticked, so a run may have a step less than another.
        assert killed.returncode == -9 or (killed.returncode == 0 and point == steps), (point, killed.stderr)
        with Store.open(root) as store:
            assert mounting.mounts_below(root) == [], point
            assert not store.layers.table.unfinished(), point
            for container in store.containers.list():
                assert store.layers.has(container.id), (point, steps)
            store.disk_usage()
            findings = store.check(contents=True)
            assert [one for one in findings.problems if one.kind != "orphan"] == [], (point, steps)
            store.collect(grace=0)
            assert store.check(contents=True).problems == (), (point, steps)
            assert os.listdir(root / "tmp") == [], (point, steps)
            assert os.listdir(root / "trash") == [] or name in ("remove", "collect"), (point, steps)
        for whole in {"import", name} & {"import", "load", "pull"}:
            again = work(root, tree, whole, 0)
            assert again.returncode == 0, (point, steps, again.stderr)
        with Store.open(root) as store:
            assert store.check(contents=True).problems == (), (point, steps)
