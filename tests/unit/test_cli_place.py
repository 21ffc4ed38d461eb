"""Tests of `inspect` for images that are in no store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commandline import CommandLine
from tests.support.tiny_images import TinyImage, layout_of_index, multi_platform, sha256


@pytest.fixture
def layerfs(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path / "store")


@pytest.fixture
def images(tmp_path: Path) -> list[TinyImage]:
    index, images = multi_platform("linux/amd64", "linux/arm64/v8")
    layout_of_index(tmp_path / "layout", index, images, name="1")
    return images


def test_raw_is_the_index_byte_for_byte_and_of_a_platform_its_manifest(
    layerfs: CommandLine, images: list[TinyImage], tmp_path: Path
) -> None:
    place = f"oci:{tmp_path}/layout:1"
    index = layerfs.good("inspect", "--raw", place)
    assert json.loads(index)["manifests"][1]["digest"] == sha256(images[1].manifest)
    raw = layerfs.good("inspect", "--raw", "--platform", "linux/arm64", place)
    assert raw.encode() == images[1].manifest
    config = layerfs.good("inspect", "--raw", "--config", "--platform", "linux/amd64", place)
    assert config.encode() == images[0].config
    assert json.loads(layerfs.good("inspect", "--config", "--platform", "linux/amd64", place)) == json.loads(
        images[0].config
    )


def test_details_tell_of_every_platform_and_the_layers_of_one(
    layerfs: CommandLine, images: list[TinyImage], tmp_path: Path
) -> None:
    place = f"oci:{tmp_path}/layout:1"
    [found] = json.loads(layerfs.good("inspect", "--platform", "linux/arm64", place))
    assert [one["platform"] for one in found["platforms"]] == ["linux/amd64", "linux/arm64/v8"]
    assert found["manifest_digest"] == sha256(images[1].manifest)
    assert [layer["digest"] for layer in found["layers"]] == [sha256(layer) for layer in images[1].layers]
    assert "tags" not in found
    assert not layerfs.root.exists()


def test_an_archive_is_looked_into_too(layerfs: CommandLine, images: list[TinyImage], tmp_path: Path) -> None:
    archive = f"docker-archive:{tmp_path}/a.tar"
    layerfs.good("copy", "-q", "--platform", "linux/amd64", f"oci:{tmp_path}/layout:1", f"{archive}:x:1")
    [found] = json.loads(layerfs.good("inspect", archive))
    assert (found["digest"], found["platforms"]) == (sha256(images[0].manifest), None)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("--raw", "oci:{}/layout:1", "oci:{}/layout:1"), 2),
        (("--raw", "app:1"), 2),
        (("app:1", "oci:{}/layout:1"), 2),
        (("oci:{}/layout:2",), 1),
        (("oci:{}/none",), 1),
    ],
)
def test_what_cannot_be_told_is_said(
    layerfs: CommandLine, images: list[TinyImage], tmp_path: Path, words: tuple[str, ...], status: int
) -> None:
    assert layerfs.run("inspect", *(word.format(tmp_path) for word in words)).status == status
