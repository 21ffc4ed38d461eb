"""What docker save writes and docker load reads: of 20.10, and of today, which is an OCI layout too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from layerfs.compression import Compression, detect
from layerfs.digest import Digest
from layerfs.errors import ArchiveError, DocumentError
from layerfs.oci import document, media_types
from layerfs.oci.config import ImageConfig
from layerfs.oci.descriptor import Descriptor
from layerfs.oci.document import Members
from layerfs.oci.index import Index
from layerfs.oci.manifest import Manifest
from layerfs.transports.archive_sink import MANIFEST_FILE, ArchiveSink
from layerfs.transports.endpoint import CHUNK, Available, Resolved
from layerfs.transports.file_set import ArchiveFiles, FileSet, OpenFile, read_file
from layerfs.transports.layout_source import (
    INDEX_FILE,
    LAYOUT_FILE,
    LayoutSource,
    blob_name,
    choose,
    open_sized,
)
from layerfs.transports.spool import open_plain
from layerfs.tree.budget import DEFAULT_BUDGET, Budget

if TYPE_CHECKING:
    from layerfs.oci.platform import Platform

_MAXIMUM_IMAGES: Final = 10_000


def open_source(
    source: Path | BinaryIO,
    *,
    spool: Callable[[], BinaryIO],
    budget: Budget | None = DEFAULT_BUDGET,
    warn: Callable[[str], None],
) -> DockerSource:
    """Open a docker archive for reading; compressed ones, and pipes, go through a temporary file.

    Args:
        source: see `spool.open_plain`.
        spool: makes an empty temporary file.
        budget: bounds the ratio of compression.
        warn: told of what is odd.

    Raises:
        ArchiveError, LayerError, DocumentError: it is none, or malformed.
        BudgetError: a document in it is too large.
    """
    plain = open_plain(source, spool=spool, budget=budget)
    title = str(source) if isinstance(source, Path) else "the archive"
    return DockerSource(ArchiveFiles(plain, title=title, warn=warn))


def open_any(
    source: Path | BinaryIO,
    *,
    spool: Callable[[], BinaryIO],
    budget: Budget | None = DEFAULT_BUDGET,
    warn: Callable[[str], None],
) -> DockerSource | LayoutSource:
    """Open a docker archive or an OCI archive, whichever it is (what ``load`` takes).

    Raises:
        ArchiveError: it is neither; and as `open_source`.
    """
    plain = open_plain(source, spool=spool, budget=budget)
    files = ArchiveFiles(plain, title=str(source) if isinstance(source, Path) else "the archive", warn=warn)
    names = set(files.names())
    if MANIFEST_FILE in names:
        return DockerSource(files)
    if {LAYOUT_FILE, INDEX_FILE} <= names:
        return LayoutSource(files)
    files.close()
    raise ArchiveError(
        f"{files.title} holds no images: neither {MANIFEST_FILE} nor {INDEX_FILE} is in it",
        hint="a plain root file system comes in with layerfs import",
    )


def open_sink(target: Path | BinaryIO) -> ArchiveSink:
    """Begin a docker archive, which is an OCI layout too; see `ArchiveSink`."""
    return ArchiveSink(target, docker=True)


class DockerSource:
    """The images of a docker archive; a Source.

    An archive that is an OCI layout too gives its images with the very manifests of the layout, so that no
    digest changes. An older one has no manifests: each is written here, always the same for the
    same image. The digest of a plain layer is its diff id, which the config names; only compressed
    layers of old archives need to be read for theirs.

    Args:
        files: the archive; owned here from now on.

    Raises:
        ArchiveError, DocumentError, BudgetError: it is none, or malformed.
    """

    def __init__(self, files: FileSet) -> None:
        self.files = files
        # Which file holds a blob of an archive without digests for names.
        self._paths: dict[Digest, str] = {}
        # Digests of compressed layers by where they begin: an archive may name one any number of times.
        self._digests: dict[int, Digest] = {}
        self._manifests: dict[Digest, Resolved] = {}
        self._images: list[Available] = []
        try:
            self._read()
        except BaseException:
            files.close()
            raise

    def images(self) -> Sequence[Available]:
        """List the images of ``manifest.json``."""
        return self._images

    def manifest(self, image: Available | str | None = None, *, platform: Platform | None = None) -> Resolved:
        """Find one image's manifest; an archive has one platform only, so `platform` decides nothing."""
        if not isinstance(image, Available):
            image = choose(self._images, image, platform=platform, title=self.files.title)
        return self._manifests[image.descriptor.digest]

    def open(self, descriptor: Descriptor) -> OpenFile:
        """Open a blob; see `Source.open`."""
        path = self._paths.get(descriptor.digest) or blob_name(descriptor.digest)
        return open_sized(self.files, path, descriptor)

    def close(self) -> None:
        """Close the archive."""
        self.files.close()

    def _read(self) -> None:
        raw = read_file(self.files, MANIFEST_FILE, limit=document.MAXIMUM_BYTES)
        if raw is None:
            raise ArchiveError(f"{self.files.title} is not a docker archive: it has no {MANIFEST_FILE}")
        items = document.load_value(raw, what=MANIFEST_FILE)
        if not isinstance(items, list) or len(items) > _MAXIMUM_IMAGES:
            raise DocumentError("", f"{MANIFEST_FILE} is not a list of at most {_MAXIMUM_IMAGES} images")
        modern = self._layout()
        names: dict[Descriptor, list[str]] = {}
        for place, item in enumerate(items):
            if not isinstance(item, dict):
                raise DocumentError(f"[{place}]", f"an object is needed in {MANIFEST_FILE}")
            members = Members(item, f"[{place}]")
            resolved = self._image(members, modern)
            self._manifests[resolved.descriptor.digest] = resolved
            names.setdefault(resolved.descriptor, []).extend(members.texts("RepoTags"))
        self._images = [
            Available(descriptor, tuple(dict.fromkeys(found))) for descriptor, found in names.items()
        ]

    def _image(self, members: Members, modern: dict[Digest, Resolved]) -> Resolved:
        """Find or write the manifest of one item of ``manifest.json`` (moby image/spec/v1.2.md)."""
        config_path = members.text("Config")
        raw = read_file(self.files, config_path, limit=document.MAXIMUM_BYTES)
        if raw is None:
            members.fail("Config", f"{config_path[:300]!r} is not in the archive")
        digest = Digest.of(raw)
        if digest in modern:
            return modern[digest]
        config = ImageConfig.parse(raw)
        paths = members.texts("Layers")
        if len(paths) != len(config.diff_ids):
            members.fail("Layers", f"{len(paths)} layers, but the config has {len(config.diff_ids)} diff ids")
        layers = [self._layer(path, diff_id) for path, diff_id in zip(paths, config.diff_ids, strict=True)]
        self._paths.setdefault(digest, config_path)
        # Of OCI, not of Docker: umoci and others take nothing else, and today's docker writes these too.
        manifest = Manifest.build(Descriptor.to(raw, media_types.OCI_CONFIG), layers)
        return Resolved(manifest.descriptor, manifest.raw)

    def _layer(self, path: str, diff_id: Digest) -> Descriptor:
        with self._open(path) as file:
            head = file.read(4)
            compression = detect(head)
            if compression is Compression.NONE:
                digest = diff_id
            else:
                known = self._digests.get(file.start)
                digest = self._digests[file.start] = known or _digest(head, file)
            media_type = media_types.layer_media_type(compression)
            self._paths.setdefault(digest, path)
            return Descriptor(media_type, digest, file.size)

    def _open(self, path: str) -> OpenFile:
        file = self.files.open(path)
        if file is None:
            raise ArchiveError(f"{self.files.title} lacks {path[:300]!r}")
        return file

    def _layout(self) -> dict[Digest, Resolved]:
        """Map the digests of configs to manifests, where the archive is an OCI layout too."""
        if read_file(self.files, LAYOUT_FILE, limit=document.MAXIMUM_BYTES) is None:
            return {}
        layout = LayoutSource(self.files)
        found: dict[Digest, Resolved] = {}
        for image in layout.images():
            for resolved in self._below(layout, image.descriptor):
                manifest = Manifest.parse(resolved.raw, resolved.descriptor.media_type)
                if all(map(self._has, (manifest.config, *manifest.layers))):
                    found.setdefault(manifest.config.digest, resolved)
        return found

    def _below(self, layout: LayoutSource, descriptor: Descriptor) -> Iterator[Resolved]:
        """Give the manifests below an entry of the index; docker leaves out other platforms' blobs."""
        if not self._has(descriptor):
            return
        if not media_types.is_index(descriptor.media_type):
            yield layout.resolve(descriptor, platform=None)
            return
        raw = read_file(self.files, blob_name(descriptor.digest), limit=document.MAXIMUM_BYTES) or b""
        for nested in Index.parse(raw, descriptor.media_type).manifests:
            if media_types.is_manifest(nested.media_type) and self._has(nested):
                yield layout.resolve(nested, platform=None)

    def _has(self, descriptor: Descriptor) -> bool:
        file = self.files.open(blob_name(descriptor.digest))
        if file is None:
            return False
        file.close()
        return file.size == descriptor.size


def _digest(head: bytes, file: OpenFile) -> Digest:
    hasher = Digest("sha256", "").hasher()
    data = head
    while data:
        hasher.update(data)
        data = file.read(CHUNK)
    return Digest("sha256", hasher.hexdigest())
