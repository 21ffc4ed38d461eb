"""What a union does beyond single calls, asked of the kernel's overlayfs and of the FUSE union alike."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
import stat
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from layerfs import linux, mounting
from layerfs.errors import MountError
from layerfs.mount import Overlay
from tests.support.unions import Union, missing

CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
OLD = 1_000_000_000_000_000_000
Mounting = Callable[[Union], AbstractContextManager[object]]


@pytest.fixture
def union() -> Iterator[Union]:
    # Not below pytest's directory: other users have to get at the mount.
    directory = Path(tempfile.mkdtemp(prefix="layerfs-semantics-"))
    if reason := missing(directory):
        pytest.skip(reason)
    directory.chmod(0o711)
    found = Union(directory)
    for each in (found.lower, found.upper, found.place):
        each.chmod(0o777)
    yield found
    with contextlib.suppress(OSError):
        linux.umount(found.place, linux.MNT_DETACH)
    shutil.rmtree(directory)


def by_kernel(union: Union) -> AbstractContextManager[object]:
    return overlaid(union, "index=on", "redirect_dir=on")


@contextlib.contextmanager
def overlaid(union: Union, *options: str) -> Iterator[None]:
    mount = Overlay("layerfs-test", union.lowers, union.upper, union.work, options)
    for left in reversed(range(100)):
        try:
            mounting.attach(mount, union.place)
            break
        except MountError as error:
            # Another process's mount namespace may still hold the last mount of the same directories.
            if error.errno != errno.EBUSY or not left:
                raise
            time.sleep(0.1)
    try:
        yield
    finally:
        linux.umount(union.place, 0)


def by_fuse(union: Union) -> AbstractContextManager[object]:
    return union.mounted()


def by_fuse_without_passthrough(union: Union) -> AbstractContextManager[object]:
    return union.mounted(passthrough=False)


each_way = pytest.mark.parametrize("mounted", [by_kernel, by_fuse, by_fuse_without_passthrough])


def as_user(user: int, act: Callable[[], object]) -> int:
    """Do something as another user in a child process; gives 0, or the errno."""
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            act()
        except OSError as error:
            os._exit(error.errno or 255)
        except BaseException:
            os._exit(254)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


@each_way
def test_inode_numbers_outlast_copy_up_rename_and_remount(union: Union, mounted: Mounting) -> None:
    for name in ("file", "other", "link", "directory"):
        (union.lower / name).mkdir() if name == "directory" else (union.lower / name).write_text(name)
    (union.lower / "directory" / "below").write_text("x")
    with mounted(union):
        before = {name: (union.place / name).stat().st_ino for name in os.listdir(union.place)}
        for name in before:
            (union.place / name).chmod(0o700)
        append(union.place / "directory" / "below")
        (union.place / "other").rename(union.place / "moved")
        (union.place / "directory").rename(union.place / "moved directory")
    before["moved"] = before.pop("other")
    before["moved directory"] = before.pop("directory")
    for again in (mounted, by_fuse):
        with again(union):
            assert {name: (union.place / name).stat().st_ino for name in os.listdir(union.place)} == before
            with os.scandir(union.place) as entries:
                assert {entry.name: entry.inode() for entry in entries} == before


def test_the_kernel_gives_copies_of_ours_the_same_inode_numbers(union: Union) -> None:
    (union.lower / "file").write_text("x")
    (union.lower / "pair").write_text("x")
    os.link(union.lower / "pair", union.lower / "pair too")
    with by_fuse(union):
        for name in ("file", "pair"):
            append(union.place / name)
        number = (union.place / "file").stat().st_ino
    for index in ("off", "on"):
        with overlaid(union, f"index={index}"):
            assert (union.place / "file").stat().st_ino == number
            assert (union.place / "pair too").read_text() == "xmore"


@each_way
def test_all_names_of_a_lower_file_follow_a_copy_up(union: Union, mounted: Mounting) -> None:
    for name in ("a", "b", "c"):
        (union.lower / name).mkdir()
    (union.lower / "a" / "1").write_text("x")
    for name in ("a/2", "b/3", "c/4"):
        os.link(union.lower / "a" / "1", union.lower / name)
    with mounted(union):
        (union.place / "b").rename(union.place / "moved")
        (union.place / "c" / "4").unlink()
        names = [union.place / name for name in ("a/1", "a/2", "moved/3")]
        number = {name.stat().st_ino for name in names}
        assert len(number) == 1
        append(names[0])
        assert {name.stat().st_ino for name in names} == number
        assert [name.read_text() for name in names] == ["xmore"] * 3
        assert {name.stat().st_nlink for name in names} == {3}
        names[0].unlink()
        assert {name.stat().st_nlink for name in names[1:]} == {2}
    with mounted(union):
        assert {name.stat().st_ino for name in names[1:]} == number
        append(names[1])
        assert names[2].read_text() == "xmoremore"


def test_names_of_one_file_stay_together_under_overlayfs_without_an_index(union: Union) -> None:
    (union.lower / "d").mkdir()
    (union.lower / "a").write_text("x")
    os.link(union.lower / "a", union.lower / "d" / "b")
    with by_fuse(union):
        append(union.place / "d" / "b")
    with overlaid(union, "index=off"):
        assert (union.place / "a").read_text() == "xmore"
        assert (union.place / "a").samefile(union.place / "d" / "b")


@each_way
def test_the_count_of_names_is_right_as_soon_as_one_is_removed(union: Union, mounted: Mounting) -> None:
    for number in range(3):
        if number:
            os.link(union.lower / "0", union.lower / str(number))
        else:
            (union.lower / "0").write_text("x")
    with mounted(union), (union.place / "0").open("rb") as file:
        for number in range(3):
            (union.place / str(number)).unlink()
            assert os.fstat(file.fileno()).st_nlink == 2 - number
        assert file.read() == b"x"


@each_way
@pytest.mark.parametrize("below", ["lower", "upper"])
def test_setuid_set_while_somebody_has_the_file_open_goes_when_he_writes(
    union: Union, mounted: Mounting, below: str
) -> None:
    path = getattr(union, below) / "file"
    path.write_text("x")
    path.chmod(0o777)
    with mounted(union):
        path = union.place / "file"
        descriptor = os.open(path, os.O_RDWR)
        try:
            os.fchmod(descriptor, 0o6777)
            assert stat.S_IMODE(path.stat().st_mode) == 0o6777
            assert as_user(1001, lambda: os.pwrite(descriptor, b"y", 0)) == 0
            assert stat.S_IMODE(path.stat().st_mode) == 0o777
        finally:
            os.close(descriptor)
        assert stat.S_IMODE(path.stat().st_mode) == 0o777


@each_way
@pytest.mark.parametrize("how", ["write", "truncate", "allocate", "copy"])
@pytest.mark.parametrize("below", ["lower", "upper"])
def test_writing_takes_setuid_and_capabilities_away(
    union: Union, mounted: Mounting, below: str, how: str
) -> None:
    directory = getattr(union, below)
    for name in ("file", "source"):
        (directory / name).write_bytes(b"x" * 10000)
        (directory / name).chmod(0o6777)
    os.setxattr(directory / "file", "security.capability", CAPABILITY)

    def act() -> None:
        file = os.open(union.place / "file", os.O_RDWR)
        source = os.open(union.place / "source", os.O_RDONLY)
        if how == "write":
            os.write(file, b"y")
        elif how == "truncate":
            os.ftruncate(file, 5)
        elif how == "allocate":
            linux.fallocate(file, 0, 0, 20000)
        else:
            os.copy_file_range(source, file, 100)

    with mounted(union):
        assert as_user(1001, act) == 0
        assert stat.S_IMODE((union.place / "file").stat().st_mode) == 0o777
        assert "security.capability" not in os.listxattr(union.place / "file")


@each_way
def test_setgid_goes_when_somebody_outside_of_the_group_sets_an_access_list(
    union: Union, mounted: Mounting
) -> None:
    path = union.upper / "file"
    path.write_text("x")
    os.chown(path, 1001, 1002)
    path.chmod(0o2770)
    entries = (
        (1, 7, 0xFFFFFFFF),
        (2, 7, 5),
        (4, 7, 0xFFFFFFFF),
        (0x10, 7, 0xFFFFFFFF),
        (0x20, 0, 0xFFFFFFFF),
    )
    access = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    with mounted(union):
        path = union.place / "file"
        assert as_user(1001, lambda: os.setxattr(path, "system.posix_acl_access", access)) == 0
        assert stat.S_IMODE(path.stat().st_mode) == 0o770


@each_way
def test_ordinary_users_are_not_shown_trusted_attributes(union: Union, mounted: Mounting) -> None:
    (union.lower / "file").write_text("x")
    for key in ("user.a", "trusted.b"):
        os.setxattr(union.lower / "file", key, b"v")

    def act() -> None:
        assert os.listxattr(union.place / "file") == ["user.a"]

    with mounted(union):
        assert sorted(os.listxattr(union.place / "file")) == ["trusted.b", "user.a"]
        assert as_user(1001, act) == 0


@each_way
def test_reading_changes_the_access_time_of_upper_files_alone(union: Union, mounted: Mounting) -> None:
    for where in (union.lower, union.upper):
        (where / f"in {where.name}").mkdir()
        (where / f"in {where.name}" / "file").write_text("x")
        for each in (f"in {where.name}/file", f"in {where.name}"):
            os.utime(where / each, ns=(OLD, OLD))
    with mounted(union):
        for name in ("in lower", "in upper"):
            assert os.listdir(union.place / name) == ["file"]
            assert (union.place / name / "file").read_text() == "x"
    for each in ("in lower", "in lower/file"):
        assert (union.lower / each).stat().st_atime_ns == OLD
    for each in ("in upper", "in upper/file"):
        assert (union.upper / each).stat().st_atime_ns != OLD


@each_way
def test_a_copy_up_is_no_change_of_the_directory(union: Union, mounted: Mounting) -> None:
    (union.lower / "d").mkdir()
    (union.lower / "d" / "file").write_text("x")
    for each in ("d/file", "d"):
        os.utime(union.lower / each, ns=(OLD, OLD))
    with mounted(union):
        append(union.place / "d" / "file")
        assert (union.place / "d").stat().st_mtime_ns == OLD
        (union.place / "d" / "file").unlink()
        assert (union.place / "d").stat().st_mtime_ns != OLD


@each_way
def test_a_full_disk_leaves_nothing_half_copied_up(tmp_path: Path, union: Union, mounted: Mounting) -> None:
    room = tmp_path / "room"
    room.mkdir()
    linux.mount("none", room, "tmpfs", 0, "size=4m")
    try:
        union.upper, union.work = room / "upper", room / "work"
        for each in (union.upper, union.work):
            each.mkdir(mode=0o777)
        (union.lower / "large").write_bytes(b"x" * (5 << 20))
        (union.lower / "small").write_bytes(b"x" * 1000)
        os.link(union.lower / "large", union.lower / "large too")
        with mounted(union):
            for _ in range(3):
                with pytest.raises(OSError, match="No space left"):
                    os.open(union.place / "large", os.O_WRONLY)
            assert (union.place / "large").stat().st_size == 5 << 20
            append(union.place / "small")
            assert (union.place / "large too").read_bytes() == b"x" * (5 << 20)
        assert os.listdir(union.upper) == ["small"]
        assert os.statvfs(room).f_bfree * 4096 > 3 << 20
        assert not [name for name in os.listdir(union.work / "work") if name.startswith("#")]
    finally:
        linux.umount(room, linux.MNT_DETACH)


@each_way
@pytest.mark.parametrize("where", ["lower", "upper"])
def test_metadata_only_copies_are_read_and_completed(union: Union, mounted: Mounting, where: str) -> None:
    (union.lower / "d").mkdir()
    for name in ("d/plain", "d/moved", "gone", "written"):
        (union.lower / name).write_bytes(name.encode() * 1000)
    with overlaid(union, "metacopy=on", "redirect_dir=on"):
        for name in ("d/plain", "d/moved", "gone", "written"):
            (union.place / name).chmod(0o600)
        (union.place / "d" / "moved").rename(union.place / "moved")
        (union.place / "moved").rename(union.place / "d" / "again")
        (union.place / "d").rename(union.place / "e")
    assert "trusted.overlay.metacopy" in os.listxattr(union.upper / "written")
    if where == "lower":
        union.lowers = (union.upper, union.lower)
        union.upper, union.work = union.upper.with_name("upper2"), union.work.with_name("work2")
        for each in (union.upper, union.work):
            each.mkdir()
    following = overlaid(union, "metacopy=on", "redirect_dir=on") if mounted is by_kernel else mounted(union)
    with following:
        place = union.place
        assert (place / "e" / "plain").read_bytes() == b"d/plain" * 1000
        assert (place / "e" / "again").read_bytes() == b"d/moved" * 1000
        assert (place / "written").stat().st_size == 7000
        with (place / "gone").open("rb") as file:
            (place / "gone").unlink()
            assert file.read() == b"gone" * 1000
        append(place / "written")
        append(place / "e" / "again")
        os.link(place / "e" / "plain", place / "link")
    with overlaid(union, "metacopy=on", "redirect_dir=on"):
        assert (place / "written").read_bytes() == b"written" * 1000 + b"more"
        assert (place / "e" / "again").read_bytes() == b"d/moved" * 1000 + b"more"
        assert (place / "link").read_bytes() == b"d/plain" * 1000


@each_way
def test_what_an_index_has_left_is_ignored(union: Union, mounted: Mounting) -> None:
    (union.lower / "a").write_text("x")
    os.link(union.lower / "a", union.lower / "b")
    with by_kernel(union):
        append(union.place / "a")
    assert os.listdir(union.work / "index")
    with mounted(union):
        assert (union.place / "a").read_text() == "xmore"
        append(union.place / "a")
        assert sorted(os.listdir(union.place)) == ["a", "b"]


@pytest.mark.parametrize("redirected", [True, False])
def test_directories_deep_below_move_as_a_whole(union: Union, redirected: bool) -> None:
    """Where the path is longer than overlayfs follows, everything is copied up instead."""
    part = "p" * (20 if redirected else 60)
    deep = union.lower.joinpath(*[part] * 6)
    deep.mkdir(parents=True)
    (deep / "sub").mkdir()
    (deep / "sub" / "file").write_text("x")
    os.link(deep / "sub" / "file", deep / "name")
    os.symlink("name", deep / "symlink")
    place = union.place
    with by_fuse(union):
        place.joinpath(*[part] * 6).rename(place / "one")
        (place / "one" / "sub").rename(place / "two")
        (place / "one").rename(place / "three")
        (place / "two").rename(place / "three" / "four")
        (place / "three" / "new").write_text("new")
    for mounted in (by_fuse, lambda union: overlaid(union, "redirect_dir=on", "index=off")):
        with mounted(union):
            assert sorted(os.listdir(place / "three")) == ["four", "name", "new", "symlink"]
            assert (place / "three" / "four" / "file").read_text() == "x"
            assert (place / "three" / "symlink").read_text() == "x"
            assert os.listdir(place.joinpath(*[part] * 5)) == []


@each_way
def test_a_directory_that_takes_a_hidden_place_shows_nothing_of_it(union: Union, mounted: Mounting) -> None:
    for name in ("a", "b", "c"):
        (union.lower / name).mkdir()
        (union.lower / name / f"in {name}").write_text(name)
    with mounted(union):
        place = union.place
        (place / "a" / "in a").unlink()
        (place / "b").rename(place / "a")  # merged over merged
        (place / "new").mkdir()
        (place / "new").rename(place / "b")  # pure over a whiteout
        (place / "c").rename(place / "d")
        linux.renameat2(linux.AT_FDCWD, bytes(place / "d"), linux.AT_FDCWD, bytes(place / "b"), 2)
        shown = {name: os.listdir(place / name) for name in os.listdir(place)}
        assert shown == {"a": ["in b"], "b": ["in c"], "d": []}
    for again in (by_fuse, by_kernel):
        with again(union):
            assert {name: os.listdir(place / name) for name in os.listdir(place)} == shown


@each_way
def test_memory_that_is_shared_follows_a_copy_up(union: Union, mounted: Mounting) -> None:
    (union.lower / "file").write_bytes(b"x" * 8192)
    with (
        mounted(union),
        (union.place / "file").open("rb") as reader,
        (union.place / "file").open("r+b") as one,
        (union.place / "file").open("r+b") as two,
        mmap.mmap(one.fileno(), 8192) as first,
        mmap.mmap(two.fileno(), 8192) as second,
    ):
        first[5000:5004] = b"here"
        assert second[5000:5004] == b"here"
        assert os.pread(two.fileno(), 4, 5000) == b"here"
        os.pwrite(two.fileno(), b"also", 100)
        assert first[100:104] == b"also"
        first.flush()
        assert os.pread(reader.fileno(), 4, 5000) == b"here"


@each_way
def test_readers_of_a_directory_see_each_name_that_stays_once(union: Union, mounted: Mounting) -> None:
    for number in range(600):
        (union.lower / f"lower {number}").touch()
    with mounted(union):
        for number in range(600):
            (union.place / f"upper {number}").touch()
        seen = []
        with os.scandir(union.place) as entries:
            for count, entry in enumerate(entries):
                seen.append(entry.name)
                if count < 100:
                    (union.place / f"lower {count}").unlink()
                    (union.place / f"late {count}").touch()
    staying = {f"upper {number}" for number in range(600)} | {f"lower {number}" for number in range(100, 600)}
    assert len(seen) == len(set(seen))
    assert staying <= set(seen)


@each_way
def test_programs_that_copy_by_reference_can_still_copy(union: Union, mounted: Mounting) -> None:
    (union.lower / "file").write_bytes(b"x" * 100_000)
    with mounted(union):
        subprocess.run(["cp", "--reflink=auto", "file", "copy"], cwd=union.place, check=True)
        assert (union.place / "copy").read_bytes() == b"x" * 100_000
        with (union.place / "file").open("rb") as source, (union.place / "clone").open("wb") as target:
            with pytest.raises(OSError) as caught:
                linux.clone_file(source.fileno(), target.fileno())
            assert caught.value.errno == errno.EOPNOTSUPP or (union.place / "clone").stat().st_size
            assert os.copy_file_range(source.fileno(), target.fileno(), 100_000) == 100_000


@each_way
def test_the_room_that_is_left_is_the_upper_layers(union: Union, mounted: Mounting) -> None:
    with mounted(union):
        here, below = os.statvfs(union.place), os.statvfs(union.upper)
        assert (here.f_blocks, here.f_files, here.f_namemax) == (
            below.f_blocks,
            below.f_files,
            below.f_namemax,
        )


@each_way
def test_a_whole_tree_can_be_removed_with_all_of_its_links(union: Union, mounted: Mounting) -> None:
    for number in range(20):
        (union.lower / f"d{number}").mkdir()
        (union.lower / f"d{number}" / "file").write_text("x")
        os.link(union.lower / f"d{number}" / "file", union.lower / f"d{number}" / "link")
        os.link(
            union.lower / f"d{number}" / "file", union.lower / f"d{(number * 7) % 20}" / f"far {number}"
        ) if (number % 3 == 0) else None
    with mounted(union):
        for name in os.listdir(union.place):
            shutil.rmtree(union.place / name)
        assert os.listdir(union.place) == []


@each_way
def test_flags_of_files_can_be_read_and_set(union: Union, mounted: Mounting) -> None:
    no_dump = 0x40
    for where in (union.lower, union.upper):
        (where / f"in {where.name}").write_text("x")
        (where / f"in {where.name} too").mkdir()
    with mounted(union):
        for name in os.listdir(union.place):
            descriptor = os.open(union.place / name, os.O_RDONLY)
            try:
                before = linux.file_flags(descriptor)
                linux.set_file_flags(descriptor, before | no_dump)
            finally:
                os.close(descriptor)
            descriptor = os.open(union.place / name, os.O_RDONLY)
            try:
                assert linux.file_flags(descriptor) == before | no_dump
            finally:
                os.close(descriptor)


@each_way
def test_chown_of_nothing_takes_setuid_and_setgid_away(union: Union, mounted: Mounting) -> None:
    modes = {"setuid": 0o4755, "setgid": 0o2775, "locking": 0o2664}
    for name, mode in modes.items():
        for above in (union.lower / "lower", union.lower / "upper"):
            above.mkdir(exist_ok=True)
            (above / name).touch()
            os.chown(above / name, 1001, 1001)
            (above / name).chmod(mode)
    with mounted(union):
        for name, mode in modes.items():
            for directory, user in (("lower", 1001), ("upper", 0)):
                path = union.place / directory / name
                if directory == "upper":
                    os.utime(path)
                assert as_user(user, lambda path=path: os.chown(path, -1, -1)) == 0
                assert path.stat().st_mode & 0o7777 == (mode if name == "locking" else mode & 0o777)
