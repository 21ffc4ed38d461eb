"""A blob on its way into the store: hashed and stored while its bytes are used, so that they pass once."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from layerfs.blobs import CHUNK, Blobs, Ingest
from layerfs.compression import Compression, detect
from layerfs.digest import Digest
from layerfs.errors import VerificationError
from layerfs.files import descriptor_of

if TYPE_CHECKING:
    from layerfs.compression import Readable

_MAGIC: Final = 4


class Incoming:
    """A stream that stores what is read of it; a context manager whose end leaves nothing visible.

    What an earlier attempt left of the blob is read from there; the stream is read all the same, as it
    may not be able to begin in the middle. Whoever has the `ingest` makes the blob visible, after `finish`.

    Args:
        digest: what the content must have.
        size: its length in bytes.
        stream: gives the content from its beginning; stays the caller's.
        whole: store it even if it is not compressed; else `ingest` is None for such a blob once
            this is entered, and it is only verified: the caller keeps what it needs of it.
    """

    def __init__(
        self, blobs: Blobs, digest: Digest, size: int, stream: Readable, *, whole: bool = True
    ) -> None:
        self.digest = digest
        self.size = size
        self.ingest: Ingest | None = blobs.ingest(digest, size)
        self._whole = whole
        self._stream = stream
        self._open = contextlib.ExitStack()
        self._hasher = digest.hasher()
        self._head = b""
        self._known = 0
        self._position = 0

    def __enter__(self) -> Incoming:
        assert self.ingest is not None
        self._open.enter_context(self.ingest)
        self._known = self.ingest.offset
        if not self._whole and not self._known:
            self._peek()
        return self

    def _peek(self) -> None:
        while len(self._head) < _MAGIC and (data := self._stream.read(CHUNK)):
            self._head += data
        if detect(self._head[:_MAGIC]) is Compression.NONE:
            self._open.close()
            self.ingest = None

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def fileno(self) -> int:
        """Give the descriptor of the file that is read, as `files.descriptor_of` does.

        Raises:
            OSError: it is no file.
        """
        return descriptor_of(self._stream)

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, at least one before the end.

        Raises:
            VerificationError: the stream is longer than promised.
        """
        if self.ingest is not None and self._position < self._known:
            data = self.ingest.read_back(min(size, self._known - self._position), self._position)
            self._position += len(data)
            return data
        while self._known and (skipped := self._stream.read(min(CHUNK, self._known))):
            self._known -= len(skipped)
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
        else:
            data = self._stream.read(size)
        if data and self.ingest is not None:
            self.ingest.write(data)
        elif data:
            self._hasher.update(data)
            self._position += len(data)
            if self._position > self.size:
                raise VerificationError(f"{self.digest} is longer than the promised {self.size} bytes")
        return data

    def finish(self) -> None:
        """Read what is left, and verify the whole.

        Raises:
            VerificationError: the content has not the promised digest or size.
        """
        while self.read(CHUNK):
            pass
        if self.ingest is not None:
            self.ingest.verify()
        elif self._position != self.size:
            raise VerificationError(f"{self.digest} ended after {self._position} of {self.size} bytes")
        elif self._hasher.hexdigest() != self.digest.hex:
            found = Digest(self.digest.algorithm, self._hasher.hexdigest())
            raise VerificationError(f"{self.digest} was promised, the content has {found}")
