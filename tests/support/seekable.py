"""Layers with indexes of their own for tests, and ranges that count what is asked of them."""

from __future__ import annotations

import io
from collections.abc import Mapping

from layerfs.errors import TransportError
from layerfs.oci.descriptor import Descriptor
from layerfs.seekable.layer import IndexedLayer, open_layer
from layerfs.seekable.ranges import MemoryRanges
from layerfs.seekable.writing import Format, Written, write_layer
from layerfs.tree.budget import DEFAULT_BUDGET, Budget
from layerfs.value import replace


class CountedRanges(MemoryRanges):
    """A blob in memory that notes each request; those beyond `most` fail."""

    def __init__(self, data: bytes, most: int | None = None) -> None:
        super().__init__(data)
        self.asked: list[tuple[int, int]] = []
        self.most = most

    def read_at(self, offset: int, size: int) -> bytes:
        assert offset >= 0
        assert offset + size <= self.size, "beyond the end of the blob"
        self.asked.append((offset, size))
        if self.most is not None and len(self.asked) > self.most:
            raise TransportError("cut")
        return super().read_at(offset, size)


def written(stream: bytes, format: Format) -> tuple[bytes, Written]:
    parts: list[bytes] = []
    done = write_layer(io.BytesIO(stream), parts.append, format)
    return b"".join(parts), done


def described(blob: bytes, annotations: Mapping[str, str]) -> Descriptor:
    return replace(Descriptor.to(blob, "application/octet-stream"), annotations=dict(annotations))


def opened(blob: bytes, annotations: Mapping[str, str], *, budget: Budget = DEFAULT_BUDGET) -> IndexedLayer:
    found = open_layer(MemoryRanges(blob), described(blob, annotations), budget=budget)
    assert found is not None
    return found


def files_of(layer: IndexedLayer) -> dict[bytes, bytes]:
    return {
        each.entry.path: b"".join(layer.read(each.extent))
        for each in layer.entries()
        if each.extent is not None
    }
