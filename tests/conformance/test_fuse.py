"""The contract, kept by the FUSE driver, and what is its own: its server, and layers shared with overlay2."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from layerfs_fuse import FuseDriver
from layerfs_overlay2 import Overlay2Driver

from layerfs import mounting
from layerfs.driver import Driver
from layerfs.testing import DriverContract
from layerfs.testing.items import directory, file, hard_link, symlink
from layerfs.testing.snapshot import differences
from layerfs.testing.stack import Stack
from tests.support.servers import ends, servers


class TestFuseDriver(DriverContract):
    make_driver = FuseDriver

    @pytest.mark.parametrize("first", [FuseDriver, Overlay2Driver])
    def test_a_layer_made_under_one_driver_of_the_format_shows_the_same_under_the_other(
        self, stack: Stack, first: type[Driver]
    ) -> None:
        root = stack.driver.root
        second = Overlay2Driver if first is FuseDriver else FuseDriver
        for driver in (first(root), second(root)):
            stack.driver = driver
            if not stack.layers:
                stack.apply(
                    [directory(b"d"), file(b"d/f", b"x"), directory(b"d/sub"), file(b"d/sub/g", b"y"),
                     file(b"a", b"1"), hard_link(b"b", b"a"), symlink(b"l", b"a"), directory(b"moved")]
                )  # fmt: skip
            with stack.edited() as place:
                _edit(place)
        seen, listed = stack.tree(), stack.listed()
        stack.driver = first(root)
        assert differences(stack.tree(), seen) == []
        assert stack.listed() == listed

    def test_directories_of_lower_layers_are_renamed_without_copying(self, stack: Stack) -> None:
        stack.apply([directory(b"d"), file(b"d/f", b"x"), directory(b"e"), directory(b"d/sub")])
        stack.apply([file(b"d/g", b"y")])
        with stack.edited() as place:
            os.rename(place / "d", place / "e" / "d")
            (place / "e" / "d" / "f").unlink()
            os.rename(place / "e" / "d" / "sub", place / "sub")
        diff = stack.driver.root / stack.layers[-1] / "diff"
        assert sorted(os.listdir(diff / "e" / "d")) == ["f", "sub"]
        assert sorted(stack.tree()) == [b"", b"e", b"e/d", b"e/d/g", b"sub"]
        stack.driver = Overlay2Driver(stack.driver.root)
        assert sorted(stack.tree()) == [b"", b"e", b"e/d", b"e/d/g", b"sub"]

    def test_the_mount_table_names_the_layer(self, stack: Stack) -> None:
        stack.finish(stack.create())
        layer = stack.create()
        with stack.mounted(layer, stack.layers) as place:
            found = mounting.mounted(place)
            assert found is not None and (found.source, found.fstype) == (f"layerfs-{layer}", "fuse.layerfs")

    def test_the_server_ends_with_the_mount(self, stack: Stack) -> None:
        stack.finish(stack.create())
        with _served(stack) as (_, server):
            assert os.path.exists(f"/proc/{server}")
        assert ends(server)

    def test_a_killed_server_leaves_a_whole_layer_and_a_mount_that_can_be_taken_away(
        self, stack: Stack
    ) -> None:
        stack.apply([directory(b"d"), file(b"d/f", b"x")])
        layer = stack.create()
        with _served(stack, layer) as (place, server):
            (place / "d" / "f").write_text("changed")
            os.kill(server, signal.SIGKILL)
            assert ends(server)
            with pytest.raises(OSError, match=r"not connected|aborted"):
                os.listdir(place)
        with stack.mounted(layer, stack.layers) as place:
            assert (place / "d" / "f").read_text() == "changed"


def _edit(place: Path) -> None:
    """Change something of each kind; done a second time it meets what the first left."""
    (place / "d" / "f").write_text("changed")
    shutil.rmtree(place / "d" / "sub", ignore_errors=True)
    (place / "d" / "sub").mkdir()
    # Overlay2 answers EXDEV for a directory of a lower layer: then it is copied.
    shutil.move(place / "moved", place / "was moved")
    shutil.move(place / "was moved", place / "moved")
    (place / "a").unlink(missing_ok=True)
    (place / "l").chmod(0o600) if (place / "a").exists() else (place / "l").unlink()
    (place / "l").symlink_to("b")
    os.setxattr(place / "b", "user.x", b"1")
    (place / "a").touch()


@contextmanager
def _served(stack: Stack, layer: str | None = None) -> Iterator[tuple[Path, int]]:
    """Mount a layer and give the place and the id of its server."""
    with stack.mounted(layer or stack.create(), stack.layers) as place:
        (server,) = servers(stack.driver.root)
        yield place, server
