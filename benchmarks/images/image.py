"""An image as the harness knows it: files in a cache, in every form that a subject may ask for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

TAG = "1"


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """One image.

    `layers` are plain tars, bottom first. `entries` counts the headers in them, `size` is the sum of their
    files' lengths in bytes. `made_of` says what is in it, so that two runs can be told apart.
    """

    name: str
    directory: Path
    layers: tuple[Path, ...]
    entries: int
    size: int
    made_of: str

    @property
    def reference(self) -> str:
        """The name under which the archive holds it; every peer accepts this form."""
        return f"localhost/{self.name}:{TAG}"

    @property
    def docker_archive(self) -> Path:
        """What docker save would write, layers not compressed."""
        return self.directory / "docker.tar"

    def layout(self, compression: str) -> Path:
        """An OCI layout with layers compressed by "gzip", "zstd", or where it was made by "estargz"."""
        return self.directory / f"oci-{compression}"

    def layout_archive(self, compression: str) -> Path:
        """That layout as one tar file."""
        return self.directory / f"oci-{compression}.tar"

    def compressed(self, compression: str) -> list[Path]:
        """The compressed layers of that layout, bottom first."""
        names: list[str] = json.loads((self.directory / "compressed.json").read_text())[compression]
        return [self.layout(compression) / "blobs" / "sha256" / name for name in names]

    def describe(self) -> dict[str, Any]:
        """Give what a reader of figures wants to know."""
        return {
            "layers": len(self.layers),
            "entries": self.entries,
            "size": self.size,
            "made_of": self.made_of,
        }
