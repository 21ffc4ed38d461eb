"""Reads the files of images where they lie: nothing is unpacked, and nothing is mounted for long.

Of a layer that is unpacked here, its table of contents says what it has, and its own files are read. Of one
that is not, its blob is read at random by a table of seek points, which is built in one pass when the
store needs it first, and kept. Of an image that is not in a
store, a layer with an index of its own is read by ranges, and others are read through once, and kept in a
temporary file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, BinaryIO, Protocol, Self, runtime_checkable

from layerfs import linux
from layerfs.blobs import CHUNK, Blobs
from layerfs.compression import Readable
from layerfs.digest import Digest
from layerfs.errors import NotFoundError, UnsupportedError, VerificationError, printable
from layerfs.files import descriptor_of
from layerfs.images import Image
from layerfs.layers import Layers
from layerfs.oci.descriptor import Descriptor
from layerfs.oci.manifest import Manifest
from layerfs.oci.platform import Platform
from layerfs.seekable.extent import Extent, Indexed
from layerfs.seekable.layer import IndexedLayer, open_layer
from layerfs.seekable.merged import Contents, MergedTree
from layerfs.seekable.overlaying import Node
from layerfs.seekable.ranges import FileRanges, Ranges
from layerfs.seekable.table import build_table
from layerfs.seekable.tables import Tables
from layerfs.transports.endpoint import Source
from layerfs.tree.budget import Budget
from layerfs.tree.entry import Kind
from layerfs.tree.toc import read_toc

if TYPE_CHECKING:
    from layerfs.registry.settings import Options
    from layerfs.transports import Place

_AT_ONCE = 8
_BENEATH = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_NO_MAGICLINKS
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@runtime_checkable
class GivesRanges(Protocol):
    """What a source may do besides: give a blob by offset, unverified; thread-safe."""

    def ranges(self, descriptor: Descriptor) -> Ranges:
        """Give a blob that a manifest of this source names."""
        ...


class OpenImage:
    """An image that is being read; a context manager.

    `tree` is the merged tree of its layers (`seekable.merged`), which is of use until `close`.
    """

    def __init__(self, tree: MergedTree, opened: contextlib.ExitStack) -> None:
        self.tree = tree
        self._opened = opened

    def read(self, path: bytes, offset: int = 0, size: int | None = None) -> Iterator[bytes]:
        """Give a part of a file in pieces, symlinks followed inside the image.

        Args:
            path: from the root of the image.
            offset: bytes to pass over.
            size: bytes to give at most; None for all.

        Raises:
            OSError: ENOENT, ENOTDIR or ELOOP; EISDIR for a directory, EINVAL for what has no data.
            VerificationError: the data is not what its digest promises.
        """
        return self.data(self.tree.find(path), path, offset, size)

    def data(self, node: Node, path: bytes, offset: int = 0, size: int | None = None) -> Iterator[bytes]:
        """Do what `read` does for a file that was found."""
        if node.entry.kind is not Kind.FILE:
            number = errno.EISDIR if node.children is not None else errno.EINVAL
            raise OSError(number, os.strerror(number), os.fsdecode(path))
        return self.tree.read(node, offset, size)

    def closes(self, opened: contextlib.ExitStack) -> None:
        """Take over what is to be closed after the image."""
        own = self._opened.pop_all()
        self._opened.push(opened)
        self._opened.push(own)

    def close(self) -> None:
        """Let everything go; idempotent."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_stored(
    image: Image,
    blobs: Blobs,
    tables: Tables,
    all_layers: Callable[[], list[Layers]],
    *,
    budget: Budget,
    warn: Callable[[str], None],
) -> OpenImage:
    """Open an image of a store.

    Args:
        image: the image.
        blobs: of its store.
        tables: of its store.
        all_layers: gives the layers of every driver.
        budget: what a layer may ask for.
        warn: told what was odd.

    Raises:
        NotFoundError: a layer is neither unpacked nor here as a blob: the image was mounted lazily.
        LayerfsError: a blob cannot be read.
    """
    with contextlib.ExitStack() as opened:
        drivers = all_layers()
        layers = []
        for chain_id, descriptor in zip(image.chain_ids, image.manifest.layers, strict=True):
            found = _unpacked(chain_id, drivers, blobs, opened)
            if found is None and not blobs.has(descriptor.digest):
                raise _lacking(image, descriptor)
            layers.append(found or _stored(descriptor, blobs, tables, opened, budget=budget, warn=warn))
        return OpenImage(MergedTree(layers, budget=budget), opened.pop_all())


def open_from(
    source: Source,
    name: str | None,
    *,
    platform: Platform | None = None,
    spool: Callable[[], BinaryIO],
    budget: Budget,
    warn: Callable[[str], None],
) -> OpenImage:
    """Open an image where it is, outside of any store.

    Args:
        source: where it is; stays the caller's, open as long as the image.
        name: what the source calls it; None where it has one only.
        platform: which image of several; this machine's when None.
        spool: makes a temporary file.
        budget: what a layer may ask for.
        warn: told what was odd.

    Raises:
        NotFoundError: there is no such image.
        VerificationError: a part of it is not what its digest promises.
        LayerfsError: it cannot be read.
    """
    resolved = source.manifest(name, platform=platform)
    manifest = Manifest.parse(resolved.raw, resolved.descriptor.media_type)
    with contextlib.ExitStack() as opened:

        def layer(descriptor: Descriptor) -> Contents:
            return _foreign(source, descriptor, opened, spool, budget=budget, warn=warn)

        # Far away, an index takes the time of an answer or two.
        with ThreadPoolExecutor(_AT_ONCE, "layerfs-reading") as threads:
            layers = list(threads.map(layer, manifest.layers))
        return OpenImage(MergedTree(layers, budget=budget), opened.pop_all())


def open_place(
    place: Place,
    *,
    platform: Platform | None = None,
    options: Options | None = None,
    spool: Callable[[], BinaryIO],
    budget: Budget,
    warn: Callable[[str], None],
) -> OpenImage:
    """Open an image where it is, outside of any store; see `open_from`.

    Args:
        place: where it is.
        options: how a registry is spoken with.
    """
    with contextlib.ExitStack() as opened:
        source = place.source(spool=spool, budget=budget, warn=warn, options=options)
        opened.callback(source.close)
        found = open_from(source, place.name, platform=platform, spool=spool, budget=budget, warn=warn)
        found.closes(opened.pop_all())
        return found


class _Indexed:
    """A layer with an index."""

    def __init__(self, layer: IndexedLayer) -> None:
        self._layer = layer
        self.entries = layer.entries

    def read(self, file: Indexed, offset: int = 0, size: int | None = None) -> Iterator[bytes]:
        return iter(()) if file.extent is None else self._layer.read(file.extent, offset, size)


class _Unpacked:
    """A layer that is unpacked; its tree is opened when a file of it is read."""

    def __init__(
        self, layers: Layers, name: str, toc: Digest, blobs: Blobs, opened: contextlib.ExitStack
    ) -> None:
        self._layers = layers
        self._name = name
        self._toc = toc
        self._blobs = blobs
        self._opened = opened
        self._root: int | None = None

    def entries(self) -> Iterator[Indexed]:
        with self._blobs.open(self._toc) as stream:
            for entry, digest in read_toc(stream):
                extent = Extent(entry.size, ()) if entry.kind is Kind.FILE else None
                yield Indexed(entry, digest, extent)

    def read(self, file: Indexed, offset: int = 0, size: int | None = None) -> Iterator[bytes]:
        if self._root is None:
            self._root = self._opened.enter_context(self._layers.opened(self._name))
        entry = file.entry
        data = linux.openat2(self._root, entry.path, _FILE, resolve=_BENEATH)
        try:
            if not stat.S_ISREG(os.fstat(data).st_mode):
                raise VerificationError(
                    f"{printable(entry.path)!r} of layer {self._name} is no file any more"
                )
            end = entry.size if size is None else min(entry.size, offset + size)
            while offset < end:
                piece = os.pread(data, min(CHUNK, end - offset), offset)
                if not piece:
                    raise VerificationError(
                        f"{printable(entry.path)!r} of layer {self._name} is shorter than it was",
                        hint="layerfs check --repair",
                    )
                offset += len(piece)
                yield piece
        finally:
            os.close(data)


def _unpacked(
    chain_id: str, drivers: list[Layers], blobs: Blobs, opened: contextlib.ExitStack
) -> Contents | None:
    for layers in drivers:
        layer = layers.table.committed(chain_id)
        if layer is not None and layer.toc is not None and blobs.is_whole(layer.toc):
            return _Unpacked(layers, chain_id, layer.toc, blobs, opened)
    return None


def _lacking(image: Image, descriptor: Descriptor) -> NotFoundError:
    """Say of an image that was mounted lazily what lets its files be read."""
    name = image.names[0] if image.names else str(image.digest)
    return NotFoundError(
        f"the layer {descriptor.digest} of {name} is not in the store",
        hint=f"`layerfs pull SOURCE{f' {name}' if image.names else ''}` gets the whole image, where SOURCE is"
        " what was mounted with --lazy; without it, read the files of the mount",
    )


def _stored(
    descriptor: Descriptor,
    blobs: Blobs,
    tables: Tables,
    opened: contextlib.ExitStack,
    *,
    budget: Budget,
    warn: Callable[[str], None],
) -> Contents:
    blob = _ranges_of(opened.enter_context(blobs.open(descriptor.digest)))
    table = _ranges_of(opened.enter_context(blobs.open(tables.build(descriptor.digest))))
    layer = open_layer(blob, descriptor, table=table, budget=budget, warn=warn)
    assert layer is not None
    return _Indexed(layer)


def _ranges_of(stream: object) -> FileRanges:
    try:
        return FileRanges(descriptor_of(stream))
    except OSError as error:
        raise UnsupportedError(
            "a layer that is kept in parts, and is not unpacked, cannot be read"
        ) from error


def _foreign(
    source: Source,
    descriptor: Descriptor,
    opened: contextlib.ExitStack,
    spool: Callable[[], BinaryIO],
    *,
    budget: Budget,
    warn: Callable[[str], None],
) -> Contents:
    if isinstance(source, GivesRanges):
        try:
            found = open_layer(source.ranges(descriptor), descriptor, budget=budget, warn=warn)
        except UnsupportedError:
            found = None
        if found is not None:
            return _Indexed(found)
    with source.open(descriptor) as stream:
        copy, table = opened.enter_context(spool()), opened.enter_context(spool())
        verified = _Verified(stream, descriptor, copy.write)
        build_table(verified, table.write, budget=budget, warn=warn)
        verified.finish()
        copy.flush()
        table.flush()
    blob, seek = FileRanges(copy.fileno()), FileRanges(table.fileno())
    layer = open_layer(blob, descriptor, table=seek, budget=budget, warn=warn)
    assert layer is not None
    return _Indexed(layer)


class _Verified:
    """A blob's stream whose bytes are kept on their way, and compared with their digest at the end."""

    def __init__(self, stream: Readable, descriptor: Descriptor, keep: Callable[[bytes], object]) -> None:
        self._stream = stream
        self._descriptor = descriptor
        self._keep = keep
        self._hasher = descriptor.digest.hasher()
        self._size = 0

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        self._size += len(data)
        if self._size > self._descriptor.size:
            raise self._error()
        self._hasher.update(data)
        self._keep(data)
        return data

    def finish(self) -> None:
        while self.read(CHUNK):
            pass
        if self._size != self._descriptor.size or self._hasher.hexdigest() != self._descriptor.digest.hex:
            raise self._error()

    def _error(self) -> VerificationError:
        return VerificationError(
            f"{self._descriptor.digest} of {self._descriptor.size} bytes was promised, the content is another"
        )
