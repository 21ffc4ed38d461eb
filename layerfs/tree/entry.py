"""One entry of a file tree as data: what a tar header, a directory walk and a table of contents share."""

import enum
from collections.abc import Mapping
from typing import Final, NamedTuple


class Kind(enum.IntEnum):
    """What an entry is; the numbers are those of layerfs alone and never stored."""

    FILE = 0
    DIRECTORY = 1
    SYMLINK = 2
    HARDLINK = 3
    CHARACTER = 4
    BLOCK = 5
    FIFO = 6
    SOCKET = 7


NO_XATTRS: Final[Mapping[bytes, bytes]] = {}


class Entry(NamedTuple):
    """One entry; frozen, and cheap enough to make a million of.

    In a tar stream `path` is what the archive says; everywhere else it is normalised: relative to
    the root of the tree, parts joined by one slash, no ``.`` or ``..``, and ``b""`` for the root.

    `mode` holds permission bits, setuid, setgid and sticky only (07777). `mtime_ns` is nanoseconds
    since 1970, negative before. `size` is the file's length in bytes, holes included, and 0 for all
    but files. `target` is the text of a symlink, or the path of a hard link's other name. `device`
    is (major, minor) of a device. `segments` are the (offset, length) runs of data of a sparse
    file in ascending order, None when the file is not sparse.
    """

    path: bytes
    kind: Kind
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[bytes, bytes] = NO_XATTRS
    segments: tuple[tuple[int, int], ...] | None = None
