"""A blob on its way into the store: hashed and stored while its bytes are used, so that they pass once."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from layerfs.blobs import CHUNK, Blobs, Ingest
from layerfs.compression import Compression, detect
from layerfs.digest import Digest
from layerfs.errors import VerificationError
from layerfs.oci.media_types import compression_of
from layerfs.streams import Portable, Skips, Stops, portable_descriptors

if TYPE_CHECKING:
    from layerfs.compression import Readable

_MAGIC: Final = 4


class Incoming:
    """A stream that stores what is read of it; a context manager whose end leaves nothing visible.

    What an earlier attempt left of the blob is read from there, and left out of the stream. Nothing is read
    of a stream that is `streams.Portable` before `begin`, which a forked process may call. Whoever has the
    `ingest` makes the blob visible, after `finish`.

    Args:
        digest: what the content must have.
        size: its length in bytes.
        stream: gives the content from its beginning; stays the caller's.
        whole: store it even if it is not compressed; else such a blob is only verified, and `ingest` is None
            once it is begun: the caller keeps what it needs of it. Only what comes over a network is stored
            for as long as it comes, so that it can be gone on with: then there is an `ingest` all the same,
            to be dropped in the end.
        media_type: what the content is said to be.
    """

    def __init__(
        self,
        blobs: Blobs,
        digest: Digest,
        size: int,
        stream: Readable,
        *,
        whole: bool = True,
        media_type: str = "",
    ) -> None:
        self.digest = digest
        self.size = size
        self.ingest: Ingest | None = blobs.ingest(digest, size)
        self._whole = whole
        self._stream = stream
        self._portable = isinstance(stream, Portable)
        self._open = contextlib.ExitStack()
        self._hasher = digest.hasher()
        self._head = b""
        self._known = 0
        self._position = 0
        self.begun = False
        self._plain = False
        self._media_type = media_type
        self.odd: str | None = None
        """What is odd about the content, known when it is begun."""

    def __enter__(self) -> Incoming:
        assert self.ingest is not None
        self._open.enter_context(self.ingest)
        self._known = self.ingest.offset
        if not self._portable:
            self.begin()
        return self

    def begin(self) -> None:
        """Read as much as tells how it is compressed; idempotent, and done by `read` at the latest."""
        if self.begun:
            return
        self.begun = True
        assert self.ingest is not None
        if self._known < _MAGIC:
            # Too little to tell what it is.
            self.ingest.restart()
            self._known = 0
        if self._known:
            self._skip(self._known)
            head = self.ingest.read_back(_MAGIC, 0)
        else:
            while len(self._head) < _MAGIC and (data := self._stream.read(CHUNK)):
                self._head += data
            head = self._head[:_MAGIC]
        found = detect(head)
        self._plain = found is Compression.NONE
        said = compression_of(self._media_type)
        if said is not None and said != found.value:
            kinds = {"none": "plain", "gzip": "a gzip stream", "zstd": "a zstd stream"}
            self.odd = f"layer {self.digest} is {kinds[found.value]}, its media type says {kinds[said]}"
        if not self._plain or self._whole:
            return
        if self._known or self._portable:
            self.ingest.pass_by()
        else:
            self._open.close()
            self.ingest = None

    def _skip(self, count: int) -> None:
        if isinstance(self._stream, Skips):
            self._stream.skip(count)
            return
        while count and (skipped := self._stream.read(min(CHUNK, count))):
            count -= len(skipped)

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    @property
    def plain(self) -> bool:
        """Whether it is not compressed; known when it is begun."""
        return self._plain

    @property
    def kept(self) -> Ingest | None:
        """Where the blob is stored that is kept as such; None, once it is begun, where it is not to be."""
        return self.ingest if self._whole or not (self.begun and self._plain) else None

    def descriptors(self) -> list[int]:
        """Name the descriptors that a forked process needs to read the stream.

        Raises:
            OSError: it can only be read by this process.
        """
        return portable_descriptors(self._stream)

    def stop(self) -> None:
        """Give up reading a stream that can be told so (`streams.Stops`)."""
        if isinstance(self._stream, Stops):
            self._stream.stop()

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, at least one before the end.

        Raises:
            VerificationError: the stream is longer than promised.
        """
        self.begin()
        if self.ingest is not None and self._position < self._known:
            data = self.ingest.read_back(min(size, self._known - self._position), self._position)
            self._position += len(data)
            return data
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
