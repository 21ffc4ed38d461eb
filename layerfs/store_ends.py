"""The store as a place that images come from and go to: the `Source` and the `Sink` of `transports.copy`.

Blobs and manifests go out exactly as they came in.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from layerfs.blobs import CHUNK, Blobs
from layerfs.containers import Containers
from layerfs.database import Database
from layerfs.digest import Digest
from layerfs.errors import NotFoundError, VerificationError
from layerfs.images import Image, Images, full_name
from layerfs.leases import Lease
from layerfs.oci.descriptor import Descriptor
from layerfs.progress import Progress
from layerfs.transports.endpoint import Available, Resolved

if TYPE_CHECKING:
    from layerfs.compression import Readable
    from layerfs.oci.platform import Platform


class StoreSource:
    """Reads images out of the store; a Source. The lease of its images ends with `close`."""

    def __init__(self, database: Database, blobs: Blobs, images: Images) -> None:
        self._blobs = blobs
        self._images = images
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
        self._lease.add("image", str(found.digest))
        return Resolved(found.manifest.descriptor, found.manifest.raw)

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

    def close(self) -> None:
        """Let the images go."""
        self._lease.__exit__()


class StoreSink:
    """Takes images into the store and unpacks them; a Sink.

    Blobs are stored as they come, verified, and leased until `close`. A broken transfer of a large blob
    goes on where it ended the next time. `commit` unpacks, and gives the names last of all: a name never
    stands for an image that cannot be used. `stored` holds the images then.
    """

    def __init__(
        self, database: Database, blobs: Blobs, images: Images, containers: Containers, *, progress: Progress
    ) -> None:
        self._blobs = blobs
        self._images = images
        self._containers = containers
        self._progress = progress
        self._lease = Lease(database)
        self._pending: list[tuple[Descriptor, bytes, tuple[str, ...]]] = []
        self.stored: list[Image] = []

    def has(self, descriptor: Descriptor) -> bool:
        """Say whether a blob is here already; it stays then."""
        # Leased first, so that it cannot go between the question and its use.
        self._lease.add("blob", str(descriptor.digest))
        try:
            return self._blobs.size(descriptor.digest) == descriptor.size
        except LookupError:
            return False

    def put_blob(self, descriptor: Descriptor, stream: Readable) -> None:
        """Store a blob; see `Sink.put_blob`."""
        self._lease.add("blob", str(descriptor.digest))
        with self._blobs.ingest(descriptor.digest, descriptor.size) as ingest:
            known = ingest.offset
            while known and (data := stream.read(min(CHUNK, known))):
                known -= len(data)
            while data := stream.read(CHUNK):
                ingest.write(data)
            ingest.commit()

    def put_manifest(self, raw: bytes, media_type: str, *, names: Sequence[str] = ()) -> Descriptor:
        """Note an image whose blobs are all here; it comes into being with `commit`."""
        descriptor = Descriptor.to(raw, media_type)
        self._lease.add("blob", str(Digest.of(raw)))
        self._lease.add("image", str(descriptor.digest))
        self._pending.append((descriptor, raw, tuple(map(full_name, names))))
        return descriptor

    def commit(self) -> None:
        """Add the images, unpack them, and name them."""
        added = [self._images.put(raw, descriptor.media_type) for descriptor, raw, _ in self._pending]
        for image in added:
            self._containers.unpack(image, progress=self._progress)
        for image, (_, _, names) in zip(added, self._pending, strict=True):
            for name in names:
                self._images.tag(str(image.digest), name)
        self.stored += [self._images.get(str(image.digest)) for image in added]
        self._pending.clear()

    def close(self) -> None:
        """Let go of the lease: what was not committed is garbage from now on."""
        self._pending.clear()
        self._lease.__exit__()
