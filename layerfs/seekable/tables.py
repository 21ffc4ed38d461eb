"""The store's tables of seek points: built when they are first needed, kept as long as their blobs.

A table is made for a blob of which the files are nowhere: an image that is unpacked has them in its layers.
"""

from __future__ import annotations

from collections.abc import Callable

from layerfs.blobs import Blobs
from layerfs.compression import Readable
from layerfs.database import Database
from layerfs.digest import Digest
from layerfs.leases import Lease
from layerfs.seekable.table import build_table
from layerfs.tree.budget import DEFAULT_BUDGET, Budget


class Tables:
    """The tables of one store."""

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        *,
        budget: Budget = DEFAULT_BUDGET,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._budget = budget
        self._warn = warn

    def find(self, blob: Digest) -> Digest | None:
        """Give the table of a blob; None when it has none."""
        row = self._database.row("SELECT seek FROM seek_tables WHERE blob = ?", str(blob))
        found = None if row is None else Digest.parse(row[0])
        return found if found is not None and self._blobs.is_whole(found) else None

    def build(self, blob: Digest, stream: Readable | None = None) -> Digest:
        """Build the table of a blob, unless it has one, and link it to the blob; give the table's digest.

        Args:
            blob: a layer's blob, here or on its way in.
            stream: passes the blob's bytes, when it is read for another purpose too; read to its end, and
                verified by the caller. None to read it out of the store.

        Raises:
            NotFoundError: the blob is not here.
            LayerError: it is no layer.
        """
        found = self.find(blob) if stream is None else None
        if found is not None:
            return found
        with Lease(self._database) as lease, self._blobs.ingest() as ingest:
            if stream is not None:
                build_table(stream, ingest.write, budget=self._budget, warn=self._warn)
            else:
                with self._blobs.open(blob) as content:
                    build_table(content, ingest.write, budget=self._budget, warn=self._warn)
            lease.add("blob", str(blob), str(ingest.digest))
            table = ingest.commit()
            with self._database.transaction(durable=True) as connection:
                connection.execute(
                    "INSERT OR REPLACE INTO seek_tables (blob, seek) VALUES (?, ?)", (str(blob), str(table))
                )
        return table
