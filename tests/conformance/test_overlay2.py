"""The contract, kept by the overlay2 driver, and what is its own: its mounts and what it reads."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from layerfs_overlay2 import Overlay2Driver

from layerfs import mounting
from layerfs.errors import UnsupportedError
from layerfs.mount import Bind, Overlay
from layerfs.testing import DriverContract
from layerfs.testing.items import directory, file
from layerfs.testing.snapshot import differences, snapshot
from layerfs.testing.stack import Stack


class TestOverlay2Driver(DriverContract):
    make_driver = Overlay2Driver
    limited = True

    def test_the_mount_names_layers_top_first_and_sets_every_option(self, stack: Stack, root: Path) -> None:
        for _ in range(3):
            stack.finish(stack.create())
        low, middle, top = (root / layer / "diff" for layer in stack.layers)
        source, options = f"layerfs-{stack.layers[2]}", ("index=off", "redirect_dir=off", "metacopy=off")
        driver, layer, below = stack.driver, stack.layers[2], stack.layers[:2]
        assert driver.mount(layer, below, read_only=True) == Overlay(
            source, (str(top), str(middle), str(low)), None, None, options
        )
        assert driver.mount(layer, below, read_only=False) == Overlay(
            source, (str(middle), str(low)), top, top.parent / "work", options
        )

    @pytest.mark.parametrize("read_only", [True, False])
    def test_a_single_layer_is_bound(self, stack: Stack, root: Path, read_only: bool) -> None:
        layer = stack.finish(stack.create())
        assert stack.driver.mount(layer, [], read_only=read_only) == Bind(
            f"layerfs-{layer}", root / layer / "diff", read_only=read_only
        )

    def test_the_mount_table_names_the_layer(self, stack: Stack) -> None:
        stack.finish(stack.create())
        layer = stack.create()
        with stack.mounted(layer, stack.layers) as place:
            found = mounting.mounted(place)
            assert found is not None and found.source == f"layerfs-{layer}"

    def test_redirects_and_metadata_only_copies_that_others_made_are_resolved(self, stack: Stack) -> None:
        big = b"x" * 5000
        stack.apply(
            [directory(b"a"), directory(b"a/b"), file(b"a/b/f", big), file(b"g", big), file(b"h", big)]
        )
        layer = stack.create()
        mount = stack.driver.mount(layer, stack.layers, read_only=False)
        assert isinstance(mount, Overlay)
        mount = dataclasses.replace(mount, options=("index=off", "redirect_dir=on", "metacopy=on"))
        place = stack.directory / "by-others"
        place.mkdir()
        mounting.attach(mount, place)
        try:
            os.rename(place / "a", place / "moved")
            (place / "moved" / "new").touch()
            (place / "g").chmod(0o600)
            (place / "moved" / "b" / "f").chmod(0o600)
            (place / "h").chmod(0o600)
            os.rename(place / "h", place / "moved" / "h")
            seen = snapshot(place)
        finally:
            mounting.detach(place)
            place.rmdir()
        stack.finish(layer)
        assert stack.listed() == [
            "D /a", "C /g", "D /h", "A /moved", "A /moved/b", "A /moved/b/f", "A /moved/h", "A /moved/new",
        ]  # fmt: skip
        again = stack.fork(1)
        again.apply(stack.archive())
        assert differences(again.tree(), seen) == []
        # A copy of its directories would show what this store's mounts show of them.
        assert stack.copied() is None
        assert sorted(stack.driver.layers()) == sorted([*stack.layers, again.layers[-1]])

    def test_applying_to_more_layers_than_overlayfs_stacks_is_refused(self, stack: Stack) -> None:
        for _ in range(501):
            stack.finish(stack.create())
        with pytest.raises(UnsupportedError, match="501"):
            stack.apply([directory(b"d"), file(b"x/y")])

    def test_overlayfs_attributes_of_the_root_below_stay_there(self, stack: Stack, root: Path) -> None:
        layer = stack.finish(stack.create())
        os.setxattr(root / layer / "diff", "trusted.overlay.impure", b"y")
        os.setxattr(root / layer / "diff", "user.kept", b"1")
        child = stack.create()
        assert os.listxattr(root / child / "diff") == ["user.kept"]
