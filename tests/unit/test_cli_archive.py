"""Tests of `load` and `save`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.commandline import IMAGE, CommandLine, make_store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture(scope="module")
def layerfs(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    return make_store(tmp_path_factory.mktemp("store"))


def test_what_is_saved_loads_again_by_file_and_by_pipe(layerfs: CommandLine, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    assert layerfs.good("save", "-q", "-o", archive, IMAGE) == ""
    other = CommandLine(tmp_path / "other")
    assert other.good("load", "-q", "-i", archive) == f"Loaded image: {IMAGE}\n"
    third = CommandLine(tmp_path / "third")
    assert third.good("load", "-q", stdin=archive.read_bytes()) == f"Loaded image: {IMAGE}\n"


def test_load_names_what_was_in_the_archive_alone(layerfs: CommandLine, tmp_path: Path) -> None:
    layerfs.good("tag", IMAGE, "other:1")
    layerfs.good("save", "-q", "-o", tmp_path / "one.tar", IMAGE)
    assert layerfs.good("load", "-q", "-i", tmp_path / "one.tar") == f"Loaded image: {IMAGE}\n"
    image = layerfs.json("images")[0]["id"]
    layerfs.good("save", "-q", "-o", tmp_path / "nameless.tar", image)
    assert layerfs.good("load", "-q", "-i", tmp_path / "nameless.tar") == f"Loaded image ID: {image}\n"
    layerfs.good("rmi", "other:1")


def test_save_writes_to_stdout_nothing_but_the_archive(layerfs: CommandLine, tmp_path: Path) -> None:
    layerfs.good("save", "-q", "-o", tmp_path / "image.tar", IMAGE)
    done = layerfs.run("save", IMAGE)
    assert done.out.encode(errors="surrogateescape") == (tmp_path / "image.tar").read_bytes()
    assert done.err == ""


def test_a_tar_is_never_written_to_a_terminal(layerfs: CommandLine) -> None:
    ours, theirs = os.openpty()
    done = subprocess.run(layerfs.words("save", IMAGE), stdout=theirs, stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 2
    assert "-o FILE" in done.stderr.splitlines()[-1]


def test_an_archive_that_is_none_is_told_in_one_line(layerfs: CommandLine) -> None:
    done = layerfs.run("load", stdin=b"this is no tar archive" * 100)
    assert done.status == 1
    assert done.err.startswith("layerfs: ")
    assert "Traceback" not in done.err


@pytest.mark.parametrize("words", [("save", "-q", IMAGE), ("export", "box")])
def test_a_file_that_cannot_be_made_is_named_as_it_was_given(
    layerfs: CommandLine, tmp_path: Path, words: tuple[str, ...]
) -> None:
    layerfs.good("create", "--name", "box", IMAGE)
    try:
        done = layerfs.run(*words, "-o", tmp_path / "nosuch" / "file")
    finally:
        layerfs.good("rm", "box")
    assert done.status == 1
    assert done.err.startswith(f"layerfs: {tmp_path}/nosuch/file: No such file")
