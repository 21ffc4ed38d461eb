"""Where the data of a file lies within a layer's blob."""

from __future__ import annotations

from typing import NamedTuple

from layerfs.tree.entry import Entry


class Chunk(NamedTuple):
    """A run of a file's bytes that can be read, and verified, by itself.

    `offset` and `size` count bytes of the file. `start` and `end` bound the compressed bytes in the blob,
    which give `skip` bytes that are others', then these; in a layer without an index of its own `start` and
    `end` count bytes of the uncompressed stream instead. `digest` (``sha256:...``) is of the `size` bytes;
    None when only the whole blob's digest covers them.
    """

    offset: int
    size: int
    start: int
    end: int
    skip: int = 0
    digest: str | None = None


class Extent(NamedTuple):
    """The data of a file of `size` bytes: its chunks in ascending order; zeros between them."""

    size: int
    chunks: tuple[Chunk, ...]


class Indexed(NamedTuple):
    """One entry of an index: the entry, the SHA-256 (hex) of a file's data, and where that lies.

    `digest` is None when the index does not tell it, and for all but files; `extent` for all but files.
    """

    entry: Entry
    digest: str | None
    extent: Extent | None
