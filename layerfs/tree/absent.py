"""Files that a layer shows before it has their data: sparse ones with a mark that says where that is.

The mark is an extended attribute in overlayfs's own name space, which neither users nor layers can have. It
holds the file's true modification time and its capabilities, which writing changes and takes away; where the
layer's list of bodies describes the file; and, once the data comes in pieces of `PIECE` bytes, a bit for each
that is here. It goes when all of the data is on disk.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple

from layerfs.errors import StoreError

KEY: Final = b"layerfs.absent"
"""What follows overlayfs's prefix in the attribute's name."""

PIECE: Final = 4 << 20
"""Bytes of a file that come at once; smaller files come whole."""

FETCH_FAILED: Final = "cannot fetch "
"""How a line of a server's log begins that is about data that could not be had."""

CAPABILITY: Final = "security.capability"

_HEAD: Final = Struct("=BqQIH")
_VERSION: Final = 1
_NOTHING: Final = (errno.ENODATA, errno.ENOTSUP)


class Mark(NamedTuple):
    """What is known of an absent body: `place` and `length` are of its description, `here` are the bits.

    `mtime_ns` is in nanoseconds, `capabilities` the value of ``security.capability``, if the file has that.
    """

    mtime_ns: int
    place: int
    length: int
    here: bytes = b""
    capabilities: bytes = b""

    def pack(self) -> bytes:
        """Give the attribute's value."""
        head = _HEAD.pack(_VERSION, self.mtime_ns, self.place, self.length, len(self.capabilities))
        return head + self.capabilities + self.here

    def has(self, piece: int) -> bool:
        """Say whether a piece is here."""
        return piece >> 3 < len(self.here) and bool(self.here[piece >> 3] & 1 << (piece & 7))

    def lacks(self, first: int, last: int) -> bool:
        """Say whether any of these pieces is not here yet."""
        return not all(map(self.has, range(first, last + 1)))

    def missing(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Give runs of pieces that are not here yet, each as its first and its last one."""
        begun = None
        for piece in range(first, last + 1):
            if self.has(piece):
                if begun is not None:
                    yield begun, piece - 1
                begun = None
            elif begun is None:
                begun = piece
        if begun is not None:
            yield begun, last

    def with_pieces(self, first: int, last: int) -> Mark:
        """Note that these pieces are here."""
        bits = bytearray(self.here.ljust((last >> 3) + 1, b"\0"))
        for piece in range(first, last + 1):
            bits[piece >> 3] |= 1 << (piece & 7)
        return self._replace(here=bytes(bits))


def last_piece(size: int) -> int:
    """Give the last piece of a file that is not empty."""
    return (size - 1) // PIECE


def read_mark(target: int | bytes, name: bytes) -> Mark | None:
    """Read the mark of an open file or of a path; None when the body is here.

    Args:
        name: the attribute's.

    Raises:
        StoreError: it is not one.
    """
    try:
        value = os.getxattr(target, name, follow_symlinks=isinstance(target, int))
    except OSError as error:
        if error.errno in _NOTHING:
            return None
        raise
    if len(value) < _HEAD.size or value[0] != _VERSION:
        raise StoreError("a file's mark says nothing that could be understood")
    _, mtime_ns, place, length, more = _HEAD.unpack_from(value)
    end = _HEAD.size + more
    return Mark(mtime_ns, place, length, value[end:], value[_HEAD.size : end])
