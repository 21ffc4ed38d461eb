"""Tiny images made by hand with the standard library's tarfile: nothing of layerfs makes them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar(members: Mapping[str, bytes | tuple[str, bytes]] | Iterable[tuple[str, Any]]) -> bytes:
    """Pack files; a pair is (link type as tarfile has it, target)."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            entry = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                entry.type = content[0].encode()
                entry.linkname = content[1].decode()
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def document(value: Any) -> bytes:
    return json.dumps(value).encode()


class TinyImage:
    """An image of some layers, as blobs; the layers of `plain` are tars, and may be given as such."""

    def __init__(
        self, *texts: bytes, tars: Iterable[bytes] = (), compress: bool = True, platform: str = "linux/amd64"
    ) -> None:
        self.plain = [tar({f"file{place}": text}) for place, text in enumerate(texts)] + list(tars)
        self.layers = [gzip.compress(layer, mtime=0) if compress else layer for layer in self.plain]
        os, architecture, *variant = platform.split("/")
        self.platform = {"os": os, "architecture": architecture} | (
            {"variant": variant[0]} if variant else {}
        )
        self.config = document(
            {
                **self.platform,
                "config": {"Cmd": ["/file0"]},
                "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in self.plain]},
                "history": [{"created_by": "by hand"} for _ in self.plain],
            }
        )
        kind = "application/vnd.oci.image.layer.v1.tar" + ("+gzip" if compress else "")
        self.manifest = document(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": self.describe(self.config, "application/vnd.oci.image.config.v1+json"),
                "layers": [self.describe(layer, kind) for layer in self.layers],
            }
        )
        self.blobs = [self.config, *self.layers, self.manifest]

    @staticmethod
    def describe(data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": sha256(data), "size": len(data), **more}

    def entry(self, *, name: str | None = None, with_platform: bool = False) -> dict[str, Any]:
        found = self.describe(self.manifest, MANIFEST)
        if name is not None:
            found["annotations"] = {"org.opencontainers.image.ref.name": name}
        if with_platform:
            found["platform"] = self.platform
        return found


def layout_files(entries: list[dict[str, Any]], blobs: Iterable[bytes]) -> dict[str, bytes]:
    """Give the files of an OCI layout by name."""
    return {
        "oci-layout": document({"imageLayoutVersion": "1.0.0"}),
        "index.json": document({"schemaVersion": 2, "manifests": entries}),
        **{"blobs/" + sha256(blob).replace(":", "/"): blob for blob in blobs},
    }


def write_files(directory: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return directory


def old_docker_archive(image: TinyImage, tags: list[str]) -> list[tuple[str, Any]]:
    """Give the members of what docker 20.10 saves: equal layers but the first are symlinks."""
    members: list[tuple[str, Any]] = []
    paths: list[str] = []
    seen: dict[bytes, str] = {}
    for place, layer in enumerate(image.plain):
        directory = hashlib.sha256(b"%d" % place).hexdigest()
        members.append((f"{directory}/VERSION", b"1.0"))
        members.append((f"{directory}/json", document({"id": directory})))
        path = f"{directory}/layer.tar"
        members.append((path, ("2", f"../{seen[layer]}".encode()) if layer in seen else layer))
        seen.setdefault(layer, path)
        paths.append(path)
    config = sha256(image.config).split(":")[1] + ".json"
    members.append((config, image.config))
    members.append(("manifest.json", document([{"Config": config, "RepoTags": tags, "Layers": paths}])))
    members.append(("repositories", document({})))
    return members


def multi_platform(*platforms: str, **members: Any) -> tuple[bytes, list[TinyImage]]:
    """Make one image for each platform, and the index over them; an index may have more members."""
    images = [TinyImage(platform.encode(), b"common" * 1000, platform=platform) for platform in platforms]
    entries = [image.entry(with_platform=True) for image in images]
    return document({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries, **members}), images


def layout_of_index(directory: Path, index: bytes, images: Iterable[TinyImage], *, name: str) -> Path:
    """Write an OCI layout that holds an index, with all that it names, under one name."""
    entry = TinyImage.describe(index, INDEX, annotations={"org.opencontainers.image.ref.name": name})
    blobs = [index, *(blob for image in images for blob in image.blobs)]
    return write_files(directory, layout_files([entry], blobs))
