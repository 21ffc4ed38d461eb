"""Indexes that came with all of their platforms: which names they have, and which blobs they need.

A name stands for the image of one platform, as ever; its index, where there is one, goes out byte for byte.
Images of the other platforms are blobs here: they are not unpacked, and have no names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from layerfs import failpoints
from layerfs.blobs import Blobs
from layerfs.database import Database, now_ns
from layerfs.digest import Digest
from layerfs.errors import ArchiveError
from layerfs.oci import document, media_types
from layerfs.oci.index import Index
from layerfs.oci.manifest import Manifest

_DEEPEST: Final = 8


class Indexes:
    """The indexes of one store."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database = database
        self._blobs = blobs

    def put(self, raw: bytes, media_type: str, names: Sequence[str]) -> Digest:
        """Keep an index whose manifests and blobs are all here, for names that images have by now.

        Args:
            names: in full.

        Raises:
            DocumentError: a document is none.
            ArchiveError: a blob is missing.
        """
        index = Index.parse(raw, media_type)
        digest = str(self._blobs.put(raw))
        if digest != str(index.digest):
            raise ArchiveError(f"an index's digest is {index.digest}, in this store it would be {digest}")
        needed = {digest, *map(str, self._below(index, _DEEPEST, set()))}
        for blob in needed:
            if not self._blobs.has(Digest.parse(blob)):
                raise ArchiveError(f"index {digest} needs blob {blob}, which is missing")
        failpoints.reach("index.put")
        with self._database.transaction(durable=True) as connection:
            connection.execute(
                "INSERT OR IGNORE INTO indexes VALUES (?, ?, ?)", (digest, index.media_type, now_ns())
            )
            connection.executemany(
                "INSERT OR IGNORE INTO index_links VALUES (?, ?)", [(digest, blob) for blob in needed]
            )
            connection.executemany(
                "INSERT OR REPLACE INTO index_tags VALUES (?, ?)", [(name, digest) for name in names]
            )
            self._database.note(connection, "indexes", digest)
        return index.digest

    def of(self, name: str) -> Index | None:
        """Give the index that a stored name came with; None when it came alone."""
        row = self._database.row(
            "SELECT i.digest, i.media_type FROM index_tags t JOIN indexes i USING (digest) WHERE t.name = ?",
            name,
        )
        if row is None:
            return None
        digest, media_type = row
        return Index.parse(self._blobs.read(Digest.parse(digest), limit=document.MAXIMUM_BYTES), media_type)

    def blobs(self, index: Index) -> list[str]:
        """Name the blobs that an index needs, itself included."""
        query = "SELECT blob FROM index_links WHERE digest = ?"
        return [blob for (blob,) in self._database.rows(query, str(index.digest))]

    def _below(self, index: Index, depth: int, seen: set[Digest]) -> Iterator[Digest]:
        if depth == 0:
            raise ArchiveError(f"indexes are nested more than {_DEEPEST} deep")
        for member in index.manifests:
            # One that is named a thousand times, by some that are so too, would have no end.
            if member.digest in seen:
                continue
            seen.add(member.digest)
            yield member.digest
            if not self._blobs.has(member.digest):
                continue  # it is missed by whoever asked
            raw = self._blobs.read(member.digest, limit=document.MAXIMUM_BYTES)
            if media_types.is_index(member.media_type):
                yield from self._below(Index.parse(raw, member.media_type), depth - 1, seen)
            else:
                manifest = Manifest.parse(raw, member.media_type)
                yield manifest.config.digest
                yield from (layer.digest for layer in manifest.layers)
