"""Bytes of a blob by offset: in a local file, in memory, or wherever a `Ranges` reads them from."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Protocol

from layerfs.errors import VerificationError

if TYPE_CHECKING:
    from concurrent.futures import Executor

# What one request asks for at most when more is wanted soon.
AT_ONCE: Final = 4 << 20
_LEAST_PART: Final = 48 << 10
_LEAST_TAIL: Final = 16 << 10
# A connection that begins slowly (RFC 6928) has sent so much after two round trips.
_LONGEST_TAIL: Final = 40 << 10


def tail_of(ranges: Ranges) -> bytes:
    """Give the end of a blob: a footer, and with luck the table of contents before it, in one request."""
    size = min(ranges.size, max(_LEAST_TAIL, min(ranges.size // 32, _LONGEST_TAIL)))
    return ranges.read_at(ranges.size - size, size)


class Ranges(Protocol):
    """A blob that is read by offset; several threads may do so at once."""

    @property
    def size(self) -> int:
        """The blob's length in bytes."""
        ...

    def read_at(self, offset: int, size: int) -> bytes:
        """Give exactly `size` bytes from `offset` on, all of which lie within the blob.

        Raises:
            LayerfsError, OSError: they cannot be read.
        """
        ...


class FileRanges:
    """A blob in an open file, which stays the caller's: all of it, or `size` bytes from `start` on."""

    def __init__(self, file: int, *, start: int = 0, size: int | None = None) -> None:
        self._file = file
        self._start = start
        self.size = os.fstat(file).st_size if size is None else size

    def read_at(self, offset: int, size: int) -> bytes:
        """Give exactly `size` bytes from `offset` on.

        Raises:
            VerificationError: the file is shorter.
            OSError: it cannot be read.
        """
        parts = []
        while size > 0:
            data = os.pread(self._file, size, self._start + offset)
            if not data:
                raise VerificationError(f"a blob of {self.size} bytes ends at byte {offset}")
            parts.append(data)
            offset += len(data)
            size -= len(data)
        return b"".join(parts)


class MemoryRanges:
    """A blob in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read_at(self, offset: int, size: int) -> bytes:
        """Give exactly `size` bytes from `offset` on.

        Raises:
            VerificationError: they do not lie within the blob.
        """
        if offset + size > self.size:
            raise VerificationError(f"a blob of {self.size} bytes ends at byte {self.size}")
        return self._data[offset : offset + size]


class Parted:
    """Ranges of which much is read in several parts at once.

    Each connection begins slowly; a table of contents has come before one of them is fast.
    """

    def __init__(self, ranges: Ranges, pool: Executor, *, most: int) -> None:
        """Args: `pool` reads the parts, at most `most` of one read."""
        self._ranges = ranges
        self._pool = pool
        self._most = most
        self.size = ranges.size

    def read_at(self, offset: int, size: int) -> bytes:
        """Give exactly `size` bytes from `offset` on."""
        part = max(_LEAST_PART, -(-size // self._most))
        if size <= part + part // 2:
            return self._ranges.read_at(offset, size)
        end = offset + size
        starts = range(offset, end, part)
        sizes = [min(part, end - start) for start in starts]
        return b"".join(self._pool.map(self._ranges.read_at, starts, sizes))


class Ahead:
    """Ranges that are read in large pieces, none of which goes beyond `limit`; for one thread.

    Whoever reads small pieces in ascending order causes few requests.
    """

    def __init__(self, ranges: Ranges, limit: int) -> None:
        self._ranges = ranges
        self._start = 0
        self._data = b""
        self.size = min(limit, ranges.size)

    def read_at(self, offset: int, size: int) -> bytes:
        """Give exactly `size` bytes from `offset` on."""
        at = offset - self._start
        if at < 0 or at + size > len(self._data):
            have = self._data[at:] if 0 <= at < len(self._data) else b""
            wanted = max(size, min(AT_ONCE, self.size - offset)) - len(have)
            self._data = have + self._ranges.read_at(offset + len(have), wanted)
            self._start, at = offset, 0
        return self._data[at : at + size]


class Slice:
    """A part of a blob as a stream."""

    def __init__(self, ranges: Ranges, start: int, end: int) -> None:
        self._ranges = ranges
        self._position = start
        self._end = end

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes; none only at the end."""
        data = self._ranges.read_at(self._position, max(0, min(size, self._end - self._position)))
        self._position += len(data)
        return data
