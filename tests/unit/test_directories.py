"""The directories of layers: made whole or not at all, and swept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from layerfs.directories import LayerDirectories, occupied, probing
from layerfs.errors import ExistsError, InvalidError, NotFoundError, UnsupportedError


def test_a_directory_becomes_a_layer_only_when_its_block_ends_well(tmp_path: Path) -> None:
    directories = LayerDirectories(tmp_path)
    with directories.making("good") as place:
        assert place.stat().st_mode & 0o777 == 0o700
        (place / "file").touch()
        assert directories.ids() == []
    with pytest.raises(RuntimeError), directories.making("bad") as place:
        (place / "file").touch()
        raise RuntimeError
    assert os.listdir(tmp_path) == directories.ids() == ["good"]


def test_the_second_of_two_makers_is_told(tmp_path: Path) -> None:
    directories = LayerDirectories(tmp_path)
    with pytest.raises(ExistsError), directories.making("a") as slow:
        (slow / "file").touch()
        with directories.making("a") as quick:
            (quick / "first").touch()
    assert os.listdir(tmp_path / "a") == ["first"]
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("layer", ["", ".", "..", "a/b", ".gone", "x" * 65, "ä"])
def test_what_is_no_layer_id_is_refused(tmp_path: Path, layer: str) -> None:
    directories = LayerDirectories(tmp_path / "root")
    (tmp_path / "root").mkdir()
    (tmp_path / "precious").touch()
    with pytest.raises(InvalidError):
        directories.remove(layer)
    with pytest.raises(InvalidError):
        directories.require(layer)


def test_require_names_the_missing_layer(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="abc"):
        LayerDirectories(tmp_path).require("abc")


def test_a_sweep_takes_what_was_left_and_leaves_what_is_being_made(tmp_path: Path) -> None:
    directories = LayerDirectories(tmp_path)
    for name in (".new-a-1", ".gone-b-2", ".check-3"):
        (tmp_path / name / "inside").mkdir(parents=True)
    with directories.making("layer"):
        assert directories.sweep() == 3
        assert len(os.listdir(tmp_path)) == 1
    assert directories.sweep() == 0
    assert os.listdir(tmp_path) == ["layer"]


def test_occupied_counts_hard_links_once_across_trees(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for place in (one, other / "deep"):
        place.mkdir(parents=True)
    empty = occupied([one, other])
    (one / "file").write_bytes(b"x" * 8192)
    os.link(one / "file", one / "again")
    os.link(one / "file", other / "deep" / "again")
    size, inodes = occupied([one, other])
    assert empty[1] == 3
    assert (size - empty[0], inodes - empty[1]) == (8192, 1)


def test_probing_says_where_no_directory_can_be_made(tmp_path: Path) -> None:
    with probing(tmp_path) as scratch:
        (scratch / "file").touch()
    assert os.listdir(tmp_path) == []
    with pytest.raises(UnsupportedError, match="/proc"), probing(Path("/proc")):
        pass


def test_require_names_the_missing_layer_among_many(tmp_path: Path) -> None:
    directories = LayerDirectories(tmp_path)
    layers = [f"layer{number}" for number in range(100)]
    for layer in layers:
        with directories.making(layer):
            pass
    directories.require(*layers)
    with pytest.raises(NotFoundError, match="missing"):
        directories.require(*layers[:50], "missing", *layers[50:])
    (tmp_path / ".new-layer").mkdir()
    with pytest.raises(InvalidError):
        directories.require(*layers, ".new-layer")
