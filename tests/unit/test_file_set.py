"""Files by name in a directory: confined with openat2, and without it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import linux
from layerfs.errors import ArchiveError, BudgetError
from layerfs.transports.file_set import DirectoryFiles, read_file


@pytest.fixture(params=["openat2", "walk"])
def files(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DirectoryFiles]:
    def missing(*arguments: object, **more: object) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    if request.param == "walk":
        # What a kernel before 5.6 answers, and many a seccomp profile.
        monkeypatch.setattr(linux, "openat2", missing)
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "file").write_bytes(b"data")
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "link").symlink_to("../secret")
    (root / "inner").symlink_to("a/b/file")
    (root / "a" / "up").symlink_to("../..")
    opened = DirectoryFiles(root)
    before = len(os.listdir("/proc/self/fd"))
    yield opened
    assert len(os.listdir("/proc/self/fd")) == before
    opened.close()


def test_a_file_is_read(files: DirectoryFiles) -> None:
    assert read_file(files, "a/b/file", limit=4) == b"data"


@pytest.mark.parametrize("name", ["missing", "a/missing/x", "a/b/file/x"])
def test_what_is_missing_is_none(files: DirectoryFiles, name: str) -> None:
    assert read_file(files, name, limit=10) is None


@pytest.mark.parametrize(
    "name", ["link", "inner", "a/up/secret", "../secret", "a/../../secret", "/etc/passwd"]
)
def test_symlinks_and_ways_out_are_refused(files: DirectoryFiles, name: str) -> None:
    with pytest.raises(ArchiveError, match="refused"):
        read_file(files, name, limit=100)


def test_a_directory_is_no_file(files: DirectoryFiles) -> None:
    with pytest.raises(ArchiveError, match="not a regular file"):
        read_file(files, "a/b", limit=100)


def test_a_file_over_the_limit_is_not_read(files: DirectoryFiles) -> None:
    with pytest.raises(BudgetError):
        read_file(files, "a/b/file", limit=3)
