"""The list of damages in short; `python -m tests.reliability damage` does all of them, with every driver."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability.damage import survive
from tests.support import registries
from tests.support.damages import Damage, damages
from tests.support.registries import Registry

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and mounts need root")

# One of each way to find and to repair.
SHORT = [
    "a file of a layer is missing",
    "a file has other content, size and time as before",
    "an xattr is missing",
    "a foreign whiteout hides a file",
    "a layer's directory is missing",
    "a layer's blob is truncated",
    "a table of contents is altered",
    "a page of the database is overwritten",
    "the database and all records are missing",
    "the rows of layers are lost",
    "a foreign file is in a driver's directory",
    "a mount is there, and not recorded",
]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not registries.installed():
        pytest.skip(f"{registries.PROGRAM} is not installed")
    with Registry(tmp_path_factory.mktemp("registry")) as found:
        yield found.host


@pytest.mark.parametrize("damage", [one for one in damages() if one.name in SHORT], ids=lambda one: one.name)
def test_damage_is_found_and_repaired(damage: Damage, registry: str, tmp_path: Path) -> None:
    assert survive(damage, tmp_path / "place", "overlay2", registry).problems == ()


def test_every_name_is_on_the_list() -> None:
    assert set(SHORT) <= {one.name for one in damages()}
