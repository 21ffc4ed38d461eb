"""How the FUSE server serves: many at once, directories in pieces, and no more memory than it needs."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from layerfs_fuse import server

from layerfs import linux
from tests.support.unions import Union, missing

# linux/fs.h
_FIFREEZE = 0xC0045877
_FITHAW = 0xC0045878


@pytest.fixture
def union(tmp_path: Path) -> Union:
    if reason := missing(tmp_path):
        pytest.skip(reason)
    return Union(tmp_path)


@contextlib.contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    """Mount an ext4 file system of its own."""
    if not shutil.which("mkfs.ext4"):
        pytest.skip("not installed: mkfs.ext4")
    image, place = directory / "image", directory / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(128 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    if subprocess.run(["mount", "-o", "loop", image, place], check=False, capture_output=True).returncode:
        pytest.skip("cannot mount a loop device")
    try:
        yield place
    finally:
        linux.umount(place, linux.MNT_DETACH)


@contextlib.contextmanager
def frozen(place: Path) -> Iterator[None]:
    """Let everybody who writes to a file system wait, for the length of a block."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _FIFREEZE, 0)
        try:
            yield
        finally:
            fcntl.ioctl(descriptor, _FITHAW, 0)
    finally:
        os.close(descriptor)


def allocate(source: int, target: int) -> None:
    os.posix_fallocate(target, 0, 10_000)


def copy(source: int, target: int) -> None:
    os.copy_file_range(source, target, 10_000)


@pytest.mark.parametrize("call", [allocate, copy])
def test_others_are_served_while_a_call_waits_for_the_disk(
    tmp_path: Path, call: Callable[[int, int], None]
) -> None:
    if reason := missing(tmp_path):
        pytest.skip(reason)
    with small_disk(tmp_path) as disk, contextlib.ExitStack() as opened:
        union = Union(disk / "union")
        (union.lower / "directory").mkdir()
        (union.lower / "directory" / "file").write_text("hello")
        with union.mounted():
            (union.place / "source").write_bytes(b"x" * 10_000)
            descriptors = [
                os.open(union.place / name, os.O_RDWR | os.O_CREAT, 0o644) for name in ("source", "target")
            ]
            for descriptor in descriptors:
                opened.callback(os.close, descriptor)
            seen: list[str] = []

            def look() -> None:
                seen.extend(os.listdir(union.place / "directory"))
                seen.append((union.place / "directory" / "file").read_text())

            slow, quick = threading.Thread(target=call, args=descriptors), threading.Thread(target=look)
            with frozen(disk):
                slow.start()
                slow.join(0.5)
                quick.start()
                quick.join(20)
                served, waited = list(seen), slow.is_alive()
            slow.join(20)
            quick.join(20)
            assert served == ["file", "hello"]
            assert waited
            assert os.fstat(descriptors[1]).st_size == 10_000
            opened.close()


def test_others_are_served_while_a_large_file_is_copied_up(tmp_path: Path) -> None:
    if reason := missing(tmp_path):
        pytest.skip(reason)
    with small_disk(tmp_path) as disk:
        union = Union(disk / "union")
        old = os.urandom(8 << 20)
        for name in ("large", "gone", "short", "other"):
            (union.lower / name).write_bytes(old)
        with union.mounted():
            large, gone, short = (union.place / name for name in ("large", "gone", "short"))
            held = os.open(gone, os.O_RDONLY)

            def write() -> None:
                with large.open("r+b", buffering=0) as file:
                    file.write(b"new")

            def forsake() -> None:
                os.fchmod(held, 0o600)

            def cut() -> None:
                os.truncate(short, 5 << 20)

            def chmod() -> None:
                large.chmod(0o751)

            seen: list[bytes] = []
            calls = [threading.Thread(target=call) for call in (write, chmod, forsake, cut)]
            quick = threading.Thread(target=lambda: seen.append((union.place / "other").read_bytes()))
            with frozen(disk):
                for call in calls:
                    call.start()
                calls[0].join(0.5)
                quick.start()
                quick.join(20)
                served, waited = list(seen), [call.is_alive() for call in calls]
            for call in (*calls, quick):
                call.join(20)
            assert served == [old]
            assert all(waited)
            gone.unlink()
            assert large.read_bytes() == b"new" + old[3:]
            assert large.stat().st_mode & 0o777 == 0o751
            assert short.read_bytes() == old[: 5 << 20]
            assert os.fstat(held).st_mode & 0o777 == 0o600
            assert os.pread(held, 10, 100) == old[100:110]
            os.close(held)
        assert (union.upper / "large").read_bytes() == b"new" + old[3:]
        assert [name for name in os.listdir(union.work / "work") if name != "whiteout"] == []


def test_no_half_copied_file_is_left_when_the_disk_is_full(tmp_path: Path) -> None:
    if reason := missing(tmp_path):
        pytest.skip(reason)
    with small_disk(tmp_path) as disk:
        union = Union(disk / "union")
        (union.lower / "large").write_bytes(b"x" * (30 << 20))
        with union.mounted():
            with pytest.raises(OSError, match="No space left"), open(union.place / "filler", "wb") as filler:
                while True:
                    filler.write(bytes(1 << 20))
                    filler.flush()
            with pytest.raises(OSError, match="No space left"):
                os.open(union.place / "large", os.O_WRONLY)
            assert (union.place / "large").stat().st_size == 30 << 20
            (union.place / "filler").unlink()
            os.sync()  # ext4 gives freed blocks out again when its journal is written
            with (union.place / "large").open("r+b") as file:
                file.write(b"new")
            assert (union.place / "large").read_bytes()[:5] == b"newxx"
        assert [name for name in os.listdir(union.work / "work") if name != "whiteout"] == []


def test_the_kernel_forgets_files_of_lower_layers_that_nobody_uses(
    union: Union, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_MOST_NODES", 100)
    monkeypatch.setattr(server, "_PRUNED", 50)
    for directory in range(20):
        (union.lower / f"{directory:02}").mkdir()
        for name in ("a", "b", *map(str, range(50))):
            (union.lower / f"{directory:02}" / name).write_text(name)
    with union.mounted():
        place = union.place / "00"
        with open(place / "b") as held:
            (place / "a").chmod(0o600)
            (place / "0").stat()
            # A change behind the mount's back: only who asks again sees it.
            for name in ("0", "b"):
                (union.lower / "00" / name).chmod(0o751)
            for directory in sorted(union.place.iterdir())[1:]:
                assert len([entry.stat() for entry in os.scandir(directory)]) == 52
            until = time.monotonic() + 5
            while (forgotten := (place / "0").stat().st_mode & 0o777 == 0o751) is False:
                if time.monotonic() > until:
                    break
                time.sleep(0.05)
            if not forgotten and tuple(map(int, os.uname().release.split(".")[:2])) < (6, 18):
                pytest.skip("FUSE_NOTIFY_PRUNE is of Linux 6.18")
            assert forgotten
            assert os.fstat(held.fileno()).st_mode & 0o777 == 0o644
            assert held.read() == "b"
        assert (place / "a").stat().st_mode & 0o777 == 0o600
        assert sorted(os.listdir(place)) == sorted(("a", "b", *map(str, range(50))))


def test_a_directory_read_in_pieces_shows_every_name_that_stays_once(union: Union) -> None:
    upper = union.upper / "d"
    for directory, names in ((union.lower / "d", range(3000)), (upper, range(2000, 5000))):
        directory.mkdir()
        for number in names:
            (directory / f"name-{number}").touch()
    with union.mounted():
        place = union.place / "d"
        seen = []
        gone, made = set(), set()
        with os.scandir(place) as entries:
            for count, entry in enumerate(entries):
                seen.append(entry.name)
                if count % 500 == 0 and count < 5000:
                    new, removed, old, moved = (
                        f"new-{count}", f"name-{count}", f"name-{count + 1}", f"moved-{count}"
                    )  # fmt: skip
                    (place / new).touch()
                    (place / removed).unlink()
                    (place / old).rename(place / moved)
                    gone |= {removed, old}
                    made |= {new, moved}
                    # Another reader begins in between.
                    assert new in os.listdir(place)
        assert len(seen) == len(set(seen))
        left = {f"name-{number}" for number in range(5000)} - gone
        assert left <= set(seen)
        assert set(os.listdir(place)) == left | made


def test_a_reader_keeps_its_place_while_many_other_directories_are_read(union: Union) -> None:
    for number in range(2000):  # more than one answer of the kernel's holds
        (union.upper / f"directory {number}").mkdir()
    with union.mounted():
        with os.scandir(union.place) as reader:
            for entry in reader:
                assert os.listdir(entry) == []
                os.rmdir(entry)
        assert os.listdir(union.place) == []


def test_a_read_only_mount_shows_files_of_any_size(union: Union) -> None:
    sizes = (0, 1, 4096, 1 << 20, (3 << 20) + 7)
    for size in sizes:
        (union.lower / str(size)).write_bytes(os.urandom(size))
    with union.mounted(read_only=True) as serving:
        before = serving.descriptors()
        for size in sizes:
            with open(union.place / str(size), "rb", buffering=0) as file:
                assert file.readall() == (union.lower / str(size)).read_bytes()
                if size:
                    with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                        assert mapped[:] == (union.lower / str(size)).read_bytes()
        with pytest.raises(OSError, match="Read-only"):
            (union.place / "1").write_bytes(b"x")
        for number in range(200):
            (union.lower / f"many-{number}").write_text("x")
            assert (union.place / f"many-{number}").read_text() == "x"
        assert serving.descriptors() < before + 100
