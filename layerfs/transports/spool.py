"""Bring an archive into a seekable, uncompressed file, as it is or as a temporary copy."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from layerfs import files
from layerfs.compression import Compression, detect, open_decompressed
from layerfs.transports.endpoint import CHUNK
from layerfs.tree.budget import exceeded

if TYPE_CHECKING:
    from layerfs.tree.budget import Budget


def open_plain(source: Path | BinaryIO, *, spool: Callable[[], BinaryIO], budget: Budget | None) -> BinaryIO:
    """Give a seekable file of the plain content, which the caller owns and closes.

    A regular file that is not compressed is opened again and read where it lies; everything else
    (a pipe, a gzip or zstd file) is written to a temporary file first.

    Args:
        source: a path, or an open binary file that stays the caller's and is read from where it stands.
        spool: makes an empty temporary file.
        budget: bounds the ratio of compression.

    Raises:
        LayerError: the compressed stream is damaged.
        BudgetError: it unpacks to more than the budget allows.
    """
    if isinstance(source, Path):
        with open(source, "rb", buffering=0) as opened:
            return open_plain(opened, spool=spool, budget=budget)
    direct = _directly(source)
    if direct is not None:
        return direct
    target = spool()
    try:
        with open_decompressed(source, budget=budget) as plain:
            descriptor = target.fileno()
            size = 0
            while data := plain.read(CHUNK):
                size += len(data)
                if budget is not None and size > budget.bytes:
                    raise exceeded(f"an archive that unpacks to more than {budget.bytes} bytes", "bytes")
                files.write_all(descriptor, data)
        target.seek(0)
    except BaseException:
        target.close()
        raise
    return target


def _directly(source: BinaryIO) -> BinaryIO | None:
    try:
        descriptor = source.fileno()
    except (AttributeError, io.UnsupportedOperation):
        return None
    # Offsets are counted from the file's beginning, so only a file that stands there will do.
    if not stat.S_ISREG(os.fstat(descriptor).st_mode) or source.tell() != 0:
        return None
    if detect(os.pread(descriptor, 4, 0)) is not Compression.NONE:
        return None
    return open(os.dup(descriptor), "rb", buffering=0)
