"""The blob of a lazy layer, read by ranges from wherever it is to be had: the store, or images' sources."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from layerfs.errors import LayerfsError, NotFoundError, StoreError
from layerfs.lazy.origin import Origin
from layerfs.seekable.bodies import pieces_of, read_body
from layerfs.seekable.layer import IndexedLayer, open_layer
from layerfs.seekable.ranges import FileRanges, Ranges
from layerfs.tree.budget import Budget

if TYPE_CHECKING:
    from layerfs.lazy.sources import Sources
    from layerfs.seekable.extent import Extent


class LazyBlob:
    """One blob. The store's own file serves first, then places in their order.

    Args:
        stored: where the store has the blob, if it does.
        table: where it has the seek points of a layer without an index of its own.
    """

    def __init__(
        self, origin: Origin, sources: Sources, *, stored: Path, table: Path | None = None, budget: Budget
    ) -> None:
        self._origin = origin
        self._sources = sources
        self._stored = stored
        self._table = table
        self._indexed: IndexedLayer | None = None
        self._budget = budget
        self._lock = threading.Lock()
        self._ranges: Ranges | None = None

    @property
    def size(self) -> int:
        """The blob's length in bytes."""
        return self._origin.descriptor.size

    def read_at(self, offset: int, size: int) -> bytes:
        """Give bytes of the blob; see `Ranges.read_at`.

        Raises:
            LayerfsError, OSError: no place gives them; of the last of them.
        """
        ranges = self._ranges
        if ranges is not None:
            try:
                return ranges.read_at(offset, size)
            except (LayerfsError, OSError):
                # Another place may be better off.
                if len(self._origin.places) < 2:
                    raise
        digest = self._origin.descriptor.digest
        problem: LayerfsError | OSError = NotFoundError(f"nobody is known to have {digest}")
        for opened in self._ways():
            try:
                ranges = opened()
                data = ranges.read_at(offset, size)
            except FileNotFoundError:
                continue  # not in the store
            except (LayerfsError, OSError) as error:
                problem = error
                continue
            self._ranges = ranges
            return data
        raise problem

    def read(self, extent: Extent, offset: int, size: int | None) -> Iterator[bytes]:
        """Give a part of a file, verified as far as its chunks have digests."""
        if self._table is not None:
            return self.with_table(self._table).read(extent, offset, size)
        return read_body(pieces_of(self, self._budget), extent, offset=offset, size=size)

    def with_table(self, table: Path) -> IndexedLayer:
        """Open the layer by a table of seek points.

        Raises:
            StoreError: the table is of no use.
        """
        with self._lock:
            if self._indexed is None:
                # Open as long as the process, as the blob is.
                seek = FileRanges(os.open(table, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
                self._indexed = open_layer(self, self._origin.descriptor, table=seek, budget=self._budget)
            if self._indexed is None:
                raise StoreError(f"the table of seek points {table.name} is of no use")
            return self._indexed

    def _ways(self) -> Iterator[Callable[[], Ranges]]:
        yield self._open_stored
        for place in self._origin.places:
            yield functools.partial(self._sources.ranges, place, self._origin)

    def _open_stored(self) -> Ranges:
        # Open as long as the process.
        return FileRanges(os.open(self._stored, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
