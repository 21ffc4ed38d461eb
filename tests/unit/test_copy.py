"""Whole trees copied, on the real file system."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from layerfs.testing.snapshot import differences, snapshot
from layerfs.tree.copy import copy_tree


def copied(source: Path, target: Path) -> None:
    target.mkdir()
    one, other = os.open(source, os.O_RDONLY), os.open(target, os.O_RDONLY)
    try:
        copy_tree(one, other)
    finally:
        os.close(one)
        os.close(other)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    subprocess.run(
        [
            "sh", "-euc",
            """
            mkdir -p "$1/d/e" "$1/empty"; cd "$1"
            echo x > d/file; ln d/file d/e/link; ln d/file z; ln -s d link; : > empty-file
            head -c 5000000 /dev/urandom > d/big; truncate -s 64M sparse
            dd if=/dev/zero of=sparse bs=4k count=1 seek=1000 conv=notrunc status=none
            chmod 600 d/file; chmod 500 d/e; touch -d '1960-01-01 00:00:00.5' d/big
            touch -h -d 2001-01-01 link
            touch -d 2002-02-02 d/e; touch -d 2003-03-03 .
            """, "sh", tree,
        ],
        check=True,
    )  # fmt: skip
    return tree


def test_nothing_tells_the_copy_from_the_original(tree: Path, tmp_path: Path) -> None:
    copied(tree, tmp_path / "copy")
    assert differences(snapshot(tmp_path / "copy"), snapshot(tree)) == []
    assert (tmp_path / "copy" / "sparse").stat().st_blocks == (tree / "sparse").stat().st_blocks


def test_access_times_are_copied_and_those_of_the_original_stay(tree: Path, tmp_path: Path) -> None:
    for name, time in (("d/big", 1_000_000_001), ("d", 2_000_000_002)):
        os.utime(tree / name, ns=(time, time))
    copied(tree, tmp_path / "copy")
    for root in (tree, tmp_path / "copy"):
        assert (root / "d" / "big").stat().st_atime_ns == 1_000_000_001
    assert (tmp_path / "copy" / "d").stat().st_atime_ns == 2_000_000_002


@pytest.mark.skipif(os.geteuid() != 0, reason="makes devices and gives files away")
def test_special_files_owners_and_attributes_are_copied(tree: Path, tmp_path: Path) -> None:
    subprocess.run(
        [
            "sh", "-euc",
            """
            cd "$1"; mknod null c 1 3; mknod disk b 8 0; mkfifo fifo; mkdir sticky
            chmod 1777 sticky; chown -h 7:8 link fifo; chown 9:10 d/file; chmod 6711 d/file
            python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
            setfacl -m u:1000:rwx d; setfacl -d -m u:1000:rwx d; setfacl -m u:5:r empty-file
            setfattr -n trusted.x -v y fifo; setfattr -n user.x d; setfattr -h -n trusted.l -v y link
            setcap cap_net_raw+ep d/big
            """, "sh", tree,
        ],
        check=True,
    )  # fmt: skip
    old = os.umask(0o077)
    try:
        copied(tree, tmp_path / "copy")
    finally:
        os.umask(old)
    assert differences(snapshot(tmp_path / "copy"), snapshot(tree)) == []


def test_hard_links_between_trees_deeper_than_a_path_is_long(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    root = os.open(tree, os.O_RDONLY)
    current = os.dup(root)
    for _ in range(500):
        os.mkdir("directory", dir_fd=current)
        below = os.open("directory", os.O_RDONLY, dir_fd=current)
        os.close(current)
        current = below
    os.close(os.open("one", os.O_CREAT, dir_fd=current))
    os.link("one", "other", src_dir_fd=current, dst_dir_fd=current)
    os.link("one", "top", src_dir_fd=current, dst_dir_fd=root)
    os.close(current)
    os.close(root)
    copied(tree, tmp_path / "copy")
    found = snapshot(tmp_path / "copy")
    assert differences(found, snapshot(tree)) == []
    assert sum(facts.links != b"" for facts in found.values()) == 3
