"""A layer that is not unpacked, by what index it has: one of its own, or a table of seek points beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from layerfs.digest import Digest
from layerfs.oci.descriptor import Descriptor
from layerfs.seekable import estargz, zstd_chunked
from layerfs.seekable.extent import Extent, Indexed
from layerfs.seekable.ranges import Ranges
from layerfs.seekable.table import TableLayer
from layerfs.tree.budget import DEFAULT_BUDGET, Budget


class IndexedLayer(Protocol):
    """A layer's entries, and its files by random access.

    What is verified: the index against the layer's descriptor (or it was built from the verified blob); of a
    layer with an index of its own every byte of a file, chunk by chunk, before it is given. What the
    index of such a layer says of modes, owners and names is its own word, which need not be what the tar
    stream beneath says; a table of seek points is made of the stream itself.
    """

    @property
    def toc_digest(self) -> Digest | None:
        """The digest of the index that the layer carries itself, as its format has it; None of others."""
        ...

    def entries(self) -> Iterator[Indexed]:
        """Give the entries in the order of the layer, names normalised, whiteouts under their OCI names.

        Raises:
            LayerError: the index is malformed, or does not fit the layer; entries may have been given.
            BudgetError: it asks for more than the budget.
        """
        ...

    def read(self, extent: Extent, offset: int = 0, size: int | None = None) -> Iterator[bytes]:
        """Give a part of a file of this layer in pieces; past its end there is nothing.

        Fetches the chunks that are touched, neighbours by one request; several threads may do so at once.

        Raises:
            VerificationError: the bytes are not the promised ones.
            LayerError: the compressed data is damaged.
        """
        ...


def open_layer(
    ranges: Ranges,
    descriptor: Descriptor,
    *,
    table: Ranges | None = None,
    budget: Budget = DEFAULT_BUDGET,
    warn: Callable[[str], None] = lambda text: None,
) -> IndexedLayer | None:
    """Open a layer for random access; None when it has no index that may be used.

    Args:
        ranges: the layer's blob.
        descriptor: its descriptor, out of a verified manifest: annotations promise the index's digest. A
            layer without them has no index: nothing would say that what it lists is what the image's maker
            meant, and whoever unpacks the layer would see another tree.
        table: what `table.build_table` has written for this blob, out of a place that is trusted. It tells
            what the tar stream has, so that it is used in place of the layer's own index; in parts as they
            are needed. Stays the caller's.
        budget: what the index may ask for.
        warn: told, one sentence each, what was odd.

    Raises:
        VerificationError: the index is not the promised one.
        LayerError: the index is malformed.
        BudgetError: it asks for more than the budget.
        StoreError: the table is malformed, or another layer's.
    """
    annotations = descriptor.annotations
    if table is not None:
        return TableLayer(ranges, table, budget=budget)
    chunked = zstd_chunked.open_zstd_chunked(ranges, annotations, budget=budget, warn=warn)
    if chunked is not None or estargz.TOC_DIGEST not in annotations:
        return chunked
    return estargz.open_estargz(ranges, annotations[estargz.TOC_DIGEST], budget=budget, warn=warn)
