"""The contract, kept by the vfs driver."""

from __future__ import annotations

from layerfs_vfs import VfsDriver

from layerfs.testing import DriverContract


class TestVfsDriver(DriverContract):
    make_driver = VfsDriver
