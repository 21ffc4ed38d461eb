"""Which names of hard-linked files a difference has to carry, so that the links come out right.

A change set replaces files name by name. A file with several names that changed under one of them, or got a
name more, or shares its inode no longer with a name it shared it with, must be sent under all of
its names: the first as the file, the others as hard links to it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator

from layerfs.tree.ladder import OPEN_DIRECTORY, Ladder

Parts = tuple[bytes, ...]
# Says whether a file may have more than one name in its tree.
Several = Callable[[os.stat_result], bool]
Same = Callable[[int, bytes, os.stat_result, int, bytes, os.stat_result], bool]


def decide(lower: int, upper: int, *, same: Same, several: tuple[Several, Several]) -> dict[bytes, bytes]:
    """Find the hard-linked files of `upper` that a difference against `lower` must carry.

    Args:
        lower: descriptor of the root of the tree before.
        upper: descriptor of the root of the tree after.
        several: say of a file of `lower`, and of one of `upper`, whether it may have names more there.
        same: compares the file of one path in both trees, as (directory, name, lstat) each.

    Returns:
        For the path of each such file the path of the name that is sent as the file: its own, or
        the one to link to. Memory grows with the hard-linked files of both trees.
    """
    before = _groups(lower, several[0])
    after = _groups(upper, several[1])
    group_before = {path: frozenset(paths) for paths in before.values() for path in paths}
    group_after = {path: paths for paths in after.values() for path in paths}
    for path in group_before:
        if path not in group_after and _exists(upper, path):
            group_after[path] = [path]
    unique = sorted({tuple(paths) for paths in group_after.values()})
    sent: set[Parts] = set()
    for group in unique:
        if any(_changed(lower, upper, path, same) for path in group):
            sent.update(group)
    for group in unique:
        if group[0] not in sent:
            old = group_before.get(group[0], frozenset(group[:1]))
            if old - sent != set(group):
                sent.update(group)
    return {b"/".join(path): b"/".join(group[0]) for group in unique if group[0] in sent for path in group}


def first_names(upper: int, several: Several) -> dict[bytes, bytes]:
    """Give for each hard-linked file of a tree the first of its names, in the order of a walk."""
    return {
        b"/".join(path): b"/".join(paths[0]) for paths in _groups(upper, several).values() for path in paths
    }


def linked_inodes(root: int) -> set[int]:
    """Give the inode numbers of all files of a tree that have more than one name, wherever that is."""
    # Btrfs shows an old descriptor nothing of what was made since.
    anew = os.open(b".", OPEN_DIRECTORY, dir_fd=root)
    try:
        return {found.st_ino for _, found in _linked(anew, lambda found: found.st_nlink > 1)}
    finally:
        os.close(anew)


def several_names(found: os.stat_result) -> bool:
    """Say whether this is a file with more than one name; a socket's links cannot be carried."""
    return found.st_nlink > 1 and not (stat.S_ISDIR(found.st_mode) or stat.S_ISSOCK(found.st_mode))


def _groups(root: int, several: Several) -> dict[tuple[int, int], list[Parts]]:
    groups: dict[tuple[int, int], list[Parts]] = {}
    for path, found in _linked(root, several):
        groups.setdefault((found.st_dev, found.st_ino), []).append(path)
    for paths in groups.values():
        paths.sort()
    return groups


def _linked(root: int, several: Several) -> Iterator[tuple[Parts, os.stat_result]]:
    """Walk a tree for files with more than one name."""
    ladder = Ladder(root)
    here: list[bytes] = []
    todo: list[list[bytes]] = []
    try:
        while True:
            below: list[bytes] = []
            with os.scandir(ladder.top) as entries:
                for entry in entries:
                    name = os.fsencode(entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        below.append(name)
                        continue
                    found = entry.stat(follow_symlinks=False)
                    if several(found):
                        yield (*here, name), found
            todo.append(below)
            while not todo[-1]:
                todo.pop()
                if not todo:
                    return
                here.pop()
                ladder.pop()
            name = todo[-1].pop()
            ladder.push(os.open(name, OPEN_DIRECTORY, dir_fd=ladder.top))
            here.append(name)
    finally:
        ladder.close()


def _changed(lower: int, upper: int, path: Parts, same: Same) -> bool:
    old_directory, new_directory = _open_parent(lower, path), _open_parent(upper, path)
    try:
        if old_directory is None or new_directory is None:
            return True
        try:
            old = os.stat(path[-1], dir_fd=old_directory, follow_symlinks=False)
        except FileNotFoundError:
            return True
        new = os.stat(path[-1], dir_fd=new_directory, follow_symlinks=False)
        return not same(old_directory, path[-1], old, new_directory, path[-1], new)
    finally:
        for directory in (old_directory, new_directory):
            if directory is not None:
                os.close(directory)


def _exists(root: int, path: Parts) -> bool:
    directory = _open_parent(root, path)
    if directory is None:
        return False
    try:
        found = os.stat(path[-1], dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    finally:
        os.close(directory)
    return not stat.S_ISDIR(found.st_mode)


def _open_parent(root: int, path: Parts) -> int | None:
    directory = os.dup(root)
    for name in path[:-1]:
        try:
            below = os.open(name, OPEN_DIRECTORY, dir_fd=directory)
        except (FileNotFoundError, NotADirectoryError):
            return None
        finally:
            os.close(directory)
        directory = below
    return directory
