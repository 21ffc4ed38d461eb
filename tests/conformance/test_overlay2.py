"""The contract, kept by the overlay2 driver."""

from __future__ import annotations

from layerfs_overlay2 import Overlay2Driver

from layerfs.testing import DriverContract


class TestOverlay2Driver(DriverContract):
    make_driver = Overlay2Driver
    limited = True
