"""Tests of `images`, `tag`, `rmi`, `inspect` and `history`."""

from __future__ import annotations

import os

import pytest

from tests.support.commandline import IMAGE, CommandLine, make_store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture(scope="module")
def layerfs(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    return make_store(tmp_path_factory.mktemp("store"))


def test_images_are_listed_as_dockers(layerfs: CommandLine) -> None:
    header, row = layerfs.good("images", "small").splitlines()
    assert header.split("   ")[0] == "REPOSITORY"
    repository, tag, identity, *_ = row.split()
    assert (repository, tag, len(identity)) == ("small", "1", 12)
    assert layerfs.good("images", "-q", "small").strip() == identity
    assert layerfs.good("images", "-q", "--no-trunc", "small").startswith(f"sha256:{identity}")
    assert layerfs.good("images", "nothing").split() == header.split()


def test_images_as_json_have_the_same_rows(layerfs: CommandLine) -> None:
    (row,) = layerfs.json("images", "small")
    assert (row["repository"], row["tag"]) == ("small", "1")
    assert row["size"] > 1_000_000
    assert row["created"].endswith("Z")


def test_a_name_comes_and_goes(layerfs: CommandLine) -> None:
    assert layerfs.good("tag", IMAGE, "registry.example/other/name:2") == ""
    assert "registry.example/other/name" in layerfs.good("images")
    assert layerfs.good("rmi", "registry.example/other/name:2") == "Untagged: registry.example/other/name:2\n"
    assert "registry.example" not in layerfs.good("images")


def test_removing_what_is_not_there_goes_on_with_the_rest(layerfs: CommandLine) -> None:
    layerfs.good("tag", IMAGE, "further:1")
    done = layerfs.run("rmi", "nothing:1", "further:1")
    assert done.status == 1
    assert done.out == "Untagged: further:1\n"
    assert "nothing:1" in done.err


def test_inspect_shows_the_documents(layerfs: CommandLine) -> None:
    (found,) = layerfs.json("inspect", IMAGE)
    assert found["names"] == [IMAGE]
    assert found["config"]["config"]["Env"] == ["GREETING=hello"]
    assert found["manifest"]["config"]["digest"] == found["id"]
    assert len(found["layers"]) == 1


def test_inspect_of_nothing_fails_with_an_empty_array(layerfs: CommandLine) -> None:
    done = layerfs.run("inspect", "nothing")
    assert (done.status, done.out) == (1, "[]\n")
    assert done.err.splitlines()[-1].startswith("hint: ")


def test_history_shows_the_newest_step_first(layerfs: CommandLine) -> None:
    header, row = layerfs.good("history", IMAGE).splitlines()
    assert header.startswith("IMAGE")
    assert row.endswith("by hand")
    (stage,) = layerfs.json("history", IMAGE)
    assert stage["comment"] == "by hand"
    assert stage["size"] > 0
