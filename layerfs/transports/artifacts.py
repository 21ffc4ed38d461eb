"""Artifacts: files that belong to an image without being of it, such as signatures and bills of material."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from layerfs import transports
from layerfs.digest import Digest
from layerfs.oci import document, media_types
from layerfs.oci.descriptor import Descriptor
from layerfs.progress import Silent
from layerfs.transports.endpoint import CHUNK

if TYPE_CHECKING:
    from layerfs.compression import Readable
    from layerfs.progress import Progress
    from layerfs.transports.endpoint import Sink

TITLE: Final = "org.opencontainers.image.title"
_EMPTY: Final = b"{}"


class Files:
    """Files of this host as blobs; each is read to learn its digest, and again when it is sent."""

    def __init__(self) -> None:
        self._paths: dict[Digest, Path] = {}

    def add(self, path: Path, media_type: str) -> Descriptor:
        """Describe a file; its name goes along as its title (image-spec annotations.md).

        Raises:
            OSError: it cannot be read.
        """
        hasher, size = hashlib.sha256(), 0
        with path.open("rb", buffering=0) as file:
            while data := file.read(CHUNK):
                hasher.update(data)
                size += len(data)
        digest = Digest("sha256", hasher.hexdigest())
        self._paths[digest] = path
        return Descriptor(media_type, digest, size, annotations={TITLE: path.name})

    def open(self, descriptor: Descriptor) -> AbstractContextManager[Readable]:
        """Open a file again."""
        return self._paths[descriptor.digest].open("rb", buffering=0)


def attach(
    sink: Sink,
    subject: Descriptor,
    files: Sequence[tuple[Path, str]],
    *,
    artifact_type: str,
    annotations: Mapping[str, str],
    progress: Progress | None = None,
) -> Descriptor:
    """Put an artifact of some files whose subject is an image, which stays as it is.

    See image-spec manifest.md, "Guidelines for Artifact Usage". The sink is not committed.

    Args:
        subject: the image's manifest, or index; it is there already.
        files: where each is, and its media type.
        artifact_type: of the whole.
        annotations: of the whole.
        progress: shown a task for each file.

    Returns:
        The descriptor of the artifact's manifest.
    """
    blobs = Files()
    layers = [blobs.add(path, media_type) for path, media_type in files]
    config = Descriptor.to(_EMPTY, media_types.OCI_EMPTY)
    if not sink.has(config):
        sink.put_blob(config, _Bytes(_EMPTY))
    transports.send(blobs, sink, layers, progress=progress or Silent())
    members: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_MANIFEST,
        "artifactType": artifact_type,
        "config": config.members(),
        "layers": [layer.members() for layer in layers],
        "subject": Descriptor(subject.media_type, subject.digest, subject.size).members(),
    }
    if annotations:
        members["annotations"] = dict(annotations)
    return sink.put_manifest(document.dump(members), media_types.OCI_MANIFEST)


class _Bytes:
    """Bytes as a stream."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, size: int, /) -> bytes:
        data, self._data = self._data[:size], self._data[size:]
        return data
