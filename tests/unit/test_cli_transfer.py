"""Tests of `pull` and `push`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.commandline import IMAGE, CommandLine, make_store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture(scope="module")
def layerfs(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    return make_store(tmp_path_factory.mktemp("store"))


def test_an_image_goes_out_and_comes_back_the_same(layerfs: CommandLine, tmp_path: Path) -> None:
    digest = layerfs.good("push", "-q", IMAGE, f"oci:{tmp_path}/layout:1").strip()
    other = CommandLine(tmp_path / "other")
    assert other.good("pull", "-q", f"oci:{tmp_path}/layout:1", "back:1") == "back:1\n"
    (row,) = other.json("images")
    assert row["digest"] == digest


def test_json_says_what_came_and_went(layerfs: CommandLine, tmp_path: Path) -> None:
    pushed = layerfs.json("push", IMAGE, f"oci-archive:{tmp_path}/image.tar")
    other = CommandLine(tmp_path / "other")
    pulled = other.json("pull", f"oci-archive:{tmp_path}/image.tar", "back:1")
    assert pulled["digest"] == pushed["digest"]
    assert pulled["names"] == ["back:1"]


def test_what_is_no_place_is_told_what_is_one(layerfs: CommandLine) -> None:
    done = layerfs.run("pull", "./image.tar")
    assert done.status == 1
    assert "docker-archive:FILE" in done.err.splitlines()[-1]


def test_without_a_terminal_progress_is_plain_lines(layerfs: CommandLine, tmp_path: Path) -> None:
    done = layerfs.run("push", IMAGE, f"oci:{tmp_path}/layout:1")
    assert "/s\n" in done.err
    assert "\x1b" not in done.err
    assert layerfs.run("push", "-q", IMAGE, f"oci:{tmp_path}/layout:2").err == ""
