"""The store as a place that images come from and go to: the `Source` and the `Sink` of `transports.copy`.

Blobs and manifests go out exactly as they came in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from layerfs.blobs import Blobs
from layerfs.containers import Containers
from layerfs.database import Database
from layerfs.digest import Digest
from layerfs.errors import NotFoundError, UnsupportedError, VerificationError
from layerfs.files import Lock
from layerfs.images import DOCUMENT_MAXIMUM, Image, Images, full_name
from layerfs.incoming import Incoming
from layerfs.indexes import Indexes
from layerfs.layers import Layers, Step
from layerfs.leases import Lease
from layerfs.oci import media_types
from layerfs.oci.config import ImageConfig
from layerfs.oci.descriptor import Descriptor
from layerfs.progress import Counted, Progress
from layerfs.reference import Reference
from layerfs.transports.endpoint import Available, Resolved

if TYPE_CHECKING:
    from layerfs.compression import Readable
    from layerfs.oci.manifest import Manifest
    from layerfs.oci.platform import Platform
    from layerfs.unpacking import Chain


class StoreSource:
    """Reads images out of the store; a Source with `Documents` that `Locates`.

    The lease of its images ends with `close`.
    """

    def __init__(self, database: Database, blobs: Blobs, images: Images, indexes: Indexes) -> None:
        self._blobs = blobs
        self._images = images
        self._indexes = indexes
        self._lease = Lease(database)

    def images(self) -> Sequence[Available]:
        """List every image, the newest first."""
        return [
            Available(image.manifest.descriptor, tuple(map(full_name, image.names)))
            for image in self._images.list()
        ]

    def manifest(self, image: Available | str | None = None, *, platform: Platform | None = None) -> Resolved:
        """Find one image's manifest; images here are of one platform each, so `platform` decides nothing."""
        if image is None:
            every = self.images()
            if len(every) != 1:
                raise NotFoundError(f"the store has {len(every)} images: one has to be named")
            image = every[0]
        digest = image.descriptor.digest if isinstance(image, Available) else self._images.get(image).digest
        found = self._images.get(str(digest))
        self._images.require_layers(found)
        self._lease.add("image", str(found.digest))
        return Resolved(found.manifest.descriptor, found.manifest.raw)

    def root(self, image: Available | str | None = None) -> Resolved:
        """Find the index that a name came with, else its image's manifest; see `Documents.root`."""
        name = self._images.name_of(image) if isinstance(image, str) else None
        index = None if name is None else self._indexes.of(name)
        if index is None:
            return self.manifest(image)
        self._lease.add("blob", *self._indexes.blobs(index))
        return Resolved(index.descriptor, index.raw)

    def document(self, descriptor: Descriptor) -> bytes:
        """Read a manifest, or an index, that an index names; see `Documents.document`."""
        return self._blobs.read(descriptor.digest, limit=DOCUMENT_MAXIMUM)

    def open(self, descriptor: Descriptor) -> AbstractContextManager[Readable]:
        """Open a blob."""
        file = self._blobs.open(descriptor.digest)
        size = self._blobs.size(descriptor.digest)
        if size != descriptor.size:
            file.close()
            raise VerificationError(
                f"{descriptor.digest} has {size} bytes, not the promised {descriptor.size}"
            )
        return file

    def places(self, digest: Digest) -> Sequence[Reference]:
        """Name repositories that images here with this blob are called by; see `Locates`."""
        return [Reference.parse(name) for name in self._images.names_with(digest)]

    def close(self) -> None:
        """Let the images go."""
        self._lease.__exit__()


class StoreSink:
    """Takes images into the store and unpacks them; a Sink that `Plans`, `Overlaps` and `Nests`.

    Blobs are stored as they come, verified, and leased until `close`; a layer is unpacked in the same pass,
    into a draft, so that its bytes are read once. Of one that is not compressed only a skeleton is kept
    beside its files (see `assembly`). A broken transfer of a large blob goes on where it ended the next
    time. `commit` unpacks what is left, and gives the names last of all: a name never
    stands for an image that cannot be used. `stored` holds the images then. An index is put under names
    that one of its images was put under before, which alone is unpacked.
    """

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        images: Images,
        indexes: Indexes,
        containers: Containers,
        layers: Layers,
        *,
        progress: Progress,
    ) -> None:
        self._blobs = blobs
        self._images = images
        self._indexes = indexes
        self._containers = containers
        self._layers = layers
        self._progress = progress
        self._lease = Lease(database)
        self._manifest: Manifest | None = None
        # What is held for as long as its image is planned.
        self._planned = contextlib.ExitStack()
        self._chain: Chain | None = None
        # Blobs that are here, but only become visible together with the layers made of them.
        self._arrived: set[Digest] = set()
        # Layers that are being unpacked, and which of the image's they are.
        self._coming: dict[Digest, int] = {}
        self._pending: list[tuple[Descriptor, bytes, tuple[str, ...]]] = []
        self._pending_indexes: list[tuple[Descriptor, bytes, tuple[str, ...]]] = []
        self.stored: list[Image] = []

    def plan(self, manifest: Manifest) -> None:
        """Hear of an image whose blobs come next; see `Plans.plan`.

        Waits for another process that takes in the same image.

        Raises:
            UnsupportedError: it is an artifact, and no image that a container could be made of.
        """
        _check_image(manifest)
        self._end_chain()
        lock = self._planned.enter_context(Lock(self._layers.root / "locks" / f"image-{manifest.digest.hex}"))
        self._planned.callback(lock.path.unlink, missing_ok=True)
        self._manifest = manifest

    def has(self, descriptor: Descriptor) -> bool:
        """Say whether a blob is here already; it stays then."""
        self._arrive(descriptor.digest)
        return descriptor.digest in self._arrived or self._is_stored(descriptor)

    def _is_stored(self, descriptor: Descriptor) -> bool:
        # Leased first, so that it cannot go between the question and its use.
        self._lease.add("blob", str(descriptor.digest))
        try:
            return self._blobs.size(descriptor.digest) == descriptor.size
        except LookupError:
            return False

    def put_blob(self, descriptor: Descriptor, stream: Readable) -> None:
        """Store a blob, and unpack it if it is a layer of the planned image; see `Sink.put_blob`."""
        self.begin_blob(descriptor, stream, advance=lambda count: None, done=lambda: None)
        self._arrive(descriptor.digest)

    def begin_blob(
        self,
        descriptor: Descriptor,
        stream: Readable,
        *,
        advance: Callable[[int], object],
        done: Callable[[], object],
    ) -> None:
        """Store a blob, or begin to unpack it if it is a layer of the planned image; see `Overlaps`."""
        with contextlib.ExitStack() as ending:
            ending.callback(done)
            self._lease.add("blob", str(descriptor.digest))
            number = self._position(descriptor)
            chain = None if number is None else self._begin_chain()
            if chain is not None and self._is_stored(descriptor):
                # It came while we waited for a process that unpacks the same layers.
                return
            if number is not None and chain is not None and chain.lacks(number):
                later = ending.pop_all()
                self._begin_layer(chain, number, descriptor, stream, advance, later.close)
                return
            watched = Counted(stream.read, advance)
            with Incoming(self._blobs, descriptor.digest, descriptor.size, watched) as incoming:
                incoming.finish()
                assert incoming.ingest is not None
                incoming.ingest.commit()

    def put_member(self, raw: bytes, media_type: str, *, algorithm: str = "sha256") -> Descriptor:
        """Keep a manifest that an index names; see `Nests`."""
        descriptor = Descriptor.to(raw, media_type, algorithm)
        self._lease.add("blob", str(descriptor.digest))
        self._blobs.put(raw, algorithm)
        return descriptor

    def put_manifest(self, raw: bytes, media_type: str, *, names: Sequence[str] = ()) -> Descriptor:
        """Note an image, or an index, whose blobs are all here; it comes into being with `commit`."""
        descriptor = Descriptor.to(raw, media_type)
        self._lease.add("blob", str(Digest.of(raw)))
        if media_types.is_index(media_type):
            self._pending_indexes.append((descriptor, raw, tuple(map(full_name, names))))
            return descriptor
        self._lease.add("image", str(descriptor.digest))
        self._pending.append((descriptor, raw, tuple(map(full_name, names))))
        return descriptor

    def commit(self) -> None:
        """Commit the layers, unpack what is left of the images, add these, and name them."""
        self._end_chain()
        for descriptor, raw, _ in self._pending:
            manifest, config = self._images.parse(raw, descriptor.media_type)
            self._containers.unpack(manifest, config, progress=self._progress)
        added = self._images.put_together(
            [(raw, descriptor.media_type, names) for descriptor, raw, names in self._pending]
        )
        for descriptor, raw, names in self._pending_indexes:
            self._indexes.put(raw, descriptor.media_type, names)
        self._pending_indexes.clear()
        self.stored += [self._images.get(str(image.digest)) for image in added]
        self._pending.clear()

    def close(self) -> None:
        """Let go of the lease: what was not committed is garbage from now on."""
        self._drop_chain()
        self._pending.clear()
        self._lease.__exit__()

    # -- the layers of the planned image

    def _position(self, descriptor: Descriptor) -> int | None:
        """Give the layer that a blob is, from 0 at the bottom; None where it is none or several."""
        if self._manifest is None:
            return None
        found = [n for n, layer in enumerate(self._manifest.layers) if layer.digest == descriptor.digest]
        return found[0] if len(found) == 1 else None

    def _begin_chain(self) -> Chain | None:
        """Give the planned image's layers on their way in; None where its config does not fit them."""
        if self._chain is None and self._manifest is not None:
            config = ImageConfig.parse(self._blobs.read(self._manifest.config.digest, limit=DOCUMENT_MAXIMUM))
            layers = self._manifest.layers
            if len(config.diff_ids) != len(layers):
                return None
            pairs = zip(layers, config.diff_ids, strict=True)
            steps = [Step(layer.digest, diff_id) for layer, diff_id in pairs]
            self._chain = self._layers.chain(steps, self._lease, progress=self._progress).__enter__()
        return self._chain

    def _begin_layer(
        self,
        chain: Chain,
        number: int,
        descriptor: Descriptor,
        stream: Readable,
        advance: Callable[[int], object],
        done: Callable[[], object],
    ) -> None:
        incoming = Incoming(
            self._blobs, descriptor.digest, descriptor.size, stream,
            whole=False, media_type=descriptor.media_type,
        )  # fmt: skip
        try:
            chain.begin(number, incoming, advance=advance, done=done)
        except BaseException:
            done()
            self._drop_chain()
            raise
        self._coming[descriptor.digest] = number

    def _arrive(self, digest: Digest) -> None:
        """Wait for a layer that is on its way."""
        number = self._coming.pop(digest, None)
        if number is None or self._chain is None:
            return
        try:
            kept = self._chain.wait(number)
        except BaseException:
            self._drop_chain()
            raise
        if kept:
            self._arrived.add(digest)

    def _end_chain(self) -> None:
        """Commit the layers of the image that was planned, if any of them came."""
        try:
            if self._chain is not None:
                self._chain.finish()
        finally:
            self._drop_chain()

    def _drop_chain(self) -> None:
        chain, self._chain = self._chain, None
        self._manifest = None
        self._arrived.clear()
        self._coming.clear()
        with self._planned:
            if chain is not None:
                chain.__exit__()


def _check_image(manifest: Manifest) -> None:
    """Refuse what is no container image."""
    layers = any(media_types.is_layer(layer.media_type) for layer in manifest.layers)
    if manifest.artifact_type is not None or not (
        layers or media_types.is_config(manifest.config.media_type)
    ):
        kind = manifest.artifact_type or manifest.config.media_type
        raise UnsupportedError(
            f"{manifest.digest} is an artifact, {kind[:100]!r}, and no container image",
            hint="`layerfs copy` takes it to an OCI layout",
        )
