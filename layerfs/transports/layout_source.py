"""Reads images out of an OCI layout (image-spec image-layout.md), a directory or an archive alike."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from layerfs.digest import Digest
from layerfs.errors import ArchiveError, NotFoundError, UnsupportedError, VerificationError
from layerfs.files import descriptor_of
from layerfs.oci import document, media_types
from layerfs.oci.descriptor import Descriptor
from layerfs.oci.index import Index, select
from layerfs.seekable.ranges import FileRanges
from layerfs.transports.endpoint import Available, Resolved
from layerfs.transports.file_set import FileSet, OpenFile, read_file
from layerfs.transports.layout_names import list_images

if TYPE_CHECKING:
    from layerfs.oci.platform import Platform

LAYOUT_FILE: Final = "oci-layout"
INDEX_FILE: Final = "index.json"
LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'
_DEEPEST: Final = 8


def blob_name(digest: Digest) -> str:
    """Name a blob's file."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


class LayoutSource:
    """The images of an OCI layout; a Source with `Documents`.

    Args:
        files: where it lies; owned here from now on.

    Raises:
        ArchiveError: it is no OCI layout.
        UnsupportedError: it is of another version.
        DocumentError: its index is malformed.
    """

    def __init__(self, files: FileSet) -> None:
        self.files = files
        try:
            check_version(files)
            raw = read_file(files, INDEX_FILE, limit=document.MAXIMUM_BYTES)
            if raw is None:
                raise ArchiveError(f"{files.title} is not an OCI layout: it has no {INDEX_FILE}")
            self.index = Index.parse(raw)
        except BaseException:
            files.close()
            raise
        self._images = list_images(self.index.manifests)
        # Descriptors of blobs that are read at random.
        self._ranges: list[int] = []

    def images(self) -> Sequence[Available]:
        """List the images of ``index.json``; several names of one image are gathered."""
        return self._images

    def manifest(self, image: Available | str | None = None, *, platform: Platform | None = None) -> Resolved:
        """Find one image's manifest; see `Source.manifest`."""
        if not isinstance(image, Available):
            image = choose(self._images, image, platform=platform, title=self.files.title)
        return self.resolve(image.descriptor, platform=platform)

    def root(self, image: Available | str | None = None) -> Resolved:
        """Find what an image's name stands for; see `Documents.root`."""
        if not isinstance(image, Available):
            image = choose(self._images, image, platform=None, title=self.files.title)
        return Resolved(image.descriptor, self.document(image.descriptor))

    def resolve(self, descriptor: Descriptor, *, platform: Platform | None) -> Resolved:
        """Follow a descriptor through nested indexes to a manifest."""
        for _ in range(_DEEPEST):
            raw = self.document(descriptor)
            if not media_types.is_index(descriptor.media_type):
                return Resolved(descriptor, raw)
            descriptor = Index.parse(raw, descriptor.media_type).select(platform)
        raise ArchiveError(f"{self.files.title} has indexes nested more than {_DEEPEST} deep")

    def open(self, descriptor: Descriptor) -> OpenFile:
        """Open a blob; see `Source.open`."""
        return open_sized(self.files, blob_name(descriptor.digest), descriptor)

    def ranges(self, descriptor: Descriptor) -> FileRanges:
        """Give a blob by offset, unverified, until the layout is closed; see `reading.GivesRanges`.

        Raises:
            ArchiveError, VerificationError: as `open`.
            UnsupportedError: it is no file of its own.
        """
        file = self.open(descriptor)
        try:
            number = os.dup(descriptor_of(file))
        except OSError as error:
            raise UnsupportedError(f"{self.files.title} cannot be read at random") from error
        finally:
            file.close()
        self._ranges.append(number)
        return FileRanges(number, start=file.start, size=file.size)

    def close(self) -> None:
        """Close the layout."""
        while self._ranges:
            os.close(self._ranges.pop())
        self.files.close()

    def document(self, descriptor: Descriptor) -> bytes:
        """Read a manifest or an index; see `Documents.document`."""
        name = blob_name(descriptor.digest)
        raw = read_file(self.files, name, limit=document.MAXIMUM_BYTES)
        if raw is None:
            raise ArchiveError(f"{self.files.title} lacks document {descriptor.digest}")
        if len(raw) != descriptor.size or Digest.of(raw, descriptor.digest.algorithm) != descriptor.digest:
            raise VerificationError(f"{self.files.title}: {name} does not have its digest and size")
        return raw


def open_sized(files: FileSet, name: str, descriptor: Descriptor) -> OpenFile:
    """Open the file that holds a blob.

    Raises:
        ArchiveError: it is missing.
        VerificationError: its size is not the descriptor's.
    """
    file = files.open(name)
    if file is None:
        raise ArchiveError(f"{files.title} lacks blob {descriptor.digest}")
    if file.size != descriptor.size:
        file.close()
        raise VerificationError(
            f"{files.title}: {descriptor.digest} has {file.size} bytes, {descriptor.size} were promised"
        )
    return file


def check_version(files: FileSet) -> None:
    """Refuse what is no OCI layout, or of an unknown version.

    Raises:
        ArchiveError, UnsupportedError, DocumentError: it is refused.
    """
    raw = read_file(files, LAYOUT_FILE, limit=document.MAXIMUM_BYTES)
    if raw is None:
        raise ArchiveError(f"{files.title} is not an OCI layout: it has no {LAYOUT_FILE} file")
    version = document.load(raw, what=LAYOUT_FILE).text("imageLayoutVersion")
    if version.split(".")[0] != "1":
        raise UnsupportedError(f"{files.title} is an OCI layout of version {version[:40]!r}; 1.0.0 is known")


def choose(
    images: Sequence[Available], wanted: str | None, *, platform: Platform | None, title: str
) -> Available:
    """Pick the image that a user means: by name, digest, ``@NUMBER``, or by being the only one.

    Several of one name are for several platforms.

    Raises:
        NotFoundError: there is none, or it is not clear which.
    """
    if wanted is not None and wanted[:1] == "@" and wanted[1:].isdecimal() and len(wanted) < 10:
        found = list(images[int(wanted[1:]) :][:1])
    else:
        found = [image for image in images if wanted is None or image.is_called(wanted)]
    if not found:
        what = "an image" if wanted is None else f"image {wanted[:300]!r}"
        raise NotFoundError(f"{title} has no {what.removeprefix('an ')}", hint=_offer(images))
    if len(found) == 1:
        return found[0]
    if all(image.descriptor.platform is not None for image in found):
        names = {image.names for image in found}
        if wanted is not None or len(names) == 1:
            best = select([image.descriptor for image in found], platform)
            return next(image for image in found if image.descriptor == best)
    raise NotFoundError(f"{title} has {len(found)} images: which one is not said", hint=_offer(images))


def _offer(images: Sequence[Available]) -> str | None:
    names = [name for image in images for name in image.names]
    if names:
        return f"there is {', '.join(names[:20])}"
    return f"name one by its number, @0 to @{len(images) - 1}" if images else None
