"""Where lazy layers are made and get their data, for processes that have no database."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from layerfs import linux
from layerfs.blobs import Blobs
from layerfs.value import frozen

if TYPE_CHECKING:
    from pathlib import Path

    from layerfs.database import Durability
    from layerfs.layers import Layers
    from layerfs.registry.settings import Options
    from layerfs.tree.budget import Budget


@frozen
class Setting:
    """A store's directory, what holds for it, and how registries are spoken with."""

    root: Path
    durability: Durability
    budget: Budget
    options: Options | None

    @classmethod
    def of(cls, layers: Layers, options: Options | None) -> Setting:
        """Give that of the store that these layers are in."""
        return cls(layers.root, layers.durability, layers.budget, options)

    @property
    def blobs(self) -> Blobs:
        """The blobs that are here as files."""
        return Blobs(self.root, durability=self.durability)

    def sync(self) -> None:
        """Bring the store's file system to disk (syncfs(2)), if its durability asks for it."""
        if self.durability != "none":
            root = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                linux.syncfs(root)
            finally:
                os.close(root)
