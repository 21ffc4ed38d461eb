"""The parts of a blob that its index was read from, kept until the layer's outline is made of them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import BinaryIO, Final

from layerfs.errors import StoreError
from layerfs.seekable.ranges import Ranges

_LENGTH: Final = struct.Struct("<I")


class KeptRanges:
    """A blob of which everything that is read is kept, and read no second time.

    Args:
        blob: where it is read from.
        parts: what is here already, by the offset in the blob.
    """

    def __init__(self, blob: Ranges, parts: dict[int, bytes] | None = None) -> None:
        self._blob = blob
        self._parts = parts or {}

    @property
    def size(self) -> int:
        """The blob's length in bytes."""
        return self._blob.size

    def read_at(self, offset: int, size: int) -> bytes:
        """Give bytes of the blob; see `Ranges.read_at`."""
        for start, data in self._parts.items():
            if start <= offset and offset + size <= start + len(data):
                return data[offset - start : offset - start + size]
        data = self._blob.read_at(offset, size)
        self._parts[offset] = data
        return data

    def write(self, file: BinaryIO) -> None:
        """Write what was read into an empty file."""
        head = json.dumps([[start, len(data)] for start, data in self._parts.items()]).encode()
        file.write(_LENGTH.pack(len(head)) + head)
        for data in self._parts.values():
            file.write(data)


def read_kept(path: Path, blob: Ranges) -> KeptRanges:
    """Read such a file; what is not in it comes from the blob.

    Raises:
        StoreError: it is damaged.
        FileNotFoundError: there is none.
    """
    with open(path, "rb") as file:
        parts = {}
        try:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            for start, size in json.loads(file.read(length)):
                parts[start] = data = file.read(size)
                if len(data) != size:
                    raise ValueError("it ends too soon")
        except (ValueError, TypeError, struct.error) as error:
            raise StoreError(f"the outline of a layer is damaged: {path}") from error
    return KeptRanges(blob, parts)
