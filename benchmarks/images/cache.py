"""Images on disk, each made once; a half-made one has a temporary name."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.images.archives import digests, write_archives, write_estargz
from benchmarks.images.image import TAG, Image
from benchmarks.images.layer import LayerWriter
from benchmarks.images.packages import UnavailableError
from benchmarks.images.recipes import generated, layers_of
from benchmarks.scales import Scale

# Counts up when what is made changes, so that nothing older is taken for it.
_FORMAT: Final = 1
# Nobody pulls these compressed; packing them takes minutes at full size.
_PLAIN: Final = ("large",)


class Images:
    """Gives images by name, from the cache or made now.

    Args:
        directory: the cache, made where it is missing.
        told: hears what is being made, since that takes a while.
    """

    def __init__(self, directory: Path, scale: Scale, *, told: Callable[[str], None]) -> None:
        self._directory = directory
        self._scale = scale
        self._told = told
        self._found: dict[str, Image] = {}

    def get(self, name: str) -> Image:
        """Give an image of `recipes.layers_of`."""
        if name not in self._found:
            self._found[name] = self._load(name)
        return self._found[name]

    def get_estargz(self, name: str) -> Image:
        """Give such an image, with an OCI layout of eStargz layers beside the others."""
        image = self.get(name)
        place = image.layout("estargz")
        if not place.exists():
            self._told(f"packing the layers of {name} as eStargz, kept in {place}")
            part = place.with_name(f"part-{os.getpid()}")
            shutil.rmtree(part, ignore_errors=True)
            write_estargz(part, list(image.layers), TAG)
            part.rename(place)
        return image

    def used(self) -> dict[str, Image]:
        """Give the images that were asked for, by name."""
        return dict(self._found)

    def _load(self, name: str) -> Image:
        try:
            made_of, writers = layers_of(name, self._scale, self._directory)
        except UnavailableError as error:
            self._told(f"{name}: {error}; generated files take the place of packages")
            made_of, writers = generated()
        text = f"{_FORMAT} {name} {len(writers)} {made_of}"
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        place = self._directory / "images" / f"{name}-{key}"
        if not place.exists():
            self._told(f"making the image {name}, kept in {place}")
            part = place.with_name(f"part-{os.getpid()}-{name}")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            layers, entries, size = [], 0, 0
            for number, write in enumerate(writers):
                path = part / f"layer-{number:03d}.tar"
                with LayerWriter(path) as writer:
                    write(writer)
                layers.append(path)
                entries, size = entries + writer.entries, size + writer.size
            write_archives(part, layers, name, TAG, packed=name not in _PLAIN)
            facts = {"entries": entries, "size": size, "made_of": made_of, "digests": digests(layers)}
            (part / "image.json").write_text(json.dumps(facts, indent=1))
            part.rename(place)
        facts = json.loads((place / "image.json").read_text())
        paths = tuple(sorted(place.glob("layer-*.tar")))
        return Image(name, place, paths, facts["entries"], facts["size"], facts["made_of"])
