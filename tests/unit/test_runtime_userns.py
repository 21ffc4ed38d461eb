"""An ordinary user becomes root of a user namespace, and can run containers there."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import layerfs.runtime.terminal  # noqa: F401  before the user changes, who may not read our sources
from layerfs import linux, subids
from layerfs.errors import UnsupportedError
from layerfs.runtime import userns
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
        ranges = subids.ranges("/etc/subuid", uid)
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


@needs_root
def test_where_the_kernel_makes_none_it_is_said_which_setting_does() -> None:
    """A namespace around the user has the limit of 0 that a host may have."""
    enter_or_skip(_NOBODY)
    ready, mapped = os.pipe(), os.pipe()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            linux.unshare(linux.CLONE_NEWUSER)
            os.write(ready[1], b"r")
            os.read(mapped[0], 1)
            Path("/proc/sys/user/max_user_namespaces").write_text("0")
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
            userns.enter()
        except UnsupportedError as error:
            os.write(write, f"{error}: {error.hint}".encode())
        finally:
            os._exit(0)
    os.read(ready[0], 1)
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{child}/{name}").write_text("0 0 70000")
    os.write(mapped[1], b"m")
    os.waitpid(child, 0)
    told = os.read(read, 1000).decode()
    for descriptor in (*ready, *mapped, read, write):
        os.close(descriptor)
    assert told == (
        "cannot make a user namespace: No space left on device: user.max_user_namespaces is 0:"
        " `sysctl user.max_user_namespaces=15000` as root allows some"
    )


@pytest.mark.parametrize(
    ("settings", "number", "advice"),
    [
        ({"kernel/unprivileged_userns_clone": "0\n"}, errno.EPERM, "kernel.unprivileged_userns_clone=1"),
        (
            {"kernel/apparmor_restrict_unprivileged_userns": "1\n"},
            errno.EACCES,
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ({"kernel/unprivileged_userns_clone": "1\n"}, errno.EPERM, "sandbox around us"),
        ({"user/max_user_namespaces": "100\n"}, errno.ENOSPC, "in use"),
        ({}, errno.EINVAL, "more than one thread"),
    ],
)
def test_what_forbids_namespaces_is_named(
    settings: dict[str, str], number: int, advice: str, tmp_path: Path
) -> None:
    """Settings that other distributions' kernels have."""
    for name, value in settings.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(value)
    error = userns.refused(OSError(number, os.strerror(number)), sysctls=tmp_path)
    assert error.errno == number and error.hint is not None and advice in error.hint


@needs_root
def test_the_namespace_of_another_process_is_joined() -> None:
    enter_or_skip(_NOBODY)

    def work() -> tuple[object, ...]:
        told, tell = os.pipe()
        held, hold = os.pipe()
        other = os.fork()
        if other == 0:
            os.close(hold)
            userns.enter()
            os.write(tell, b"r")
            os.read(held, 1)
            os._exit(0)
        os.read(told, 1)
        process = os.pidfd_open(other)
        theirs = os.readlink(f"/proc/{other}/ns/user")
        userns.join(process)
        found = (
            os.readlink("/proc/self/ns/user") == theirs,
            os.geteuid(),
            os.access(f"/proc/{other}/root", os.R_OK),
        )
        os.close(hold)
        os.waitpid(other, 0)
        return found

    assert as_user(_NOBODY, work) == str((True, 0, True))
