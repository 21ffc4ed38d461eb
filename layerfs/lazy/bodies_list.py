"""The list of a lazy layer's bodies: one line of JSON a file, found by its place (`tree.absent`)."""

from __future__ import annotations

import json
import os
from typing import BinaryIO, Final, NamedTuple

from layerfs.errors import StoreError
from layerfs.seekable.extent import Chunk, Extent

_LONGEST: Final = 256 << 20


class Body(NamedTuple):
    """Where a file's data lies in the blob, and its SHA-256 (hex) if that is known."""

    extent: Extent
    digest: str | None

    @property
    def in_parts(self) -> bool:
        """Whether parts of it can be verified by themselves."""
        return all(chunk.digest is not None for chunk in self.extent.chunks)


class BodiesWriter:
    """Writes the list into a file, which stays the caller's."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._place = 0

    def add(self, body: Body) -> tuple[int, int]:
        """Describe a file; gives place and length of what was written."""
        line = json.dumps([body.extent.size, body.digest, body.extent.chunks], separators=(",", ":"))
        data = line.encode() + b"\n"
        self._file.write(data)
        place = self._place
        self._place += len(data)
        return place, len(data)


def read_body_line(file: int, place: int, length: int) -> Body:
    """Read one description out of an open list.

    Raises:
        StoreError: there is none.
    """
    line = os.pread(file, min(length, _LONGEST), place)
    try:
        size, digest, chunks = json.loads(line)
        return Body(Extent(size, tuple(Chunk(*chunk) for chunk in chunks)), digest)
    except (ValueError, TypeError) as error:
        raise StoreError(f"a lazy layer's list of bodies is damaged at byte {place}") from error
