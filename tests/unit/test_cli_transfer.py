"""Tests of `pull` and `push`."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import pytest

from layerfs import transports
from layerfs.tree.budget import DEFAULT_BUDGET
from tests.support.commandline import IMAGE, CommandLine, make_store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture(scope="module")
def layerfs(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    return make_store(tmp_path_factory.mktemp("store"))


def names_at(place: str) -> tuple[str, ...]:
    """Name the one image of a place."""
    source = transports.parse(place).source(spool=tempfile.TemporaryFile, budget=DEFAULT_BUDGET, warn=print)
    with contextlib.closing(source):
        (found,) = source.images()
        return found.names


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


@pytest.mark.parametrize("transport", ["docker-archive", "oci-archive", "oci"])
def test_an_image_goes_under_the_name_that_it_was_called_by(
    layerfs: CommandLine, tmp_path: Path, transport: str
) -> None:
    for name in ("aaa:7", "zzz:8"):
        layerfs.good("tag", IMAGE, name)
    place = f"{transport}:{tmp_path}/out"
    layerfs.good("push", "-q", IMAGE, place)
    names = {"oci": "1", "oci-archive": "docker.io/library/small:1", "docker-archive": IMAGE}
    assert names_at(place) == (names[transport],)
    image = layerfs.json("images")[0]["id"]
    layerfs.good("push", "-q", image, f"{transport}:{tmp_path}/by-id")
    assert names_at(f"{transport}:{tmp_path}/by-id") == ()
    layerfs.good("rmi", "aaa:7", "zzz:8")


def test_a_copy_keeps_the_name_alone_that_it_was_asked_for_by(layerfs: CommandLine, tmp_path: Path) -> None:
    layerfs.good("tag", IMAGE, "aaa:7")
    layerfs.good("save", "-o", tmp_path / "both.tar", "aaa:7", IMAGE)
    layerfs.good("rmi", "aaa:7")
    layerfs.good(
        "copy", "-q", f"docker-archive:{tmp_path}/both.tar:{IMAGE}", f"oci-archive:{tmp_path}/one.tar"
    )
    assert names_at(f"oci-archive:{tmp_path}/one.tar") == ("docker.io/library/small:1",)


@pytest.mark.parametrize("transport", ["docker-archive", "oci-archive"])
def test_an_archive_that_exists_is_left_alone(layerfs: CommandLine, tmp_path: Path, transport: str) -> None:
    archive = tmp_path / "image.tar"
    archive.touch()
    layerfs.good("push", "-q", IMAGE, f"{transport}:{archive}")
    before = archive.read_bytes()
    for words in (("push", "-q", IMAGE), ("copy", "-q", f"{transport}:{archive}")):
        done = layerfs.run(*words, f"{transport}:{archive}:other:1")
        assert done.status == 1
        assert "exists already" in done.err
        assert "save -o" in done.err.splitlines()[-1]
    assert archive.read_bytes() == before
    layerfs.good("save", "-q", "-o", archive, IMAGE)
