"""What a place of images is: `Source` and `Sink`, and the values that they exchange.

Pull, push, load and save are the same walk between two of these (`layerfs.transports.copy`).

Life of a source: opened; asked for `images` and `manifest`; `open` any number of times, from several
threads if wanted; `close`. What it hands out as a manifest is verified; blobs are verified by whoever
stores them, against their descriptor.

Life of a sink, in one thread: opened; for each image `plan` if the sink `Plans`, `put_blob` for every blob
that it does not `has` yet (`begin_blob` if it `Overlaps`), then `put_manifest`; once, `commit`; `close`.
Nothing is visible at the far end before `commit`, and a `close` without it leaves no half-made image behind
(complete blobs may stay where blobs are shared).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, runtime_checkable

from layerfs.errors import InvalidError, VerificationError
from layerfs.oci.descriptor import Descriptor
from layerfs.reference import Reference
from layerfs.value import frozen

if TYPE_CHECKING:
    from layerfs.compression import Readable
    from layerfs.digest import Digest
    from layerfs.oci.manifest import Manifest
    from layerfs.oci.platform import Platform

CHUNK: Final = 1 << 20


@frozen
class Available:
    """An image that a source has.

    `descriptor` points to its manifest, or to an index with one for each platform. `names` are as the
    source writes them: in an OCI layout often a tag alone, such as ``latest``.
    """

    descriptor: Descriptor
    names: tuple[str, ...] = ()

    @property
    def references(self) -> tuple[str, ...]:
        """Those of the names that are complete: ``docker.io/library/debian:12``; a bare tag is none.

        Nor is a name with a digest, which cannot be given to an image.
        """
        found = (reference_of(name) for name in self.names)
        return tuple(
            dict.fromkeys(str(known) for known in found if known is not None and known.digest is None)
        )

    def is_called(self, wanted: str) -> bool:
        """Say whether `wanted` is one of the names, or means the same by docker's rules, or is the digest."""
        if wanted in self.names or wanted.removeprefix("@") == str(self.descriptor.digest):
            return True
        reference = reference_of(wanted, bare=True)
        return reference is not None and str(reference) in self.references


class Resolved(NamedTuple):
    """One image's manifest: the document, verified, and the descriptor that points to it."""

    descriptor: Descriptor
    raw: bytes


class Opens(Protocol):
    """What blobs are read from."""

    def open(self, descriptor: Descriptor) -> AbstractContextManager[Readable]:
        """Open a blob that a manifest of this source names; not verified yet. Leaving the context closes it.

        Raises:
            ArchiveError: it is missing.
            VerificationError: its size is not the descriptor's.
        """
        ...


class Source(Opens, Protocol):
    """A place that images come from."""

    def images(self) -> Sequence[Available]:
        """List what is there, in the place's own order."""
        ...

    def manifest(self, image: Available | str | None = None, *, platform: Platform | None = None) -> Resolved:
        """Find one image's manifest, through indexes if need be.

        Args:
            image: one of `images`, or what a user calls it; None where the source has one image only.
            platform: which manifest of an index; this machine's when left out.

        Raises:
            NotFoundError: there is none of that name or for that platform, or several and no name.
            InvalidError: something on the way is malformed.
            VerificationError: a document does not have its digest.
        """
        ...

    def close(self) -> None:
        """Let go of everything; idempotent."""
        ...


class Sink(Protocol):
    """A place that images go to."""

    def has(self, descriptor: Descriptor) -> bool:
        """Say whether a blob is there already, so that it need not be read."""
        ...

    def put_blob(self, descriptor: Descriptor, stream: Readable) -> None:
        """Store a blob; idempotent. The stream stays the caller's.

        Raises:
            VerificationError: digest or size are not the descriptor's; nothing was stored then.
        """
        ...

    def put_manifest(self, raw: bytes, media_type: str, *, names: Sequence[str] = ()) -> Descriptor:
        """Store an image whose blobs are all here, under these names; visible after `commit`."""
        ...

    def commit(self) -> None:
        """Make everything that was put durable and visible, at once."""
        ...

    def close(self) -> None:
        """Let go of everything, and undo what was not committed; idempotent."""
        ...


@runtime_checkable
class Plans(Sink, Protocol):
    """A sink that uses blobs while they pass, and so has to know what they are for before they come.

    It may find that it used a blob and does not `has` it all the same: the blob is put a second time then.
    After a VerificationError the image can be planned anew.
    """

    def plan(self, manifest: Manifest) -> None:
        """Hear of the image whose blobs come next: its config first, then its layers, bottom first."""
        ...


@runtime_checkable
class Overlaps(Protocol):
    """A sink that may take more blobs while one is on its way.

    `has` waits for a blob that is; what goes wrong is raised by this or any later call.
    """

    def begin_blob(
        self,
        descriptor: Descriptor,
        stream: Readable,
        *,
        advance: Callable[[int], object],
        done: Callable[[], object],
    ) -> None:
        """Begin what `Sink.put_blob` does; the stream is the sink's until `done`.

        Args:
            advance: told how many bytes were read of the stream, while other methods are called.
            done: called when the stream is not needed any more, in `close` at the latest.
        """
        ...


@runtime_checkable
class Documents(Protocol):
    """A source that gives indexes whole; any other has one manifest for each image."""

    def root(self, image: Available | str | None = None) -> Resolved:
        """Find what an image's name stands for, an index or a manifest, without choosing a platform.

        Raises as `Source.manifest` does.
        """
        ...

    def document(self, descriptor: Descriptor) -> bytes:
        """Read a manifest, or an index, that an index of this source names; verified.

        Raises:
            ArchiveError: it is missing.
            VerificationError: it does not have its digest or size.
        """
        ...


@runtime_checkable
class Nests(Protocol):
    """A sink that takes indexes: first what they name, by `put_member`, then by `Sink.put_manifest`."""

    def put_member(self, raw: bytes, media_type: str, *, algorithm: str = "sha256") -> Descriptor:
        """Store a manifest, or an index, that an index names which comes later; it gets no name itself.

        Args:
            algorithm: of the digest by which it is named.
        """
        ...


@runtime_checkable
class Expects(Protocol):
    """A source at the other end of a network.

    It fetches ahead, as each blob by itself would cost a round trip; and what came wrong may come right the
    next time.
    """

    def expect(self, blobs: Sequence[Descriptor]) -> None:
        """Hear which blobs are likely to be opened next, in this order."""
        ...


@runtime_checkable
class Hurries(Protocol):
    """A source that takes a while to be reached."""

    def hurry(self, count: int) -> None:
        """Hear, before anything is asked for, that so many things will soon be asked for at once."""


@runtime_checkable
class Locates(Protocol):
    """A source that knows in which repositories of registries its blobs are."""

    def places(self, digest: Digest) -> Sequence[Reference]:
        """Name repositories that are likely to have a blob; in any thread."""
        ...


@runtime_checkable
class Prepares(Protocol):
    """A sink that asks ahead which blobs it lacks, and may open one of the source once more."""

    def prepare(self, blobs: Sequence[Descriptor], source: Opens) -> None:
        """Hear which blobs come next, as far as they are lacking, and where from.

        `source` is opened in any thread until the sink is closed, and may be one that `Locates`.
        """
        ...


@runtime_checkable
class Proven(Protocol):
    """A stream that proves its content by itself, before it gives the last of it."""

    @property
    def proven(self) -> Digest | None:
        """The digest that the content is proven to have; None if it is not."""
        ...


def reference_of(name: str, *, bare: bool = False) -> Reference | None:
    """Read an image name; None for what is none, and for a bare word (likely a tag) unless `bare`."""
    if not bare and not any(mark in name for mark in ":/@"):
        return None
    try:
        return Reference.parse(name)
    except InvalidError:
        return None


def verified(stream: Readable, descriptor: Descriptor) -> Iterator[bytes]:
    """Hand a blob's bytes through in pieces of at most 1 MiB, and prove size and digest at their end.

    The digest of a stream that is `Proven` to have it is not taken a second time.

    Raises:
        VerificationError: it is longer (before the excess is handed on), shorter, or of another digest.
    """
    hasher = descriptor.digest.hasher()
    proven = isinstance(stream, Proven) and stream.proven == descriptor.digest
    left = descriptor.size
    while data := stream.read(CHUNK):
        left -= len(data)
        if left < 0:
            raise VerificationError(
                f"{descriptor.digest} is longer than the promised {descriptor.size} bytes"
            )
        if not proven:
            hasher.update(data)
        yield data
    if left:
        ended = descriptor.size - left
        raise VerificationError(f"{descriptor.digest} ended after {ended} of {descriptor.size} bytes")
    found = hasher.hexdigest()
    if not proven and found != descriptor.digest.hex:
        raise VerificationError(f"{descriptor.digest} was promised, the content hashes to {found}")
