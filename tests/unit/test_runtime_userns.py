"""An ordinary user becomes root of a user namespace, and can run containers there."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import layerfs.runtime.terminal  # imported before the user changes, who may not read our sources
from layerfs.errors import UnsupportedError
from layerfs.runtime import userns
from layerfs.runtime.userns import IdRange
from tests.support import hosttree
from tests.support.boxes import Box

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
_NOBODY = 65534
_SET_DUMPABLE = 4


def as_user(uid: int, work: Callable[[], object]) -> str:
    """Do `work` in a child process of another user; give what it wrote, after checking that it succeeded."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.dup2(write, 1)
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            # As after an execve(2) by that user: else /proc/self belongs to root.
            ctypes.CDLL(None).prctl(_SET_DUMPABLE, 1, 0, 0, 0)
            result = work()
            os.write(1, str(result).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, newline="") as stream:
        text = stream.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return text


def make_box(directory: Path, uid: int) -> Box:
    tree = hosttree.build(directory / "tree")
    box = Box(tree, directory, userxattr=True)
    for path in [directory, *directory.rglob("*")]:
        os.chown(path, uid, uid, follow_symlinks=False)
    return box


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that any user can reach, as pytest's own cannot be."""
    directory = Path(f"/tmp/layerfs-test-{os.getpid()}")
    directory.mkdir(0o755)
    yield directory
    shutil.rmtree(directory)


def enter_or_skip(uid: int) -> None:
    def work() -> str:
        try:
            userns.enter()
        except UnsupportedError as error:
            return str(error)
        return ""

    if reason := as_user(uid, work):
        pytest.skip(reason)


@needs_root
def test_a_user_without_ranges_is_root_alone() -> None:
    enter_or_skip(_NOBODY)

    def work() -> tuple[object, ...]:
        several = userns.enter()
        return (several, os.getuid(), os.getgid(), Path("/proc/self/uid_map").read_text().split())

    assert as_user(_NOBODY, work) == str((False, 0, 0, ["0", str(_NOBODY), "1"]))


@needs_root
def test_a_user_without_ranges_runs_containers(open_directory: Path) -> None:
    enter_or_skip(_NOBODY)
    box = make_box(open_directory, _NOBODY)

    def work() -> int:
        userns.enter()
        return box.sh("id -u; echo x > /dev/null; echo $$; ls /sys/class/net; cat /proc/1/comm; echo > /new")

    assert as_user(_NOBODY, work) == "0\n1\nlo\nsh\n0"
    assert (box.upper / "new").stat().st_uid == _NOBODY


@needs_root
def test_a_user_with_ranges_has_many_ids(open_directory: Path) -> None:
    if not (shutil.which("newuidmap") and shutil.which("newgidmap") and shutil.which("useradd")):
        pytest.skip("no newuidmap, newgidmap or useradd")
    enter_or_skip(_NOBODY)
    name = f"layerfs{os.getpid()}"
    subprocess.run(
        ["useradd", "-M", "-K", "SUB_UID_COUNT=65536", "-K", "SUB_GID_COUNT=65536", name], check=True
    )
    try:
        uid = int(subprocess.run(["id", "-u", name], check=True, capture_output=True, text=True).stdout)
        ranges = userns._ranges("/etc/subuid", uid)
        if not ranges:
            pytest.skip("useradd gives no ids here")
        box = make_box(open_directory, uid)

        def work() -> int:
            assert userns.enter()
            return box.sh("id -u; id -G; echo > /tmp/app", user="app") + box.sh(
                "ls -d /sys/kernel", network="host", tty=True
            )

        assert as_user(uid, work) == "1000\n1000 10 29\n/sys/kernel\r\n0"
        # Id 0 is the user, id 1 the first of the range.
        assert (box.upper / "tmp/app").stat().st_uid == ranges[0].start + 999
    finally:
        subprocess.run(["userdel", name], check=True, stderr=subprocess.DEVNULL)


def test_ranges_are_read_by_name_and_by_number(tmp_path: Path) -> None:
    file = tmp_path / "subuid"
    file.write_text("0:100000:65536\nroot:300000:10\nother:1:2\nroot:x:1\nroot:5\nroot:7:0\n\nroot:8:\n")
    assert userns._ranges(str(file), 0) == [IdRange(100000, 65536), IdRange(300000, 10)]
    assert userns._ranges(str(tmp_path / "none"), 0) == []
    assert layerfs.runtime.terminal is not None
