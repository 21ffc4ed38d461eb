"""Where the data of a sparse file lies, so that the same content always gives the same map."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Final

from layerfs.tree.budget import DEFAULT_BUDGET

_BLOCK: Final = 4096
_CHUNK: Final = 1 << 20


def data_segments(file: int, size: int) -> tuple[tuple[int, int], ...] | None:
    """Give the (offset, length) runs of data of a file with holes, in bytes; None for a file without.

    The runs follow the blocks that are not all zeros, not the file system's extents: two copies of a
    file with holes in different places of the same zeros get one map. A file with more runs than a reader's
    budget allows gets coarser ones.
    """
    if os.fstat(file).st_blocks * 512 >= size or os.lseek(file, 0, os.SEEK_HOLE) >= size:
        return None
    block = _BLOCK
    runs = _join(_blocks_with_data(file, size), block, size)
    while len(runs) > DEFAULT_BUDGET.segments:
        block *= 2
        runs = _join(
            (o for offset, length in runs for o in range(offset, offset + length, _BLOCK)), block, size
        )
    return tuple(runs)


def _join(offsets: Iterator[int], block: int, size: int) -> list[tuple[int, int]]:
    """Join the blocks that hold these offsets into runs."""
    runs: list[tuple[int, int]] = []
    for offset in offsets:
        start = offset - offset % block
        end = min(start + block, size)
        if runs and sum(runs[-1]) >= start:
            runs[-1] = (runs[-1][0], end - runs[-1][0])
        else:
            runs.append((start, end - start))
    return runs


def _blocks_with_data(file: int, size: int) -> Iterator[int]:
    zeros = bytes(_BLOCK)
    for start, end in _extents(file, size):
        position = start - start % _BLOCK
        while position < end:
            data = os.pread(file, min(_CHUNK, end - position), position)
            if not data:
                break
            for offset in range(0, len(data), _BLOCK):
                piece = data[offset : offset + _BLOCK]
                if piece != zeros[: len(piece)]:
                    yield position + offset
            position += len(data)


def _extents(file: int, size: int) -> Iterator[tuple[int, int]]:
    position = 0
    while position < size:
        try:
            start = os.lseek(file, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        position = os.lseek(file, start, os.SEEK_HOLE)
        yield start, min(position, size)
