"""The walk that finds changes, without saying how two files are compared or which names are looked at.

Order: a directory before what is in it, names in byte order. A directory whose descendants changed
is yielded, as `CHANGED`, even when nothing of its own did: a change set carries the directories that lead
to its files, as docker's does. The root is yielded only when its own attributes differ.
"""

from __future__ import annotations

import abc
import os
import stat
from collections.abc import Iterator

from layerfs.tree import compare
from layerfs.tree.change import Change, ChangeKind
from layerfs.tree.entry import Entry
from layerfs.tree.ladder import OPEN_DIRECTORY, Ladder
from layerfs.tree.read_entry import kind_of, read_directory_entry


class Level:
    """One directory of the walk: its names yet to come, and its own change, yielded or not."""

    __slots__ = ("change", "has_lower", "hidden", "is_opaque", "names", "path")

    def __init__(self, path: bytes, has_lower: bool, change: Change | None) -> None:
        self.path = path
        self.names: list[bytes] = []
        self.has_lower = has_lower
        self.change = change
        # What an upper directory says of those below: all is hidden, or these names are.
        self.is_opaque = False
        self.hidden: set[bytes] = set()


class Walk(abc.ABC):
    """What both ways share: the levels, and yielding a directory before the first change in it."""

    def __init__(self, lower: int | None, upper: int, *, path: bytes = b"") -> None:
        """Walk below two roots, given as descriptors; `path` stands before the path of every change."""
        self._path = path
        self.upper = Ladder(upper)
        self.lower = Ladder(lower) if lower is not None else None
        self.levels: list[Level] = []

    def walk(self) -> Iterator[Change]:
        """Give the changes below the two roots; the roots stay the caller's."""
        try:
            change, differs = self._root_change()
            self.levels.append(Level(self._path, self.lower is not None, change))
            if not self._path and not differs:
                self.levels[0].change = None
            self.levels[0].names = self.names()
            if differs:
                yield from self._pending()
            while self.levels:
                level = self.levels[-1]
                if not level.names:
                    self._leave()
                    continue
                name = level.names.pop()
                path = level.path + b"/" + name if level.path else name
                yield from self.visit(name, path)
        finally:
            self.upper.close()
            if self.lower is not None:
                self.lower.close()

    @abc.abstractmethod
    def names(self) -> list[bytes]:
        """Give the names to visit in the directory where the walk stands, last first."""

    @abc.abstractmethod
    def visit(self, name: bytes, path: bytes) -> Iterator[Change]:
        """Give the changes at one name, and step into it if it is a directory."""

    @property
    def below(self) -> int:
        """Descriptor of the counterpart of the directory where the walk stands; -1 when it has none."""
        if self.lower is None or not self.levels[-1].has_lower:
            return -1
        return self.lower.top

    def _leave(self) -> None:
        level = self.levels.pop()
        if self.levels:
            self.upper.pop()
            if level.has_lower and self.lower is not None:
                self.lower.pop()

    def yield_(self, change: Change) -> Iterator[Change]:
        yield from self._pending()
        yield change

    def _pending(self) -> Iterator[Change]:
        """Yield the directories on the way that were held back until something in them changed."""
        first = len(self.levels)
        while first and self.levels[first - 1].change is not None:
            first -= 1
        for level in self.levels[first:]:
            if level.change is not None:
                yield level.change
                level.change = None

    def deleted(self, name: bytes, path: bytes) -> Iterator[Change]:
        found = os.stat(name, dir_fd=self.below, follow_symlinks=False)
        yield from self.yield_(Change(ChangeKind.DELETED, Entry(path, kind_of(found))))

    def old_status(self, name: bytes) -> os.stat_result | None:
        below = self.below
        if below < 0:
            return None
        try:
            return os.stat(name, dir_fd=below, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def enter(self, name: bytes, directory: int, path: bytes, old: os.stat_result | None) -> Iterator[Change]:
        """Step into a directory of the upper tree, whose descriptor is taken over.

        It is yielded at once when it differs by itself, else with the first change in it.
        """
        entry = read_directory_entry(directory, path)
        is_merged = old is not None and stat.S_ISDIR(old.st_mode)
        differs, minor = True, False
        if is_merged:
            assert self.lower is not None
            counterpart = os.open(name, OPEN_DIRECTORY, dir_fd=self.lower.top)
            self.lower.push(counterpart)
            differs, minor = _compare(entry, read_directory_entry(counterpart, path))
        self.upper.push(directory)
        kind = ChangeKind.ADDED if old is None else ChangeKind.CHANGED
        self.levels.append(Level(path, is_merged, Change(kind, entry, minor=minor)))
        self.levels[-1].names = self.names()
        if differs:
            yield from self._pending()

    def _root_change(self) -> tuple[Change, bool]:
        entry = read_directory_entry(self.upper.top, self._path)
        if self.lower is None:
            return Change(ChangeKind.ADDED, entry), True
        differs, minor = _compare(entry, read_directory_entry(self.lower.top, self._path))
        return Change(ChangeKind.CHANGED, entry, minor=minor), differs


def _compare(entry: Entry, old: Entry) -> tuple[bool, bool]:
    """Say whether two directories differ by themselves, and whether at most their times do."""
    minor = compare.same_but_for_time(entry, old)
    return entry.mtime_ns != old.mtime_ns or not minor, minor
