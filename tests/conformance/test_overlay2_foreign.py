"""Upper directories that other programs' mounts wrote: renamed directories and metadata-only copies."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from layerfs_overlay2 import Overlay2Driver

from layerfs.mounting import open_mount
from layerfs.tree.change import ChangeKind
from layerfs.tree.diff import changes_between, listing
from layerfs.tree.entry import Entry

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount overlayfs")

Line = tuple[ChangeKind, Entry]


def prepare(root: Path) -> Overlay2Driver:
    driver = Overlay2Driver(root)
    driver.create("base", [])
    tree = root / "base" / "diff"
    (tree / "old" / "deep").mkdir(parents=True)
    for name in ("old/one", "old/deep/two", "big"):
        (tree / name).write_bytes(b"content of " + name.encode())
    driver.create("top", ["base"])
    return driver


def edit(root: Path, target: Path, change: Callable[[Path], None]) -> None:
    """Change the layer through a mount with the features that layerfs turns off."""
    directories = f"lowerdir={root}/base/diff,upperdir={root}/top/diff,workdir={root}/top/work"
    options = f"{directories},redirect_dir=on,metacopy=on,index=off"
    target.mkdir()
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, target], check=True)
    try:
        change(target)
    finally:
        subprocess.run(["umount", target], check=True)


def seen_by_the_walk(driver: Overlay2Driver) -> list[Line]:
    lower = open_mount(driver.mount("base", [], read_only=True))
    merged = driver._open_merged(["base", "top"])
    try:
        return [(change.kind, change.entry) for change in changes_between(lower, merged)]
    finally:
        os.close(lower)
        os.close(merged)


def contents(driver: Overlay2Driver) -> dict[bytes, bytes]:
    found = {}
    for change in driver.changes("top", ["base"]):
        if change.entry.size:
            file = os.open(change.name, os.O_RDONLY, dir_fd=change.directory)
            found[change.entry.path] = os.read(file, 1000)
            os.close(file)
    return found


def test_a_renamed_directory_is_added_whole_under_its_new_name(tmp_path: Path) -> None:
    (tmp_path / "driver").mkdir()
    driver = prepare(tmp_path / "driver")

    def rename(tree: Path) -> None:
        (tree / "old").rename(tree / "new")
        (tree / "new" / "one").write_bytes(b"changed")

    edit(driver.root, tmp_path / "mnt", rename)
    assert os.getxattr(driver.root / "top" / "diff" / "new", "trusted.overlay.redirect")
    assert [(c.kind, c.entry) for c in driver.changes("top", ["base"])] == seen_by_the_walk(driver)
    assert [(kind.value, path) for kind, path in listing(driver.changes("top", ["base"]))] == [
        ("A", b"/new"),
        ("A", b"/new/deep"),
        ("A", b"/new/deep/two"),
        ("A", b"/new/one"),
        ("D", b"/old"),
    ]
    assert contents(driver) == {
        b"new/one": b"changed",
        b"new/deep/two": b"content of old/deep/two",
    }


def test_a_file_of_which_only_the_metadata_was_copied_up_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "driver").mkdir()
    driver = prepare(tmp_path / "driver")
    edit(driver.root, tmp_path / "mnt", lambda tree: (tree / "big").chmod(0o600))
    assert os.getxattr(driver.root / "top" / "diff" / "big", "trusted.overlay.metacopy") is not None
    assert [(c.kind, c.entry) for c in driver.changes("top", ["base"])] == seen_by_the_walk(driver)
    assert contents(driver) == {b"big": b"content of big"}
