"""What an image is called at the other end when the user did not say."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from layerfs.errors import InvalidError
from layerfs.images import full_name

if TYPE_CHECKING:
    from layerfs.images import Image
    from layerfs.transports import Place
    from layerfs.transports.endpoint import Source


def names_here(source: Source, place: Place) -> list[str]:
    """Decide what a pulled image is called here when the user did not say."""
    if place.reference is not None:
        # As with docker, what is asked for by its digest gets no name.
        return [] if place.reference.digest is not None else [str(place.reference)]
    for available in source.images():
        if place.name is None or available.is_called(place.name):
            if available.references:
                return list(available.references)
            break
    stem = place.path.name.split(".")[0].lower() or place.path.resolve().name.lower()
    for text in ([place.name] if place.name and ":" in place.name else []) + [
        f"{stem}:{place.name or 'latest'}"
    ]:
        with contextlib.suppress(InvalidError):
            return [full_name(text)]
    return []


def names_there(image: Image, called: str | None, transport: str) -> list[str]:
    """Decide what a pushed image is called there when the user did not say: in a layout, by its tag.

    By an id with several names none was meant.
    """
    if called is None and len(image.names) == 1:
        called = full_name(image.names[0])
    if called is None:
        return []
    return [called.rpartition(":")[2] if transport == "oci" else called]
