"""Copy-ups that take their time: large files, whole directories, and what else happens meanwhile."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import threading
import time
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
NO_DUMP = 0x40
"""FS_NODUMP_FL."""


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
        for _ in range(50):
            path.read_bytes()
        assert server.descriptors() < 50  # closed files are let go, be it a little later
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


def test_a_large_file_that_came_up_is_found_by_who_has_it_open_already(tmp_path: Path) -> None:
    if reason := missing(tmp_path):
        pytest.skip(reason)
    union = Union(tmp_path)
    for name in ("known", "read", "mounted", "gone", "flags"):
        (union.lower / name).write_bytes(LARGE)
    place, bound = union.place, tmp_path / "bound"
    bound.touch()
    with union.mounted(), contextlib.ExitStack() as opened:

        def kept(name: str, flags: int) -> str:
            descriptor = os.open(place / name, flags)
            opened.callback(os.close, descriptor)
            return f"/proc/self/fd/{descriptor}"

        def change(name: str) -> None:
            with (place / name).open("rb"), (place / name).open("r+b") as writer:
                writer.write(b"new")

        known, read = kept("known", os.O_PATH), kept("read", os.O_RDONLY)
        change("known")
        assert Path(known).read_bytes() == b"new" + LARGE[3:]
        with open(known, "r+b") as writer:
            writer.write(b"again")
        assert (place / "known").read_bytes() == b"again" + LARGE[5:]
        change("read")
        assert Path(read).read_bytes() == LARGE
        assert (place / "read").read_bytes() == b"new" + LARGE[3:]

        linux.mount(str(place / "mounted"), bound, None, linux.MS_BIND)
        opened.callback(linux.umount, bound, linux.MNT_DETACH)
        change("mounted")
        assert bound.read_bytes() == b"new" + LARGE[3:]
        bound.write_bytes(b"other")
        assert (place / "mounted").read_bytes() == b"other"

        gone = kept("gone", os.O_RDONLY)
        (place / "gone").unlink()
        Path(gone).chmod(0o640)
        assert Path(gone).read_bytes() == LARGE
        assert Path(gone).stat().st_mode & 0o777 == 0o640

        flags = int(kept("flags", os.O_RDONLY).rpartition("/")[2])
        linux.set_file_flags(flags, linux.file_flags(flags) | NO_DUMP)
        assert linux.file_flags(flags) & NO_DUMP


def test_a_large_file_that_many_read_can_be_written(tmp_path: Path) -> None:
    if reason := missing(tmp_path):
        pytest.skip(reason)
    union = Union(tmp_path)
    for number in range(20):
        (union.lower / str(number)).write_bytes(LARGE)
    current, stopped, failures = [union.place / "0"], threading.Event(), []

    def read() -> None:
        while not stopped.is_set():
            try:
                with current[0].open("rb", buffering=0) as reader:
                    reader.read(1)
            except OSError as error:
                failures.append(error)

    with union.mounted():
        readers = [threading.Thread(target=read) for _ in range(4)]
        for reader in readers:
            reader.start()
        try:
            for number in range(20):
                current[0] = union.place / str(number)
                time.sleep(0.01)
                with current[0].open("r+b", buffering=0) as writer:
                    writer.write(b"new")
                assert current[0].read_bytes()[:4] == b"newx"
        finally:
            stopped.set()
            for reader in readers:
                reader.join()
    assert failures == []


def test_layers_that_the_kernel_cannot_be_given_spoil_nothing_for_the_others(tmp_path: Path) -> None:
    if reason := missing(tmp_path):
        pytest.skip(reason)
    union = Union(tmp_path)
    stacked = Union(tmp_path / "stacked")
    (stacked.lower / "large").write_bytes(LARGE)
    with stacked.overlaid():
        union.lowers = (stacked.place,)
        with union.mounted():
            file = union.place / "new"
            with file.open("w+b", buffering=0) as first:
                first.write(b"first")
                with (union.place / "large").open("rb", buffering=0) as reader:
                    assert reader.read(2) == b"xx"
                    assert file.read_bytes() == b"first"
            with (union.place / "large").open("r+b", buffering=0) as writer:
                writer.write(b"new")
            assert (union.place / "large").read_bytes() == b"new" + LARGE[3:]


def test_a_large_file_whose_file_system_reads_through_memory_only_says_so(tmp_path: Path) -> None:
    if reason := missing(tmp_path):
        pytest.skip(reason)
    if shutil.which("mksquashfs") is None:
        pytest.skip("not installed: mksquashfs")
    union = Union(tmp_path)
    (union.lower / "large").write_bytes(LARGE)
    image, layer = tmp_path / "image", tmp_path / "layer"
    layer.mkdir()
    subprocess.run(["mksquashfs", union.lower, image, "-quiet"], check=True, stdout=subprocess.DEVNULL)
    mounted = subprocess.run(["mount", "-o", "loop,ro", image, layer], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(mounted.stderr)
    try:
        union.lowers = (layer,)
        with union.mounted():
            with pytest.raises(OSError) as caught:
                os.open(union.place / "large", os.O_RDONLY | os.O_DIRECT)
            assert caught.value.errno == errno.EINVAL
            assert (union.place / "large").read_bytes() == LARGE
    finally:
        linux.umount(layer, linux.MNT_DETACH)


def test_reading_leaves_the_layers_of_several_file_systems_untouched(tmp_path: Path) -> None:
    if reason := missing(tmp_path):
        pytest.skip(reason)
    union = Union(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    linux.mount("tmpfs", other, "tmpfs", linux.MS_STRICTATIME, "size=20m")
    try:
        lower = (union.lower / "here", other)
        lower[0].mkdir()
        for number, layer in enumerate(lower):
            (layer / f"large{number}").write_bytes(LARGE)
            os.utime(layer / f"large{number}", (1, 1))
        union.lowers = lower
        with union.mounted():
            for number in range(2):
                assert (union.place / f"large{number}").read_bytes() == LARGE
        for number, layer in enumerate(lower):
            assert (layer / f"large{number}").stat().st_atime == 1
    finally:
        linux.umount(other, linux.MNT_DETACH)


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
