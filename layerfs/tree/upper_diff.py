"""The walk of an upper directory: what it changes, looking below only at the names that stand in it.

What hides a name and what makes a directory opaque is left to the walk of each format. Every file with
several names in the upper directory is yielded.
"""

from __future__ import annotations

import abc
import os
import stat
from collections.abc import Callable, Iterator

from layerfs.tree import compare
from layerfs.tree.change import Change, ChangeKind
from layerfs.tree.diff_walk import Walk
from layerfs.tree.entry import Entry, Kind
from layerfs.tree.ladder import OPEN_DIRECTORY
from layerfs.tree.links import several_names
from layerfs.tree.read_entry import read_entry


class UpperWalk(Walk):
    """The walk of an upper directory that is not mounted writable."""

    def __init__(self, upper: int, open_lower: Callable[[], int] | None) -> None:
        """Walk below `upper`; `open_lower` opens the merged tree below it, None when there is none."""
        self._lower_root = open_lower() if open_lower is not None else None
        super().__init__(self._lower_root, upper)
        self._first_names: dict[tuple[int, int], bytes] = {}

    def walk(self) -> Iterator[Change]:
        """Give the changes, and close the merged tree that was opened for them."""
        try:
            yield from super().walk()
        finally:
            if self._lower_root is not None:
                os.close(self._lower_root)

    def names(self) -> list[bytes]:
        """Give the names of this directory that may differ from below, last first."""
        directory = self.upper.top
        names = self.standing(directory)
        if self.below >= 0:
            # Below an opaque directory nothing of the lower tree shows, and no layer says so again.
            level = self.levels[-1]
            level.is_opaque = (len(self.levels) > 1 and self.levels[-2].is_opaque) or (
                self.is_opaque(directory)
            )
            if level.is_opaque:
                names.update(os.fsencode(name) for name in os.listdir(self.below))
        return sorted(names, reverse=True)

    @abc.abstractmethod
    def standing(self, directory: int) -> set[bytes]:
        """Give the names that an upper directory has or hides."""

    @abc.abstractmethod
    def is_opaque(self, directory: int) -> bool:
        """Say whether an upper directory hides all that is below."""

    @abc.abstractmethod
    def is_hidden(self, name: bytes, new: os.stat_result) -> bool:
        """Say whether a name of the upper directory where the walk stands does not show."""

    def visit(self, name: bytes, path: bytes) -> Iterator[Change]:
        """Tell a hidden name, a directory and a file apart."""
        old = self.old_status(name)
        try:
            new = os.stat(name, dir_fd=self.upper.top, follow_symlinks=False)
        except FileNotFoundError:
            new = None
        if new is None or self.is_hidden(name, new):
            if old is not None:
                yield from self.deleted(name, path)
        elif stat.S_ISDIR(new.st_mode):
            yield from self.visit_directory(name, path, old)
        else:
            yield from self.visit_file(name, path, new, old)

    def visit_directory(self, name: bytes, path: bytes, old: os.stat_result | None) -> Iterator[Change]:
        """Step into a directory."""
        directory = os.open(name, OPEN_DIRECTORY, dir_fd=self.upper.top)
        yield from self.enter(name, directory, path, old)

    def visit_file(
        self, name: bytes, path: bytes, new: os.stat_result, old: os.stat_result | None
    ) -> Iterator[Change]:
        """Compare what is no directory with what is below."""
        yield from self.compare_file(self.upper.top, name, path, new, old)

    def compare_file(
        self, directory: int, name: bytes, path: bytes, new: os.stat_result, old: os.stat_result | None
    ) -> Iterator[Change]:
        """Compare a file, to be read in `directory`, with what is below."""
        entry = read_entry(directory, name, new, path)
        kind = ChangeKind.ADDED if old is None else ChangeKind.CHANGED
        unchanged = old is not None and self._unchanged(entry, directory, name, old)
        if several_names(new):
            first = self._first_names.setdefault((new.st_dev, new.st_ino), path)
            if first != path:
                entry = entry._replace(kind=Kind.HARDLINK, target=first, size=0)
        elif unchanged and old is not None and not several_names(old):
            return
        yield from self.yield_(Change(kind, entry, directory, name, unchanged))

    def _unchanged(self, entry: Entry, directory: int, name: bytes, old: os.stat_result) -> bool:
        if not compare.same_attributes(entry, read_entry(self.below, name, old, entry.path)):
            return False
        return entry.kind is not Kind.FILE or compare.same_content(self.below, name, directory, name)
