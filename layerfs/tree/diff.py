"""What one tree has that another had not: the changes, in order, each still open to be read.

Two ways lead to the same changes. `changes_between` walks two whole trees and serves every driver.
`overlay_changes` walks the upper directory of an overlayfs mount alone, and looks below only at the
names that it meets.

Order: a directory before what is in it, names in byte order. A directory whose descendants changed
is yielded, as `CHANGED`, even when nothing of its own did: a change set carries the directories that lead
to its files, as docker's does. The root is yielded only when its own attributes differ.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from layerfs.files import through_descriptor
from layerfs.tree import compare, links
from layerfs.tree.change import Change, ChangeKind
from layerfs.tree.entry import Entry, Kind
from layerfs.tree.ladder import OPEN_DIRECTORY, Ladder
from layerfs.tree.read_entry import kind_of, read_directory_entry, read_entry
from layerfs.tree.whiteouts import OverlayWhiteouts, is_overlay_whiteout

_NO_XATTR: Final = (errno.ENODATA, errno.ENOTSUP)


def changes_between(
    lower: int | None, upper: int, *, touched_since_ns: int | None = None
) -> Iterator[Change]:
    """Compare two trees that nobody is changing.

    Args:
        lower: descriptor of the root of the tree before; None stands for no tree at all, so that all
            of `upper` is added.
        upper: descriptor of the root of the tree after.
        touched_since_ns: the driver's word that a file whose ctime in `upper` is earlier (nanoseconds
            since 1970) holds what its counterpart in `lower` holds. Without it files with equal
            attributes are compared byte by byte.
    """
    return _Trees(lower, upper, b"", touched_since_ns).walk()


def overlay_changes(
    upper: int,
    *,
    open_lower: Callable[[], int] | None,
    open_merged: Callable[[], int],
    whiteouts: OverlayWhiteouts,
) -> Iterator[Change]:
    """Read the changes out of an overlayfs upper directory that is not mounted writable.

    Understands whiteouts of both kinds, opaque directories, renamed directories (redirect_dir) and files
    of which only the metadata was copied up (metacopy); see filesystems/overlayfs.rst in the kernel's
    documentation. Every file with several names in the upper directory is yielded.

    Args:
        upper: descriptor of the upper directory.
        open_lower: opens the merged tree below it; None when there is none. Called at most once.
        open_merged: opens the merged tree with the upper directory on top; called at most once, and only
            for redirects and metacopy. The descriptors that both give are closed here.
        whiteouts: the name space of overlayfs's xattrs in this mount.
    """
    return _Upper(upper, open_lower, open_merged, whiteouts).walk()


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


class _Level:
    """One directory of the walk: its names yet to come, and its own change, yielded or not."""

    __slots__ = ("change", "has_lower", "is_opaque", "names", "path")

    def __init__(self, path: bytes, names: list[bytes], has_lower: bool, change: Change | None) -> None:
        self.path = path
        self.names = names
        self.has_lower = has_lower
        self.change = change
        self.is_opaque = False


class _Walk:
    """What both ways share: the levels, and yielding a directory before the first change in it."""

    def __init__(self, lower: int | None, upper: int) -> None:
        self._upper = Ladder(upper)
        self._lower = Ladder(lower) if lower is not None else None
        self._levels: list[_Level] = []

    def close(self) -> None:
        self._upper.close()
        if self._lower is not None:
            self._lower.close()

    @property
    def _below(self) -> int:
        """Descriptor of the counterpart of the directory where the walk stands; -1 when it has none."""
        if self._lower is None or not self._levels[-1].has_lower:
            return -1
        return self._lower.top

    def _leave(self) -> None:
        level = self._levels.pop()
        if self._levels:
            self._upper.pop()
            if level.has_lower and self._lower is not None:
                self._lower.pop()

    def _yield(self, change: Change) -> Iterator[Change]:
        yield from self._pending()
        yield change

    def _pending(self) -> Iterator[Change]:
        """Yield the directories on the way that were held back until something in them changed."""
        first = len(self._levels)
        while first and self._levels[first - 1].change is not None:
            first -= 1
        for level in self._levels[first:]:
            if level.change is not None:
                yield level.change
                level.change = None

    def _deleted(self, name: bytes, path: bytes) -> Iterator[Change]:
        found = os.stat(name, dir_fd=self._below, follow_symlinks=False)
        yield from self._yield(Change(ChangeKind.DELETED, Entry(path, kind_of(found))))

    def _old_status(self, name: bytes) -> os.stat_result | None:
        below = self._below
        if below < 0:
            return None
        try:
            return os.stat(name, dir_fd=below, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _enter(
        self, name: bytes, directory: int, path: bytes, old: os.stat_result | None
    ) -> tuple[Change, bool]:
        """Step into a directory of the upper tree; says how it differs, and whether it does by itself."""
        entry = read_directory_entry(directory, path)
        is_merged = old is not None and stat.S_ISDIR(old.st_mode)
        differs, minor = True, False
        if is_merged:
            assert self._lower is not None
            counterpart = os.open(name, OPEN_DIRECTORY, dir_fd=self._lower.top)
            self._lower.push(counterpart)
            before = read_directory_entry(counterpart, path)
            minor = compare.same_but_for_time(entry, before)
            differs = entry.mtime_ns != before.mtime_ns or not minor
        self._upper.push(directory)
        kind = ChangeKind.ADDED if old is None else ChangeKind.CHANGED
        self._levels.append(_Level(path, [], is_merged, None))
        return Change(kind, entry, minor=minor), differs

    def _root_change(self, lower: int | None, upper: int, path: bytes) -> tuple[Change, bool]:
        entry = read_directory_entry(upper, path)
        if lower is None:
            return Change(ChangeKind.ADDED, entry), True
        old = read_directory_entry(lower, path)
        return Change(ChangeKind.CHANGED, entry), not compare.same_attributes(entry, old)


class _Trees(_Walk):
    """The walk of two whole trees."""

    def __init__(self, lower: int | None, upper: int, path: bytes, touched_since_ns: int | None) -> None:
        super().__init__(lower, upper)
        self._roots = (lower, upper)
        self._path = path
        self._touched_since_ns = touched_since_ns
        self._sent_links: dict[bytes, bytes] | None = None

    def walk(self) -> Iterator[Change]:
        lower, upper = self._roots
        try:
            change, differs = self._root_change(lower, upper, self._path)
            held_back = change if self._path and not differs else None
            self._levels.append(_Level(self._path, [], lower is not None, held_back))
            self._levels[-1].names = self._names()
            if differs:
                yield change
            while self._levels:
                level = self._levels[-1]
                if not level.names:
                    self._leave()
                    continue
                name = level.names.pop()
                path = level.path + b"/" + name if level.path else name
                yield from self._visit(name, path)
        finally:
            self.close()

    def _names(self) -> list[bytes]:
        """All names of this directory in both trees, last first."""
        names = {os.fsencode(name) for name in os.listdir(self._upper.top)}
        if self._below >= 0:
            names.update(os.fsencode(name) for name in os.listdir(self._below))
        return sorted(names, reverse=True)

    def _visit(self, name: bytes, path: bytes) -> Iterator[Change]:
        try:
            new = os.stat(name, dir_fd=self._upper.top, follow_symlinks=False)
        except FileNotFoundError:
            yield from self._deleted(name, path)
            return
        old = self._old_status(name)
        if stat.S_ISDIR(new.st_mode):
            directory = os.open(name, OPEN_DIRECTORY, dir_fd=self._upper.top)
            change, differs = self._enter(name, directory, path, old)
            self._levels[-1].names = self._names()
            self._levels[-1].change = change
            if differs:
                yield from self._pending()
            return
        if _has_names(new) or (old is not None and _has_names(old) and not stat.S_ISSOCK(new.st_mode)):
            yield from self._visit_linked(name, path, new, old)
            return
        if old is not None and self._same(self._below, name, old, self._upper.top, name, new):
            return
        kind = ChangeKind.ADDED if old is None else ChangeKind.CHANGED
        entry = read_entry(self._upper.top, name, new, path)
        yield from self._yield(Change(kind, entry, self._upper.top, name))

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
        entry = read_entry(self._upper.top, name, new, path)
        minor = old is not None and self._same(self._below, name, old, self._upper.top, name, new)
        if first != below_root:
            target = self._path + b"/" + first if self._path else first
            entry = entry._replace(kind=Kind.HARDLINK, target=target, size=0)
        yield from self._yield(Change(kind, entry, self._upper.top, name, minor))

    def _decide_links(self) -> dict[bytes, bytes]:
        lower, upper = self._roots
        if lower is not None:
            return links.decide(lower, upper, same=self._same)
        return links.first_names(upper)

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


class _Upper(_Walk):
    """The walk of an overlayfs upper directory."""

    def __init__(
        self,
        upper: int,
        open_lower: Callable[[], int] | None,
        open_merged: Callable[[], int],
        whiteouts: OverlayWhiteouts,
    ) -> None:
        self._lower_root = open_lower() if open_lower is not None else None
        super().__init__(self._lower_root, upper)
        self._upper_root = upper
        self._open_merged = open_merged
        self._merged_root: int | None = None
        self._prefix = whiteouts.xattr_prefix
        self._first_names: dict[tuple[int, int], bytes] = {}

    def walk(self) -> Iterator[Change]:
        try:
            change, differs = self._root_change(self._lower_root, self._upper_root, b"")
            self._levels.append(_Level(b"", [], self._lower_root is not None, None))
            self._levels[-1].names = self._names(self._upper_root)
            if differs:
                yield change
            while self._levels:
                level = self._levels[-1]
                if not level.names:
                    self._leave()
                    continue
                name = level.names.pop()
                path = level.path + b"/" + name if level.path else name
                yield from self._visit(name, path)
        finally:
            self.close()
            for root in (self._lower_root, self._merged_root):
                if root is not None:
                    os.close(root)

    def _names(self, directory: int) -> list[bytes]:
        """The names of this directory that may differ from below, last first."""
        names = {os.fsencode(name) for name in os.listdir(directory)}
        if self._below >= 0:
            # Below an opaque directory nothing of the lower tree shows, and the kernel does not say so again.
            level = self._levels[-1]
            level.is_opaque = (len(self._levels) > 1 and self._levels[-2].is_opaque) or (
                self._xattr(directory, "opaque") == b"y"
            )
            if level.is_opaque:
                names.update(os.fsencode(name) for name in os.listdir(self._below))
        return sorted(names, reverse=True)

    def _xattr(self, target: int | bytes, name: str) -> bytes | None:
        try:
            return os.getxattr(target, self._prefix + name, follow_symlinks=isinstance(target, int))
        except OSError as error:
            if error.errno in _NO_XATTR:
                return None
            raise

    def _visit(self, name: bytes, path: bytes) -> Iterator[Change]:
        upper = self._upper.top
        old = self._old_status(name)
        try:
            new = os.stat(name, dir_fd=upper, follow_symlinks=False)
        except FileNotFoundError:
            yield from self._deleted(name, path)
            return
        if is_overlay_whiteout(new) or self._is_xattr_whiteout(name, new):
            if old is not None:
                yield from self._deleted(name, path)
        elif stat.S_ISDIR(new.st_mode):
            yield from self._visit_directory(name, path, old)
        else:
            yield from self._visit_file(name, path, new, old)

    def _is_xattr_whiteout(self, name: bytes, new: os.stat_result) -> bool:
        if not stat.S_ISREG(new.st_mode) or new.st_size:
            return False
        return self._xattr(through_descriptor(self._upper.top, name), "whiteout") is not None

    def _visit_directory(self, name: bytes, path: bytes, old: os.stat_result | None) -> Iterator[Change]:
        directory = os.open(name, OPEN_DIRECTORY, dir_fd=self._upper.top)
        if self._xattr(directory, "redirect") is not None:
            os.close(directory)
            yield from self._visit_redirected(name, path, old)
            return
        change, differs = self._enter(name, directory, path, old)
        self._levels[-1].names = self._names(directory)
        self._levels[-1].change = change
        if differs:
            yield from self._pending()

    def _visit_redirected(self, name: bytes, path: bytes, old: os.stat_result | None) -> Iterator[Change]:
        """A directory that shows another one's content: compare what the mount shows of it."""
        merged = _open_below(self._merged(), path)
        lower = None
        try:
            if old is not None and stat.S_ISDIR(old.st_mode):
                lower = os.open(name, OPEN_DIRECTORY, dir_fd=self._below)
            for change in _Trees(lower, merged, path, None).walk():
                if old is not None and change.entry.path == path:
                    yield from self._yield(change._replace(kind=ChangeKind.CHANGED))
                else:
                    yield from self._yield(change)
        finally:
            os.close(merged)
            if lower is not None:
                os.close(lower)

    def _merged(self) -> int:
        if self._merged_root is None:
            self._merged_root = self._open_merged()
        return self._merged_root

    def _visit_file(
        self, name: bytes, path: bytes, new: os.stat_result, old: os.stat_result | None
    ) -> Iterator[Change]:
        directory, opened = self._upper.top, -1
        try:
            if stat.S_ISREG(new.st_mode) and new.st_size:
                metacopy = self._xattr(through_descriptor(directory, name), "metacopy")
                if metacopy is not None:
                    parent = path.rpartition(b"/")[0]
                    directory = opened = _open_below(self._merged(), parent)
            entry = read_entry(directory, name, new, path)
            kind = ChangeKind.ADDED if old is None else ChangeKind.CHANGED
            unchanged = old is not None and self._unchanged(entry, directory, name, old)
            if _has_names(new):
                first = self._first_names.setdefault((new.st_dev, new.st_ino), path)
                if first != path:
                    entry = entry._replace(kind=Kind.HARDLINK, target=first, size=0)
            elif unchanged and old is not None and not _has_names(old):
                return
            yield from self._yield(Change(kind, entry, directory, name, unchanged))
        finally:
            if opened >= 0:
                os.close(opened)

    def _unchanged(self, entry: Entry, directory: int, name: bytes, old: os.stat_result) -> bool:
        if not compare.same_attributes(entry, read_entry(self._below, name, old, entry.path)):
            return False
        return entry.kind is not Kind.FILE or compare.same_content(self._below, name, directory, name)


def _has_names(found: os.stat_result) -> bool:
    """Say whether this is a file with more than one name; a socket's links cannot be carried."""
    return found.st_nlink > 1 and not (stat.S_ISDIR(found.st_mode) or stat.S_ISSOCK(found.st_mode))


def _open_below(root: int, path: bytes) -> int:
    directory = os.dup(root)
    for name in path.split(b"/") if path else ():
        below = os.open(name, OPEN_DIRECTORY, dir_fd=directory)
        os.close(directory)
        directory = below
    return directory
