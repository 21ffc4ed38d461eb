"""What a container changed becomes a committed layer: copied by the driver, then read once.

The copy is made first and read afterwards, so that the layer is what its digest says even if somebody
writes to the container meanwhile, and the disk is at work while the digests are taken.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from layerfs import compression as compressions
from layerfs import failpoints
from layerfs.blobs import Ingest
from layerfs.committing import EMPTY_LAYER, NewLayer
from layerfs.compression import Compression
from layerfs.digest import Digest
from layerfs.driver import Copies, Seals
from layerfs.flushing import Flusher
from layerfs.hashing import Hasher
from layerfs.layer_table import Draft, Facts, Layer
from layerfs.layers import Layers, chain_ids
from layerfs.leases import Lease
from layerfs.progress import Progress
from layerfs.tree.archive import Witness, write_layer
from layerfs.tree.skeleton import SkeletonWriter
from layerfs.tree.toc import TocWriter
from layerfs.value import replace

if TYPE_CHECKING:
    from layerfs.tree.entry import Entry

# Small pieces of the stream are handed on together.
_AT_ONCE: Final = 1 << 18


def capture(
    layers: Layers,
    source: Layer,
    lease: Lease,
    *,
    compression: Compression,
    warn: Callable[[str], None],
    progress: Progress,
) -> NewLayer | None:
    """Commit a copy of a writable layer under its chain id, leased; the writable layer stays as it is.

    An uncompressed layer is not stored as a blob but put together from its files (see `assembly`). A layer
    without entries has the diff id `EMPTY_LAYER`, and is not committed.

    Returns:
        None where the driver cannot copy this layer.

    Raises:
        LayerError: a file cannot be stored in a layer.
    """
    if not isinstance(layers.driver, Copies):
        return None
    with _Capture(layers, source, lease) as captured:
        if not captured.copy(warn):
            return None
        return captured.describe(compression, warn=warn, progress=progress)


class _Capture:
    """One copy on its way; a context manager that removes it unless it was committed."""

    def __init__(self, layers: Layers, source: Layer, lease: Lease) -> None:
        self._layers = layers
        self._source = source
        self._lease = lease
        self._open = contextlib.ExitStack()
        self._flusher: Flusher | None = None
        self._draft: Draft | None = None
        self._below: Sequence[str] = ()

    def __enter__(self) -> _Capture:
        if self._layers.durability != "none":
            self._flusher = self._open.enter_context(
                Flusher(self._layers.driver.root, self._layers.blobs.root, once=True)
            )
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()
        if self._draft is not None:
            self._layers.table.mark_unborn(self._draft.row)
            self._layers.erase(self._draft.row, self._draft.driver_id)

    def copy(self, warn: Callable[[str], None]) -> bool:
        """Have the driver copy the layer; False where it cannot."""
        layers = self._layers
        assert isinstance(layers.driver, Copies)
        self._draft = draft = layers.table.add_draft("", self._source.parent, self._lease)
        self._below = layers.table.stack(draft.row)[:-1]
        failpoints.reach("capture.drafted")
        self._open.enter_context(layers.lock(draft.driver_id))
        copied = layers.driver.copy(draft.driver_id, self._source.driver_id, self._below, warn=warn)
        failpoints.reach("capture.copied")
        if copied and self._flusher is not None:
            self._flusher.begin()
        return copied

    def describe(
        self, compression: Compression, *, warn: Callable[[str], None], progress: Progress
    ) -> NewLayer:
        """Read the copy once, for digests, table of contents, and blob or skeleton; then commit it."""
        layers, draft = self._layers, self._draft
        assert draft is not None
        toc = self._open.enter_context(layers.blobs.ingest())
        packed = self._open.enter_context(layers.blobs.ingest())
        with progress.task("write layer", None) as advance, Hasher() as hasher, Hasher() as other:
            stream = _Stream(hasher, packed, compression, advance)
            contents = TocWriter(toc.write)
            write_layer(
                layers.changes_of(draft.driver_id, self._below),
                stream.write,
                warn=warn,
                witness=Witness(contents.add, stream.refer, other),
            )
            contents.close()
            diff_id = stream.close()
            failpoints.reach("capture.written")
        if diff_id == EMPTY_LAYER:
            return NewLayer(diff_id, stream.size, diff_id, Compression.NONE)
        if isinstance(layers.driver, Seals):
            layers.driver.seal(draft.driver_id)
        usage = layers.measure(draft.driver_id, self._below)
        blob = diff_id if stream.skeleton is not None else packed.digest
        facts = Facts(usage, toc.digest, diff_id, blob, layers.durability != "none")
        if stream.skeleton is not None:
            facts = replace(facts, skeleton=packed.digest, blob_size=stream.size)
        self._commit(
            replace(draft, name=chain_ids([diff_id], parent=self._source.parent)[0]),
            facts,
            [toc, packed],
        )
        size = stream.size if stream.skeleton is not None else packed.offset
        return NewLayer(blob, size, diff_id, compression)

    def _commit(self, draft: Draft, facts: Facts, ingests: Sequence[Ingest]) -> None:
        """Bring everything to disk, then make it visible."""
        layers = self._layers
        self._lease.add("blob", str(facts.blob), *(str(ingest.digest) for ingest in ingests))
        failpoints.reach("capture.sync")
        if self._flusher is not None:
            self._flusher.sync()
        failpoints.reach("capture.synced")
        for ingest in ingests:
            ingest.commit(synced=True)
        layers.blobs.sync_names()
        failpoints.reach("capture.commit")
        spare = layers.table.commit_drafts([(draft, facts)])
        failpoints.reach("capture.committed")
        if spare:
            layers.table.present([draft.name], self._lease)
        else:
            self._draft = None


class _Stream:
    """Takes a layer's tar stream: hashes it, and packs it or writes its skeleton."""

    def __init__(
        self, hasher: Hasher, ingest: Ingest, compression: Compression, advance: Callable[[int], None]
    ) -> None:
        self.size = 0
        self.skeleton: SkeletonWriter | None = None
        if compression is Compression.NONE:
            self.skeleton = SkeletonWriter(None, ingest.write)
        else:
            self._packer = compressions.compressor(ingest.write, compression, level=None)
        self._hasher = hasher
        self._hash = hasher.begin()
        self._advance = advance
        self._parts: list[bytes] = []
        self._length = 0

    def write(self, data: bytes) -> None:
        self.size += len(data)
        self._advance(len(data))
        if self.skeleton is not None:
            self.skeleton.add(data)
        else:
            self._packer.write(data)
        self._parts.append(data)
        self._length += len(data)
        if self._length >= _AT_ONCE:
            self._flush()

    @property
    def refer(self) -> Callable[[Entry, int], None] | None:
        """Take note that a file's data comes next; None if nobody needs to know."""
        skeleton = self.skeleton
        return None if skeleton is None else lambda entry, start: skeleton.refer(entry, entry.path, start)

    def close(self) -> Digest:
        """End everything, and give the digest of the whole."""
        self._flush()
        self._hasher.end(self._hash)
        if self.skeleton is not None:
            self.skeleton.close()
        else:
            self._packer.close()
        return Digest("sha256", str(self._hash))

    def _flush(self) -> None:
        for data in self._parts if self._length > 2 * _AT_ONCE else [b"".join(self._parts)]:
            self._hasher.update(self._hash, data)
        self._parts.clear()
        self._length = 0
