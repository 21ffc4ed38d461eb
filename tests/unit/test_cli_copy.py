"""Tests of `copy`."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.commandline import CommandLine
from tests.support.tiny_images import layout_of_index, multi_platform, sha256


@pytest.fixture
def layerfs(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path / "store")


@pytest.fixture
def index(tmp_path: Path) -> bytes:
    index, images = multi_platform("linux/amd64", "linux/arm64/v8")
    layout_of_index(tmp_path / "from", index, images, name="1")
    return index


def test_all_platforms_keep_the_digest_and_no_store_is_made(
    layerfs: CommandLine, index: bytes, tmp_path: Path
) -> None:
    words = ("copy", "-q", "--all", "--preserve-digests", f"oci:{tmp_path}/from:1", f"oci:{tmp_path}/to:1")
    assert layerfs.good(*words, "--digestfile", tmp_path / "digest") == sha256(index) + "\n"
    assert (tmp_path / "digest").read_text() == sha256(index)
    assert not layerfs.root.exists()


def test_json_describes_what_was_put(layerfs: CommandLine, index: bytes, tmp_path: Path) -> None:
    found = layerfs.json("copy", "-a", f"oci:{tmp_path}/from:1", f"oci-archive:{tmp_path}/to.tar:1")
    assert (found["digest"], found["size"]) == (sha256(index), len(index))
    assert "index" in found["media_type"]


def test_layers_are_compressed_as_asked(layerfs: CommandLine, index: bytes, tmp_path: Path) -> None:
    words = ("copy", "-q", "--compression", "zstd", "--compression-level", 19, "--annotation", "a=b=c")
    layerfs.good(*words, f"oci:{tmp_path}/from:1", f"oci:{tmp_path}/to:1")
    text = b"".join(path.read_bytes() for path in (tmp_path / "to" / "blobs" / "sha256").iterdir())
    assert b"tar+zstd" in text
    assert b'"annotations":{"a":"b=c"}' in text


@pytest.mark.parametrize(
    ("words", "status", "hint"),
    [
        (("--all", "--platform", "linux/arm64"), 2, "one of the two"),
        (("--compression-level", "3"), 2, "--compression"),
        (("--force-compression",), 2, "--compression"),
        (("--preserve-digests", "--compression", "gzip"), 2, "leave one out"),
        (("--compression", "gzip", "--compression-level", "12"), 1, None),
        (("--compression", "xz"), 2, "--help"),
        (("--annotation", "nothing"), 2, "NAME=TEXT"),
        (("--compression", "zstd", "--format", "docker"), 1, "--format oci"),
        (("--platform", "linux/s390x"), 1, "linux/arm64/v8"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(
    layerfs: CommandLine, index: bytes, tmp_path: Path, words: tuple[str, ...], status: int, hint: str | None
) -> None:
    done = layerfs.run("copy", *words, f"oci:{tmp_path}/from:1", f"oci:{tmp_path}/to:1")
    assert done.status == status, done.err
    assert done.out == ""
    if hint is not None:
        assert hint in done.err.splitlines()[-1]
    assert not (tmp_path / "to" / "index.json").exists()


def test_what_killed_copies_left_in_a_layout_is_removed(
    layerfs: CommandLine, index: bytes, tmp_path: Path
) -> None:
    words = ("copy", "-q", f"oci:{tmp_path}/from:1", f"oci:{tmp_path}/to:1")
    layerfs.good(*words)
    for name in ("old", "new", "held"):
        (tmp_path / "to" / f".layerfs-{name}").write_bytes(b"part of a blob")
        if name != "new":
            os.utime(tmp_path / "to" / f".layerfs-{name}", (0, 0))
    with (tmp_path / "to" / ".layerfs-held").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        layerfs.good(*words)
    assert sorted(path.name for path in (tmp_path / "to").glob(".layerfs-*")) == [
        ".layerfs-held", ".layerfs-new"
    ]  # fmt: skip


def test_copies_at_once_into_one_layout_are_all_listed(
    layerfs: CommandLine, index: bytes, tmp_path: Path
) -> None:
    words = [
        layerfs.words("copy", "-q", "--all", f"oci:{tmp_path}/from:1", f"oci:{tmp_path}/to:{number}")
        for number in range(6)
    ]
    copies = [subprocess.Popen(each, stdout=subprocess.PIPE) for each in words]
    assert [copy.communicate()[0].decode() for copy in copies] == [sha256(index) + "\n"] * 6
    for number in range(6):
        assert layerfs.good("inspect", "--raw", f"oci:{tmp_path}/to:{number}").encode() == index
    assert not list((tmp_path / "to").glob(".layerfs-*"))
