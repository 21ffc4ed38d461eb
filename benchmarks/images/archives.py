"""Wraps layer tars as a docker-archive and as OCI layouts, with the standard library and zstandard alone."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from benchmarks.images import estargz

_PIECE: Final = 1 << 20
_OCI: Final = "application/vnd.oci.image"
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
# What docker build and most registries' images have.
_GZIP_LEVEL: Final = 6
_ZSTD_LEVEL: Final = 3


def write_archives(directory: Path, layers: list[Path], name: str, tag: str, *, packed: bool) -> None:
    """Write docker.tar below `directory`; with `packed` the two OCI layouts and their index too."""
    config = _config([_digest(path) for path in layers])
    _write_docker(directory / "docker.tar", layers, config, f"localhost/{name}:{tag}")
    names = {}
    for compression in ("gzip", "zstd") if packed else ():
        layout = directory / f"oci-{compression}"
        names[compression] = _write_layout(layout, layers, config, compression, tag)
        with tarfile.open(f"{layout}.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
            archive.add(layout, ".")
    (directory / "compressed.json").write_text(json.dumps(names))


def _config(diff_ids: list[str]) -> bytes:
    return _json(
        {
            "architecture": _MACHINES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "created": "2023-11-14T22:13:20Z",
            "config": {"Cmd": ["/bin/true"], "Env": ["PATH=/usr/bin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{each}" for each in diff_ids]},
            "history": [{"created": "2023-11-14T22:13:20Z", "created_by": "benchmark"} for _ in diff_ids],
        }
    )


def _write_docker(path: Path, layers: list[Path], config: bytes, reference: str) -> None:
    config_name = hashlib.sha256(config).hexdigest() + ".json"
    names = [f"{hashlib.sha256(b'%d' % place).hexdigest()}/layer.tar" for place in range(len(layers))]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, layer in zip(names, layers, strict=True):
            entry = tarfile.TarInfo(name)
            entry.size = layer.stat().st_size
            with layer.open("rb") as file:
                archive.addfile(entry, file)
        manifest = _json([{"Config": config_name, "RepoTags": [reference], "Layers": names}])
        for name, data in ((config_name, config), ("manifest.json", manifest)):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def _write_layout(
    directory: Path, layers: list[Path], config: bytes, compression: str, tag: str
) -> list[str]:
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    descriptors = []
    for place, layer in enumerate(layers):
        part = blobs / f"part-{place}"
        _compress(layer, part, compression)
        digest = _digest(part)
        size = part.stat().st_size
        part.rename(blobs / digest)
        descriptors.append(_descriptor(f"{_OCI}.layer.v1.tar+{compression}", digest, size))
    _write_index(directory, config, descriptors, tag)
    return [each["digest"].partition(":")[2] for each in descriptors]


def write_estargz(directory: Path, layers: list[Path], tag: str) -> None:
    """Write an OCI layout with eStargz layers; unpacked they have other digests than those given."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    descriptors, diff_ids = [], []
    for place, layer in enumerate(layers):
        part = blobs / f"part-{place}"
        table, diff_id = estargz.pack(layer, part)
        digest, size = _digest(part), part.stat().st_size
        part.rename(blobs / digest)
        diff_ids.append(diff_id)
        annotations = {estargz.TOC_DIGEST: table}
        descriptors.append(
            _descriptor(f"{_OCI}.layer.v1.tar+gzip", digest, size) | {"annotations": annotations}
        )
    _write_index(directory, _config(diff_ids), descriptors, tag)


def _write_index(directory: Path, config: bytes, descriptors: list[dict[str, Any]], tag: str) -> None:
    blobs = directory / "blobs" / "sha256"
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{_OCI}.manifest.v1+json",
            "config": _put(blobs, config, f"{_OCI}.config.v1+json"),
            "layers": descriptors,
        }
    )
    described = _put(blobs, manifest, f"{_OCI}.manifest.v1+json")
    described["annotations"] = {"org.opencontainers.image.ref.name": tag}
    (directory / "index.json").write_bytes(_json({"schemaVersion": 2, "manifests": [described]}))
    (directory / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))


def _compress(source: Path, target: Path, compression: str) -> None:
    with source.open("rb") as read, target.open("wb") as written:
        if compression == "zstd":
            import zstandard

            zstandard.ZstdCompressor(level=_ZSTD_LEVEL).copy_stream(read, written)
            return
        with gzip.GzipFile("", "wb", _GZIP_LEVEL, written, mtime=0) as packed:
            shutil.copyfileobj(read, packed, _PIECE)


def _put(blobs: Path, data: bytes, media_type: str) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return _descriptor(media_type, digest, len(data))


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(paths: Iterable[Path]) -> list[str]:
    """Give the SHA-256 of each file, in hexadecimal digits."""
    return [_digest(path) for path in paths]


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
