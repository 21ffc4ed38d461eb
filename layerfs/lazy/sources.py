"""The places of images from which lazy layers come, open as long as they are needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

from layerfs.errors import UnsupportedError

if TYPE_CHECKING:
    from layerfs.lazy.origin import Origin
    from layerfs.registry.settings import Options
    from layerfs.seekable.ranges import Ranges
    from layerfs.transports.endpoint import Source
    from layerfs.tree.budget import Budget


class Sources:
    """Places of images, each opened once, when it is first needed; threads may share it."""

    def __init__(
        self,
        *,
        spool: Callable[[], BinaryIO],
        budget: Budget,
        warn: Callable[[str], None],
        options: Options | None = None,
    ) -> None:
        """Args: those of `Place.source`."""
        self._spool = spool
        self.options = options
        self._budget = budget
        self._warn = warn
        self._opened: dict[str, Source] = {}
        self._lock = threading.Lock()

    def open(self, place: str) -> Source:
        """Open a place, once; it stays open until `close`.

        Raises as `Place.source` does.
        """
        from layerfs import transports

        with self._lock:
            source = self._opened.get(place)
            if source is None:
                source = self._opened[place] = transports.parse(place).source(
                    spool=self._spool, budget=self._budget, warn=self._warn, options=self.options
                )
            return source

    def close(self) -> None:
        """Close what was opened."""
        for source in self._opened.values():
            source.close()
        self._opened.clear()

    def ranges(self, place: str, origin: Origin) -> Ranges:
        """Open a blob at a place for reading by ranges; it stays open until `close`.

        Raises:
            LayerfsError, OSError: it cannot be.
        """
        from layerfs.reading import GivesRanges

        source = self.open(place)
        if not isinstance(source, GivesRanges):
            raise UnsupportedError(f"{place} is read from its beginning only")
        return source.ranges(origin.descriptor)
