"""What an overlayfs upper directory changes, looking below only at the names that stand in it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Final

from layerfs.files import through_descriptor
from layerfs.tree import compare
from layerfs.tree.change import Change, ChangeKind
from layerfs.tree.diff import Trees
from layerfs.tree.diff_walk import Walk
from layerfs.tree.entry import Entry, Kind
from layerfs.tree.ladder import OPEN_DIRECTORY
from layerfs.tree.links import several_names
from layerfs.tree.read_entry import read_entry
from layerfs.tree.whiteouts import OverlayWhiteouts, is_overlay_whiteout

_NO_XATTR: Final = (errno.ENODATA, errno.ENOTSUP)


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


class _Upper(Walk):
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
        self._open_merged = open_merged
        self._merged_root: int | None = None
        self._prefix = whiteouts.xattr_prefix
        self._first_names: dict[tuple[int, int], bytes] = {}

    def walk(self) -> Iterator[Change]:
        """Give the changes, and close the merged trees that were opened for them."""
        try:
            yield from super().walk()
        finally:
            for root in (self._lower_root, self._merged_root):
                if root is not None:
                    os.close(root)

    def names(self) -> list[bytes]:
        """Give the names of this directory that may differ from below, last first."""
        directory = self.upper.top
        names = {os.fsencode(name) for name in os.listdir(directory)}
        if self.below >= 0:
            # Below an opaque directory nothing of the lower tree shows, and the kernel does not say so again.
            level = self.levels[-1]
            level.is_opaque = (len(self.levels) > 1 and self.levels[-2].is_opaque) or (
                self._xattr(directory, "opaque") == b"y"
            )
            if level.is_opaque:
                names.update(os.fsencode(name) for name in os.listdir(self.below))
        return sorted(names, reverse=True)

    def _xattr(self, target: int | bytes, name: str) -> bytes | None:
        try:
            return os.getxattr(target, self._prefix + name, follow_symlinks=isinstance(target, int))
        except OSError as error:
            if error.errno in _NO_XATTR:
                return None
            raise

    def visit(self, name: bytes, path: bytes) -> Iterator[Change]:
        """Tell a whiteout, a directory and a file apart."""
        upper = self.upper.top
        old = self.old_status(name)
        try:
            new = os.stat(name, dir_fd=upper, follow_symlinks=False)
        except FileNotFoundError:
            yield from self.deleted(name, path)
            return
        if is_overlay_whiteout(new) or self._is_xattr_whiteout(name, new):
            if old is not None:
                yield from self.deleted(name, path)
        elif stat.S_ISDIR(new.st_mode):
            yield from self._visit_directory(name, path, old)
        else:
            yield from self._visit_file(name, path, new, old)

    def _is_xattr_whiteout(self, name: bytes, new: os.stat_result) -> bool:
        if not stat.S_ISREG(new.st_mode) or new.st_size:
            return False
        return self._xattr(through_descriptor(self.upper.top, name), "whiteout") is not None

    def _visit_directory(self, name: bytes, path: bytes, old: os.stat_result | None) -> Iterator[Change]:
        directory = os.open(name, OPEN_DIRECTORY, dir_fd=self.upper.top)
        if self._xattr(directory, "redirect") is not None:
            os.close(directory)
            yield from self._visit_redirected(name, path, old)
            return
        yield from self.enter(name, directory, path, old)

    def _visit_redirected(self, name: bytes, path: bytes, old: os.stat_result | None) -> Iterator[Change]:
        """A directory that shows another one's content: compare what the mount shows of it."""
        merged = _open_below(self._merged(), path)
        lower = None
        try:
            if old is not None and stat.S_ISDIR(old.st_mode):
                lower = os.open(name, OPEN_DIRECTORY, dir_fd=self.below)
            for change in Trees(lower, merged, path, None).walk():
                if old is not None and change.entry.path == path:
                    yield from self.yield_(change._replace(kind=ChangeKind.CHANGED))
                else:
                    yield from self.yield_(change)
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
        directory, opened = self.upper.top, -1
        try:
            if stat.S_ISREG(new.st_mode) and new.st_size:
                metacopy = self._xattr(through_descriptor(directory, name), "metacopy")
                if metacopy is not None:
                    parent = path.rpartition(b"/")[0]
                    directory = opened = _open_below(self._merged(), parent)
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
        finally:
            if opened >= 0:
                os.close(opened)

    def _unchanged(self, entry: Entry, directory: int, name: bytes, old: os.stat_result) -> bool:
        if not compare.same_attributes(entry, read_entry(self.below, name, old, entry.path)):
            return False
        return entry.kind is not Kind.FILE or compare.same_content(self.below, name, directory, name)


def _open_below(root: int, path: bytes) -> int:
    directory = os.dup(root)
    for name in path.split(b"/") if path else ():
        below = os.open(name, OPEN_DIRECTORY, dir_fd=directory)
        os.close(directory)
        directory = below
    return directory
