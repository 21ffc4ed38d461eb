"""Changing a tree: small files, large ones, copy-up, and moving and deleting what lies below."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.clock import Clock
from benchmarks.images.recipes import LOWER_TREE, MEDIUM
from benchmarks.scales import KIBIBYTE, MEBIBYTE
from benchmarks.workloads.base import Bench, State, Workload, in_folder

_SMALL: Final = b"x" * 512
_FOLDER: Final = "created"


def create(folder: Path, bench: Bench, clock: Clock) -> None:
    """Create small files in a new directory."""
    place = folder / _FOLDER
    place.mkdir()
    with clock(bench.scale.created):
        _create(str(place), bench.scale.created)


def _create(place: str, count: int) -> None:
    for number in range(count):
        descriptor = os.open(f"{place}/{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(descriptor, _SMALL)
        os.close(descriptor)


def delete(folder: Path, bench: Bench, clock: Clock) -> None:
    """Delete small files that were created on this mount."""
    place = folder / _FOLDER
    place.mkdir()
    _create(str(place), bench.scale.created)
    bench.settle()
    with clock(bench.scale.created):
        for number in range(bench.scale.created):
            os.unlink(f"{place}/{number}")


def _writing(block: int, text: str) -> Callable[[Path, Bench, Clock], None]:
    def write(folder: Path, bench: Bench, clock: Clock) -> None:
        data = b"x" * block
        descriptor = os.open(folder / "written", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            with clock():
                for _ in range(bench.scale.written // block):
                    os.write(descriptor, data)
        finally:
            os.close(descriptor)

    write.__doc__ = f"Write a new large file in blocks of {text}."
    return write


def copy_up(folder: Path, bench: Bench, clock: Clock) -> None:
    """Change one byte of a large file of a lower layer."""
    with clock():
        descriptor = os.open(folder / MEDIUM, os.O_RDWR)
        os.pwrite(descriptor, b"!", 0)
        os.close(descriptor)


def copy_up_many(folder: Path, bench: Bench, clock: Clock) -> None:
    """Change the mode of every file of a lower tree."""
    paths = [
        os.path.join(parent, name)
        for parent, _, names in os.walk(folder / LOWER_TREE)
        for name in names
        if not os.path.islink(os.path.join(parent, name))
    ]
    with clock(len(paths)):
        for path in paths:
            os.chmod(path, 0o600)


def rename_new(folder: Path, bench: Bench, clock: Clock) -> None:
    """Rename directories with files in them that were created on this mount, there and back."""
    trees = [folder / f"tree-{number}" for number in range(max(bench.scale.created // 50, 1))]
    for tree in trees:
        tree.mkdir()
        _create(str(tree), 5)
    with clock(2 * len(trees)):
        for tree in trees:
            os.rename(tree, f"{tree}-moved")
        for tree in trees:
            os.rename(f"{tree}-moved", tree)


def move_lower(folder: Path, bench: Bench, clock: Clock) -> None:
    """Move a tree of a lower layer as mv does: rename it, or copy and delete it where that is refused."""
    with clock():
        shutil.move(folder / LOWER_TREE, folder / "moved")


def delete_lower(folder: Path, bench: Bench, clock: Clock) -> None:
    """Delete a tree of a lower layer."""
    with clock():
        shutil.rmtree(folder / LOWER_TREE)


WORKLOADS: Final[tuple[Workload, ...]] = (
    in_folder("create", create),
    in_folder("delete", delete, slow=True),
    in_folder("write-1m", _writing(MEBIBYTE, "1 MiB"), image="large"),
    in_folder("write-4k", _writing(4 * KIBIBYTE, "4 KiB"), image="large", slow=True),
    in_folder("copy-up", copy_up, image="large", state=State.FRESH),
    in_folder("copy-up-many", copy_up_many, slow=True),
    in_folder("rename-new", rename_new, slow=True),
    in_folder("move-lower", move_lower, slow=True),
    in_folder("delete-lower", delete_lower),
)
