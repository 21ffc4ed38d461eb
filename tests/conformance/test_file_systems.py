"""Drivers on file systems with reflinks, and with ways of their own: btrfs and xfs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from layerfs_aufs import AufsDriver
from layerfs_overlay2 import Overlay2Driver
from layerfs_vfs import VfsDriver

from layerfs.testing.content import CasesContract, ContentContract
from layerfs.testing.items import file
from layerfs.testing.stack import Stack


@pytest.fixture(scope="module", params=["btrfs", "xfs"])
def disk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make a file system in a file, and mount it."""
    kind = request.param
    if os.geteuid() != 0 or not shutil.which(f"mkfs.{kind}"):
        pytest.skip(f"needs root and mkfs.{kind}")
    place = tmp_path_factory.mktemp(kind)
    image, target = place / "image", place / "mounted"
    target.mkdir()
    with open(image, "wb") as writer:
        writer.truncate(512 << 20)
    subprocess.run([f"mkfs.{kind}", "-q", image], check=True, capture_output=True)
    if subprocess.run(["mount", "-o", "loop", image, target], check=False, capture_output=True).returncode:
        pytest.skip(f"cannot mount {kind} here")
    try:
        yield target
    finally:
        subprocess.run(["umount", target], check=True)
        image.unlink()


@pytest.fixture
def tmp_path(disk: Path) -> Iterator[Path]:
    """Take the place of pytest's own, on the other file system."""
    place = disk / "test"
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place)


class TestVfs(CasesContract, ContentContract):
    make_driver = VfsDriver

    def test_a_copy_shares_its_data(self, stack: Stack, tmp_path: Path) -> None:
        stack.apply([file(b"big", os.urandom(32 << 20))])
        os.sync()
        before = os.statvfs(tmp_path).f_bfree
        stack.finish(stack.create())
        os.sync()
        after = os.statvfs(tmp_path)
        assert (before - after.f_bfree) * after.f_frsize < 8 << 20


class TestOverlay2(CasesContract):
    make_driver = Overlay2Driver


class TestAufs(CasesContract):
    make_driver = AufsDriver
