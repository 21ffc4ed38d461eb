"""A blob on its way into the store: hashed and stored while its bytes are used, so that they pass once."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from layerfs.blobs import CHUNK, Blobs
from layerfs.digest import Digest

if TYPE_CHECKING:
    from layerfs.blobs import Ingest
    from layerfs.compression import Readable


class Incoming:
    """A stream that stores what is read of it; a context manager whose end leaves nothing visible.

    What an earlier attempt left of the blob is read from there; the stream is read all the same, as it
    may not be able to begin in the middle. Whoever has the `ingest` makes the blob visible, after `finish`.

    Args:
        digest: what the content must have.
        size: its length in bytes.
        stream: gives the content from its beginning; stays the caller's.
    """

    def __init__(self, blobs: Blobs, digest: Digest, size: int, stream: Readable) -> None:
        self.digest = digest
        self.size = size
        self.ingest: Ingest = blobs.ingest(digest, size)
        self._stream = stream
        self._open = contextlib.ExitStack()
        self._known = 0
        self._position = 0

    def __enter__(self) -> Incoming:
        self._open.enter_context(self.ingest)
        self._known = self.ingest.offset
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, at least one before the end.

        Raises:
            VerificationError: the stream is longer than promised.
        """
        if self._position < self._known:
            data = self.ingest.read_back(min(size, self._known - self._position), self._position)
            self._position += len(data)
            return data
        while self._known and (skipped := self._stream.read(min(CHUNK, self._known))):
            self._known -= len(skipped)
        data = self._stream.read(size)
        if data:
            self.ingest.write(data)
        return data

    def finish(self) -> None:
        """Read what is left, and verify the whole.

        Raises:
            VerificationError: the content has not the promised digest or size.
        """
        while self.read(CHUNK):
            pass
        self.ingest.verify()
