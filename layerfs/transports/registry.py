"""A repository of a registry as a place that images come from and go to (``docker://HOST/REPOSITORY:TAG``)."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

from layerfs.digest import Digest
from layerfs.errors import ArchiveError, InvalidError, TransportError, VerificationError
from layerfs.oci import media_types
from layerfs.oci.descriptor import Descriptor
from layerfs.oci.index import Index
from layerfs.reference import Reference
from layerfs.registry import manifests, upload
from layerfs.registry.download import Download, fetch_whole
from layerfs.registry.prefetch import SMALL, Prefetch, Prefetched
from layerfs.registry.ranges import BlobRanges
from layerfs.registry.session import Session
from layerfs.transports.endpoint import Available, Locates, Resolved
from layerfs.transports.lanes import Lanes, Stopped

if TYPE_CHECKING:
    from layerfs.compression import Readable
    from layerfs.oci.platform import Platform
    from layerfs.registry.repository import Repository
    from layerfs.registry.settings import Options
    from layerfs.transports.endpoint import Opens

_DEEPEST: Final = 8
# Large blobs that are read at once share the connections of one registry.
_LARGE_AT_ONCE: Final = 3
_UPLOADS_AT_ONCE: Final = 4


def open_source(
    reference: Reference, *, options: Options | None = None, warn: Callable[[str], None]
) -> RegistrySource:
    """Begin to read from a registry; nothing is asked yet."""
    return RegistrySource(Session(options, warn=warn), reference)


def open_sink(
    reference: Reference, *, options: Options | None = None, warn: Callable[[str], None]
) -> RegistrySink:
    """Begin to write to a registry; nothing is asked yet."""
    return RegistrySink(Session(options, warn=warn), reference)


class RegistrySource:
    """Reads images out of one repository; a Source with `Documents` that `Expects`, `Hurries` and `Locates`.

    Args:
        session: owned here from now on.
        reference: the image that is meant where none is named.
    """

    def __init__(self, session: Session, reference: Reference) -> None:
        self._session = session
        self._reference = reference
        self._repository: Repository = session.repository(reference)
        self._documents: dict[str, tuple[bytes, Descriptor]] = {}
        self._prefetch = Prefetch(
            functools.partial(fetch_whole, self._repository), threads=session.options.connections
        )
        self._large = _LARGE_AT_ONCE

    def images(self) -> Sequence[Available]:
        """Name the image that the reference means."""
        found = self.root()
        names = () if self._reference.digest is not None else (str(self._reference),)
        return [Available(found.descriptor, names)]

    def manifest(self, image: Available | str | None = None, *, platform: Platform | None = None) -> Resolved:
        """Find one image's manifest; see `Source.manifest`.

        Raises:
            TransportError: the registry cannot be reached, or refuses.
        """
        found = self.root(image)
        for _ in range(_DEEPEST):
            if not media_types.is_index(found.descriptor.media_type):
                return found
            below = Index.parse(found.raw, found.descriptor.media_type).select(platform)
            found = Resolved(below, self.document(below))
        raise ArchiveError(f"{self._repository.reference.name} has indexes nested more than {_DEEPEST} deep")

    def root(self, image: Available | str | None = None) -> Resolved:
        """Find what a name stands for, an index or a manifest; see `Documents.root`."""
        raw, descriptor = self._document(self._what(image))
        return Resolved(descriptor, raw)

    def document(self, descriptor: Descriptor) -> bytes:
        """Read a manifest, or an index, that an index names; see `Documents.document`."""
        raw, found = self._document(str(descriptor.digest))
        if found.size != descriptor.size or found.media_type != descriptor.media_type:
            raise VerificationError(
                f"{self._repository.reference.name}: {descriptor.digest} is not the"
                f" {descriptor.media_type} of {descriptor.size} bytes that its index promises"
            )
        return raw

    def expect(self, blobs: Sequence[Descriptor]) -> None:
        """Hear which blobs are opened next: small ones are fetched ahead; see `Expects`."""
        self._large = max(1, sum(each.size > SMALL for each in blobs))
        self._prefetch.expect(blobs)

    def open(self, descriptor: Descriptor) -> AbstractContextManager[Readable]:
        """Open a blob; nothing is asked before it is read."""
        if descriptor.data is not None:
            return contextlib.nullcontext(io.BytesIO(descriptor.data))
        if self._prefetch.has(descriptor.digest):
            take = functools.partial(self._prefetch.take, descriptor.digest)
            return Prefetched(take, self._prefetch.pause, self._prefetch.close)
        share = -(-self._session.options.connections // min(self._large, _LARGE_AT_ONCE))
        return _Blob(self._repository, descriptor, connections=share, settle=self._prefetch.pause)

    def hurry(self, count: int) -> None:
        """Have connections made beside the first request, for the next ones; see `Hurries`."""
        self._repository.hurry(min(count, 2 * self._session.options.connections))

    def ranges(self, descriptor: Descriptor) -> BlobRanges:
        """Open a blob to be read anywhere, in any thread; not verified."""
        return BlobRanges(self._repository, descriptor)

    def places(self, digest: Digest) -> Sequence[Reference]:
        """Say where else a blob is: here; see `Locates`."""
        return [self._repository.reference]

    def close(self) -> None:
        """Close the connections."""
        self._prefetch.close()
        self._session.close()

    def _what(self, image: Available | str | None) -> str:
        if isinstance(image, Available):
            return str(image.descriptor.digest)
        reference = self._reference
        if image is not None:
            reference = Reference.parse(image)
            if reference.name != self._reference.name:
                raise InvalidError(f"{image!r} is not in the repository {self._reference.name}")
        return _what(reference)

    def _document(self, what: str) -> tuple[bytes, Descriptor]:
        found = self._documents.get(what)
        if found is None:
            found = manifests.get(self._repository, what)
            self._documents[what] = self._documents[str(found[1].digest)] = found
        return found


class _Blob(Download):
    """A download that has everything else settled before a process is forked for it."""

    def __init__(
        self,
        repository: Repository,
        descriptor: Descriptor,
        *,
        connections: int,
        settle: Callable[[], object],
    ) -> None:
        super().__init__(repository, descriptor, connections=connections)
        self._settle = settle

    def descriptors(self) -> list[int]:
        self._settle()
        return super().descriptors()


class RegistrySink:
    """Writes images into one repository; a Sink that `Overlaps`, `Nests` and `Prepares`.

    Several blobs go at once. Manifests under a name come last of all, in `commit`; what was sent without
    them the registry takes for garbage.

    Args:
        session: owned here from now on.
        reference: where it goes.
    """

    def __init__(self, session: Session, reference: Reference) -> None:
        self._session = session
        self._reference = reference
        self._repository = session.repository(reference)
        self._source: Opens | None = None
        self._lanes: Lanes[bool] = Lanes(max(_UPLOADS_AT_ONCE, session.options.connections))
        self._later: list[Callable[[], object]] = []
        self._pending: list[tuple[bytes, str, list[str]]] = []

    def prepare(self, blobs: Sequence[Descriptor], source: Opens) -> None:
        """Hear which blobs come next and where from; asks which are there already; see `Prepares`."""
        self._source = source
        for descriptor in blobs:
            key = ("has", descriptor.digest)
            if not self._lanes.has(key):
                self._lanes.begin(key, functools.partial(upload.exists, self._repository, descriptor))

    def has(self, descriptor: Descriptor) -> bool:
        """Say whether the repository has a blob, or has got it by now, or must not get it."""
        if descriptor.urls and media_types.is_foreign_layer(descriptor.media_type):
            # Whoever pulls fetches it from where its owner has it (image-spec layer.md).
            return True
        if self._lanes.has(descriptor.digest):
            return self._lanes.wait(descriptor.digest)
        key = ("has", descriptor.digest)
        if not self._lanes.has(key):
            self._lanes.begin(key, functools.partial(upload.exists, self._repository, descriptor))
        return self._lanes.wait(key)

    def put_blob(self, descriptor: Descriptor, stream: Readable) -> None:
        """Send a blob; see `Sink.put_blob`."""
        self._send(descriptor, stream, lambda count: None)

    def begin_blob(
        self,
        descriptor: Descriptor,
        stream: Readable,
        *,
        advance: Callable[[int], object],
        done: Callable[[], object],
    ) -> None:
        """Send a blob in a thread of its own; see `Overlaps`."""
        ending = contextlib.ExitStack()
        ending.callback(done)
        self._later.append(ending.close)

        def send() -> bool:
            self._send(descriptor, stream, advance)
            ending.close()
            return True

        self._lanes.begin(descriptor.digest, send)

    def put_member(self, raw: bytes, media_type: str, *, algorithm: str = "sha256") -> Descriptor:
        """Store a manifest by its digest; see `Nests`."""
        self._settle()
        descriptor = Descriptor.to(raw, media_type, algorithm)
        manifests.put(self._repository, raw, media_type, descriptor.digest)
        return descriptor

    def put_manifest(self, raw: bytes, media_type: str, *, names: Sequence[str] = ()) -> Descriptor:
        """Note a manifest, or an index, whose blobs are all there; it comes into being with `commit`.

        Args:
            names: references of this repository, or tags of it; the digest alone where there are none.
        """
        self._settle()
        descriptor = Descriptor.to(raw, media_type)
        whats = [self._name(name, descriptor) for name in names] or [str(descriptor.digest)]
        self._pending.append((raw, media_type, whats))
        return descriptor

    def commit(self) -> None:
        """Store the manifests under their names."""
        self._settle()
        for raw, media_type, whats in self._pending:
            for what in whats:
                manifests.put(self._repository, raw, media_type, what)
        self._pending.clear()

    def close(self) -> None:
        """Stop what is under way, and close the connections."""
        self._lanes.close()
        for done in self._later:
            done()
        self._later.clear()
        self._session.close()

    def _settle(self) -> None:
        """Wait for all that is on its way."""
        self._lanes.finish()
        self._later.clear()

    def _name(self, name: str, descriptor: Descriptor) -> str:
        if ":" not in name and "/" not in name and "@" not in name:
            return name
        reference = Reference.parse(name)
        if reference.name != self._reference.name:
            raise InvalidError(f"{name!r} is not in the repository {self._reference.name}")
        if reference.digest not in (None, descriptor.digest):
            raise TransportError(
                f"the image is {descriptor.digest}, and cannot be pushed as {reference.digest}",
                hint="name a tag",
            )
        return _what(reference)

    def _send(self, descriptor: Descriptor, stream: Readable, advance: Callable[[int], object]) -> None:
        source = self._source
        streams: Iterable[AbstractContextManager[Readable]] = iter([contextlib.nullcontext(stream)])

        def opens() -> AbstractContextManager[Readable]:
            found = next(iter(streams), None)
            if found is not None:
                return found
            if source is None:
                raise TransportError(
                    f"the upload of {descriptor.digest} was cut",
                    hint="push again: what is there is not sent again",
                )
            return source.open(descriptor)

        def check() -> None:
            if self._lanes.stopped:
                raise Stopped

        sending = upload.Upload(self._repository, descriptor, opens, advance=advance, check=check)
        origins = source.places(descriptor.digest) if isinstance(source, Locates) else ()
        if sending.mount(origins):
            advance(descriptor.size)
            return
        sending.send()


def _what(reference: Reference) -> str:
    """Name what a reference means within its repository; with both, the digest decides."""
    if reference.digest is not None:
        return str(reference.digest)
    assert reference.tag is not None
    return reference.tag
