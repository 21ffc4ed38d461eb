"""How FUSE mounts are made: the ways, each where the one before it is not to be had, and what -o changes."""

from __future__ import annotations

import errno
import functools
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from layerfs_fuse import FuseDriver

from layerfs import linux, mounting
from layerfs.errors import InvalidError, LayerfsError, MountError
from layerfs.testing.items import directory, file
from layerfs.testing.stack import Stack
from tests.support.seccomp import refuse_calls
from tests.support.servers import ends, servers

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    (tmp_path / "driver").mkdir()
    (tmp_path / "mounts").mkdir()
    made = Stack(FuseDriver(tmp_path / "driver"), tmp_path / "mounts")
    made.apply([directory(b"d"), file(b"d/f", b"x", uid=5, gid=6)])
    yield made
    assert all(map(ends, servers(tmp_path)))
    assert mounting.mounts_below(tmp_path) == []


def in_child(work: Callable[[], object]) -> None:
    """Do `work` in a process of its own, with a mount namespace of its own, which it may spoil."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            linux.unshare(linux.CLONE_NEWNS)
            linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_without_fsopen_the_mount_is_made_by_mount(stack: Stack, number: int) -> None:
    layer = stack.create()

    def work() -> None:
        refuse_calls(number, "fsopen")
        with stack.mounted(layer, stack.layers) as place:
            info = mounting.mounted(place)
            assert info is not None
            assert (info.source, info.fstype) == (f"layerfs-{layer}", "fuse.layerfs")
            (place / "d" / "f").write_text("changed")
        shown_only = stack.mounted(layer, stack.layers, read_only=True)
        with shown_only as place, pytest.raises(OSError, match="Read-only"):
            (place / "new").touch()
        root = mounting.open_mount(stack.driver.mount(layer, stack.layers, read_only=True))
        assert sorted(os.listdir(root)) == ["d"]
        os.close(root)
        FuseDriver.check(stack.driver.root)

    in_child(work)
    with stack.mounted(layer, stack.layers) as place:
        assert (place / "d" / "f").read_text() == "changed"


def test_a_mount_that_cannot_be_served_is_taken_back(stack: Stack) -> None:
    layer = stack.create()
    (stack.driver.root / layer / "work").rmdir()
    (stack.driver.root / layer / "work").touch()

    def work() -> None:
        refuse_calls(errno.ENOSYS, "fsopen")
        with pytest.raises(MountError), stack.mounted(layer, stack.layers):
            pass

    in_child(work)


def test_without_any_way_to_mount_the_error_says_what_is_needed(stack: Stack) -> None:
    layer = stack.create()

    def work() -> None:
        refuse_calls(errno.EPERM, "fsopen", "mount")
        with pytest.raises(MountError) as error, stack.mounted(layer, stack.layers):
            pass
        assert error.value.errno == errno.EPERM
        assert "CAP_SYS_ADMIN" in (error.value.hint or "")

    in_child(work)


def test_without_dev_fuse_the_error_says_so(stack: Stack) -> None:
    layer = stack.create()

    def work() -> None:
        linux.mount("none", "/dev", "tmpfs", 0)
        with pytest.raises(MountError) as error, stack.mounted(layer, stack.layers):
            pass
        assert str(error.value) == "cannot open /dev/fuse: No such file or directory"
        assert "modprobe fuse" in (error.value.hint or "")

    in_child(work)


# What -o changes.


def shown(stack: Stack, *words: str, read_only: bool = False) -> Iterator[Path]:
    """Mount a new layer with options of the driver."""
    driver = stack.driver
    assert isinstance(driver, FuseDriver)
    mount = driver.configured(stack.create(), stack.layers, read_only=read_only, options=words)
    mounting.attach(mount, stack.directory)
    try:
        yield stack.directory
    finally:
        mounting.detach(stack.directory)


@pytest.mark.parametrize(
    ("words", "file_owner", "directory_owner"),
    [
        (["squash_to_root"], (0, 0), (0, 0)),
        (["squash_to_uid=33"], (33, 6), (33, 0)),
        (["squash_to_root", "squash_to_gid=34"], (0, 34), (0, 34)),
        (["uidmapping=0:1000:1:5:2000:10"], (2000, 6), (1000, 0)),
        (["gidmapping=6:60:1"], (5, 60), (0, 65534)),
    ],
)
def test_owners_are_shown_as_asked(
    stack: Stack, words: list[str], file_owner: tuple[int, int], directory_owner: tuple[int, int]
) -> None:
    for place in shown(stack, *words):
        # By name, and out of a listing.
        assert (found := os.stat(place / "d/f")) and (found.st_uid, found.st_gid) == file_owner
        assert (found := os.stat(place / "d")) and (found.st_uid, found.st_gid) == directory_owner
        done = subprocess.run(
            ["find", place, "-printf", "%U:%G %P\\n"], check=True, capture_output=True, text=True
        )
        assert "{}:{} d/f\n".format(*file_owner) in done.stdout


def test_who_is_only_shown_as_the_owner_makes_nothing_setuid(stack: Stack) -> None:
    for place in shown(stack, "squash_to_uid=33", "squash_to_gid=33"):
        (place / "d" / "f").chmod(0o6755)
        os.mknod(place / "new", 0o104755)
        os.close(os.open(place / "created", os.O_CREAT | os.O_WRONLY, 0o6755))
        for name in ("d/f", "new", "created"):
            assert os.stat(place / name).st_mode & 0o6000 == 0


def test_mapped_owners_are_stored_as_they_are_in_the_layers(stack: Stack) -> None:
    for place in shown(stack, "uidmapping=0:1000:10", "gidmapping=0:1000:10:50:0:1"):
        with pytest.raises(OSError, match="too large"):
            (place / "made by the unmapped user 0").touch()
        os.chown(place / "d/f", 1003, 1004)
        with pytest.raises(OSError, match="Invalid"):
            os.chown(place / "d/f", 3, 3)
        in_child(functools.partial(_make_as, 1002, 0, place / "d" / "new"))
        assert (place / "d/f").stat().st_uid == 1003
    diff = stack.driver.root / sorted(set(os.listdir(stack.driver.root)) - set(stack.layers))[0] / "diff"
    found = (diff / "d/f").stat(), (diff / "d/new").stat()
    assert [(each.st_uid, each.st_gid) for each in found] == [(3, 4), (2, 50)]


def _make_as(uid: int, gid: int, place: Path) -> None:
    os.chmod(place.parent, 0o777)
    # The way there is not for everybody.
    directory = os.open(place.parent, os.O_PATH | os.O_DIRECTORY)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    os.close(os.open(place.name, os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=directory))


def test_access_control_lists_name_mapped_users(stack: Stack) -> None:
    def acl(uid: int) -> bytes:
        entries = [(1, 6, -1), (2, 4, uid), (4, 4, -1), (16, 4, -1), (32, 0, -1)]
        return (2).to_bytes(4, sys.byteorder) + b"".join(
            tag.to_bytes(2, sys.byteorder)
            + mode.to_bytes(2, sys.byteorder)
            + (who & 0xFFFFFFFF).to_bytes(4, sys.byteorder)
            for tag, mode, who in entries
        )

    name = "system.posix_acl_access"
    for place in shown(stack, "uidmapping=0:1000:10"):
        os.setxattr(place / "d/f", name, acl(1007))
        assert os.getxattr(place / "d/f", name) == acl(1007)
        with pytest.raises(OSError, match="Invalid"):
            os.setxattr(place / "d/f", name, acl(7))
    diff = stack.driver.root / sorted(set(os.listdir(stack.driver.root)) - set(stack.layers))[0] / "diff"
    assert os.getxattr(diff / "d/f", name) == acl(7)


def test_what_is_squashed_changes_no_owner(stack: Stack) -> None:
    for place in shown(stack, "squash_to_root"):
        os.chown(place / "d/f", 9, 9)
        os.chmod(place / "d/f", 0o600)
        assert (place / "d/f").stat().st_uid == 0
    diff = stack.driver.root / sorted(set(os.listdir(stack.driver.root)) - set(stack.layers))[0] / "diff"
    assert ((diff / "d/f").stat().st_uid, (diff / "d/f").stat().st_mode & 0o777) == (5, 0o600)


def test_directories_have_one_link_if_asked(stack: Stack) -> None:
    for place in shown(stack, "static_nlink"):
        (place / "new").mkdir()
        (place / "new" / "below").mkdir()
        assert (place / "new").stat().st_nlink == 1


def test_without_lists_of_access_control_there_are_none(stack: Stack) -> None:
    for place in shown(stack, "noacl"):
        with pytest.raises(OSError, match="not supported"):
            os.setxattr(place / "d", "system.posix_acl_default", b"\2\0\0\0")


@pytest.mark.parametrize("word", ["volatile", "fsync=0"])
def test_a_volatile_mount_takes_a_sync_for_done(stack: Stack, word: str) -> None:
    for place in shown(stack, word):
        with open(place / "new", "w") as new:
            new.write("x")
            new.flush()
            os.fsync(new.fileno())
            os.fdatasync(new.fileno())


def test_a_time_out_lets_the_kernel_ask_again(stack: Stack) -> None:
    layer = stack.create()
    for number, words in enumerate(((), ("timeout=0",))):
        driver = stack.driver
        assert isinstance(driver, FuseDriver)
        mounting.attach(
            driver.configured(layer, stack.layers, read_only=False, options=words), stack.directory
        )
        try:
            name = f"new{number}"
            (stack.directory / name).touch()
            # Behind the mount's back, which nobody should do, and only the second one notices.
            os.chmod(driver.root / layer / "diff" / name, 0o600)
            assert (stack.directory / name).stat().st_mode & 0o777 == (0o600 if words else 0o644)
        finally:
            mounting.detach(stack.directory)


def test_options_of_libfuse_and_of_fuse_overlayfs_without_a_meaning_here_are_taken(stack: Stack) -> None:
    void = ("xino=auto", "threaded=1", "clone_fd", "max_idle_threads=4", "debug")
    for place in shown(stack, *void, "allow_other", "fsync=1"):
        assert (place / "d").is_dir()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("lowerdir=/", "layers"),
        ("squash_to_uid=", "squash_to_uid=UID"),
        ("squash_to_uid=-1", "squash_to_uid=UID"),
        ("uidmapping=1:2", "uidmapping=STORED:SHOWN:COUNT"),
        ("timeout=soon", "timeout=SECONDS"),
        ("fsync=2", "fsync=0"),
        ("volatile=1", "volatile"),
        ("unheard_of", "squash_to_root"),
    ],
)
def test_other_options_are_refused_with_those_that_there_are(stack: Stack, word: str, said: str) -> None:
    with pytest.raises(InvalidError) as error:
        for _ in shown(stack, word):
            pass
    assert isinstance(error.value, LayerfsError) and said in (error.value.hint or "")
