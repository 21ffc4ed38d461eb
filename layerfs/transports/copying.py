"""Copies of images between two places: whole indexes with every platform, and images changed on the way.

What is not asked to change goes as it is, byte for byte, so that digests stay; nothing is unpacked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, BinaryIO, Final

from layerfs import transports
from layerfs.errors import ArchiveError, BudgetError, UnsupportedError
from layerfs.oci import media_types
from layerfs.oci.descriptor import Descriptor
from layerfs.oci.index import Index
from layerfs.oci.manifest import Manifest
from layerfs.progress import Silent
from layerfs.transports.endpoint import Documents, Nests, Resolved
from layerfs.tree.budget import DEFAULT_BUDGET
from layerfs.value import replace

if TYPE_CHECKING:
    from layerfs.digest import Digest
    from layerfs.oci.platform import Platform
    from layerfs.progress import Progress
    from layerfs.registry.settings import Options
    from layerfs.transports import Place
    from layerfs.transports.endpoint import Available, Sink, Source
    from layerfs.transports.rewriting import Rewriting
    from layerfs.tree.budget import Budget

_DEEPEST: Final = 8
# All documents below an index, which wait in memory until the last of their blobs is there.
_MOST_BYTES: Final = 64 << 20


def copy_image(
    source: Source,
    sink: Sink,
    *,
    image: Available | str | None = None,
    names: Sequence[str] = (),
    platform: Platform | None = None,
    every: bool = False,
    rewriting: Rewriting | None = None,
    progress: Progress | None = None,
) -> Descriptor:
    """Copy one image, or with `every` all that its index names; see `transports.copy` for what is not here.

    Args:
        every: keep all platforms; of an image without an index, it is that image.
        rewriting: what changes on the way; nothing when left out.

    Raises:
        UnsupportedError: `every`, and the sink cannot hold an index; or an index names what is no image.
    """
    shown = progress or Silent()
    if not every and rewriting is None:
        return transports.copy(source, sink, image=image, names=names, platform=platform, progress=shown)
    found = _root(source, image) if every else source.manifest(image, platform=platform)
    walk = _Walk(source, sink, rewriting, shown)
    if media_types.is_index(found.descriptor.media_type):
        raw, media_type = walk.index(found, _DEEPEST)
    else:
        raw, media_type = walk.manifest(found)
    if rewriting is not None:
        raw, media_type = rewriting.annotate(raw, media_type)
    return sink.put_manifest(raw, media_type, names=names)


def copy_index(
    source: Source,
    sink: Sink,
    *,
    image: Available | str | None = None,
    names: Sequence[str] = (),
    progress: Progress | None = None,
) -> None:
    """Copy the index that an image is found through, where there is one, and all that it names."""
    found = _root(source, image)
    if media_types.is_index(found.descriptor.media_type):
        raw, media_type = _Walk(source, sink, None, progress or Silent()).index(found, _DEEPEST)
        sink.put_manifest(raw, media_type, names=names)


def between(
    origin: Place,
    target: Place,
    *,
    platform: Platform | None = None,
    every: bool = False,
    rewriting: Rewriting | None = None,
    progress: Progress | None = None,
    options: Options | None = None,
    target_options: Options | None = None,
    spool: Callable[[], BinaryIO],
    budget: Budget = DEFAULT_BUDGET,
    warn: Callable[[str], None],
) -> Descriptor:
    """Copy one image from place to place, without a store; see `copy_image`.

    Where the target's name is not said, the image keeps its own.

    Args:
        options: how the registry is spoken with that the image comes from.
        target_options: and the one that it goes to.
        spool: makes an empty temporary file.
        budget: bounds the ratio of compression of what is unpacked on the way.
        warn: told of what is odd.

    Raises:
        NotFoundError: there is no such image.
        InvalidError: something in it is malformed.
        VerificationError: a part of it is not what its digest promises.
        TransportError: a place cannot be read or written.
    """
    with (
        origin.named_in_errors(),
        closing(origin.source(spool=spool, budget=budget, warn=warn, options=options)) as source,
        closing(target.sink(options=target_options, warn=warn)) as sink,
    ):
        names = [target.name] if target.name is not None else _own_names(source, origin, target)
        descriptor = copy_image(
            source, sink, image=origin.name, names=names, platform=platform, every=every,
            rewriting=rewriting, progress=progress,
        )  # fmt: skip
        sink.commit()
        return descriptor


def _own_names(source: Source, origin: Place, target: Place) -> list[str]:
    """Decide what an image is called that nobody named: in a layout by its tag, in an archive in full.

    Where it was asked for by one of its names, that alone goes along.
    """
    for available in source.images():
        if origin.name is None or available.is_called(origin.name):
            if origin.name is not None:
                each = [replace(available, names=(name,)) for name in available.names]
                names = [name for one in each if one.is_called(origin.name) for name in one.names]
                available = replace(available, names=tuple(names))
            if target.transport == "oci":
                return [name.rpartition(":")[2] for name in available.names[:1]]
            return list(available.references)
    return []


def _root(source: Source, image: Available | str | None) -> Resolved:
    return source.root(image) if isinstance(source, Documents) else source.manifest(image)


class _Walk:
    """One image on its way; each method gives the document to put, after all that it names was put."""

    def __init__(self, source: Source, sink: Sink, rewriting: Rewriting | None, progress: Progress) -> None:
        self._source = source
        self._sink = sink
        self._rewriting = rewriting
        self._progress = progress
        # What was walked already: a member may be named often, by members that are so too.
        self._known: dict[Digest, tuple[bytes, str]] = {}
        self._put: dict[Digest, Descriptor] = {}
        self._read = 0

    def index(self, found: Resolved, depth: int) -> tuple[bytes, str]:
        sink, source = self._sink, self._source
        if depth == 0:
            raise ArchiveError(f"indexes are nested more than {_DEEPEST} deep")
        if not isinstance(sink, Nests) or not isinstance(source, Documents):
            raise UnsupportedError(
                "the destination cannot hold several platforms", hint="choose one with --platform"
            )
        index = Index.parse(found.raw, found.descriptor.media_type)
        # All blobs first: a manifest has to wait for those that are on their way.
        documents = [self._below(source, member, depth) for member in index.manifests]
        changed: dict[Descriptor, Descriptor] = {}
        for member, (raw, media_type) in zip(index.manifests, documents, strict=True):
            if member.digest not in self._put:
                algorithm = member.digest.algorithm if self._rewriting is None else "sha256"
                self._put[member.digest] = sink.put_member(raw, media_type, algorithm=algorithm)
            changed[member] = self._put[member.digest]
        if self._rewriting is None:
            return found.raw, index.media_type
        return self._rewriting.index(index, changed)

    def _below(self, source: Documents, member: Descriptor, depth: int) -> tuple[bytes, str]:
        """Send what an index names."""
        known = self._known.get(member.digest)
        if known is None:
            raw, media_type = source.document(member), member.media_type
            self._read += len(raw)
            if self._read > _MOST_BYTES:
                raise BudgetError(f"an index of manifests of more than {_MOST_BYTES} bytes")
            if media_types.is_index(media_type):
                known = self.index(Resolved(member, raw), depth - 1)
            elif media_types.is_manifest(media_type):
                known = self.manifest(Resolved(member, raw))
            else:
                raise UnsupportedError(f"the index names {member.digest}, a {media_type[:100]!r}")
            self._known[member.digest] = known
        return known

    def manifest(self, found: Resolved) -> tuple[bytes, str]:
        manifest = Manifest.parse(found.raw, found.descriptor.media_type)
        if self._rewriting is not None:
            return self._rewriting.manifest(manifest, self._source, self._sink, self._progress)
        transports.send(
            self._source, self._sink, (manifest.config, *manifest.layers), progress=self._progress
        )
        return found.raw, manifest.media_type
