"""Options of mounts as words, and what they become."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from layerfs_vfs import VfsDriver

from layerfs import Store, linux, mounting
from layerfs.driver import Configures
from layerfs.errors import InvalidError
from layerfs.mount import Bind, Mount, Overlay, Restricted
from layerfs.mount_options import MountOptions


def test_words_are_sorted_into_general_ones_and_the_drivers_own() -> None:
    parsed = MountOptions.parse(["ro,squash_to_uid=5", "", "noexec", "a=b=c,,"])
    assert parsed == MountOptions(("ro", "noexec"), ("squash_to_uid=5", "a=b=c"))


@pytest.mark.parametrize(
    ("words", "read_only"),
    [("ro", True), ("rw", False), ("ro,rw", False), ("rw,noexec,ro", True), ("", False)],
)
def test_of_ro_and_rw_the_last_one_holds(words: str, read_only: bool) -> None:
    assert MountOptions.parse([words]).read_only is read_only


@pytest.mark.parametrize(
    ("words", "added", "cleared"),
    [
        ("nosuid,nodev", linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV, 0),
        ("noexec,exec", 0, linux.MOUNT_ATTR_NOEXEC),
        ("noatime,strictatime", linux.MOUNT_ATTR_STRICTATIME, linux.MOUNT_ATTR_ATIME),
        ("noatime,relatime,nodiratime", linux.MOUNT_ATTR_NODIRATIME, linux.MOUNT_ATTR_ATIME),
        ("defaults,ro", 0, 0),
    ],
)
def test_attributes_are_those_of_the_kernel(words: str, added: int, cleared: int) -> None:
    assert MountOptions.parse([words]).attributes == (added, cleared)


def test_a_general_option_takes_no_value() -> None:
    with pytest.raises(InvalidError, match="'noexec=1' must not have"):
        MountOptions.parse(["noexec=1"])


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts")


@needs_root
@pytest.mark.parametrize("kind", ["bind", "overlay"])
def test_a_restricted_mount_has_its_attributes_when_it_is_seen(tmp_path: Path, kind: str) -> None:
    for name in ("one", "two", "target"):
        (tmp_path / name).mkdir()
    mount: Mount = Bind("layerfs-test", tmp_path / "one", read_only=False)
    if kind == "overlay":
        mount = Overlay("layerfs-test", (tmp_path / "one", tmp_path / "two"), None, None)
    added = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NOATIME
    mounting.attach(Restricted(mount.source, mount, added, linux.MOUNT_ATTR_ATIME), tmp_path / "target")
    try:
        info = mounting.mounted(tmp_path / "target")
        assert info is not None and {"nosuid", "noatime"} <= set(info.options)
    finally:
        mounting.detach(tmp_path / "target")


class Foreign(Mount):
    """A mount of somebody else's driver, who knows nothing of attributes."""


@mounting.attach.register
def _attach(mount: Foreign, target: Path | int) -> None:
    linux.mount(mount.source, str(target), "tmpfs", 0)


@needs_root
def test_a_mount_of_another_class_is_restricted_once_it_is_there(tmp_path: Path) -> None:
    foreign = Foreign("foreign")
    mounting.attach(Restricted("foreign", foreign, linux.MOUNT_ATTR_NOEXEC, 0), tmp_path)
    try:
        info = mounting.mounted(tmp_path)
        assert info is not None and "noexec" in info.options and info.source == "foreign"
    finally:
        mounting.detach(tmp_path)


@needs_root
def test_a_driver_that_takes_no_options_mounts_with_general_ones_alone(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "target").mkdir()
    assert not isinstance(VfsDriver(tmp_path), Configures)
    with Store.open(tmp_path / "store", driver="vfs") as store:
        store.import_tree(tmp_path / "root", "empty:1")
        with pytest.raises(InvalidError, match="driver vfs has no mount option 'squash_to_root'") as error:
            store.mount("empty:1", tmp_path / "target", options=["nosuid,squash_to_root"])
        assert "nosuid" in (error.value.hint or "")
        assert store.containers.list() == []
        container = store.mount("empty:1", tmp_path / "target", options=["ro", "nosuid,nodev"])
        info = mounting.mounted(tmp_path / "target")
        assert info is not None and {"ro", "nosuid", "nodev"} <= set(info.options)
        container.unmount()
