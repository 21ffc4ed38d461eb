"""Random changes to a real file tree, as hypothesis strategies and as operations that carry them out."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Sequence
from typing import Final

from hypothesis import strategies as st

NAMES: Final = (b"a", b"b", b"c", b"d \n", b"\xff\xfe", b"-x", b"e" * 120)
CONTENTS: Final = (b"", b"one", b"two", b"x" * 5000, b"y" * 5000)
TIMES: Final = (0, 1_600_000_000_123_456_789, -1_500_000_001, 1_700_000_000_000_000_000)
OWNERS: Final = ((0, 0), (1000, 1000), (7, 65534))
MODES: Final = (0o644, 0o755, 0o4711, 0o1777, 0o2770, 0o000)

Parts = tuple[bytes, ...]
Operation = tuple[object, ...]

parts = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(tuple)

operation: st.SearchStrategy[Operation] = st.one_of(
    st.tuples(st.just("file"), parts, st.sampled_from(CONTENTS)),
    st.tuples(st.just("sparse"), parts, st.sampled_from((0, 8192, 1 << 20))),
    st.tuples(st.just("directory"), parts),
    st.tuples(st.just("symlink"), parts, st.sampled_from((b"a", b"/a/b", b"../c", b"nowhere"))),
    st.tuples(st.just("link"), parts, parts),
    st.tuples(st.just("fifo"), parts),
    st.tuples(st.just("device"), parts),
    st.tuples(st.just("remove"), parts),
    st.tuples(st.just("move"), parts, parts),
    st.tuples(st.just("chmod"), parts, st.sampled_from(MODES)),
    st.tuples(st.just("chown"), parts, st.sampled_from(OWNERS)),
    st.tuples(st.just("touch"), parts, st.sampled_from(TIMES)),
    st.tuples(st.just("xattr"), parts, st.sampled_from((b"", b"v", b"\0\xff"))),
    st.tuples(st.just("rewrite"), parts),
    st.tuples(st.just("remake"), parts),
)

operations = st.lists(operation, max_size=12)


def perform(root: bytes, steps: Sequence[Operation]) -> None:
    """Do what can be done of these steps below `root`; what cannot be done is left out.

    Every time that the clock would give is set to a fixed one, so that the same steps on two
    copies of a tree make equal trees.
    """
    for step in steps:
        try:
            _perform(root, step)
        except (OSError, shutil.Error):
            continue
    _settle(root)


def _perform(root: bytes, step: Operation) -> None:
    kind, place, *rest = step
    assert isinstance(place, tuple)
    path = os.path.join(root, *place)
    if _through_symlink(root, place):
        return
    if kind == "file":
        _write(path, rest[0])
    elif kind == "sparse":
        _write(path, b"")
        os.truncate(path, 3 << 20)
        with open(path, "r+b") as file:
            file.seek(_number(rest[0]))
            file.write(b"data")
    elif kind == "directory":
        os.makedirs(path)
    elif kind == "symlink":
        os.symlink(rest[0], path)  # type: ignore[arg-type]
    elif kind == "link":
        _link(root, rest[0], path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    elif kind == "remove":
        remove(path)
    elif kind == "move":
        _move(root, path, rest[0])
    elif kind == "chmod":
        if not os.path.islink(path):
            os.chmod(path, _number(rest[0]))
    elif kind == "chown":
        os.chown(path, *rest[0], follow_symlinks=False)  # type: ignore[misc]
    elif kind == "touch":
        time = _number(rest[0])
        os.utime(path, ns=(time, time), follow_symlinks=False)
    elif kind == "xattr":
        os.setxattr(path, b"user.test", rest[0], follow_symlinks=False)  # type: ignore[arg-type]
    elif kind == "rewrite":
        rewrite(path)
    elif kind == "remake":
        remove(path)
        os.mkdir(path)
        _write(os.path.join(path, b"new"), b"new")


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value


def _through_symlink(root: bytes, place: Parts) -> bool:
    return any(os.path.islink(os.path.join(root, *place[:depth])) for depth in range(1, len(place)))


def _link(root: bytes, target: object, path: bytes) -> None:
    assert isinstance(target, tuple)
    if not _through_symlink(root, target):
        os.link(os.path.join(root, *target), path, follow_symlinks=False)


def _move(root: bytes, path: bytes, target: object) -> None:
    """Rename; a directory that overlayfs refuses to rename is copied, as mv(1) does."""
    assert isinstance(target, tuple)
    place = os.path.join(root, *target)
    if _through_symlink(root, target) or os.path.lexists(place) or (place + b"/").startswith(path + b"/"):
        return
    if os.path.isdir(path) and not os.path.islink(path):
        # Always copied, so that every driver ends with the same tree.
        shutil.copytree(os.fsdecode(path), os.fsdecode(place), symlinks=True, ignore=_special)
        shutil.rmtree(path)
    else:
        os.rename(path, place)


def _special(directory: str, names: list[str]) -> list[str]:
    """Name what copytree cannot copy: fifos and devices would make it wait, or read without end."""
    plain = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
    return [n for n in names if stat.S_IFMT(os.lstat(os.path.join(directory, n)).st_mode) not in plain]


def _write(path: bytes, content: object) -> None:
    assert isinstance(content, bytes)
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        return
    with open(path, "wb") as file:
        file.write(content)


def rewrite(path: bytes) -> None:
    """Change content only: size and times stay, as an edit within one tick of the clock leaves them."""
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode) or not found.st_size or found.st_size > 5000:
        return
    with open(path, "r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def remove(path: bytes) -> None:
    """Remove a file or a whole directory."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def make_socket(path: str) -> None:
    """Make a socket as a server does, which leaves it behind."""
    server = socket.socket(socket.AF_UNIX)
    try:
        server.bind(path)
    finally:
        server.close()


def _settle(root: bytes) -> None:
    """Give every time that is of the last hours a fixed value."""
    recent = 1_750_000_000_000_000_000
    for directory, names, files in os.walk(root, topdown=False):
        for name in (*files, *(n for n in names if os.path.islink(os.path.join(directory, n)))):
            _settle_one(os.path.join(directory, name), recent)
        _settle_one(directory, recent)


def _settle_one(path: bytes, recent: int) -> None:
    if os.lstat(path).st_mtime_ns > recent:
        os.utime(path, ns=(recent, recent), follow_symlinks=False)
