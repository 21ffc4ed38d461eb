"""Unpacking one layer: what is warned of, what strict mode refuses, and what is dropped."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from layerfs import linux
from layerfs.errors import LayerError
from layerfs.testing.items import directory, file, hard_link, opaque, symlink, tar
from layerfs.tree.extract import extract
from layerfs.tree.whiteouts import AufsWhiteouts, OverlayWhiteouts
from tests.support.tars import END, header, member, pax

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def unpack(tmp_path: Path) -> Callable[..., list[str]]:
    """Unpack a layer into `own` on a lower tree, with the warnings given back."""
    (tmp_path / "lower/d").mkdir(parents=True)
    (tmp_path / "lower/d/f").write_bytes(b"lower")
    (tmp_path / "own").mkdir()

    def unpack(layer: bytes, *, strict: bool = False) -> list[str]:
        warnings: list[str] = []
        own = os.open(tmp_path / "own", os.O_RDONLY)
        try:
            extract(
                io.BytesIO(layer), own, whiteouts=OverlayWhiteouts(user=False), warn=warnings.append,
                lower=lambda: os.open(tmp_path / "lower", os.O_RDONLY), strict=strict,
            )  # fmt: skip
        finally:
            os.close(own)
        return warnings

    return unpack


ODD = {
    "an absolute name": (header(b"/a") + END, "absolute name '/a'"),
    "a name with dots": (header(b"a/../b") + END, "with '..'"),
    "a path twice": (header(b"a") + header(b"a") + END, "a second entry for 'a' replaces the first"),
    "an unknown type": (header(b"a", flag=b"z") + END, "unknown type"),
    "a whiteout with data": (member(b"x", b"d/.wh.f") + END, "is not an empty file"),
    "a whiteout that is a directory": (header(b"d/.wh.f", flag=b"5") + END, "is not an empty file"),
    "a whiteout that is a link": (header(b"d/.wh.f", flag=b"2", link=b"x") + END, "is not an empty file"),
    "an entry below a whiteout": (header(b"d/.wh.f/x") + END, "below a whiteout ignored"),
    "a hard link with data": (
        header(b"a") + header(b"b", flag=b"1", link=b"a", size=4, magic=b"ustar  \0") + END,
        "without data ignored",
    ),
    "a hard link with a mode of its own": (
        header(b"a") + header(b"b", flag=b"1", link=b"a", mode=b"0004755\0") + END,
        "attributes of its own",
    ),
    "a hard link with an owner of its own": (
        header(b"a") + header(b"b", flag=b"1", link=b"a", uid=b"0000007\0") + END,
        "attributes of its own",
    ),
    "data after the end": (header(b"a") + END + b"x", "data after the end"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_is_warned_of_and_strict_mode_refuses_it(
    unpack: Callable[..., list[str]], name: str
) -> None:
    layer, words = ODD[name]
    warnings = unpack(layer)
    assert any(words in warning for warning in warnings), warnings
    with pytest.raises(LayerError):
        unpack(layer, strict=True)


def test_an_ordinary_layer_is_not_warned_of(unpack: Callable[..., list[str]]) -> None:
    items = [
        directory(b"d"),
        file(b"d/a", b"x"),
        hard_link(b"d/b", b"d/a"),
        symlink(b"l", b"d"),
        opaque(b"d"),
    ]
    assert unpack(tar(items), strict=True) == []


@pytest.mark.parametrize(
    "xattr",
    [b"trusted.overlay.opaque", b"trusted.overlay.redirect", b"trusted.overlay.metacopy",
     b"user.overlay.opaque",
     b"user.overlay.whiteout", b"trusted.overlay.overlay.opaque", b"trusted.overlay.", b"user.overlay.x"],
)  # fmt: skip
@pytest.mark.parametrize("flag", [b"0", b"5", b"2", b"6"])
def test_what_would_steer_overlayfs_is_dropped_with_a_warning(
    unpack: Callable[..., list[str]], tmp_path: Path, xattr: bytes, flag: bytes
) -> None:
    warnings = unpack(pax((b"SCHILY.xattr." + xattr, b"y")) + header(b"a", flag=flag, link=b"x") + END)
    assert any("steer overlayfs" in warning for warning in warnings)
    assert os.listxattr(tmp_path / "own/a", follow_symlinks=False) == []


def test_labels_of_selinux_are_dropped_silently(unpack: Callable[..., list[str]], tmp_path: Path) -> None:
    assert unpack(pax((b"SCHILY.xattr.security.selinux", b"x\0")) + header(b"a") + END) == []
    assert "security.selinux" not in os.listxattr(tmp_path / "own/a")


def test_a_time_that_the_file_system_does_not_hold_is_clamped_with_a_warning(tmp_path: Path) -> None:
    subprocess.run(["truncate", "-s", "16M", tmp_path / "disk"], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-I", "128", tmp_path / "disk"], check=True)
    (tmp_path / "place").mkdir()
    subprocess.run(["mount", "-o", "loop", tmp_path / "disk", tmp_path / "place"], check=True)
    try:
        (tmp_path / "place/own").mkdir()
        own = os.open(tmp_path / "place/own", os.O_RDONLY)
        warnings: list[str] = []
        layer = pax((b"mtime", b"99999999999")) + header(b"a") + END
        extract(io.BytesIO(layer), own, lower=None, whiteouts=AufsWhiteouts(), warn=warnings.append)
        os.close(own)
        assert ["time of 'a'" in warning for warning in warnings] == [True]
        assert os.stat(tmp_path / "place/own/a").st_mtime < 1 << 32
    finally:
        linux.umount(tmp_path / "place", 0)


def test_a_hard_link_changes_nothing_of_its_file(unpack: Callable[..., list[str]], tmp_path: Path) -> None:
    unpack(header(b"a", mode=b"0000600\0") + header(b"b", flag=b"1", link=b"a", mode=b"0006777\0") + END)
    assert os.stat(tmp_path / "own/a").st_mode & 0o7777 == 0o600
