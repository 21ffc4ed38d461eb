"""New images: a layer written from a tree or taken from a tar stream, and the config and manifest over it."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from layerfs import compression as compressions
from layerfs import failpoints
from layerfs.blobs import Blobs
from layerfs.compression import Compression
from layerfs.digest import Digest
from layerfs.errors import InvalidError
from layerfs.images import Image, Images
from layerfs.instructions import apply_instructions
from layerfs.leases import Lease
from layerfs.oci import media_types
from layerfs.oci.config import History, ImageConfig
from layerfs.oci.descriptor import Descriptor
from layerfs.oci.manifest import Manifest
from layerfs.progress import Progress
from layerfs.tree.archive import write_layer
from layerfs.tree.change import Change
from layerfs.tree.diff import changes_between
from layerfs.value import frozen, replace

_CHUNK = 1 << 20
# What a layer without entries is: two zero blocks.
EMPTY_LAYER = Digest.of(bytes(1024))


@frozen
class NewLayer:
    """A layer in the content store: its blob, that blob's size in bytes, and the digest of its plain tar."""

    blob: Digest
    size: int
    diff_id: Digest
    compression: Compression


def layer_of_changes(
    blobs: Blobs,
    lease: Lease,
    changes: Iterable[Change],
    *,
    compression: Compression,
    warn: Callable[[str], None],
    progress: Progress,
) -> NewLayer:
    """Write changes as a layer into the content store, both digests taken in the one pass."""
    hasher = hashlib.sha256()
    with blobs.ingest() as ingest, progress.task("write layer", None) as advance:
        packer = compressions.compressor(ingest.write, compression, level=None)

        def write(data: bytes) -> None:
            hasher.update(data)
            packer.write(data)
            advance(len(data))

        write_layer(changes, write, warn=warn)
        packer.close()
        lease.add("blob", str(ingest.digest))
        blob = ingest.commit()
        failpoints.reach("image.layer")
        return NewLayer(blob, ingest.offset, Digest("sha256", hasher.hexdigest()), compression)


def layer_of_directory(
    blobs: Blobs, lease: Lease, directory: Path, *, warn: Callable[[str], None], progress: Progress
) -> NewLayer:
    """Write a whole directory as a layer into the content store."""
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        changes = changes_between(None, root)
        return layer_of_changes(
            blobs, lease, changes, compression=Compression.GZIP, warn=warn, progress=progress
        )
    finally:
        os.close(root)


def layer_of_stream(blobs: Blobs, lease: Lease, stream: BinaryIO, *, progress: Progress) -> NewLayer:
    """Take a tar stream, plain or compressed, into the content store as it is.

    Raises:
        LayerError: the compression is broken.
    """
    with blobs.ingest() as ingest, progress.task("read tar", None) as advance:
        while data := stream.read(_CHUNK):
            ingest.write(data)
            advance(len(data))
        lease.add("blob", str(ingest.digest))
        blob = ingest.commit()
        size = ingest.offset
    hasher = hashlib.sha256()
    with blobs.open(blob) as file, compressions.open_decompressed(file) as plain:
        while data := plain.read(_CHUNK):
            hasher.update(data)
        return NewLayer(blob, size, Digest("sha256", hasher.hexdigest()), plain.compression)


def check_instructions(changes: Sequence[str]) -> None:
    """Refuse instructions that cannot be done, before anything is written.

    Raises:
        InvalidError: there is one.
    """
    apply_instructions({}, changes)


def build_image(
    images: Images,
    blobs: Blobs,
    lease: Lease,
    layer: NewLayer | None,
    *,
    base: Image | None,
    author: str,
    message: str,
    created_by: str,
    changes: Sequence[str],
    annotations: Mapping[str, str] | None = None,
    unpack: Callable[[Manifest, ImageConfig], object] | None,
) -> Image:
    """Put a new image together: the base's layers and one more, or none more when `layer` is None.

    The config keeps all that the base's has, members unknown to us too. There is no image before `unpack` has
    returned, which is None when all layers are unpacked already. The manifest is of the base's format; with
    `annotations`, which Docker's has not, of OCI's.
    """
    if base is None and layer is None:
        raise InvalidError("an image has a base or a layer")
    history = History(_now(), author or None, created_by, message or None)
    before = base.config if base else ImageConfig.build()
    old = dict(before.config.members)
    new = apply_instructions(old, changes)
    config = before.with_layer(
        None if layer is None else layer.diff_id,
        history,
        config={**dict.fromkeys(old.keys() - new.keys()), **new},
    )
    docker = base is not None and media_types.is_docker(base.manifest.media_type) and not annotations
    lease.add("blob", str(config.digest))
    blobs.put(config.raw)
    failpoints.reach("image.config")
    layers = [
        replace(layer, media_type=media_types.in_format(layer.media_type, docker=docker))
        for layer in (base.manifest.layers if base else ())
    ]
    if layer is not None:
        media_type = media_types.layer_media_type(layer.compression, docker=docker)
        layers.append(Descriptor(media_type=media_type, digest=layer.blob, size=layer.size))
    manifest = Manifest.build(
        Descriptor(
            media_type=media_types.DOCKER_CONFIG if docker else media_types.OCI_CONFIG,
            digest=config.digest,
            size=len(config.raw),
        ),
        layers,
        media_type=media_types.DOCKER_MANIFEST if docker else media_types.OCI_MANIFEST,
        annotations=annotations,
    )
    lease.add("blob", str(manifest.digest))
    lease.add("image", str(manifest.digest))
    if unpack is not None:
        unpack(manifest, config)
    return images.put(manifest.raw, manifest.media_type)


def _now() -> str:
    now = time.time_ns()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9)) + f".{now % 10**9:09}Z"
