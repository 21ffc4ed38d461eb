"""The contract, kept by the FUSE driver over libfuse 2, and what is its own."""

from __future__ import annotations

from layerfs_fuse import FuseDriver

from layerfs.testing import DriverContract


class FusepyDriver(FuseDriver):
    front = "fusepy"


class TestFusepyFrontEnd(DriverContract):
    make_driver = FusepyDriver
