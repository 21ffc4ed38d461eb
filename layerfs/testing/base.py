"""What every part of the contract stands on: a driver of the author's making, and a stack of its layers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from layerfs import mounting
from layerfs.driver import Driver, Sweeps
from layerfs.testing.stack import Stack


class ContractBase:
    """The fixtures of the contract; an author overrides the three class attributes."""

    make_driver: ClassVar[Callable[[Path], Driver]]
    """Opens the driver on an empty directory of its own."""

    deepest: ClassVar[int] = 500
    """How many layers it can show in one tree; one more must be an UnsupportedError."""

    limited: ClassVar[bool] = False
    """Whether there is such a limit at all."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        """Give the driver's own directory."""
        if os.geteuid() != 0:
            pytest.skip("mounting and owning files needs root")
        root = tmp_path / "driver"
        root.mkdir(mode=0o700)
        return root

    @pytest.fixture
    def driver(self, root: Path) -> Driver:
        """Open the driver."""
        return type(self).make_driver(root)

    @pytest.fixture
    def stack(self, driver: Driver, tmp_path: Path) -> Iterator[Stack]:
        """Give an empty stack; afterwards remove what was made, and check that nothing is left."""
        place = tmp_path / "mounts"
        place.mkdir()
        try:
            yield Stack(driver, place)
        finally:
            for info in reversed(mounting.mounts_below(tmp_path)):
                with contextlib.suppress(OSError):
                    mounting.detach(Path(os.fsdecode(info.target)), lazy=True)
        clear(driver)


def clear(driver: Driver) -> None:
    """Remove every layer, and check that the driver then holds none, and no file where it can sweep."""
    for layer in list(driver.layers()):
        driver.remove(layer)
    assert list(driver.layers()) == []
    if isinstance(driver, Sweeps):
        driver.sweep()
        assert os.listdir(driver.root) == []
