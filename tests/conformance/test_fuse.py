"""The contract, kept by the FUSE driver."""

from __future__ import annotations

from layerfs_fuse import FuseDriver

from layerfs.testing import DriverContract


class TestFuseDriver(DriverContract):
    make_driver = FuseDriver
