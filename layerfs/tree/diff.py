"""What one whole tree has that another had not: the changes, in order, each still open to be read.

This way serves every driver; `overlay_diff` knows a shorter one to the same changes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator

from layerfs.tree import compare, links
from layerfs.tree.change import Change, ChangeKind
from layerfs.tree.diff_walk import Walk
from layerfs.tree.entry import Kind
from layerfs.tree.ladder import OPEN_DIRECTORY
from layerfs.tree.links import Several, several_names
from layerfs.tree.read_entry import read_entry


def changes_between(
    lower: int | None,
    upper: int,
    *,
    touched_since_ns: int | None = None,
    several: tuple[Several, Several] = (several_names, several_names),
) -> Iterator[Change]:
    """Compare two trees that nobody is changing.

    Args:
        lower: descriptor of the root of the tree before; None stands for no tree at all, so that all
            of `upper` is added.
        upper: descriptor of the root of the tree after.
        touched_since_ns: the driver's word that a file whose ctime in `upper` is earlier (nanoseconds
            since 1970) holds what its counterpart in `lower` holds. Without it files with equal
            attributes are compared byte by byte.
        several: the driver's word which files of `lower`, and which of `upper`, may have more than one name
            there, for trees that share files with others.
    """
    return Trees(lower, upper, b"", touched_since_ns, several).walk()


def listing(changes: Iterable[Change]) -> Iterator[tuple[ChangeKind, bytes]]:
    """Give what ``docker diff`` prints: a letter and an absolute path, the root left out.

    A directory of which only the time differs, and one in which only such directories changed, is left
    out, and so is a hard link of which nothing but the links changed.
    """
    held_back: list[Change] = []
    for change in changes:
        path = change.entry.path
        while held_back and not path.startswith(held_back[-1].entry.path + b"/"):
            held_back.pop()
        if change.minor:
            if change.entry.kind is Kind.DIRECTORY and path:
                held_back.append(change)
            continue
        for directory in held_back:
            yield directory.kind, b"/" + directory.entry.path
        held_back.clear()
        if path:
            yield change.kind, b"/" + path


class Trees(Walk):
    """The walk of two whole trees."""

    def __init__(
        self,
        lower: int | None,
        upper: int,
        path: bytes,
        touched_since_ns: int | None,
        several: tuple[Several, Several] = (several_names, several_names),
    ) -> None:
        super().__init__(lower, upper, path=path)
        self._roots = (lower, upper)
        self._touched_since_ns = touched_since_ns
        self._several = several
        self._sent_links: dict[bytes, bytes] | None = None

    def names(self) -> list[bytes]:
        """Give all names of this directory in both trees, last first."""
        names = {os.fsencode(name) for name in os.listdir(self.upper.top)}
        if self.below >= 0:
            names.update(os.fsencode(name) for name in os.listdir(self.below))
        return sorted(names, reverse=True)

    def visit(self, name: bytes, path: bytes) -> Iterator[Change]:
        """Compare what the two trees have at one name."""
        try:
            new = os.stat(name, dir_fd=self.upper.top, follow_symlinks=False)
        except FileNotFoundError:
            yield from self.deleted(name, path)
            return
        old = self.old_status(name)
        if stat.S_ISDIR(new.st_mode):
            directory = os.open(name, OPEN_DIRECTORY, dir_fd=self.upper.top)
            yield from self.enter(name, directory, path, old)
            return
        before, after = self._several
        if after(new) or (old is not None and before(old) and not stat.S_ISSOCK(new.st_mode)):
            yield from self._visit_linked(name, path, new, old)
            return
        if old is not None and self._same(self.below, name, old, self.upper.top, name, new):
            return
        kind = ChangeKind.ADDED if old is None else ChangeKind.CHANGED
        entry = read_entry(self.upper.top, name, new, path)
        yield from self.yield_(Change(kind, entry, self.upper.top, name))

    def _visit_linked(
        self,
        name: bytes,
        path: bytes,
        new: os.stat_result,
        old: os.stat_result | None,
    ) -> Iterator[Change]:
        kind = ChangeKind.ADDED if old is None else ChangeKind.CHANGED
        if self._sent_links is None:
            self._sent_links = self._decide_links()
        below_root = path[len(self._path) + 1 :] if self._path else path
        first = self._sent_links.get(below_root)
        if first is None:
            return
        entry = read_entry(self.upper.top, name, new, path)
        minor = old is not None and self._same(self.below, name, old, self.upper.top, name, new)
        if first != below_root:
            target = self._path + b"/" + first if self._path else first
            entry = entry._replace(kind=Kind.HARDLINK, target=target, size=0)
        yield from self.yield_(Change(kind, entry, self.upper.top, name, minor))

    def _decide_links(self) -> dict[bytes, bytes]:
        lower, upper = self._roots
        if lower is not None:
            return links.decide(lower, upper, same=self._same, several=self._several)
        return links.first_names(upper, self._several[1])

    def _same(
        self,
        old_directory: int,
        old_name: bytes,
        old: os.stat_result,
        new_directory: int,
        new_name: bytes,
        new: os.stat_result,
    ) -> bool:
        if (
            old.st_mode != new.st_mode
            or old.st_mtime_ns != new.st_mtime_ns
            or old.st_uid != new.st_uid
            or old.st_gid != new.st_gid
            or old.st_rdev != new.st_rdev
            or (old.st_size != new.st_size and stat.S_ISREG(new.st_mode))
        ):
            return False
        if compare.is_same_file(old, new):
            return True
        if self._touched_since_ns is not None and new.st_ctime_ns < self._touched_since_ns:
            return True
        old_entry = read_entry(old_directory, old_name, old, b"")
        new_entry = read_entry(new_directory, new_name, new, b"")
        if not compare.same_attributes(old_entry, new_entry):
            return False
        return not stat.S_ISREG(new.st_mode) or compare.same_content(
            old_directory, old_name, new_directory, new_name
        )
