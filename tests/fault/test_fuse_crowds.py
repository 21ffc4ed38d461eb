"""A union under load: many processes, many layers, strange names, and a server that must not grow."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import linux
from layerfs.testing.snapshot import differences, snapshot
from tests.support.tree_worker import Worker, as_modelled
from tests.support.unions import Union, listening, missing

# How large all of this is; 1 takes some seconds each.
SCALE = int(os.environ.get("LAYERFS_CROWD_SCALE", "1"))
EXPECTED = {
    errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENXIO,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def able(tmp_path_factory: pytest.TempPathFactory) -> None:
    if reason := missing(tmp_path_factory.mktemp("check")):
        pytest.skip(reason)


@pytest.fixture
def union(tmp_path: Path) -> Iterator[Union]:
    with listening() as errors:
        yield Union(tmp_path)
    assert errors == []


def quarrel(place: Path, seed: int, until: float) -> None:
    """Use the same few names as others do; what comes of it nobody knows."""
    rest = random.Random(seed)
    names = [
        place / name for name in ("a", "b", "c", "a/x", "a/y", "b/x", "c/x/y", "file", "a/file", "b/file")
    ]
    while time.monotonic() < until:
        one, other = rest.choice(names), rest.choice(names)
        operations = (
            lambda one=one: one.mkdir(),
            lambda one=one: one.write_bytes(b"x" * rest.randrange(10_000)),
            lambda one=one, other=other: os.rename(one, other),
            lambda one=one: one.unlink(),
            lambda one=one: one.rmdir(),
            lambda one=one: one.read_bytes(),
            lambda one=one: os.listdir(one),
            lambda one=one, other=other: os.link(one, other),
            lambda one=one, other=other: os.symlink(other, one),
            lambda one=one: one.chmod(0o700),
            lambda one=one: os.truncate(one, 5),
            lambda one=one, other=other: linux.renameat2(
                linux.AT_FDCWD, bytes(one), linux.AT_FDCWD, bytes(other), linux.RENAME_EXCHANGE
            ),
        )
        try:
            rest.choice(operations)()
        except OSError as error:
            if error.errno not in (*EXPECTED, errno.ELOOP, errno.EPERM, errno.EXDEV):
                raise


def crowd(place: Path, number: int) -> int:
    """Work in a directory of one's own and in the common one; gives 0 when all was as it must be."""
    until = time.monotonic() + 3 * SCALE
    worker = Worker(place / str(number), as_modelled(place / str(number)), number)
    while time.monotonic() < until:
        for _ in range(20):
            worker.step()
            worker.before = worker.after
        quarrel(place / "common", number, time.monotonic() + 0.05)
    return 0 if as_modelled(place / str(number)) == worker.before else 1


def test_many_processes_get_what_each_of_them_made(union: Union) -> None:
    many = 16 if SCALE > 1 else 6
    for number in range(many):
        for name in range(30):
            path = union.lower / str(number) / random.Random(name).choice(("d", "d/e", "f", ".")) / str(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes([name]) * 5000)
    for name in ("a/x", "a/file", "b", "c/x/y", "file"):
        path = union.lower / "common" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"lower")
    with union.mounted() as server:
        script = "import sys; from pathlib import Path; from tests.fault.test_fuse_crowds import crowd; "
        script += "sys.exit(crowd(Path(sys.argv[1]), int(sys.argv[2])))"
        running = [
            subprocess.Popen(
                [sys.executable, "-c", script, str(union.place), str(number)], cwd=Path(__file__).parents[2]
            )
            for number in range(many)
        ]
        assert [each.wait() for each in running] == [0] * many
        assert server.alive()
        after = snapshot(union.place)
    with union.mounted():
        assert differences(snapshot(union.place), after) == []
    with union.overlaid():
        assert differences(snapshot(union.place), after) == []


def test_five_hundred_layers_are_one_tree(union: Union) -> None:
    lowers = []
    for number in range(500):
        layer = union.lower / str(number)
        (layer / "d/e").mkdir(parents=True)
        (layer / "d/e" / f"only {number}").write_text(str(number))
        (layer / "d/all").write_text(str(number))
        lowers.append(layer)
    union.lowers = tuple(reversed(lowers))
    with union.mounted():
        assert (union.place / "d/all").read_text() == "499"
        assert sorted(os.listdir(union.place / "d/e")) == sorted(f"only {number}" for number in range(500))
        assert (union.place / "d/e/only 0").read_text() == "0"
        os.rename(union.place / "d", union.place / "moved")
        assert (union.place / "moved/e/only 0").read_text() == "0"
        shutil.rmtree(union.place / "moved/e")
        assert os.listdir(union.place / "moved") == ["all"]


def test_names_of_any_bytes_and_paths_of_any_depth_are_kept(union: Union) -> None:
    names = [
        b"\xff\xfe",
        b"a\nb",
        b"x" * 255,
        "ä".encode() * 127,
        b"\x01",
        b"-rf",
        b"\\",
        b" ",
        b".wh",
        b"#1",
    ]
    lower, place = bytes(union.lower), bytes(union.place)
    for name in names[::2]:
        with open(lower + b"/" + name, "wb") as file:
            file.write(name)
    with union.mounted():
        for name in names[1::2]:
            with open(place + b"/" + name, "wb") as file:
                file.write(name)
        assert sorted(os.listdir(place)) == sorted(names)
        for name in names:
            with open(place + b"/" + name, "r+b") as file:
                assert file.read() == name
                file.write(b"!")
        for name in names:
            os.rename(place + b"/" + name, place + b"/" + name[::-1][:254] + b"~")
        for name in os.listdir(place):
            os.unlink(place + b"/" + name)
        assert os.listdir(place) == []
        with pytest.raises(OSError) as caught:
            os.mkdir(place + b"/" + b"x" * 256)
        assert caught.value.errno == errno.ENAMETOOLONG
        # Deeper than any path may be long.
        here = os.open(place, os.O_RDONLY)
        for _ in range(40):
            os.mkdir(b"d" * 200, dir_fd=here)
            here, above = os.open(b"d" * 200, os.O_RDONLY, dir_fd=here), here
            os.close(above)
        os.close(os.open(b"file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        assert os.listdir(here) == ["file"]
        os.close(here)
    with union.mounted():
        os.rename(place + b"/" + b"d" * 200, place + b"/moved")
        subprocess.run(["rm", "-rf", place + b"/moved"], check=True)
        assert os.listdir(place) == []


def test_a_large_directory_is_deleted_while_it_is_listed(union: Union) -> None:
    many = 1_000 if SCALE == 1 else 50_000
    (union.lower / "d").mkdir()
    for number in range(many):
        (union.lower / "d" / f"lower {number}").touch()
    with union.mounted():
        for number in range(many):
            (union.place / "d" / f"upper {number}").touch()
        with os.scandir(union.place / "d") as entries:
            found = [entry.name for entry in itertools.islice(entries, many // 2)]
            for name in found:
                (union.place / "d" / name).unlink()
            (union.place / "d" / "new").touch()
            found += [entry.name for entry in entries]
        # What stays is seen once.
        assert len(set(found) - {"new"}) == 2 * many
        assert len(found) == len(set(found))
        subprocess.run(["rm", "-rf", union.place / "d"], check=True)
        assert os.listdir(union.place) == []


def test_a_thousand_unlinked_files_stay_open(union: Union) -> None:
    opened = []
    for number in range(500):
        (union.lower / f"lower {number}").write_text(f"lower {number}")
    with union.mounted() as server:
        before = server.descriptors()
        for number in range(1000):
            path = union.place / f"{'lower' if number % 2 else 'upper'} {number // 2}"
            if number % 2 == 0:
                path.write_text(path.name)
            file = os.open(path, os.O_RDWR if number % 3 else os.O_RDONLY)
            path.unlink()
            opened.append((file, path.name))
        assert os.listdir(union.place) == []
        for file, name in opened:
            assert os.pread(file, 100, 0) == name.encode()
            assert os.fstat(file).st_nlink == 0
            with contextlib.suppress(OSError):
                os.pwrite(file, b"!", 0)
        for file, name in opened:
            seen = os.pread(file, 100, 0)
            assert seen in (name.encode(), b"!" + name.encode()[1:])
            os.close(file)
        settle(lambda: server.descriptors() <= before + 2)


def settle(condition: object) -> None:
    """Wait for what the kernel tells the server a moment later."""
    for _ in range(500):
        if condition():  # type: ignore[operator]
            return
        time.sleep(0.01)
    assert condition()  # type: ignore[operator]


def test_a_file_has_as_many_names_as_a_directory_holds(union: Union) -> None:
    count = 20_000
    directory = union.lower / "d"
    directory.mkdir()
    (directory / "0").write_text("all")
    for number in range(1, count):
        os.link(directory / "0", directory / str(number))
    with union.mounted():
        place = union.place / "d"
        assert len({entry.stat().st_ino for entry in os.scandir(place)}) == 1
        with (place / "7").open("a") as file:
            file.write(" of us")
        assert (place / f"{count - 1}").read_text() == "all of us"
        assert (place / "0").stat().st_nlink == count
        for number in range(0, count, 2):
            (place / str(number)).unlink()
        assert (place / "1").stat().st_nlink == count // 2
        (place / "1").rename(place / "one")
        assert (place / "one").samefile(place / "3")
    assert len(list(directory.iterdir())) == count


def test_the_server_keeps_nothing_of_files_that_came_and_went(union: Union) -> None:
    (union.lower / "read").write_text("x")
    (union.lower / "d").mkdir()
    with union.mounted() as server:

        def round_(count: int) -> None:
            for number in range(count):
                path = union.place / f"d/{number}"
                path.mkdir() if number % 10 == 0 else path.touch()
                os.close(os.open(union.place / "read", os.O_RDONLY))
                with contextlib.suppress(FileNotFoundError):
                    os.stat(union.place / f"missing {number % 1000}")
                path.rmdir() if number % 10 == 0 else path.unlink()

        round_(2000)
        memory, descriptors = server.memory(), server.descriptors()
        round_(3_000 * SCALE * SCALE)
        assert server.memory() < memory + (2 << 20)
        settle(lambda: server.descriptors() <= descriptors + 2)
