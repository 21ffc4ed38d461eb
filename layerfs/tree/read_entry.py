"""Read one entry of a real file tree: from descriptor, name and lstat(2) result to an `Entry`."""

from __future__ import annotations

import os
import stat
from typing import Final

from layerfs.files import through_descriptor
from layerfs.tree.attributes import read_layer_xattrs
from layerfs.tree.entry import Entry, Kind

_KINDS: Final = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
}


def kind_of(found: os.stat_result) -> Kind:
    """Say what a file is; never `HARDLINK`, which is a relation."""
    return _KINDS[stat.S_IFMT(found.st_mode)]


def read_entry(directory: int, name: bytes, found: os.stat_result, path: bytes) -> Entry:
    """Describe the file `name` of a directory, whose lstat(2) result is `found`, as the entry `path`.

    The segments of a sparse file are not looked for: they take reading.
    """
    kind = kind_of(found)
    target = os.readlink(name, dir_fd=directory) if kind is Kind.SYMLINK else b""
    return _entry(path, kind, found, target, read_layer_xattrs(through_descriptor(directory, name)))


def read_directory_entry(directory: int, path: bytes) -> Entry:
    """Describe an open directory as the entry `path`."""
    return _entry(path, Kind.DIRECTORY, os.fstat(directory), b"", read_layer_xattrs(directory))


def _entry(
    path: bytes, kind: Kind, found: os.stat_result, target: bytes, xattrs: dict[bytes, bytes]
) -> Entry:
    device = (0, 0)
    if kind is Kind.CHARACTER or kind is Kind.BLOCK:
        device = (os.major(found.st_rdev), os.minor(found.st_rdev))
    return Entry(
        path,
        kind,
        stat.S_IMODE(found.st_mode),
        found.st_uid,
        found.st_gid,
        found.st_mtime_ns,
        found.st_size if kind is Kind.FILE else 0,
        target,
        device,
        xattrs,
    )
