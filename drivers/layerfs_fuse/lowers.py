"""Opens the directories of lower layers where reading changes nothing: layers are others' too.

The kernel reads files that it was given itself (FUSE_PASSTHROUGH) with the flags of whoever opened them,
so O_NOATIME is of no use there: what counts is the mount by which a file was reached.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from layerfs import linux

_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Lowers:
    """Directories of one mount that can be opened; made by `reached`."""

    def __init__(self, above: Path, tree: int | None) -> None:
        self._above = above
        self._tree = tree

    def open(self, directory: Path) -> int:
        """Open a directory."""
        direct = os.open(directory, _FLAGS)
        if self._tree is None:
            return direct
        untouched = _opened_below(self._tree, os.path.relpath(directory, self._above), direct)
        if untouched is None and (own := _untouched(directory)) is not None:
            # What is mounted on a layer, or above it, is not part of the tree of all.
            untouched = _opened_below(own, ".", direct)
            os.close(own)
        if untouched is None:
            return direct
        os.close(direct)
        return untouched


@contextlib.contextmanager
def reached(directories: Sequence[Path]) -> Iterator[Lowers]:
    """Give a way to open directories that leaves no times of access behind, where one may have it."""
    above = Path(os.path.commonpath([os.path.abspath(each) for each in directories] or ["/"]))
    tree = _untouched(above) if directories else None
    try:
        yield Lowers(above, tree)
    finally:
        if tree is not None:
            os.close(tree)


def _opened_below(tree: int, path: str, direct: int) -> int | None:
    """Open a directory by another way, if that leads to the same one."""
    try:
        found = os.open(path, _FLAGS, dir_fd=tree)
    except OSError:
        return None
    if os.path.sameopenfile(direct, found):
        return found
    os.close(found)
    return None


def _untouched(above: Path) -> int | None:
    try:
        tree = linux.open_tree(linux.AT_FDCWD, above, linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC)
    except OSError:
        return None
    try:
        linux.mount_setattr(
            tree, b"", linux.AT_EMPTY_PATH,
            set_attributes=linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOATIME,
            clear_attributes=linux.MOUNT_ATTR_ATIME,
        )  # fmt: skip
    except OSError:
        os.close(tree)
        return None
    return tree
