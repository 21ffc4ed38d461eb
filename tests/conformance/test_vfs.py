"""The contract, kept by the vfs driver; and what it shares between layers."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from layerfs_vfs import VfsDriver

from layerfs.driver import Driver
from layerfs.testing import DriverContract
from layerfs.testing.items import file, hard_link
from layerfs.testing.stack import Stack
from layerfs.tree.change import ChangeKind


def inode(driver: Driver, layer: str, name: str) -> os.stat_result:
    return (driver.root / layer / "tree" / name).stat()


class TestVfsDriver(DriverContract):
    make_driver = VfsDriver

    def test_unpacked_layers_share_files_and_a_writable_one_shares_none(
        self, driver: Driver, stack: Stack
    ) -> None:
        first = stack.apply(
            [file(b"same", b"one"), file(b"changed", b"two"), file(b"a"), hard_link(b"b", b"a")]
        )
        second = stack.apply([file(b"changed", b"three")])
        assert inode(driver, first, "same").st_ino == inode(driver, second, "same").st_ino
        assert inode(driver, first, "changed").st_ino != inode(driver, second, "changed").st_ino
        with stack.edited() as place:
            assert (place / "same").stat().st_nlink == 1
            assert (place / "a").samefile(place / "b") and (place / "a").stat().st_nlink == 2
            (place / "same").write_bytes(b"written")
            (place / "a").write_bytes(b"written")
        assert (driver.root / first / "tree/same").read_bytes() == b"one"
        assert (driver.root / second / "tree/a").read_bytes() == b""
        edited = stack.layers[-1]
        assert [change.entry.path for change in driver.changes(edited, [first, second])] == [
            b"a",
            b"b",
            b"same",
        ]
        # What was written is shared with nobody until something is unpacked on it.
        third = stack.apply([file(b"more")])
        assert inode(driver, edited, "same").st_ino == inode(driver, third, "same").st_ino
        with stack.edited() as place:
            (place / "b").unlink()
        changes = driver.changes(stack.layers[-1], stack.layers[:-1])
        found = {change.entry.path: change.kind for change in changes if not change.minor}
        assert found.pop(b"b") is ChangeKind.DELETED
        assert not found.keys() & {b"same", b"changed", b"more"}

    def test_usage_counts_links_of_one_tree_once_and_files_of_lower_layers_not_again(
        self, driver: Driver, stack: Stack
    ) -> None:
        layer = stack.apply([file(b"a", b"x" * (1 << 20)), hard_link(b"b", b"a")])
        alone = driver.usage(layer, [])
        assert alone.inodes == 2 and alone.bytes >= 1 << 20
        above = driver.usage(stack.apply([file(b"c", b"y" * 100_000), hard_link(b"d", b"c")]), [layer])
        assert above.inodes == 2
        assert 98_304 <= above.bytes < 1 << 18

    def test_a_file_without_room_for_another_name_is_copied_with_all_the_others(
        self, driver: Driver, stack: Stack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = stack.apply([file(b"a", b"one"), hard_link(b"b", b"a")])

        def full(*names: object, src_dir_fd: int, dst_dir_fd: int, **flags: object) -> None:
            if os.fstat(src_dir_fd).st_ino == (driver.root / first / "tree").stat().st_ino:
                raise OSError(31, "Too many links")
            link(*names, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, **flags)  # type: ignore[arg-type]

        link = os.link
        monkeypatch.setattr(os, "link", full)
        second = stack.apply([file(b"c")])
        monkeypatch.undo()
        assert inode(driver, first, "a").st_ino != inode(driver, second, "a").st_ino
        assert inode(driver, second, "a").st_ino == inode(driver, second, "b").st_ino
        assert (driver.root / second / "tree/b").read_bytes() == b"one"

    def test_linked_sockets_of_a_committed_layer_stay_linked(self, stack: Stack, tmp_path: Path) -> None:
        with stack.edited() as place:
            here = os.open(place, os.O_RDONLY)
            server = socket.socket(socket.AF_UNIX)
            server.bind(f"/proc/self/fd/{here}/a")
            server.close()
            os.link("a", "b", src_dir_fd=here, dst_dir_fd=here)
            os.close(here)
        stack.apply([file(b"c")])
        with stack.edited() as place:
            assert (place / "a").samefile(place / "b")
