"""All that can be seen of a file tree, as data: to compare what two drivers, or two programs, show."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from layerfs.files import through_descriptor
from layerfs.tree.attributes import read_layer_xattrs
from layerfs.tree.ladder import OPEN_DIRECTORY, Ladder

_CHUNK = 1 << 20


class Facts(NamedTuple):
    """One file: `links` is the first of the paths that are hard links to it, "" when it has one name only."""

    type: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    digest: str
    target: bytes
    device: int
    xattrs: Mapping[bytes, bytes]
    links: bytes


Snapshot = dict[bytes, Facts]

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def snapshot(root: Path | int) -> Snapshot:
    """Describe every file below `root`, a path or a directory's descriptor, by path; the root is ``b""``."""
    top = os.open(root, OPEN_DIRECTORY) if isinstance(root, Path) else os.dup(root)
    try:
        return _snapshot(top)
    finally:
        os.close(top)


def _snapshot(root: int) -> Snapshot:
    found: Snapshot = {b"": _directory_facts(root)}
    names: dict[tuple[int, int], list[bytes]] = {}
    ladder = Ladder(root)
    paths = [b""]
    todo = [_subdirectories(ladder.top, b"", found, names)]
    try:
        while todo:
            if not todo[-1]:
                todo.pop()
                paths.pop()
                if todo:
                    ladder.pop()
                continue
            name = todo[-1].pop()
            paths.append(paths[-1] + b"/" + name if paths[-1] else name)
            ladder.push(os.open(name, OPEN_DIRECTORY, dir_fd=ladder.top))
            todo.append(_subdirectories(ladder.top, paths[-1], found, names))
    finally:
        ladder.close()
    # Other names may lie outside of the tree, or in a lower layer: then a file has one name here.
    for group in names.values():
        if len(group) > 1:
            found.update({path: found[path]._replace(links=min(group)) for path in group})
    return found


def _subdirectories(
    directory: int, path: bytes, found: Snapshot, names: dict[tuple[int, int], list[bytes]]
) -> list[bytes]:
    below = []
    for name in map(os.fsencode, os.listdir(directory)):
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        place = path + b"/" + name if path else name
        found[place] = _facts(directory, name, status)
        if stat.S_ISDIR(status.st_mode):
            below.append(name)
        elif status.st_nlink > 1:
            names.setdefault((status.st_dev, status.st_ino), []).append(place)
    return below


def _directory_facts(directory: int) -> Facts:
    status = os.fstat(directory)
    return _from(status, "", b"", read_layer_xattrs(directory))


def _facts(directory: int, name: bytes, status: os.stat_result) -> Facts:
    digest = target = b""
    if stat.S_ISREG(status.st_mode):
        digest = _digest(directory, name)
    elif stat.S_ISLNK(status.st_mode):
        target = os.readlink(name, dir_fd=directory)
    return _from(status, digest.decode(), target, read_layer_xattrs(through_descriptor(directory, name)))


def _from(status: os.stat_result, digest: str, target: bytes, xattrs: Mapping[bytes, bytes]) -> Facts:
    mode = status.st_mode
    return Facts(
        _TYPES[stat.S_IFMT(mode)],
        stat.S_IMODE(mode),
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        status.st_size if stat.S_ISREG(mode) else 0,
        digest,
        target,
        status.st_rdev if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else 0,
        xattrs,
        b"",
    )


def _digest(directory: int, name: bytes) -> bytes:
    hasher = hashlib.sha256()
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        while data := os.read(file, _CHUNK):
            hasher.update(data)
    finally:
        os.close(file)
    return hasher.hexdigest().encode()


def differences(one: Snapshot, other: Snapshot) -> list[str]:
    """Say, a line each, what differs between two trees; empty when they are equal."""
    lines = []
    for path in sorted(one.keys() | other.keys()):
        here, there = one.get(path), other.get(path)
        if here is None or there is None:
            lines.append(f"{path!r}: only in the {'second' if here is None else 'first'}")
        elif here != there:
            fields = [
                f"{field} {mine!r} != {theirs!r}"
                for field, mine, theirs in zip(Facts._fields, here, there, strict=True)
                if mine != theirs
            ]
            lines.append(f"{path!r}: {', '.join(fields)}")
    return lines


def snapshot_digest(data: bytes) -> str:
    """Give what `Facts.digest` is for a file of this content."""
    return hashlib.sha256(data).hexdigest()
