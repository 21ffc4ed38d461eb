"""A conversion is killed at some system call: everything is with the old driver or the new one, whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import linux, mounting
from layerfs.store import Store

ROOT = Path(__file__).parents[2]

# Counts the calls that change files, and dies before the one whose number is given.
SCRIPT = """
import contextlib, os, signal, sys
sys.path.insert(0, sys.argv[1])
root, driver, limit = sys.argv[2], sys.argv[3], int(sys.argv[4])
from layerfs import database
from layerfs.store import Store
count, ours = 0, os.getpid()
def step():
    global count
    count += os.getpid() == ours
    if count == limit and os.getpid() == ours:
        os.kill(os.getpid(), signal.SIGKILL)
def counted(function):
    def call(*args, **kwargs):
        step()
        result = function(*args, **kwargs)
        return result
    return call
store = Store.open(root)
for name in ("rename", "mkdir", "rmdir", "unlink", "fsync", "link", "mknod", "setxattr", "fchown", "write"):
    setattr(os, name, counted(getattr(os, name)))
transaction = database.Database.transaction
@contextlib.contextmanager
def watched(self, *, durable=False):
    step()
    with transaction(self, durable=durable) as connection:
        yield connection
        step()
    step()
database.Database.transaction = watched
store.convert("box", driver)
print(count)
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for info in reversed(mounting.mounts_below(tmp_path)):
        linux.umount(info.target, linux.MNT_DETACH)


def convert(root: Path, driver: str, limit: int) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", SCRIPT, str(ROOT), str(root), driver, str(limit)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def fill(root: Path, driver: str) -> None:
    tree = root.parent / "tree"
    (tree / "directory").mkdir(parents=True, exist_ok=True)
    (tree / "directory/file").write_bytes(b"x" * 3000)
    with Store.open(root, driver=driver) as store:
        store.import_tree(tree, "app")
        with store.containers.create("app", name="box").mounted() as tree:
            (tree / "new").write_text("new")
            (tree / "directory/file").unlink()


@pytest.mark.parametrize(("old", "new", "points"), [("overlay2", "fuse", 5), ("overlay2", "vfs", 3)])
def test_a_kill_at_any_step_leaves_the_old_or_the_new(place: Path, old: str, new: str, points: int) -> None:
    fill(place / "whole", old)
    done = convert(place / "whole", new, 0)
    assert done.returncode == 0, done.stderr
    steps = int(done.stdout)
    for point in sorted({1 + (steps - 1) * number // (points - 1) for number in range(points)}):
        root = place / f"killed{point}"
        fill(root, old)
        killed = convert(root, new, point)
        assert killed.returncode == -9 or point == steps, (point, steps, killed.stderr)
        with Store.open(root) as store:
            box = store.containers.get("box")
            assert box.driver in (old, new)
            with box.mounted() as tree:
                assert (tree / "new").read_text() == "new", (point, steps)
                assert os.listdir(tree / "directory") == [], (point, steps)
            assert store.check(contents=True).problems == (), (point, steps)
            store.convert("box", new)
            store.collect(grace=0)
            assert store.check(contents=True).problems == (), (point, steps)
            assert os.listdir(root / "drivers" / old) == [], (point, steps)
            assert len(os.listdir(root / "drivers" / new)) == 2, (point, steps)
        shutil.rmtree(root)
