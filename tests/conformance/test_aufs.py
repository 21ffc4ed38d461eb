"""The contract, kept by the aufs driver, and what is its own."""

from __future__ import annotations

from layerfs_aufs import AufsDriver

from layerfs.testing import DriverContract


class TestAufsDriver(DriverContract):
    make_driver = AufsDriver
