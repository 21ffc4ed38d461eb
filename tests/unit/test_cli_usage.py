"""Tests of `du` and `info`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.commandline import IMAGE, CommandLine, make_store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture(scope="module")
def layerfs(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    return make_store(tmp_path_factory.mktemp("store"))


def test_usage_is_shown_in_whole_and_by_image(layerfs: CommandLine) -> None:
    assert layerfs.good("du").splitlines()[0].split() == [
        "TYPE",
        "TOTAL",
        "ACTIVE",
        "SIZE",
        "RECLAIMABLE",
        "INODES",
    ]
    assert IMAGE in layerfs.good("du", "--verbose")
    assert layerfs.json("du")["images"]["total"] == 1


def test_info_describes_the_store(layerfs: CommandLine) -> None:
    facts = layerfs.json("info")
    assert facts["root"] == str(layerfs.root)
    assert facts["images"] == 1
    assert f"Driver:       {facts['driver']}\n" in layerfs.good("info")


def test_every_layer_and_container_is_shown(tmp_path: Path) -> None:
    layerfs = make_store(tmp_path)
    layerfs.good("create", "--name", "box", IMAGE)
    (layerfs.root / "tmp/ingest-abc").write_bytes(b"x" * 5000)
    shown = layerfs.good("du", "-v")
    assert "LAYER" in shown and "box" in shown and "Leftovers" in shown
    found = layerfs.json("du")
    (layer,) = found["by_layer"]
    assert layer["containers"] == layer["images"] == 1 and layer["reclaimable"] == 0
    assert found["images"]["size"] == layer["size"] == found["by_container"][0]["shared"]
    assert found["images"]["inodes"] == layer["inodes"] > 10
    assert found["leftovers"]["total"] == 1 and found["leftovers"]["reclaimable"] == 0
    assert found["orphans"] == []


def test_info_describes_the_host(layerfs: CommandLine) -> None:
    facts = layerfs.json("info")
    assert facts["kernel"] == os.uname().release
    assert " on " in facts["file_system"] and facts["size"] > facts["free"] > 0
    assert facts["drivers"] == [facts["driver"]]
    assert "File system:" in layerfs.good("info")
