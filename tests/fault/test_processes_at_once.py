"""Several processes import, create, write, commit, remove and collect in one store at the same time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from layerfs import mounting
from layerfs.store import Store
from tests.reliability import processes

ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
root, tree, me = sys.argv[2:5]
from layerfs.store import Store
with Store.open(root) as store:
    for turn in range(4):
        base, top = f"base{me}:{turn}", f"top{me}:{turn}"
        store.import_tree(tree, base)
        box = store.containers.create(base)
        with box.mounted() as place:
            assert (place / "file").read_text() == "shared"
            (place / "turn").write_text(f"{turn}")
        box.commit(top)
        store.collect(grace=0)
        again = store.containers.create(top)
        with again.mounted() as place:
            assert (place / "turn").read_text() == f"{turn}"
        store.layers.prepare(f"k{me}{turn}")
        store.layers.commit(f"k{me}{turn}", f"n{me}{turn}")
        store.layers.remove(f"n{me}{turn}")
        for container in (box, again):
            store.containers.remove(container.id)
        store.images.remove(base)
        store.collect(grace=0)
        store.images.remove(top)
"""


@pytest.mark.parametrize("driver", ["overlay2", "aufs", "vfs"])
def test_four_processes_do_not_disturb_one_another(tmp_path: Path, driver: str) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_text("shared")
    root = tmp_path / "root"
    Store.open(root, driver=driver).close()
    arguments = [sys.executable, "-c", SCRIPT, str(ROOT), str(root), str(tmp_path / "tree")]
    workers = [
        subprocess.Popen([*arguments, str(number)], stderr=subprocess.PIPE, text=True) for number in range(4)
    ]
    errors = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4, "\n".join(errors)
    with Store.open(root) as store:
        assert store.check(contents=True).problems == ()
        store.collect(grace=0)
        assert store.images.list() == []
        assert list(store.blobs.list()) == []
        assert list(store.driver.layers()) == []
        assert os.listdir(root / "tmp") == []
    assert mounting.mounts_below(tmp_path) == []


def test_a_crowd_of_processes_and_threads_loses_nothing_and_nobody_hears_of_others(tmp_path: Path) -> None:
    found = processes.campaign(tmp_path, driver="overlay2", processes=4, threads=2, seconds=3)
    assert found.sound, found
    assert found.actions > 50 and found.verified > 0


def test_one_key_is_prepared_by_one_process_only(tmp_path: Path) -> None:
    root = tmp_path / "root"
    Store.open(root, driver="vfs").close()
    script = """
import sys
sys.path.insert(0, sys.argv[1])
from layerfs.errors import ExistsError
from layerfs.store import Store
won = 0
with Store.open(sys.argv[2]) as store:
    for key in range(30):
        try:
            store.layers.prepare(f"key{key}")
            won += 1
        except ExistsError:
            pass
print(won)
"""
    arguments = [sys.executable, "-c", script, str(ROOT), str(root)]
    workers = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    won = [int(worker.communicate()[0]) for worker in workers]
    assert sum(won) == 30
    with Store.open(root) as store:
        assert len(list(store.layers.walk())) == len(list(store.driver.layers())) == 30


def test_a_new_store_is_made_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from layerfs.store import Store; Store.open(sys.argv[2])"
    )
    arguments = [sys.executable, "-c", script, str(ROOT), str(root)]
    workers = [subprocess.Popen(arguments) for _ in range(4)]
    assert [worker.wait() for worker in workers] == [0] * 4
    with Store.open(root) as store:
        assert store.check().sound
