"""zstd:chunked layers: zstd layers whose files' chunks are frames, with a table of contents behind them.

As containers/storage writes them (pkg/chunked/internal/minimal), and stargz-snapshotter (its package
zstdchunked): the table is the content of a skippable frame, compressed once more; where it lies say
annotations of the layer's descriptor, and a footer in one more such frame.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from layerfs.compression import open_decompressed
from layerfs.digest import Digest
from layerfs.errors import BudgetError, LayerError, VerificationError
from layerfs.seekable.bodies import pieces_of, read_body
from layerfs.seekable.extent import Extent, Indexed
from layerfs.seekable.ranges import Ranges
from layerfs.seekable.toc_json import read_entries
from layerfs.tree.budget import Budget

CHECKSUM: Final = "io.github.containers.zstd-chunked.manifest-checksum"
POSITION: Final = "io.github.containers.zstd-chunked.manifest-position"
# Before containers/storage 1.38, and in stargz-snapshotter.
OLD_CHECKSUM: Final = "io.containers.zstd-chunked.manifest-checksum"
OLD_POSITION: Final = "io.containers.zstd-chunked.manifest-position"

SKIPPABLE: Final = struct.Struct("<II")
SKIPPABLE_MAGIC: Final = 0x184D2A50
FOOTER: Final = struct.Struct("<7Q8s")
MAGIC: Final = b"GNUlInUx"
CRFS: Final = 1
_READ: Final = 1 << 18


class Position(NamedTuple):
    """Where the compressed table lies in the blob, and how long it is unpacked, in bytes."""

    offset: int
    length: int
    unpacked: int
    kind: int


class ZstdChunkedLayer:
    """A zstd:chunked layer (`layer.IndexedLayer`); `open_zstd_chunked` makes one."""

    def __init__(
        self,
        ranges: Ranges,
        position: Position,
        table: bytes,
        *,
        budget: Budget,
        warn: Callable[[str], None],
    ) -> None:
        self._ranges = ranges
        self._position = position
        self._table = table
        self._budget = budget
        self._warn = warn
        self.toc_digest = Digest.of(table)

    def entries(self) -> Iterator[Indexed]:
        """Give the entries of the layer; see `IndexedLayer`."""
        with open_decompressed(io.BytesIO(self._table), budget=self._budget) as plain:
            stream = _Bounded(plain.read, self._position.unpacked)
            yield from read_entries(stream, limit=self._position.offset, budget=self._budget, warn=self._warn)

    def table(self, longest: int) -> tuple[bytes, tuple[Indexed, ...]] | None:
        """Give the table as a whole, and the entries that it does not list; None when it is longer."""
        if self._position.unpacked > longest:
            return None
        with open_decompressed(io.BytesIO(self._table), budget=self._budget) as plain:
            stream = _Bounded(plain.read, self._position.unpacked)
            return b"".join(iter(lambda: stream.read(_READ), b"")), ()

    def read(self, extent: Extent, offset: int = 0, size: int | None = None) -> Iterator[bytes]:
        """Give a part of a file; see `IndexedLayer`."""
        return read_body(pieces_of(self._ranges, self._budget), extent, offset=offset, size=size)


class _Bounded:
    def __init__(self, read: Callable[[int], bytes], size: int) -> None:
        self._read = read
        self._left = size

    def read(self, size: int, /) -> bytes:
        data = self._read(size)
        self._left -= len(data)
        if self._left < 0:
            raise LayerError("a table of contents that is longer than its position says")
        return data


def _annotated(annotations: Mapping[str, str]) -> tuple[str, str] | None:
    for checksum, position in ((CHECKSUM, POSITION), (OLD_CHECKSUM, OLD_POSITION)):
        if checksum in annotations and position in annotations:
            return annotations[checksum], annotations[position]
    return None


def open_zstd_chunked(
    ranges: Ranges, annotations: Mapping[str, str], *, budget: Budget, warn: Callable[[str], None]
) -> ZstdChunkedLayer | None:
    """Open a blob if it is a zstd:chunked layer; None when its annotations do not say so.

    Args:
        ranges: the blob; read by one request.
        annotations: of the layer's descriptor.
        budget: bounds the table.
        warn: told what was odd.

    Raises:
        VerificationError: the table's digest is not the promised one.
        LayerError: the annotations lead to no sound table.
        BudgetError: the table is larger than the budget.
    """
    annotated = _annotated(annotations)
    if annotated is None:
        return None
    promised, text = annotated
    position = _parse_position(text)
    _check(position, ranges.size, budget)
    table = ranges.read_at(position.offset, position.length)
    layer = ZstdChunkedLayer(ranges, position, table, budget=budget, warn=warn)
    if str(layer.toc_digest) != promised:
        raise VerificationError(
            f"the layer's table of contents has {layer.toc_digest}, its descriptor promises {promised[:200]}"
        )
    return layer


def _parse_position(text: str) -> Position:
    parts = text.split(":")
    if len(parts) != 4 or not all(part.isascii() and part.isdigit() and len(part) < 20 for part in parts):
        raise LayerError(f"an annotation {text[:100]!r} that says no position of a table of contents")
    return Position(*map(int, parts))


def _check(position: Position, size: int, budget: Budget) -> None:
    if position.kind != CRFS:
        raise LayerError(f"a table of contents of the unknown type {position.kind}")
    if not 0 < position.offset <= position.offset + position.length <= size:
        raise LayerError("a table of contents that lies outside of its layer")
    if max(position.length, position.unpacked) > budget.toc_bytes:
        raise BudgetError(f"a table of contents of {max(position.length, position.unpacked)} bytes")
