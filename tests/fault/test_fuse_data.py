"""File data under the FUSE driver: one file used in every way at once, whoever holds its pages."""

from __future__ import annotations

import errno
import mmap
import os
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.filesystem import fresh
from tests.support.exerciser import Exerciser
from tests.support.unions import Union, listening, missing

FILES = 4
STEPS = 250


@pytest.fixture(scope="module", autouse=True)
def able(tmp_path_factory: pytest.TempPathFactory) -> None:
    if reason := missing(tmp_path_factory.mktemp("check")):
        pytest.skip(reason)


@pytest.fixture
def union(tmp_path: Path) -> Iterator[Union]:
    with listening() as errors:
        yield Union(tmp_path)
    assert errors == []


def lower_files(union: Union, seed: int) -> list[Path]:
    """Make files of the lower layer, some sparse, and give their paths in the union."""
    rest = random.Random(seed)
    for number in range(FILES):
        with open(union.lower / f"file{number}", "wb") as file:
            file.write(rest.randbytes(rest.randrange(200_000) if number else 0))
            file.seek(rest.randrange(250_000) if number % 2 else file.tell())
            file.write(rest.randbytes(rest.randrange(3_000)))
    return [union.place / f"file{number}" for number in range(FILES)]


@pytest.mark.parametrize("passthrough", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_a_file_holds_what_was_written_however_that_was_done(
    union: Union, passthrough: bool, seed: int
) -> None:
    files = lower_files(union, seed)
    with union.mounted(passthrough=passthrough):
        used = [Exerciser(path, seed=seed * FILES + number) for number, path in enumerate(files)]
        for each in used:
            each.run(STEPS)
    # What the cache showed is what the layer has.
    for each in used:
        if each.path is not None:
            assert (union.upper / each.path.name).read_bytes() == bytes(each.model)


def test_a_read_only_union_is_read_in_every_way_and_never_written(union: Union) -> None:
    files = lower_files(union, 1)
    with union.mounted(read_only=True):
        for number, path in enumerate(files):
            Exerciser(path, seed=number, read_only=True).run(STEPS)
            for flags in (os.O_RDWR, os.O_WRONLY, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
                with pytest.raises(OSError) as caught:
                    os.open(path, flags)
                assert caught.value.errno == errno.EROFS


def test_pages_written_back_late_do_not_bring_a_truncated_file_back(union: Union) -> None:
    (union.lower / "file").write_bytes(bytes(300_000))
    path = union.place / "file"
    with union.mounted(passthrough=False):
        file = os.open(path, os.O_RDWR)
        for _ in range(150):
            os.ftruncate(file, 300_000)
            with mmap.mmap(file, 300_000) as mapped:
                for page in range(0, 300_000, 2 * mmap.PAGESIZE):
                    mapped[page] = 1
                writing_back = threading.Thread(target=os.fdatasync, args=(file,))
                writing_back.start()
                os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
                writing_back.join()
            assert os.stat(union.upper / "file").st_size == 0
            assert os.stat(path).st_size == 0
        os.close(file)


def test_data_written_in_memory_is_no_hole(union: Union) -> None:
    (union.lower / "file").write_bytes(b"")
    with union.mounted(passthrough=False):
        file = os.open(union.place / "file", os.O_RDWR)
        os.ftruncate(file, 1 << 20)
        with mmap.mmap(file, 1 << 20) as mapped:
            mapped[500_000] = 1
            assert os.lseek(file, 0, os.SEEK_DATA) <= 500_000 < os.lseek(file, 0, os.SEEK_HOLE)
        os.close(file)
        file = os.open(union.place / "file", os.O_RDONLY)
        assert 0 < os.lseek(file, 0, os.SEEK_DATA) <= 500_000
        os.close(file)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_name_made_after_a_listing_is_in_the_next(tmp_path: Path, kind: str) -> None:
    if shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"not installed: mkfs.{kind}")
    with fresh(kind, size=400 << 20) as place:
        union = Union(tmp_path / "union", above=place)
        (union.lower / "d").mkdir()
        with union.mounted():
            for number in range(3):
                (union.place / "d" / str(number)).touch()
                assert len(os.listdir(union.place / "d")) == number + 1
                (union.place / str(number)).touch()
                assert len(os.listdir(union.place)) == number + 2
