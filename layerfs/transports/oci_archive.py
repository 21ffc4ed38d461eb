"""OCI layouts in a tar archive: read in place, written front to back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from layerfs.transports.archive_sink import ArchiveSink
from layerfs.transports.file_set import ArchiveFiles
from layerfs.transports.layout_source import LayoutSource
from layerfs.transports.spool import open_plain
from layerfs.tree.budget import DEFAULT_BUDGET, Budget


def open_source(
    source: Path | BinaryIO,
    *,
    spool: Callable[[], BinaryIO],
    budget: Budget | None = DEFAULT_BUDGET,
    warn: Callable[[str], None],
) -> LayoutSource:
    """Open an OCI archive for reading; compressed ones, and pipes, go through a temporary file.

    Args:
        source: see `spool.open_plain`.
        spool: makes an empty temporary file.
        budget: bounds the ratio of compression.
        warn: told of what is odd.

    Raises:
        ArchiveError, LayerError, UnsupportedError, DocumentError: it is none, or malformed.
    """
    plain = open_plain(source, spool=spool, budget=budget)
    title = str(source) if isinstance(source, Path) else "the archive"
    return LayoutSource(ArchiveFiles(plain, title=title, warn=warn))


def open_sink(target: Path | BinaryIO) -> ArchiveSink:
    """Begin an OCI archive; see `ArchiveSink`."""
    return ArchiveSink(target, docker=False)
