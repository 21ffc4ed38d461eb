"""What may change in an image on its way: compression of layers, format of documents, annotations.

Configs stay, byte for byte, and with them the diff ids and the image's id, unless layers become eStargz.
What a document holds that is not known here stays, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal

from layerfs import files, transports
from layerfs.compression import Compression
from layerfs.digest import Digest
from layerfs.errors import ArchiveError, UnsupportedError
from layerfs.oci import document, media_types
from layerfs.oci.config import ImageConfig
from layerfs.oci.descriptor import Descriptor
from layerfs.streams import Stops
from layerfs.transports.file_set import OpenFile
from layerfs.transports.lanes import Lanes, Stopped
from layerfs.transports.packing import Packed, Packing, pack

if TYPE_CHECKING:
    from layerfs.compression import Readable
    from layerfs.oci.index import Index
    from layerfs.oci.manifest import Manifest
    from layerfs.progress import Progress
    from layerfs.transports.endpoint import Sink, Source
    from layerfs.tree.budget import Budget

Format = Literal["oci", "docker"]

# Annotations of a layer that say where in its blob something lies: they hold for that blob alone.
_OF_THE_BLOB: Final = (
    "containerd.io/snapshot/stargz/",
    "io.containers.estargz.",
    "io.github.containers.zstd-chunked.",
)
_MOST: Final = 8
_COMPRESSIONS: Final = {
    media_types.layer_media_type(compression, docker=docker): compression
    for compression in Compression
    for docker in (False, True)
}


class Rewriting:
    """What changes in the images of one copy; a context manager, which removes its temporary files.

    Args:
        packing: how layers are to be compressed; None leaves all as they are.
        force: compress also those anew that are compressed so already.
        format: whose documents the image is to have; None leaves them, but that Docker's have neither zstd
            nor annotations and become OCI's where these are asked for.
        annotations: of the topmost document: the manifest, or the index where all platforms go.
        spool: makes an empty temporary file, for a packed layer.
        budget: bounds the ratio of what is unpacked.
        warn: told of what is odd in a layer.
    """

    def __init__(
        self,
        *,
        packing: Packing | None = None,
        force: bool = False,
        format: Format | None = None,
        annotations: Mapping[str, str] | None = None,
        spool: Callable[[], BinaryIO],
        budget: Budget,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        if format == "docker" and packing is not None and packing.compression is Compression.ZSTD:
            raise UnsupportedError("Docker's format has no zstd layers", hint="--format oci has")
        if format == "docker" and annotations:
            raise UnsupportedError("Docker's format has no annotations", hint="--format oci has")
        self._packing = packing
        self._force = force
        self._format = format
        self.annotations = dict(annotations or {})
        self._spool = spool
        self._budget = budget
        self._warn = warn
        # One for each processor: packing is all that these do.
        self._processors = min(os.cpu_count() or 1, _MOST)
        self._lanes: Lanes[Packed] = Lanes(self._processors)
        self._files: list[BinaryIO] = []
        self._streams: list[Readable] = []

    def __enter__(self) -> Rewriting:
        return self

    def __exit__(self, *exception: object) -> None:
        for stream in list(self._streams):
            if isinstance(stream, Stops):
                stream.stop()
        self._lanes.close()
        for file in self._files:
            file.close()
        self._files.clear()

    def manifest(
        self, manifest: Manifest, source: Source, sink: Sink, progress: Progress
    ) -> tuple[bytes, str]:
        """Send an image's blobs, some of them changed, and write the manifest for them.

        Returns:
            The manifest and its media type; not put yet.

        Raises:
            LayerError, VerificationError: a layer is not what it is promised to be.
            UnsupportedError: the format cannot hold it.
        """
        docker = self._is_docker(manifest)
        config = self._config(manifest, source)
        new = [] if config is None else self._pack(manifest, config, source, progress)
        kept = [layer for layer in manifest.layers if layer.digest not in new]
        transports.send(source, sink, kept, progress=progress)
        members = dict(document.load(manifest.raw, what="image manifest").value)
        changed: dict[Digest, Packed] = {}
        for digest in new:
            changed[digest] = packed = self._lanes.wait(digest)
            transports.send(_Spooled(packed.file), sink, (self._describe(packed, docker),), progress=progress)
        own_type = media_types.in_format(manifest.media_type, docker=docker)
        if own_type != manifest.media_type:
            members["mediaType"] = own_type
            config_type = media_types.in_format(manifest.config.media_type, docker=docker)
            members["config"] = {**members["config"], "mediaType": config_type}
            if docker:
                members.pop("annotations", None)
        members["layers"] = [
            _layer(item, layer, self._described(changed.get(layer.digest), docker), docker=docker)
            for item, layer in zip(members["layers"], manifest.layers, strict=True)
        ]
        members["config"] |= self._send_config(manifest, config, changed, source, sink, progress)
        if members == document.load(manifest.raw, what="image manifest").value:
            return manifest.raw, manifest.media_type
        return document.dump(members), own_type

    def _describe(self, packed: Packed, docker: bool) -> Descriptor:
        assert self._packing is not None
        media_type = media_types.layer_media_type(self._packing.compression, docker=docker)
        return Descriptor(media_type, packed.digest, packed.size, annotations=packed.annotations)

    def _described(self, packed: Packed | None, docker: bool) -> Descriptor | None:
        return None if packed is None else self._describe(packed, docker)

    def _send_config(
        self,
        manifest: Manifest,
        config: ImageConfig | None,
        changed: Mapping[Digest, Packed],
        source: Source,
        sink: Sink,
        progress: Progress,
    ) -> dict[str, Any]:
        """Send the config, with the diff ids that layers have now; give what changes in its descriptor."""
        diff_ids = () if config is None else config.diff_ids
        found = tuple(
            changed[layer.digest].diff_id if layer.digest in changed else diff_id
            for layer, diff_id in zip(manifest.layers, diff_ids, strict=False)
        )
        if config is None or found == diff_ids:
            transports.send(source, sink, (manifest.config,), progress=progress)
            return {}
        new = config.with_diff_ids(found)
        file = self._spool()
        self._files.append(file)
        files.write_all(file.fileno(), new.raw)
        descriptor = Descriptor.to(new.raw, manifest.config.media_type)
        transports.send(_Spooled(file), sink, (descriptor,), progress=progress)
        return {"digest": str(descriptor.digest), "size": descriptor.size}

    def index(self, index: Index, changed: Mapping[Descriptor, Descriptor]) -> tuple[bytes, str]:
        """Write an index whose manifests became others; as it is where none did."""
        docker = media_types.is_docker(index.media_type)
        if any(media_types.is_docker(new.media_type) is not docker for new in changed.values()):
            docker = False
        if self._format is not None:
            docker = self._format == "docker"
        media_type = media_types.DOCKER_MANIFEST_LIST if docker else media_types.OCI_INDEX
        members = dict(document.load(index.raw, what="image index").value)
        items = [
            {**item, **_pointer(changed[member])}
            for item, member in zip(members["manifests"], index.manifests, strict=True)
        ]
        if media_type == index.media_type and items == members["manifests"]:
            return index.raw, index.media_type
        members["manifests"] = items
        members["mediaType"] = media_type
        return document.dump(members), media_type

    def annotate(self, raw: bytes, media_type: str) -> tuple[bytes, str]:
        """Give the topmost document its annotations.

        Raises:
            UnsupportedError: it is an index of Docker's.
        """
        if not self.annotations:
            return raw, media_type
        if media_types.is_docker(media_type):
            raise UnsupportedError("Docker's format has no annotations", hint="--format oci has")
        members = dict(document.load(raw, what="manifest").value)
        members["annotations"] = {**(members.get("annotations") or {}), **self.annotations}
        return document.dump(members), media_type

    def _is_docker(self, manifest: Manifest) -> bool:
        """Decide the format of a manifest."""
        docker = media_types.is_docker(manifest.media_type)
        if self._format == "docker" and not docker:
            strange = [
                part.media_type
                for part in (manifest.config, *manifest.layers)
                if not (self._packing is not None and part.media_type in _COMPRESSIONS)
                and not media_types.is_docker(media_types.in_format(part.media_type, docker=True))
            ]
            if strange:
                raise UnsupportedError(
                    f"Docker's format cannot hold {strange[0][:100]!r}",
                    hint="--compression gzip, or --format oci",
                )
        if self._format is not None:
            return self._format == "docker"
        zstd = self._packing is not None and self._packing.compression is Compression.ZSTD
        return docker and not zstd and not self.annotations

    def _config(self, manifest: Manifest, source: Source) -> ImageConfig | None:
        """Read the config of an image whose layers may be packed."""
        if self._packing is None or not media_types.is_config(manifest.config.media_type):
            return None
        with source.open(manifest.config) as stream:
            config = ImageConfig.parse(_whole(stream, manifest.config))
        if len(config.diff_ids) == len(manifest.layers):
            return config
        raise ArchiveError(
            f"image {manifest.digest} has {len(manifest.layers)} layers, its config"
            f" {len(config.diff_ids)} diff ids"
        )

    def _pack(
        self, manifest: Manifest, config: ImageConfig, source: Source, progress: Progress
    ) -> list[Digest]:
        """Begin to pack those layers that are to be compressed otherwise; give their digests."""
        assert self._packing is not None
        wanted = {}
        for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
            now = _COMPRESSIONS.get(layer.media_type)
            if now is not None and (self._force or not self._packing.made(layer, now)):
                wanted[layer.digest] = (layer, diff_id)
        threads = max(self._processors // max(len(wanted), 1), 1)
        for digest, (layer, diff_id) in wanted.items():
            if not self._lanes.has(digest):
                self._lanes.begin(digest, _Job(self, layer, diff_id, source, progress, threads).run)
        return list(wanted)


class _Job:
    """The packing of one layer, in a thread of `Lanes`."""

    def __init__(
        self,
        owner: Rewriting,
        layer: Descriptor,
        diff_id: Digest,
        source: Source,
        progress: Progress,
        threads: int,
    ) -> None:
        self._owner = owner
        self._layer = layer
        self._diff_id = diff_id
        self._source = source
        self._progress = progress
        self._threads = threads

    def run(self) -> Packed:
        from layerfs.progress import Counted

        owner, layer = self._owner, self._layer
        assert owner._packing is not None
        target = owner._spool()
        owner._files.append(target)
        with (
            self._progress.task(f"compress {layer.digest.hex[:12]}", layer.size) as advance,
            self._source.open(layer) as stream,
        ):
            owner._streams.append(stream)
            return pack(
                Counted(stream.read, advance), layer, owner._packing, diff_id=self._diff_id,
                target=target, threads=self._threads, budget=owner._budget, warn=owner._warn,
                check=self._check,
            )  # fmt: skip

    def _check(self) -> None:
        if self._owner._lanes.stopped:
            raise Stopped


class _Spooled:
    """A temporary file as a source of the one blob that it is."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def open(self, descriptor: Descriptor) -> AbstractContextManager[Readable]:
        return OpenFile(self._file.fileno(), size=descriptor.size, owned=False)


def _layer(item: dict[str, Any], old: Descriptor, new: Descriptor | None, *, docker: bool) -> dict[str, Any]:
    """Write a layer's place in the manifest."""
    item = dict(item)
    if new is not None:
        item.update(_pointer(new))
        for member in ("data", "urls"):
            item.pop(member, None)
        annotations = {
            name: text for name, text in old.annotations.items() if not name.startswith(_OF_THE_BLOB)
        }
        annotations |= new.annotations
        item.pop("annotations", None)
        if annotations:
            item["annotations"] = annotations
        return item
    item["mediaType"] = media_types.in_format(old.media_type, docker=docker)
    return item


def _pointer(descriptor: Descriptor) -> dict[str, Any]:
    return {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }


def _whole(stream: Readable, descriptor: Descriptor) -> bytes:
    from layerfs.errors import BudgetError
    from layerfs.transports.endpoint import verified

    if descriptor.size > document.MAXIMUM_BYTES:
        raise BudgetError(f"the config {descriptor.digest} has {descriptor.size} bytes")
    return b"".join(verified(stream, descriptor))
