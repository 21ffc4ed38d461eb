"""Parts of a blob in a registry, by byte range (RFC 9110 section 14), compared with what was asked for."""

from __future__ import annotations

import contextlib
import re
import time
from typing import TYPE_CHECKING, Final

from layerfs.errors import (
    Interrupted,
    NotFoundError,
    RegistryError,
    TransportError,
    UnsupportedError,
    VerificationError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from layerfs.oci.descriptor import Descriptor
    from layerfs.registry.answer import Answer
    from layerfs.registry.repository import Repository

# Cuts without a byte between them before a transfer is given up, and the pause after the first, in seconds.
CUTS: Final = 5
_PAUSE: Final = 0.2
_READ: Final = 1 << 18
# Each of them may take its time to fail.
_MOST_URLS: Final = 4
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


class NoRangesError(RegistryError):
    """A server that gives a blob whole only, or gave another part than it was asked for."""


def open_from(repository: Repository, descriptor: Descriptor, start: int) -> tuple[Answer, int]:
    """Ask for a blob from byte `start` on to its end.

    Returns:
        The answer, to be closed by the caller, and at which byte of the blob it begins: `start`, or 0 where
        the server has no ranges.

    Raises:
        VerificationError: the blob there has another size than promised.
        TransportError: as `Repository.send`.
    """
    if start:
        try:
            return _send(repository, descriptor, start, None), start
        except NoRangesError:
            pass
    answer = _get(repository, descriptor, _PLAIN, (200,))
    length = answer.headers.get("Content-Length")
    if length is not None and length != str(descriptor.size):
        answer.close()
        raise VerificationError(
            f"{descriptor.digest} has {length[:20]} bytes at {repository.reference.host},"
            f" not the promised {descriptor.size}"
        )
    return answer, 0


def gives_ranges(answer: Answer) -> bool:
    """Say whether the server of this answer is likely to give parts."""
    return answer.status == 206 or "bytes" in (answer.headers.get("Accept-Ranges") or "")


def fetch(repository: Repository, descriptor: Descriptor, start: int, size: int) -> bytes:
    """Fetch a part of a blob; a cut is gone on from.

    Raises:
        NoRangesError: the server does not give it.
        Interrupted: the connection was cut again and again.
        TransportError: as `Repository.send`.
    """
    parts: list[bytes] = []
    position, end = start, start + size
    cuts = Cuts()
    while position < end:
        answer = _send(repository, descriptor, position, end)
        try:
            with answer:
                while position < end and (data := answer.read(min(_READ, end - position))):
                    parts.append(data)
                    position += len(data)
                    cuts.progress()
                # The connection is used again when its end was seen.
                if position < end or answer.read(1):
                    raise Interrupted(f"{repository.reference.host} sent another length than it promised")
        except Interrupted as error:
            cuts.note(error)
    return b"".join(parts)


class Cuts:
    """Counts the cuts of a transfer, waits longer after each, gives up after some without a byte between."""

    def __init__(self) -> None:
        self._count = 0

    def progress(self) -> None:
        """Hear that bytes came."""
        self._count = 0

    def note(self, error: Exception) -> None:
        """Hear of a cut; returns when it is time to try again, or raises it."""
        self._count += 1
        if self._count > CUTS:
            raise error
        if self._count > 1:
            time.sleep(_PAUSE * 2.0 ** (self._count - 2))


class BlobRanges:
    """A blob in a registry, read anywhere; thread-safe. What is read is not verified.

    `size` is its length in bytes.
    """

    def __init__(self, repository: Repository, descriptor: Descriptor) -> None:
        self._repository = repository
        self._descriptor = descriptor
        self.size = descriptor.size

    def read_at(self, offset: int, size: int) -> bytes:
        """Read bytes from `offset` on: `size` of them, fewer only where the blob ends before.

        Raises:
            UnsupportedError: the server gives whole blobs only.
            TransportError: it cannot be reached, or refuses.
        """
        size = min(size, self.size - offset)
        if size <= 0:
            return b""
        if self._descriptor.data is not None:
            return self._descriptor.data[offset : offset + size]
        try:
            return fetch(self._repository, self._descriptor, offset, size)
        except NoRangesError as error:
            raise UnsupportedError(
                f"{self._repository.reference.host} gives blobs only as a whole: {error}",
                hint="pull the image instead",
            ) from error


_PLAIN: Final = {"Accept-Encoding": "identity"}


def _send(repository: Repository, descriptor: Descriptor, start: int, end: int | None) -> Answer:
    """Ask for bytes from `start` to before `end`, and refuse an answer of others."""
    asked = f"bytes={start}-{'' if end is None else end - 1}"
    host = repository.reference.host
    try:
        answer = _get(repository, descriptor, {**_PLAIN, "Range": asked}, (200, 206))
    except RegistryError as error:
        if error.status != 416:
            raise
        raise NoRangesError(f"{host} refuses {asked} of {descriptor.digest}", status=416) from error
    last = descriptor.size - 1 if end is None else end - 1
    if answer.status == 200:
        answer.close()
        raise NoRangesError(f"{host} has no ranges", status=200)
    given = answer.headers.get("Content-Range") or ""
    found = _CONTENT_RANGE.fullmatch(given.strip())
    if (
        found is None
        or (int(found[1]), int(found[2])) != (start, last)
        or found[3] not in ("*", str(descriptor.size))
    ):
        answer.close()
        raise NoRangesError(f"{host} was asked for {asked} and answered with {given[:60]!r}", status=206)
    return answer


def _get(
    repository: Repository, descriptor: Descriptor, headers: Mapping[str, str], expect: tuple[int, ...]
) -> Answer:
    """Ask the repository, or for what may not be distributed the places that the descriptor names."""
    try:
        return repository.send("GET", f"blobs/{descriptor.digest}", headers=headers, expect=expect)
    except NotFoundError:
        # Another server's URL gets no credentials, whatever it is.
        urls = [url for url in descriptor.urls if url.startswith("https://")][:_MOST_URLS]
        for url in urls[:-1]:
            with contextlib.suppress(TransportError, NotFoundError):
                return repository.send("GET", url, headers=headers, expect=expect)
        if not urls:
            raise
        return repository.send("GET", urls[-1], headers=headers, expect=expect)
