"""What an overlayfs upper directory changes, looking below only at the names that stand in it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Final

from layerfs.files import through_descriptor
from layerfs.tree.change import Change, ChangeKind
from layerfs.tree.diff import Trees
from layerfs.tree.ladder import OPEN_DIRECTORY
from layerfs.tree.upper_diff import UpperWalk
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


class _Upper(UpperWalk):
    """The walk of an overlayfs upper directory."""

    def __init__(
        self,
        upper: int,
        open_lower: Callable[[], int] | None,
        open_merged: Callable[[], int],
        whiteouts: OverlayWhiteouts,
    ) -> None:
        super().__init__(upper, open_lower)
        self._open_merged = open_merged
        self._merged_root: int | None = None
        self._prefix = whiteouts.xattr_prefix

    def walk(self) -> Iterator[Change]:
        """Give the changes, and close the merged trees that were opened for them."""
        try:
            yield from super().walk()
        finally:
            if self._merged_root is not None:
                os.close(self._merged_root)

    def standing(self, directory: int) -> set[bytes]:
        return {os.fsencode(name) for name in os.listdir(directory)}

    def is_opaque(self, directory: int) -> bool:
        return self._xattr(directory, "opaque") == b"y"

    def _xattr(self, target: int | bytes, name: str) -> bytes | None:
        try:
            return os.getxattr(target, self._prefix + name, follow_symlinks=isinstance(target, int))
        except OSError as error:
            if error.errno in _NO_XATTR:
                return None
            raise

    def is_hidden(self, name: bytes, new: os.stat_result) -> bool:
        if is_overlay_whiteout(new):
            return True
        if not stat.S_ISREG(new.st_mode) or new.st_size:
            return False
        return self._xattr(through_descriptor(self.upper.top, name), "whiteout") is not None

    def visit_directory(self, name: bytes, path: bytes, old: os.stat_result | None) -> Iterator[Change]:
        """Step into a directory, unless it shows what another one has."""
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

    def visit_file(
        self, name: bytes, path: bytes, new: os.stat_result, old: os.stat_result | None
    ) -> Iterator[Change]:
        """Compare a file with what is below; the data of a metadata-only copy is read through the mount."""
        if not (stat.S_ISREG(new.st_mode) and new.st_size) or (
            self._xattr(through_descriptor(self.upper.top, name), "metacopy") is None
        ):
            yield from self.compare_file(self.upper.top, name, path, new, old)
            return
        directory = _open_below(self._merged(), path.rpartition(b"/")[0])
        try:
            yield from self.compare_file(directory, name, path, new, old)
        finally:
            os.close(directory)


def _open_below(root: int, path: bytes) -> int:
    directory = os.dup(root)
    for name in path.split(b"/") if path else ():
        below = os.open(name, OPEN_DIRECTORY, dir_fd=directory)
        os.close(directory)
        directory = below
    return directory
