"""The unpacking of one layer as a driver is handed it: all is bound but where to, and in which format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from layerfs.tree.whiteouts import WhiteoutFormat


class Unpack(Protocol):
    """Unpacks one layer; handed to `driver.Applies.apply`, which calls it exactly once."""

    def __call__(
        self,
        directory: int,
        *,
        lower: Callable[[], int] | None,
        whiteouts: WhiteoutFormat,
    ) -> None:
        """Write the layer's changes below an empty directory.

        Args:
            directory: descriptor of the directory, which stays the caller's to close.
            lower: opens the merged tree of the layers below and gives its root's descriptor; called
                at most once, and only by layers that need it; the descriptor is closed by `Unpack`.
                None when there is nothing below.
            whiteouts: how hidden names and opaque directories are written.
        """
