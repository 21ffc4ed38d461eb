"""apply(diff(a, b), a) == b, in every format that layers are unpacked in, on real directories."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from layerfs_fuse import FuseMount
from layerfs_fuse.aufs_dialect import AufsDialect

from layerfs.mount import Mount, Overlay
from layerfs.mounting import open_mount
from layerfs.testing.snapshot import snapshot
from layerfs.testing.trees import Operation, operations, perform
from layerfs.tree.archive import write_layer
from layerfs.tree.aufs_diff import aufs_changes
from layerfs.tree.change import Change
from layerfs.tree.diff import changes_between, listing
from layerfs.tree.extract import extract
from layerfs.tree.merge import unpack_in_place
from layerfs.tree.overlay_diff import overlay_changes
from layerfs.tree.unpack import Unpack
from layerfs.tree.whiteouts import AufsWhiteouts, OverlayWhiteouts, WhiteoutFormat

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to own files and to mount overlayfs")

quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@contextmanager
def workspace() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="layerfs-property-"))
    try:
        yield place
    finally:
        shutil.rmtree(place)


def opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def layer_between(before: Path, after: Path) -> bytes:
    stream = io.BytesIO()
    old, new = opened(before), opened(after)
    try:
        write_layer(changes_between(old, new), stream.write, warn=lambda message: None)
    finally:
        os.close(old)
        os.close(new)
    return stream.getvalue()


def unpacks(layer: bytes) -> Unpack:
    def unpack(directory: int, **format_: object) -> None:
        extract(io.BytesIO(layer), directory, warn=lambda message: None, **format_)  # type: ignore[arg-type]

    return unpack


def copied(source: Path, target: Path) -> Path:
    subprocess.run(["cp", "-a", source, target], check=True)
    return target


@quick
@given(operations, operations)
def test_a_plain_tree_with_the_changes_applied_is_the_later_tree(
    first: Sequence[Operation], second: Sequence[Operation]
) -> None:
    with workspace() as place:
        before = place / "before"
        before.mkdir()
        perform(os.fsencode(before), first)
        after = copied(before, place / "after")
        perform(os.fsencode(after), second)
        layer = layer_between(before, after)
        tree = opened(before)
        try:
            unpack_in_place(tree, unpacks(layer))
        finally:
            os.close(tree)
        assert snapshot(before) == snapshot(after)


class Format(NamedTuple):
    """A format of layers, what merges them, and what reads the changes of one."""

    whiteouts: WhiteoutFormat
    merged: Callable[[Path, Path], Mount]
    changes: Callable[[int, Path, Mount], Iterator[Change]]


def overlay_of(upper: Path, lower: Path) -> Mount:
    return Overlay("test", (upper, lower), None, None)


def changes_of_overlay(upper: int, lower: Path, mount: Mount) -> Iterator[Change]:
    return overlay_changes(
        upper,
        open_lower=lambda: opened(lower),
        open_merged=lambda: open_mount(mount),
        whiteouts=OverlayWhiteouts(user=False),
    )


def union_of(upper: Path, lower: Path) -> Mount:
    return FuseMount("test", (upper, lower), None, None, AufsDialect())


def changes_of_branch(upper: int, lower: Path, mount: Mount) -> Iterator[Change]:
    return aufs_changes(upper, open_lower=lambda: opened(lower))


FORMATS = {
    "overlay": Format(OverlayWhiteouts(user=False), overlay_of, changes_of_overlay),
    "aufs": Format(AufsWhiteouts(), union_of, changes_of_branch),
}


@pytest.mark.parametrize("name", FORMATS)
@quick
@given(operations, operations)
def test_a_layer_of_the_changes_shows_the_later_tree_and_gives_the_same_changes_back(
    name: str, first: Sequence[Operation], second: Sequence[Operation]
) -> None:
    whiteouts, merged_of, changes_of = FORMATS[name]
    with workspace() as place:
        before = place / "before"
        before.mkdir()
        perform(os.fsencode(before), first)
        after = copied(before, place / "after")
        perform(os.fsencode(after), second)
        layer = layer_between(before, after)
        (place / "upper").mkdir()
        shutil.copystat(before, place / "upper")
        upper = opened(place / "upper")
        mount = merged_of(place / "upper", before)
        try:
            unpacks(layer)(upper, lower=lambda: opened(before), whiteouts=whiteouts)
            merged = open_mount(mount)
            try:
                assert snapshot(merged) == snapshot(after)
            finally:
                os.close(merged)
            old, new = opened(before), opened(after)
            try:
                expected = list(listing(changes_between(old, new)))
            finally:
                os.close(old)
                os.close(new)
            assert list(listing(changes_of(upper, before, mount))) == expected
        finally:
            os.close(upper)


@quick
@given(operations)
def test_the_same_tree_gives_the_same_bytes(first: Sequence[Operation]) -> None:
    with workspace() as place:
        (place / "one").mkdir()
        perform(os.fsencode(place / "one"), first)
        copied(place / "one", place / "other")
        (place / "nothing").mkdir()
        shutil.copystat(place / "one", place / "nothing")
        nothing = place / "nothing"
        assert layer_between(nothing, place / "one") == layer_between(nothing, place / "other")


def test_names_that_are_no_longer_links_of_one_file_are_sent_apart() -> None:
    with workspace() as place:
        before = place / "before"
        before.mkdir()
        (before / "a").write_bytes(b"same")
        os.link(before / "a", before / "b")
        os.utime(before, ns=(0, 0))
        after = copied(before, place / "after")
        shutil.copy2(after / "b", place / "apart")
        os.rename(place / "apart", after / "b")
        os.utime(after, ns=(0, 0))
        layer = layer_between(before, after)
        tree = opened(before)
        try:
            unpack_in_place(tree, unpacks(layer))
        finally:
            os.close(tree)
        assert snapshot(before) == snapshot(after)
        assert (before / "a").stat().st_nlink == 1
