"""Writes images into one tar archive: always an OCI layout, and what docker load reads if wanted."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from layerfs import files
from layerfs.digest import Digest
from layerfs.errors import ArchiveError
from layerfs.oci import document, media_types
from layerfs.oci.descriptor import Descriptor
from layerfs.oci.index import Index
from layerfs.oci.manifest import Manifest
from layerfs.transports.endpoint import reference_of, verified
from layerfs.transports.layout_names import named, named_as_docker_does
from layerfs.transports.layout_source import INDEX_FILE, LAYOUT, LAYOUT_FILE, blob_name
from layerfs.transports.oci_layout import add_to_index
from layerfs.tree.entry import Entry, Kind
from layerfs.tree.tar_writer import TarWriter

if TYPE_CHECKING:
    from layerfs.compression import Readable

MANIFEST_FILE: Final = "manifest.json"


class ArchiveSink:
    """Writes an archive front to back, so that a pipe will do; a Sink that `Nests`.

    The same images put in the same order give the same bytes: times are 1970, owners root. Blobs go in as
    they come. With `docker`, a ``manifest.json`` is added that docker load (20.10 and later), podman and
    skopeo read, and names are annotated as docker save does it; docker before 23 cannot unpack
    zstd layers.

    Args:
        target: a path, replaced at `commit` by one rename, or an open file or pipe that stays the
            caller's, and is useless if an error ends the work.
        docker: write what docker load reads, too.
    """

    def __init__(self, target: Path | BinaryIO, *, docker: bool) -> None:
        self._docker = docker
        self._written: set[Digest] = set()
        self._members: dict[Digest, bytes] = {}
        self._directories: set[str] = set()
        self._images: list[Descriptor] = []
        self._dockers: dict[Digest, tuple[Manifest, list[str]]] = {}
        self._target: Path | None = None
        self._temporary: Path | None = None
        self._file: BinaryIO
        if isinstance(target, Path):
            self._file = self._open(target)
        else:
            self._file = target
        behind = None if self._temporary is None else files.WriteBehind(self._file.fileno())
        self._writer = TarWriter(_Writer(self._file, behind, self._target))
        self._add(LAYOUT_FILE, LAYOUT)

    def has(self, descriptor: Descriptor) -> bool:
        """Say whether the blob stands in the archive already."""
        return descriptor.digest in self._written

    def put_blob(self, descriptor: Descriptor, stream: Readable) -> None:
        """Append a blob; see `Sink.put_blob`. What fails leaves the archive useless."""
        if descriptor.digest in self._written:
            return
        self._directory("blobs")
        self._directory(f"blobs/{descriptor.digest.algorithm}")
        self._add_stream(blob_name(descriptor.digest), descriptor.size, verified(stream, descriptor))
        self._written.add(descriptor.digest)

    def put_member(self, raw: bytes, media_type: str, *, algorithm: str = "sha256") -> Descriptor:
        """Append a manifest that is not listed; see `Nests`."""
        descriptor = Descriptor.to(raw, media_type, algorithm)
        if descriptor.digest not in self._written:
            self._directory("blobs")
            self._directory(f"blobs/{descriptor.digest.algorithm}")
            self._add(blob_name(descriptor.digest), raw)
            self._written.add(descriptor.digest)
            self._members[descriptor.digest] = raw
        return descriptor

    def put_manifest(self, raw: bytes, media_type: str, *, names: Sequence[str] = ()) -> Descriptor:
        """Append a manifest, or an index, to be listed under these names; see `Sink.put_manifest`.

        Of an index, docker's part of the archive lists the image for this machine.

        Raises:
            ArchiveError: one of its blobs was not put; or `docker`, and a name is none that docker knows.
            NotFoundError: `docker`, and the index has no image for this machine.
        """
        descriptor = self.put_member(raw, media_type)
        if self._docker:
            manifest = self._runnable(raw, media_type)
            for blob in (manifest.config, *manifest.layers):
                if blob.digest not in self._written:
                    raise ArchiveError(f"image {manifest.digest} needs blob {blob.digest}, which was not put")
            _, tags = self._dockers.setdefault(manifest.digest, (manifest, []))
            tags += [tag for tag in map(_docker_tag, names) if tag not in tags]
        naming = named_as_docker_does if self._docker else named
        self._images += [naming(descriptor, name) for name in names] or [descriptor]
        return descriptor

    def commit(self) -> None:
        """Write the indexes and the end of the archive, and rename it to its place."""
        if self._docker:
            self._add(MANIFEST_FILE, document.dump(list(map(_docker_entry, self._dockers.values()))))
        self._add(INDEX_FILE, add_to_index(None, self._images))
        self._writer.close()
        if self._target is None:
            self._file.flush()
            return
        if self._temporary is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            os.rename(self._temporary, self._target)
            self._temporary = None
            files.sync_directory(self._target.parent)
        self._file.close()

    def close(self) -> None:
        """Close the file, and delete it if there was no `commit`."""
        if self._target is not None:
            self._file.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
            self._temporary = None

    def _runnable(self, raw: bytes, media_type: str) -> Manifest:
        """Give the manifest itself, or that of an index which this machine runs."""
        while media_types.is_index(media_type):
            best = Index.parse(raw, media_type).select()
            if best.digest not in self._members:
                raise ArchiveError(f"index {Digest.of(raw)} needs manifest {best.digest}, which was not put")
            raw, media_type = self._members[best.digest], best.media_type
        return Manifest.parse(raw, media_type)

    def _open(self, target: Path) -> BinaryIO:
        self._target = target
        try:
            special = not stat.S_ISREG(os.stat(target).st_mode)
        except FileNotFoundError:
            special = False
        if special:
            return open(target, "wb", buffering=0)
        # An image may hold secrets: as docker save does, for its owner alone.
        self._temporary = target.with_name(f".{target.name[:200]}.{os.urandom(6).hex()}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return open(os.open(self._temporary, flags, 0o600), "wb", buffering=0)
        except OSError as error:
            # The temporary name says nothing to the user.
            error.filename = str(target)
            raise

    def _directory(self, name: str) -> None:
        if name not in self._directories:
            self._directories.add(name)
            self._writer.add(Entry(name.encode(), Kind.DIRECTORY, 0o755))

    def _add(self, name: str, data: bytes) -> None:
        self._add_stream(name, len(data), (data,))

    def _add_stream(self, name: str, size: int, chunks: Iterable[bytes]) -> None:
        self._writer.add(Entry(name.encode(), Kind.FILE, 0o644, size=size), chunks)


class _Writer:
    """Writes all of each piece, also where a raw file takes only a part."""

    def __init__(self, file: BinaryIO, behind: files.WriteBehind | None, target: Path | None) -> None:
        self._file = file
        self._target = target
        self._behind = behind
        self._size = 0

    def __call__(self, data: bytes) -> None:
        with files.naming(self._target):
            self._write(data)

    def _write(self, data: bytes) -> None:
        self._size += len(data)
        written = self._file.write(data)
        while written is not None and written < len(data):
            data = data[written:]
            written = self._file.write(data)
        if self._behind is not None:
            self._behind.reach(self._size)


def _docker_tag(name: str) -> str:
    reference = reference_of(name, bare=True)
    if reference is None or reference.tag is None:
        raise ArchiveError(
            f"{name[:300]!r} cannot be a name in a docker archive", hint="write it as NAME:TAG"
        )
    return reference._replace(digest=None).familiar()


def _docker_entry(image: tuple[Manifest, list[str]]) -> dict[str, object]:
    """Give an image's item of ``manifest.json`` (moby image/spec/v1.2.md, "Combined Image JSON")."""
    manifest, tags = image
    return {
        "Config": blob_name(manifest.config.digest),
        "RepoTags": tags or None,
        "Layers": [blob_name(layer.digest) for layer in manifest.layers],
    }
