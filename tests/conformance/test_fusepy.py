"""The contract, kept by the FUSE driver's second front end, and what is its own: libfuse between it and the kernel."""

from __future__ import annotations

from layerfs_fuse import FuseDriver
from layerfs.testing import DriverContract


class FusepyDriver(FuseDriver):
    front = "fusepy"


class TestFusepyFrontEnd(DriverContract):
    make_driver = FusepyDriver
