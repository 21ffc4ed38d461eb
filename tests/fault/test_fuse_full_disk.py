"""The disk is full, or answers with an error, or descriptors run out: the caller hears of it, and no more."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from layerfs_fuse import libfuse

from benchmarks.filesystem import fresh
from layerfs import linux
from layerfs.errors import UnsupportedError
from layerfs.testing.snapshot import differences
from tests.support.union_changes import CHANGES, Traced, closest, do, lay_out, seen, steps_of
from tests.support.unions import Union, listening, missing

MEBIBYTE = 1 << 20
ROOM = 12 * MEBIBYTE
# How many system calls of each change are made to fail; 0: every one.
POINTS = int(os.environ.get("LAYERFS_ERROR_POINTS", "1"))
# Changes that cannot be done without a block or more.
NEEDING = {
    "copy up by writing", "copy up with parents", "copy up below a renamed directory", "copy up by chmod",
    "copy up of one of two links", "setxattr", "link", "link over a whiteout", "rename a lower file",
    "exchange files",
}  # fmt: skip
ALSO = {"create over a whiteout", "mkdir over a whiteout", "rmdir merged", "unlink below"}


@pytest.fixture(scope="module", autouse=True)
def able(tmp_path_factory: pytest.TempPathFactory) -> None:
    if reason := missing(tmp_path_factory.mktemp("check")):
        pytest.skip(reason)


def call(*command: str | Path) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def tmpfs(place: Path) -> Iterator[Path]:
    place.mkdir()
    call("mount", "-t", "tmpfs", "-o", f"size={ROOM},nr_inodes=300", "tmpfs", place)
    try:
        yield place
    finally:
        call("umount", place)


@contextlib.contextmanager
def limited_btrfs() -> Iterator[Path]:
    with fresh("btrfs", size=200 * MEBIBYTE) as place:
        call("btrfs", "quota", "enable", place)
        call("btrfs", "subvolume", "create", place / "limited")
        call("btrfs", "qgroup", "limit", str(ROOM), place / "limited")
        yield place / "limited"


@pytest.fixture(params=["ext4", "tmpfs", "btrfs with a quota"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Give a directory that takes no more than `ROOM` bytes."""
    if request.param == "tmpfs":
        with tmpfs(tmp_path / "small") as place:
            yield place
    elif request.param == "ext4":
        with fresh("ext4", size=ROOM) as place:
            yield place
    elif shutil.which("btrfs") is None:
        pytest.skip("not installed: btrfs")
    else:
        with limited_btrfs() as place:
            yield place


def fill(directory: Path) -> None:
    """Take every inode that is left, then every block."""
    (directory / "inodes").mkdir()
    (directory / "ballast").touch()
    with contextlib.suppress(OSError):
        for number in range(300):
            os.mknod(directory / "inodes" / str(number))
    for size in (MEBIBYTE, 4096, 1):
        with contextlib.suppress(OSError), open(directory / "ballast", "ab", buffering=0) as file:
            while True:
                file.write(bytes(size))


def test_what_has_no_room_fails_changes_nothing_and_can_be_done_later(tmp_path: Path, small: Path) -> None:
    failed = set()
    with listening() as errors:
        for name in CHANGES if POINTS == 0 else sorted(NEEDING | ALSO):
            change = CHANGES[name]
            union = Union(tmp_path / name, above=small / "layers")
            lay_out(union)
            with union.mounted() as server:
                states = [seen(union.place)]
                fill(small)
                try:
                    for _ in steps_of(change, union.place):
                        states.append(seen(union.place))
                except OSError as error:
                    assert error.errno in (errno.ENOSPC, errno.EDQUOT), name
                    assert seen(union.place) == states[-1], (name, closest(states, seen(union.place)))
                    failed.add(name)
                assert half_made(union) == [], name
                assert server.alive(), name
                make_room(small)
                if name in failed:
                    do(change, union.place)
                states.append(seen(union.place))
            with union.overlaid():
                assert differences(seen(union.place), states[-1]) == [], name
            shutil.rmtree(small / "layers")
    assert errors == []
    assert failed >= NEEDING


def half_made(union: Union) -> list[str]:
    """List what is left in the work directory that no later change would use."""
    return [name for name in os.listdir(union.work / "work") if name.startswith("#")]


def make_room(directory: Path) -> None:
    (directory / "ballast").unlink()
    shutil.rmtree(directory / "inodes")


@pytest.mark.parametrize("name", CHANGES)
def test_an_error_of_the_disk_is_handed_on_and_nothing_is_half_done(tmp_path: Path, name: str) -> None:
    if shutil.which("strace") is None:
        pytest.skip("not installed: strace")
    change = CHANGES[name]
    whole = Union(tmp_path / "whole")
    lay_out(whole)
    with whole.mounted() as server:
        states = [seen(whole.place)]
        traced = Traced(server, tmp_path / "log")
        for _ in steps_of(change, whole.place):
            states.append(seen(whole.place))
        calls = Traced.calls(traced.stop())
    for call, when in random.Random(name).sample(calls, min(POINTS, len(calls))) if POINTS else calls:
        union = Union(tmp_path / f"{call} {when}")
        lay_out(union)
        with listening() as errors, union.mounted() as server:
            traced = Traced(server, tmp_path / "log", "-e", f"inject={call}:error=EIO:when={when}")
            try:
                do(change, union.place)
                failed = False
            except OSError as error:
                assert error.errno == errno.EIO
                failed = True
            log = traced.stop()
            assert server.alive(), log
            after = seen(union.place)
            assert after in states, (closest(states, after), log)
            assert failed or after == states[-1], log
            # What cannot be taken away stays until the next mount.
            assert half_made(union) == [] or call == "unlinkat", log
            if failed and after == states[0]:
                do(change, union.place)
                after = seen(union.place)
                assert after == states[-1], (closest(states, after), log)
        assert errors == [], log
        with union.overlaid():
            assert differences(seen(union.place), after) == [], log


def test_errors_of_reading_and_writing_reach_the_process(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("not installed: strace")
    union = Union(tmp_path)
    lay_out(union)
    with listening() as errors, union.mounted(passthrough=False) as server:
        file = os.open(union.place / "file", os.O_RDWR)
        for function, calls in (
            (lambda: os.pwrite(file, b"x", 5), "pwrite64,pwritev,pwritev2"),
            (lambda: os.pread(file, 10, 100_000), "pread64,preadv,preadv2"),
            (lambda: os.fsync(file), "fsync"),
            (lambda: os.fdatasync(file), "fdatasync"),
            (lambda: os.listdir(union.place / "merged"), "getdents64"),
            (lambda: os.getxattr(union.place / "file", "user.colour"), "getxattr,lgetxattr,fgetxattr"),
            (lambda: os.statvfs(union.place), "fstatfs,statfs"),
        ):
            traced = Traced(server, tmp_path / "log", "-e", f"inject={calls}:error=EIO", trace=calls)
            try:
                function()
            except OSError as error:
                assert error.errno == errno.EIO, calls
            else:
                pytest.fail(f"{calls} did not fail")
            traced.stop()
            function()
        os.close(file)
        assert server.alive()
    assert errors == []


def test_a_server_with_few_descriptors_serves_a_wide_and_deep_tree(tmp_path: Path) -> None:
    union = Union(tmp_path)
    for number in range(300):
        (union.lower / f"{number}/a/b/c").mkdir(parents=True)
        (union.lower / f"{number}/a/b/c/file").write_text(str(number))
    script = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (330, 330))
from tests.support.unions import Union
Union(Path(sys.argv[1])).mount()
"""
    subprocess.run([sys.executable, "-c", script, tmp_path], check=True, cwd=Path(__file__).parents[2])
    try:
        opened = []
        for number in range(300):
            path = union.place / f"{number}/a/b/c/file"
            with open(path, "r+") as file:
                assert file.read() == str(number)
                file.write("!")
        with pytest.raises(OSError) as caught:
            for number in range(400):
                opened.append(os.open(union.place / f"{number % 300}/a/b/c/file", os.O_RDONLY))
        assert caught.value.errno in (errno.EMFILE, errno.ENFILE)
        for descriptor in opened:
            os.close(descriptor)
        for number in range(300):
            assert (union.place / f"{number}/a/b/c/file").read_text() == f"{number}!"
    finally:
        linux.umount(union.place, linux.MNT_DETACH)


@pytest.mark.parametrize("held", ["open", "open without a name"])
@pytest.mark.parametrize("front", ["kernel", "fusepy"])
def test_who_has_as_many_files_open_as_he_may_keeps_nobody_else_from_theirs(
    tmp_path: Path, front: str, held: str
) -> None:
    if front == "fusepy":
        try:
            libfuse.load()
        except UnsupportedError as error:
            pytest.skip(str(error))
    union = Union(tmp_path)
    for number in range(300):
        (union.lower / f"{number}/a/b/c").mkdir(parents=True)
        (union.lower / f"{number}/a/b/c/file").write_text(str(number))
    script = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
from tests.support.unions import Union
Union(Path(sys.argv[1])).mount(front=sys.argv[2])
"""
    words = [sys.executable, "-c", script, tmp_path, front]
    subprocess.run(words, check=True, cwd=Path(__file__).parents[2])
    opened: list[int] = []
    try:
        # Directories fill what there is before files do.
        for number in range(300):
            (union.place / f"{number}/a/b/c/file").stat()
        with pytest.raises(OSError) as caught:
            while len(opened) < 1100:
                opened.append(os.open(union.place / f"new{len(opened)}", os.O_CREAT | os.O_WRONLY))
                if held == "open without a name":
                    os.unlink(union.place / f"new{len(opened) - 1}")
        assert caught.value.errno == errno.EMFILE
        assert len(opened) > (800 if held == "open" else 400)
        assert not (union.place / f"new{len(opened)}").exists()
        for number in range(300):
            above = union.place / f"{number}/a/b"
            assert os.listdir(above / "c") == ["file"]
            if front == "kernel":
                assert (above / "c/file").read_text() == str(number)
            (above / "made").mkdir()
            (above / "made").rename(above / "moved")
            (above / "c/file").chmod(0o600)
            (above / "c/file").unlink()
        os.close(opened.pop())
        os.close(os.open(union.place / "another", os.O_CREAT | os.O_WRONLY))
        # Those that are open are still good.
        assert os.pwrite(opened[0], b"x", 0) == 1
    finally:
        for descriptor in opened:
            os.close(descriptor)
        linux.umount(union.place, linux.MNT_DETACH)
