"""Host-file helpers on the real file system."""

from __future__ import annotations

import os
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from layerfs import files, linux
from layerfs.errors import InUseError, LayerError
from layerfs.tree.archive import write_layer
from layerfs.tree.change import Change, ChangeKind
from layerfs.tree.copy import _open_file
from layerfs.tree.entry import Entry, Kind


def copy(source: Path, target: Path) -> bool:
    with open(source, "rb") as reader, open(target, "wb") as writer:
        return files.copy_data(reader.fileno(), writer.fileno(), size=os.stat(source).st_size)


def remove(path: Path) -> None:
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        files.remove_tree(parent, path.name)
    finally:
        os.close(parent)


def test_write_atomic_replaces_content_and_mode(tmp_path: Path) -> None:
    target = tmp_path / "file"
    files.write_atomic(target, b"old")
    files.write_atomic(target, b"new", mode=0o644, sync=False)
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o7777 == 0o644
    assert os.listdir(tmp_path) == ["file"]


def test_write_atomic_leaves_nothing_when_the_rename_fails(tmp_path: Path) -> None:
    (tmp_path / "file" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        files.write_atomic(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == ["file"]


def test_copy_data_keeps_holes_at_the_start_in_the_middle_and_at_the_end(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with open(source, "wb") as writer:
        writer.seek(1 << 20)
        writer.write(b"x" * 5000)
        writer.seek(5 << 20)
        writer.write(b"y" * 5000)
        writer.truncate(1 << 30)
    copy(source, target)
    assert target.stat().st_size == 1 << 30
    assert target.stat().st_blocks == source.stat().st_blocks
    with open(source, "rb") as one, open(target, "rb") as other:
        assert one.read(6 << 20) == other.read(6 << 20)


@pytest.mark.parametrize("size", [0, 1, 4096, 3_000_001])
def test_copy_data_copies_dense_files_of_any_size(tmp_path: Path, size: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(size))
    copy(source, target)
    assert target.read_bytes() == source.read_bytes()


def test_copy_data_works_across_file_systems(tmp_path: Path) -> None:
    target = tmp_path / "target"
    source = Path("/dev/shm") / f"layerfs-test-{os.getpid()}"
    source.write_bytes(b"data" * 100_000)
    try:
        assert copy(source, target) is False
        assert target.read_bytes() == source.read_bytes()
    finally:
        source.unlink()


def test_a_file_made_only_of_a_hole_stays_one(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with open(source, "wb") as writer:
        writer.truncate(1 << 40)
    copy(source, target)
    assert (target.stat().st_size, target.stat().st_blocks) == (1 << 40, 0)


def test_remove_tree_deletes_files_links_and_deep_directories(tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "file").write_text("kept")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "link").symlink_to(keep)
    (tree / "file").write_text("gone")
    descriptor = os.open(tree, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("directory", 0o500, dir_fd=descriptor)
        below = os.open("directory", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)
    remove(tree)
    assert os.listdir(tmp_path) == ["keep"]
    assert (keep / "file").read_text() == "kept"


def test_remove_tree_of_nothing_and_of_a_file(tmp_path: Path) -> None:
    remove(tmp_path / "missing")
    (tmp_path / "file").touch()
    remove(tmp_path / "file")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="drops root's privileges")
def test_remove_tree_opens_up_read_only_directories_of_an_ordinary_user(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents:
        if parent != Path("/tmp") and str(parent).startswith("/tmp/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            for number, mode in enumerate([0, 0o100, 0o500, 0o600]):
                tree = tmp_path / "tree" / str(number)
                (tree / "a" / "b").mkdir(parents=True)
                (tree / "a" / "file").touch()
                (tree / "a").chmod(mode)
                tree.chmod(0o500)
            (tmp_path / "tree").chmod(0o500)
            remove(tmp_path / "tree")
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_remove_tree_never_enters_a_mount_not_even_a_bind_mount_of_the_same_file_system(
    tmp_path: Path,
) -> None:
    precious, tree = tmp_path / "precious", tmp_path / "tree"
    precious.mkdir()
    (precious / "file").write_text("kept")
    (tree / "inside").mkdir(parents=True)
    linux.mount(precious, tree / "inside", None, linux.MS_BIND)
    try:
        with pytest.raises(InUseError, match="mounted"):
            remove(tree)
        assert (precious / "file").read_text() == "kept"
    finally:
        linux.umount(tree / "inside")
    remove(tree)


def test_xattrs_are_read_in_order_with_empty_values(tmp_path: Path) -> None:
    target = os.fsencode(tmp_path / "file")
    Path(os.fsdecode(target)).touch()
    files.write_xattr(target, b"user.b", b"")
    files.write_xattr(target, b"user.a", b"\0\xff")
    assert list(files.read_xattrs(target).items()) == [(b"user.a", b"\0\xff"), (b"user.b", b"")]
    descriptor = os.open(target, os.O_RDONLY)
    try:
        assert files.read_xattrs(descriptor) == files.read_xattrs(target)
    finally:
        os.close(descriptor)


def test_a_lock_excludes_other_holders_in_the_same_process_and_in_others(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with files.Lock(path):
        with pytest.raises(InUseError), files.Lock(path, blocking=False):
            pass
        assert subprocess.run(["flock", "-n", path, "true"], check=False).returncode == 1
    with files.Lock(path, shared=True), files.Lock(path, shared=True, blocking=False):
        pass


def test_a_lock_whose_file_was_deleted_by_its_holder_still_excludes(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    inside = threading.Event()
    order = []

    def wait() -> None:
        inside.set()
        with files.Lock(path):
            order.append("second")
            with pytest.raises(InUseError):
                files.Lock(path, blocking=False).acquire()

    waiter = threading.Thread(target=wait)
    with files.Lock(path):
        waiter.start()
        inside.wait()
        order.append("first")
        path.unlink()
    waiter.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize("kind", ["device", "fifo", "link"])
def test_what_takes_a_files_place_meanwhile_is_not_opened(tmp_path: Path, kind: str) -> None:
    """To a driver an open is a command, and a fifo makes its reader wait."""
    make = {
        "device": lambda: os.mknod("f", stat.S_IFCHR | 0o600, os.makedev(1, 3), dir_fd=directory),
        "fifo": lambda: os.mkfifo("f", dir_fd=directory),
        "link": lambda: os.symlink("/etc/passwd", "f", dir_fd=directory),
    }[kind]
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        make()
        with pytest.raises(OSError, match="not a regular file"):
            files.open_regular(directory, b"f")
        with pytest.raises(OSError):
            _open_file(directory, "f")
        change = Change(ChangeKind.ADDED, Entry(b"f", Kind.FILE, size=0), directory, b"f")
        with pytest.raises(LayerError, match="changed while it was read"):
            write_layer([change], lambda data: None, warn=pytest.fail)
    finally:
        os.close(directory)
