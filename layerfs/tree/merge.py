"""Apply a layer to a plain tree, in which a deletion leaves nothing behind.

The layer is first unpacked beside the tree, in aufs's format, so that a plain tree goes through the same
unpacking as an overlay and ends as the same tree; then each change is moved to its place.
"""

from __future__ import annotations

import os
import stat
from typing import Final

from layerfs.files import remove_tree
from layerfs.tree.attributes import replace_xattrs
from layerfs.tree.ladder import OPEN_DIRECTORY, Ladder
from layerfs.tree.layer_tree import lstat
from layerfs.tree.read_entry import read_directory_entry
from layerfs.tree.unpack import Unpack
from layerfs.tree.whiteouts import OPAQUE, PREFIX, AufsWhiteouts

# No layer can have an entry of this name: names that begin so are aufs's own.
_SCRATCH: Final = b".wh..wh.layerfs"


def unpack_in_place(root: int, unpack: Unpack) -> None:
    """Apply a layer to the plain tree below `root`, a descriptor, which holds what lies below the layer.

    On an error the tree is neither what it was nor what it should be.
    """
    before = os.fstat(root)
    os.mkdir(_SCRATCH, 0o700, dir_fd=root)
    scratch = os.open(_SCRATCH, OPEN_DIRECTORY, dir_fd=root)
    try:
        _copy_attributes(root, scratch, before)
        unpack(scratch, lower=lambda: os.open(b".", OPEN_DIRECTORY, dir_fd=root), whiteouts=AufsWhiteouts())
        # Btrfs lists, at first, only what was in a directory when the descriptor was opened.
        os.close(scratch)
        scratch = os.open(_SCRATCH, OPEN_DIRECTORY, dir_fd=root)
        merge(scratch, root)
        after = os.fstat(scratch)
    finally:
        os.close(scratch)
    os.rmdir(_SCRATCH, dir_fd=root)
    os.utime(root, ns=(after.st_mtime_ns, after.st_mtime_ns))


def _copy_attributes(source: int, target: int, found: os.stat_result) -> None:
    os.fchown(target, found.st_uid, found.st_gid)
    os.fchmod(target, stat.S_IMODE(found.st_mode))
    replace_xattrs(target, read_directory_entry(source, b"").xattrs, b"", lambda message: None)
    os.utime(target, ns=(found.st_mtime_ns, found.st_mtime_ns))


def merge(changes: int, tree: int) -> None:
    """Move a tree of changes in aufs's format onto a plain tree of the same file system.

    Args:
        changes: descriptor of the changes' root; empty afterwards, its times kept.
        tree: descriptor of the root of the tree; takes over the attributes of `changes`.
    """
    sources, targets = Ladder(changes), Ladder(tree)
    levels = [_Level(b"", changes, tree)]
    try:
        while True:
            level = levels[-1]
            if level.names:
                name = level.names.pop()
                if not _move(sources.top, targets.top, name):
                    sources.push(os.open(name, OPEN_DIRECTORY, dir_fd=sources.top))
                    targets.push(os.open(name, OPEN_DIRECTORY, dir_fd=targets.top))
                    levels.append(_Level(name, sources.top, targets.top))
                continue
            for directory in (sources.top, targets.top):
                os.utime(directory, ns=(level.mtime_ns, level.mtime_ns))
            levels.pop()
            if not levels:
                return
            sources.pop()
            targets.pop()
            os.rmdir(level.name, dir_fd=sources.top)
    finally:
        sources.close()
        targets.close()


class _Level:
    """One directory that both trees have: what is left to move, and the time that it gets at the end."""

    __slots__ = ("mtime_ns", "name", "names")

    def __init__(self, name: bytes, source: int, target: int) -> None:
        found = os.fstat(source)
        self.name = name
        self.mtime_ns = found.st_mtime_ns
        _copy_attributes(source, target, found)
        names = [os.fsencode(name) for name in os.listdir(source)]
        if OPAQUE in names:
            for below in os.listdir(target):
                _remove(target, os.fsencode(below))
        for marker in names:
            if marker.startswith(PREFIX):
                hidden = AufsWhiteouts().hidden(source, marker)
                if hidden is not None:
                    _remove(target, hidden)
                os.unlink(marker, dir_fd=source)
        self.names = [name for name in names if not name.startswith(PREFIX)]


def _move(source: int, target: int, name: bytes) -> bool:
    """Move one name over, replacing what stands there; False for a directory that both have."""
    new = os.stat(name, dir_fd=source, follow_symlinks=False)
    old = lstat(target, name)
    if old is not None and stat.S_ISDIR(old.st_mode):
        if stat.S_ISDIR(new.st_mode):
            return False
        remove_tree(target, name)
    elif old is not None and stat.S_ISDIR(new.st_mode):
        os.unlink(name, dir_fd=target)
    mtime_ns = new.st_mtime_ns
    os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
    if stat.S_ISDIR(new.st_mode):
        # Some file systems touch a directory whose parent changes.
        os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=target, follow_symlinks=False)
    return True


def _remove(directory: int, name: bytes) -> None:
    found = lstat(directory, name)
    if found is None:
        return
    if stat.S_ISDIR(found.st_mode):
        remove_tree(directory, name)
    else:
        os.unlink(name, dir_fd=directory)
