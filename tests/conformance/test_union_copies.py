"""Copy-ups that take their time: large files, whole directories, and what else happens meanwhile."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import pytest
from layerfs_aufs import AufsDriver
from layerfs_fuse import FuseDriver, FuseMount
from layerfs_fuse.options import Options, Passed

from layerfs import linux, mounting
from layerfs.driver import Driver
from layerfs.mount import Overlay
from layerfs.testing.items import directory, file
from layerfs.testing.snapshot import differences, snapshot
from layerfs.testing.stack import Stack
from tests.support.unions import Union, missing

LARGE = b"x" * (5 << 20)
LONG = b"n" * 150


@pytest.fixture(params=[FuseDriver, AufsDriver])
def stack(request: pytest.FixtureRequest, tmp_path: Path) -> Stack:
    for name in ("driver", "mounts"):
        (tmp_path / name).mkdir()
    made: type[Driver] = request.param
    return Stack(made(tmp_path / "driver"), tmp_path / "mounts")


def test_a_directory_that_must_be_copied_to_be_moved_keeps_all_that_is_in_it(stack: Stack) -> None:
    # A path of more than 256 bytes is no redirect.
    top = LONG + b"/" + LONG
    names = [LONG, top, top + b"/s", top + b"/s/t", top + b"/s/t/u", top + b"/w"]
    stack.apply(
        [
            *(directory(name) for name in names),
            *(file(name + b"/large", LARGE) for name in names[1:4]),
            *(file(name + b"/%d" % number, b"y") for name in names[2:] for number in range(3)),
        ]
    )
    stack.apply([file(top + b"/s/t/u/later", b"z")])
    with stack.edited() as place:
        moved = snapshot(place / os.fsdecode(top))
        os.rename(place / os.fsdecode(top), place / "moved")
        seen = snapshot(place)
        assert differences(snapshot(place / "moved"), moved) == []
    assert differences(stack.tree(), seen) == []


def test_a_copy_made_aside_inherits_nothing_from_what_is_made_meanwhile(stack: Stack) -> None:
    stack.apply([directory(b"d"), file(b"d/secret", LARGE, mode=0o640)])
    layer = stack.create()
    with stack.mounted(layer, stack.layers) as place:
        work = stack.driver.root / layer / "work" / "work"
        # As it is for a moment while a file is made where a hidden one was.
        subprocess.run(["setfacl", "-d", "-m", "u:1001:rwx", work], check=True)
        (place / "d" / "secret").chmod(0o640)
        assert "system.posix_acl_access" not in os.listxattr(place / "d" / "secret")
    assert os.stat(stack.driver.root / layer / "diff" / "d" / "secret").st_mode & 0o777 == 0o640


def test_attributes_of_directories_that_came_up_are_told_at_once(stack: Stack) -> None:
    stack.apply([directory(b"d"), directory(b"d/e"), file(b"d/e/f", b"x")])
    with stack.edited() as place:
        for name in ("d", "d/e", "d/e/f"):
            os.stat(place / name)
        (place / "d" / "e" / "f").chmod(0o600)
        (layer,) = set(stack.driver.layers()) - set(stack.layers)
        upper = stack.driver.root / layer / "diff"
        for name in ("d", "d/e", "d/e/f"):
            assert os.stat(place / name).st_ctime_ns == os.stat(upper / name).st_ctime_ns


@pytest.mark.parametrize("target", [b"/../../../../../secret", b"../secret", b"/d/../../../../secret"])
def test_the_data_of_a_metadata_only_copy_lies_in_the_layers(tmp_path: Path, target: bytes) -> None:
    for name in ("driver", "mounts"):
        (tmp_path / name).mkdir()
    (tmp_path / "secret").write_text("secret")
    stack = Stack(FuseDriver(tmp_path / "driver"), tmp_path / "mounts")
    stack.apply([directory(b"d"), file(b"d/f", b"x")])
    layer = stack.create()
    forged = stack.driver.root / layer / "diff" / "forged"
    forged.touch()
    os.truncate(forged, 6)
    os.setxattr(forged, "trusted.overlay.metacopy", b"")
    os.setxattr(forged, "trusted.overlay.redirect", target)
    stack.finish(layer)
    with stack.seen() as place, contextlib.suppress(OSError):
        assert (place / "forged").read_text() != "secret"


def test_data_of_a_metadata_only_copy_that_is_being_read_is_not_written_below(tmp_path: Path) -> None:
    if reason := missing(tmp_path):
        pytest.skip(reason)
    union = Union(tmp_path)
    (union.lower / "f").write_bytes(LARGE)
    options = ("index=off", "redirect_dir=on", "metacopy=on")
    mounting.attach(Overlay("layerfs-test", union.lowers, union.upper, union.work, options), union.place)
    try:
        (union.place / "f").chmod(0o600)
    finally:
        linux.umount(union.place, 0)
    assert "trusted.overlay.metacopy" in os.listxattr(union.upper / "f")
    with union.mounted(), (union.place / "f").open("rb", buffering=0) as reader:
        assert reader.read(2) == b"xx"
        with (union.place / "f").open("r+b", buffering=0) as writer:
            writer.write(b"new")
        assert (union.place / "f").read_bytes()[:5] == b"newxx"
        assert (union.lower / "f").read_bytes() == LARGE


def test_a_large_file_that_comes_up_under_a_reader_is_another_from_then_on(tmp_path: Path) -> None:
    if reason := missing(tmp_path):
        pytest.skip(reason)
    union = Union(tmp_path)
    (union.lower / "f").write_bytes(LARGE)
    (union.lower / "g").hardlink_to(union.lower / "f")
    os.utime(union.lower / "f", (1, 1))
    path, other = union.place / "f", union.place / "g"
    with union.mounted() as server:
        with path.open("rb", buffering=0) as reader:
            assert reader.read(2) == b"xx"
            with path.open("r+b", buffering=0) as writer:
                writer.write(b"new")
                assert reader.read() == LARGE[2:]
                for each in (path, other):
                    assert each.read_bytes() == b"new" + LARGE[3:]
                writer.truncate(7)
                os.fchmod(reader.fileno(), 0o640)
                for found in (
                    os.fstat(reader.fileno()),
                    os.fstat(writer.fileno()),
                    path.stat(),
                    other.stat(),
                ):
                    assert (found.st_size, found.st_mode & 0o777, found.st_nlink) == (7, 0o640, 2)
                    assert found.st_ino == (union.lower / "f").stat().st_ino
            with path.open("ab") as appended:
                appended.write(b"end")
        assert other.read_bytes() == b"newxxxxend"
        with path.open("rb", buffering=0) as reader, other.open("r+b", buffering=0) as writer:
            writer.write(b"later")
            assert reader.read() == b"laterxxend"
        opened = server.descriptors()
        for _ in range(3):
            path.read_bytes()
        assert server.descriptors() <= opened
    assert (union.lower / "f").stat().st_atime == 1
    assert (union.lower / "f").read_bytes() == LARGE


def test_a_large_file_moved_or_removed_under_a_reader_can_be_opened_again(tmp_path: Path) -> None:
    if reason := missing(tmp_path):
        pytest.skip(reason)
    union = Union(tmp_path)
    for name in ("moved", "changed", "gone"):
        (union.lower / name).write_bytes(LARGE)
    place = union.place
    with union.mounted(), contextlib.ExitStack() as readers:
        for name in ("moved", "changed", "gone"):
            readers.enter_context((place / name).open("rb")).read(1)
        (place / "moved").rename(place / "here")
        with (place / "here").open("r+b", buffering=0) as writer:
            writer.write(b"new")
        assert (place / "here").read_bytes() == b"new" + LARGE[3:]
        os.truncate(place / "changed", 3)
        assert (place / "changed").read_bytes() == b"xxx"
        (place / "gone").unlink()
        (place / "gone").write_bytes(b"other")
        assert (place / "gone").read_bytes() == b"other"


@pytest.mark.parametrize("passthrough", ["upper", "none"])
def test_readers_of_large_files_see_each_change_where_that_is_asked_for(
    tmp_path: Path, passthrough: Passed
) -> None:
    if reason := missing(tmp_path):
        pytest.skip(reason)
    union = Union(tmp_path)
    (union.lower / "f").write_bytes(LARGE)
    options = Options(passthrough=passthrough)
    mount = FuseMount("layerfs-test", union.lowers, union.upper, union.work, options=options)
    mounting.attach(mount, union.place)
    try:
        with (union.place / "f").open("rb", buffering=0) as reader:
            assert reader.read(2) == b"xx"
            with (union.place / "f").open("r+b", buffering=0) as writer:
                writer.write(b"new")
            assert os.pread(reader.fileno(), 5, 0) == b"newxx"
    finally:
        linux.umount(union.place, linux.MNT_DETACH)
