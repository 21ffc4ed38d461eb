"""Tests of `convert`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.commandline import IMAGE, CommandLine, make_store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="overlay2 needs root")


@pytest.fixture(scope="module")
def layerfs(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    return make_store(tmp_path_factory.mktemp("store"))


def test_containers_and_images_move_and_say_how(layerfs: CommandLine) -> None:
    layerfs.good("create", "--name", "work", IMAGE)
    done = layerfs.run("convert", "--to", "fuse", "work")
    assert (done.status, done.out) == (0, "work\n")
    assert "container work: 2 layers renamed\n" in done.err
    (told,) = layerfs.json("convert", "--to", "overlay2", "--quiet", "work")
    assert told == {
        "kind": "container", "name": "work", "driver": "overlay2", "former": ["fuse"], "renamed": 2,
        "copied": 0, "written": 0, "kept": [],
    }  # fmt: skip
    layerfs.good("rm", "work")
    assert layerfs.good("convert", "--to", "vfs", "-q", IMAGE) == f"{IMAGE}\n"
    assert "vfs has it already" in layerfs.run("convert", "--to", "vfs", "-q", IMAGE).err
    assert layerfs.json("check")["sound"]


def test_all_is_everything_and_each_failure_is_told(layerfs: CommandLine, tmp_path: Path) -> None:
    layerfs.good("create", "--name", "other", IMAGE)
    layerfs.good("create", "--name", "busy", IMAGE)
    (tmp_path / "place").mkdir()
    layerfs.good("mount", "busy", tmp_path / "place")
    try:
        done = layerfs.run("convert", "--to", "vfs", "-q", "busy", "none", "other")
        assert (done.status, done.out) == (1, "other\n")
        assert "layerfs: container busy is mounted at" in done.err
        assert "layerfs: there is no container and no image none\n" in done.err
        done = layerfs.run("convert", "--to", "vfs", "-q", "--all")
        assert done.status == 1 and "layerfs: busy: container busy is mounted at" in done.err
    finally:
        layerfs.good("umount", "busy")
    assert layerfs.good("convert", "--to", "fuse", "--all").splitlines()[-1] == IMAGE
    assert layerfs.json("info")["driver"] == "fuse"


def test_names_and_all_exclude_each_other(layerfs: CommandLine) -> None:
    for words in (("--to", "vfs"), ("--to", "vfs", "--all", "work"), ("work",)):
        assert layerfs.run("convert", *words).status == 2
