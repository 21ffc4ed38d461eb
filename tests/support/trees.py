"""Random file trees, as hypothesis strategies and as operations on a real directory."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence

from hypothesis import strategies as st

NAMES = (b"a", b"b", b"c", b"d \n", b"\xff\xfe", b"-x", b"e" * 120)
CONTENTS = (b"", b"one", b"two", b"x" * 5000, b"y" * 5000)
TIMES = (0, 1_600_000_000_123_456_789, -1_500_000_001, 1_700_000_000_000_000_000)
OWNERS = ((0, 0), (1000, 1000), (7, 65534))
MODES = (0o644, 0o755, 0o4711, 0o1777, 0o2770, 0o000)

Path = tuple[bytes, ...]
Operation = tuple[object, ...]

paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(tuple)

operations: st.SearchStrategy[Operation] = st.one_of(
    st.tuples(st.just("file"), paths, st.sampled_from(CONTENTS)),
    st.tuples(st.just("sparse"), paths, st.sampled_from((0, 8192, 1 << 20))),
    st.tuples(st.just("directory"), paths),
    st.tuples(st.just("symlink"), paths, st.sampled_from((b"a", b"/a/b", b"../c", b"nowhere"))),
    st.tuples(st.just("link"), paths, paths),
    st.tuples(st.just("fifo"), paths),
    st.tuples(st.just("device"), paths),
    st.tuples(st.just("remove"), paths),
    st.tuples(st.just("move"), paths, paths),
    st.tuples(st.just("chmod"), paths, st.sampled_from(MODES)),
    st.tuples(st.just("chown"), paths, st.sampled_from(OWNERS)),
    st.tuples(st.just("touch"), paths, st.sampled_from(TIMES)),
    st.tuples(st.just("xattr"), paths, st.sampled_from((b"", b"v", b"\0\xff"))),
    st.tuples(st.just("rewrite"), paths),
    st.tuples(st.just("remake"), paths),
)


def perform(root: bytes, steps: Sequence[Operation]) -> None:
    """Do what can be done of these steps below `root`; what cannot be done is left out."""
    for step in steps:
        try:
            _perform(root, step)
        except OSError:
            continue


def _perform(root: bytes, step: Operation) -> None:
    kind, parts, *rest = step
    assert isinstance(parts, tuple)
    path = os.path.join(root, *parts)
    if _through_link(root, parts) or (kind in ("link", "move") and _through_link(root, rest[0])):
        return
    if kind == "file":
        _write(path, rest[0])
    elif kind == "sparse":
        with open(path, "wb") as file:
            file.truncate(3 << 20)
            file.seek(rest[0])
            file.write(b"data")
    elif kind == "directory":
        os.makedirs(path)
    elif kind == "symlink":
        os.symlink(rest[0], path)
    elif kind == "link":
        os.link(os.path.join(root, *rest[0]), path, follow_symlinks=False)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    elif kind == "remove":
        _remove(path)
    elif kind == "move":
        os.rename(path, os.path.join(root, *rest[0]))
    elif kind == "chmod":
        if not os.path.islink(path):
            os.chmod(path, rest[0])
    elif kind == "chown":
        os.chown(path, *rest[0], follow_symlinks=False)
    elif kind == "touch":
        os.utime(path, ns=(rest[0], rest[0]), follow_symlinks=False)
    elif kind == "xattr":
        os.setxattr(path, b"user.test", rest[0], follow_symlinks=False)
    elif kind == "rewrite":
        _rewrite(path)
    elif kind == "remake":
        _remove(path)
        os.mkdir(path)
        _write(os.path.join(path, b"new"), b"new")


def _through_link(root: bytes, parts: object) -> bool:
    assert isinstance(parts, tuple)
    return any(os.path.islink(os.path.join(root, *parts[:depth])) for depth in range(1, len(parts)))


def _write(path: bytes, content: object) -> None:
    assert isinstance(content, bytes)
    with open(path, "wb") as file:
        file.write(content)


def _rewrite(path: bytes) -> None:
    """Change content only: size and times stay, as an edit within one tick of the clock leaves them."""
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode) or not found.st_size or found.st_size > 5000:
        return
    with open(path, "r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def _remove(path: bytes) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)
