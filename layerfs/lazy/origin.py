"""Where the data of a lazy layer is to be had: a label of the layer in the database."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Final

from layerfs.digest import Digest
from layerfs.errors import InvalidError, StoreError
from layerfs.oci.descriptor import Descriptor
from layerfs.oci.document import load
from layerfs.seekable import estargz, zstd_chunked
from layerfs.value import frozen, replace

LABEL: Final = "layerfs.lazy"
PREFIX: Final = "lazy:"
"""How the names of lazy layers begin, which are never taken for layers that are all here."""

_MOST_PLACES: Final = 8
# What decides, besides a layer's bytes, what its table of contents is.
_INDEXES: Final = (
    estargz.TOC_DIGEST, zstd_chunked.CHECKSUM, zstd_chunked.POSITION, zstd_chunked.OLD_CHECKSUM,
    zstd_chunked.OLD_POSITION,
)  # fmt: skip


@frozen
class Origin:
    """A layer's blob as its manifest describes it, and images' sources that have it, the last used first.

    `table` is the blob with seek points of a layer that has no index of its own.
    """

    descriptor: Descriptor
    places: tuple[str, ...] = ()
    table: Digest | None = None

    def pack(self) -> str:
        """Give the label's value."""
        table = None if self.table is None else str(self.table)
        descriptor = replace(self.descriptor, data=None).members()
        return json.dumps({"descriptor": descriptor, "places": self.places, "table": table})

    @classmethod
    def unpack(cls, label: str) -> Origin:
        """Read a label's value.

        Raises:
            StoreError: it is not one.
        """
        try:
            members = load(label.encode(), what="label of a lazy layer")
            table = members.optional_text("table")
            return cls(
                Descriptor.of(members.members("descriptor")),
                members.texts("places"),
                None if table is None else Digest.parse(table),
            )
        except InvalidError as error:
            raise StoreError(f"a lazy layer's label cannot be read: {error}") from error

    def had_from(self, place: str | None) -> Origin:
        """Note a source that has the blob, too."""
        if place is None or self.places[:1] == (place,):
            return self
        others = [each for each in self.places if each != place]
        return replace(self, places=(place, *others)[:_MOST_PLACES])


def layer_names(layers: Sequence[Descriptor], diff_ids: Sequence[Digest]) -> list[str]:
    """Name lazy layers by what their trees depend on: blobs, tables of contents, and all that lies below."""
    names = []
    above = ""
    for layer, diff_id in zip(layers, diff_ids, strict=True):
        parts = [above, str(layer.digest), str(diff_id), *_promises(layer.annotations)]
        above = PREFIX + hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        names.append(above)
    return names


def _promises(annotations: Mapping[str, str]) -> list[str | None]:
    return [annotations.get(name) for name in _INDEXES]
