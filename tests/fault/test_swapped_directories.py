"""Unpacking and copying against a process that exchanges directories for links: the campaign `swap`."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from layerfs_fuse import FuseDriver

from layerfs import plugins
from layerfs.errors import UnsupportedError
from tests.reliability import swap

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")


@pytest.mark.parametrize("target", swap.TARGETS)
def test_nothing_outside_changes_or_comes_inside(tmp_path: Path, target: str) -> None:
    (tmp_path / "check").mkdir()
    try:
        if target.startswith("unpack"):
            plugins.find(target.partition(", ")[2]).load().check(tmp_path / "check")
        elif target.startswith("copy-up"):
            FuseDriver.check(tmp_path / "check")
    except UnsupportedError as error:
        pytest.skip(str(error))
    outcome = swap.attack(target, tmp_path, rounds=100, operations=3)
    assert outcome.changed == ()
    assert outcome.swaps >= 100


def test_who_goes_by_names_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(tree: Path, host: Path) -> None:
        with tarfile.open(fileobj=io.BytesIO(swap._layer())) as archive:
            for member in archive:
                if member.isreg():
                    (tree / member.name).write_bytes(b"careless")

    monkeypatch.setattr(swap, "_copying_in", lambda tree, host: lambda: careless(tree, host))
    assert swap.attack("cp in", tmp_path, rounds=100).changed
