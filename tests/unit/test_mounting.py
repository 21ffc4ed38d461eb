"""Real mounts, made and taken away again."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import failpoints, linux, mounting
from layerfs.errors import InUseError, MountError
from layerfs.mount import Bind, Mount, Overlay
from layerfs.mounting import MountInfo

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts")


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    target = tmp_path / "target"
    target.mkdir()
    try:
        yield target
    finally:
        for _ in mounting.mounts_below(tmp_path):
            mounting.detach(target, lazy=True)


def overlay(root: Path, lowers: int = 2, *, writable: bool = True) -> Overlay:
    made = []
    for number in range(lowers):
        lower = root / f"lower{number}"
        lower.mkdir(parents=True)
        (lower / f"file{number}").write_text(str(number))
        (lower / "file").write_text(str(number))
        made.append(lower)
    for name in ("upper", "work"):
        (root / name).mkdir()
    return Overlay(
        "layerfs-test",
        tuple(reversed(made)),
        root / "upper" if writable else None,
        root / "work" if writable else None,
        ("index=off",),
    )


def listed(descriptor: int) -> list[str]:
    try:
        return sorted(os.listdir(descriptor))
    finally:
        os.close(descriptor)


def test_an_overlay_shows_the_top_layer_first_and_writes_to_its_upper(tmp_path: Path, target: Path) -> None:
    mounting.attach(overlay(tmp_path), target)
    assert (target / "file").read_text() == "1"
    (target / "new").touch()
    assert (tmp_path / "upper" / "new").exists()
    found = mounting.mounted(target)
    assert found is not None
    assert (found.fstype, found.source) == ("overlay", "layerfs-test")
    mounting.detach(target)
    assert mounting.mounted(target) is None


def test_attach_takes_a_descriptor_as_its_target(tmp_path: Path, target: Path) -> None:
    descriptor = os.open(target, os.O_RDONLY)
    try:
        mounting.attach(overlay(tmp_path), descriptor)
    finally:
        os.close(descriptor)
    assert (target / "file0").exists()


def test_an_overlay_without_an_upper_refuses_writes(tmp_path: Path, target: Path) -> None:
    mounting.attach(overlay(tmp_path, writable=False), target)
    with pytest.raises(OSError, match="Read-only"):
        (target / "new").touch()


@pytest.mark.parametrize("name", ["a:b,c=d\\e", "x" * 200 + "/" + "y" * 200])
def test_odd_and_long_paths_can_be_layers(tmp_path: Path, target: Path, name: str) -> None:
    mounting.attach(overlay(tmp_path / name), target)
    assert (target / "file").read_text() == "1"


@pytest.mark.parametrize("name", ["plain", "a:b,c=d\\e", "x" * 200 + "/" + "y" * 200])
def test_the_classic_mount_gives_the_same_tree(tmp_path: Path, target: Path, name: str) -> None:
    mounting._classic_overlay(overlay(tmp_path / name), target)
    assert sorted(os.listdir(target)) == ["file", "file0", "file1"]
    (target / "file").write_text("changed")
    assert (tmp_path / name / "upper" / "file").read_text() == "changed"


def test_the_classic_mount_says_when_its_page_is_full(tmp_path: Path, target: Path) -> None:
    with pytest.raises(MountError, match="do not fit"):
        mounting._classic_overlay(overlay(tmp_path, 400), target)


def test_open_mount_is_attached_nowhere_and_ends_with_its_descriptor(tmp_path: Path) -> None:
    before = mounting.mount_table()
    descriptor = mounting.open_mount(overlay(tmp_path))
    assert mounting.mount_table() == before
    os.mkdir("new", dir_fd=descriptor)
    assert listed(descriptor) == ["file", "file0", "file1", "new"]
    # The upper is free again.
    assert listed(mounting.open_mount(overlay_again(tmp_path))) == ["file", "file0", "file1", "new"]


def overlay_again(root: Path) -> Overlay:
    return Overlay("again", (root / "lower1", root / "lower0"), root / "upper", root / "work", ("index=off",))


def test_a_bind_shows_a_directory_and_can_be_read_only(tmp_path: Path, target: Path) -> None:
    directory = tmp_path / "directory"
    directory.mkdir()
    mounting.attach(Bind("name", directory, read_only=False), target)
    (target / "file").touch()
    mounting.detach(target)
    mounting.attach(Bind("name", directory, read_only=True), target)
    with pytest.raises(OSError, match="Read-only"):
        (target / "other").touch()
    descriptor = mounting.open_mount(Bind("name", directory, read_only=True))
    with pytest.raises(OSError, match="Read-only"):
        os.mkdir("other", dir_fd=descriptor)
    assert listed(descriptor) == ["file"]


def test_the_error_of_a_refused_overlay_carries_the_kernels_words(tmp_path: Path, target: Path) -> None:
    with pytest.raises(MountError, match="too many lower directories, limit is 500") as raised:
        mounting.attach(overlay(tmp_path, 501), target)
    assert raised.value.errno == errno.EINVAL


def test_a_missing_target_or_layer_is_an_error(tmp_path: Path, target: Path) -> None:
    with pytest.raises(FileNotFoundError):
        mounting.attach(overlay(tmp_path), tmp_path / "missing")
    with pytest.raises(MountError):
        mounting.attach(Bind("name", tmp_path / "missing", read_only=True), target)


def test_a_mount_in_use_is_not_detached_unless_lazily(tmp_path: Path, target: Path) -> None:
    mounting.attach(overlay(tmp_path), target)
    with open(target / "file"):
        with pytest.raises(InUseError):
            mounting.detach(target)
        mounting.detach(target, lazy=True)
    with pytest.raises(MountError, match="not a mount"):
        mounting.detach(target)


def test_a_mount_below_a_shared_one_is_private(tmp_path: Path, target: Path) -> None:
    mounting.attach(overlay(tmp_path), target)
    with open("/proc/self/mountinfo") as table:
        line = next(line for line in table if "layerfs-test" in line)
    assert "shared:" not in line


def test_a_mount_of_an_unknown_sort_is_a_type_error(target: Path) -> None:
    class Odd(Mount):
        pass

    with pytest.raises(TypeError, match="Odd"):
        mounting.attach(Odd("name"), target)
    with pytest.raises(TypeError, match="Odd"):
        mounting.open_mount(Odd("name"))


def test_mountinfo_escapes_and_optional_fields_are_read() -> None:
    line = rb"36 35 98:0 /a\040b /c\134d\011 rw,noatime shared:1 master:2 - fuse.x my\040source rw,size=1"
    assert mounting._parse_line(line) == MountInfo(
        36, 35, b"/a b", b"/c\\d\t", ("rw", "noatime"), "fuse.x", "my source", ("rw", "size=1")
    )


def test_mounts_below_finds_names_with_blanks_and_not_siblings(tmp_path: Path) -> None:
    place, sibling = tmp_path / "a place", tmp_path / "a place too"
    for directory in (place / "inside", sibling):
        directory.mkdir(parents=True)
    attached = [place / "inside", sibling]
    for directory in attached:
        mounting.attach(Bind("name", tmp_path, read_only=True), directory)
    try:
        assert [info.target for info in mounting.mounts_below(place)] == [os.fsencode(place / "inside")]
    finally:
        for directory in attached:
            mounting.detach(directory)


def test_five_hundred_layers_mount(tmp_path: Path, target: Path) -> None:
    mounting.attach(overlay(tmp_path, 500), target)
    assert (target / "file").read_text() == "499"


def test_a_file_system_is_flushed_before_it_is_unmounted(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = []
    monkeypatch.setitem(mounting.flushes, "tmpfs", flushed.append)
    linux.mount("layerfs-test", target, "tmpfs", 0)
    mounting.detach(target)
    assert flushed == [target]
    linux.mount("layerfs-test", target, "ramfs", 0)
    mounting.detach(target)
    assert flushed == [target]


def test_a_mount_that_fails_after_it_was_attached_is_taken_away(tmp_path: Path, target: Path) -> None:
    failpoints.arm("mount.attached=eio")
    with pytest.raises(OSError, match="Input/output"):
        mounting.attach(overlay(tmp_path / "layers"), target)
    assert mounting.mounted(target) is None
    descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    failpoints.arm("mount.attached=eio")
    with pytest.raises(OSError, match="Input/output"):
        mounting.attach(overlay(tmp_path / "others"), descriptor)
    os.close(descriptor)
    assert mounting.mounted(target) is None
