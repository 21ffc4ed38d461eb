"""File bodies out of a layer that has digests of their chunks: fetched, inflated, verified, then given."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Final

from layerfs.compression import open_decompressed
from layerfs.errors import LayerError, VerificationError
from layerfs.seekable.extent import Chunk, Extent
from layerfs.seekable.ranges import Ahead, Ranges, Slice
from layerfs.tree.budget import Budget

# Begins to read what lies below an offset, as `Chunk` counts them; then gives each chunk's bytes.
Begin = Callable[[int], Callable[[Chunk], Iterator[bytes]]]

_PIECE: Final = 1 << 18
# Chunks are 4 MiB long and less, unless their maker wanted otherwise; longer ones wait in a file.
_IN_MEMORY: Final = 16 << 20


def read_body(begin: Begin, extent: Extent, *, offset: int = 0, size: int | None = None) -> Iterator[bytes]:
    """Give a part of a file in pieces, each out of a chunk whose digest was compared.

    Args:
        begin: reads the layer.
        extent: where the file lies in it.
        offset: bytes of the file to pass over; chunks that lie before are not fetched.
        size: bytes to give; None for the rest. Past the end of the file there are none.

    Raises:
        VerificationError: a chunk's bytes are not the promised ones.
        LayerError: the compressed data is damaged, or shorter than the index says.
    """
    end = extent.size if size is None else min(extent.size, offset + size)
    wanted = [each for each in extent.chunks if each.offset < end and each.offset + each.size > offset]
    inflate = begin(wanted[-1].end if wanted else 0)
    for chunk in wanted:
        yield from zeros(min(chunk.offset, end) - offset)
        offset = max(offset, chunk.offset)
        for start, data in _verified(inflate, chunk):
            first, last = max(offset - start, 0), end - start
            if first < len(data) and last > 0:
                yield data[first:last] if first or last < len(data) else data
        offset = chunk.offset + chunk.size
    yield from zeros(end - offset)


def zeros(size: int) -> Iterator[bytes]:
    """Give so many bytes of a hole in pieces."""
    while size > 0:
        yield bytes(min(size, _PIECE))
        size -= _PIECE


def _verified(inflate: Callable[[Chunk], Iterator[bytes]], chunk: Chunk) -> Iterator[tuple[int, bytes]]:
    """Give (offset in the file, bytes) of a whole chunk, once all of it is proven."""
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as kept:
        hasher = hashlib.sha256()
        for data in inflate(chunk):
            hasher.update(data)
            kept.write(data)
        if chunk.digest != f"sha256:{hasher.hexdigest()}":
            raise VerificationError(
                f"the layer's bytes {chunk.start} to {chunk.end} unpack to sha256:{hasher.hexdigest()},"
                f" its index promises {chunk.digest}"
            )
        kept.seek(0)
        offset = chunk.offset
        while data := kept.read(_PIECE):
            yield offset, data
            offset += len(data)


def pieces_of(ranges: Ranges, budget: Budget) -> Begin:
    """Read a layer whose chunks are gzip members or zstd frames.

    Args:
        ranges: the layer's blob.
        budget: bounds what a chunk unpacks to before its bytes begin.
    """

    def begin(limit: int) -> Callable[[Chunk], Iterator[bytes]]:
        ahead = Ahead(ranges, limit)
        return lambda chunk: _inflate(ahead, chunk, budget)

    return begin


def _inflate(ranges: Ranges, chunk: Chunk, budget: Budget) -> Iterator[bytes]:
    skip, left = chunk.skip, chunk.size
    stream = Slice(ranges, chunk.start, chunk.end)
    with open_decompressed(stream, budget=budget, piece=_PIECE) as plain:
        while left:
            data = plain.read(min(skip or left, _PIECE))
            if not data:
                raise LayerError(
                    f"the layer's bytes {chunk.start} to {chunk.end} unpack to fewer than promised"
                )
            if skip:
                skip -= len(data)
                continue
            left -= len(data)
            yield data
