"""The contract that drivers keep, as one pytest class to inherit from; needs pytest and hypothesis.

For the author of a driver::

    from layerfs.testing import DriverContract

    class TestMine(DriverContract):
        make_driver = MineDriver
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from layerfs.testing.contract import DriverContract

__all__ = ["DriverContract"]


def __getattr__(name: str) -> type[DriverContract]:
    # Snapshots are of use without pytest and hypothesis, so those are imported with the contract only.
    if name == "DriverContract":
        from layerfs.testing.contract import DriverContract

        return DriverContract
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
