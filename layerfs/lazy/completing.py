"""Says where the rest of an image is to be had that was mounted lazily."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from layerfs import transports
from layerfs.errors import NotFoundError
from layerfs.lazy.origin import LABEL, Origin, layer_names

if TYPE_CHECKING:
    from layerfs.digest import Digest
    from layerfs.images import Image
    from layerfs.layers import Layers


def places_of(image: Image, every: Iterable[Layers]) -> list[str]:
    """Name the places of an image, as `Store.pull` takes them, the one used last first.

    Args:
        every: the layers of all drivers.
    """
    names = layer_names(image.manifest.layers, image.config.diff_ids)
    found: dict[str, None] = {}
    for layers in every:
        for name in reversed(names):
            try:
                label = layers.stat(name).labels.get(LABEL)
            except NotFoundError:
                continue
            if label is not None:
                found |= {_pinned(place, image.digest): None for place in Origin.unpack(label).places}
    return list(found)


def _pinned(place: str, digest: Digest) -> str:
    """Name the very image, where a tag may mean another one by now."""
    reference = transports.parse(place).reference
    return place if reference is None else f"docker://{reference.name}@{digest}"
