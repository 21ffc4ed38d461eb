"""Copy-ups that take their time: large files, whole directories, and what else happens meanwhile."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import pytest
from layerfs_aufs import AufsDriver
from layerfs_fuse import FuseDriver

from layerfs.driver import Driver
from layerfs.testing.items import directory, file
from layerfs.testing.snapshot import differences, snapshot
from layerfs.testing.stack import Stack

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
