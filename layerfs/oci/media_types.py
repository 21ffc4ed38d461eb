"""Media types of images' parts, and what each says about the part (image-spec media-types.md)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from layerfs.compression import Compression

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
OCI_FOREIGN_LAYER: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar"
OCI_EMPTY: Final = "application/vnd.oci.empty.v1+json"

DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_MANIFEST_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_SCHEMA1: Final = "application/vnd.docker.distribution.manifest.v1+json"
DOCKER_SCHEMA1_SIGNED: Final = "application/vnd.docker.distribution.manifest.v1+prettyjws"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"
# Not of Docker's documents, but what containers/image and BuildKit write.
DOCKER_LAYER_ZSTD: Final = "application/vnd.docker.image.rootfs.diff.tar.zstd"
DOCKER_FOREIGN_LAYER: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"

_MANIFESTS: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
_INDEXES: Final = frozenset({OCI_INDEX, DOCKER_MANIFEST_LIST})
_CONFIGS: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG})
_DISTRIBUTABLE: Final = frozenset(
    {OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, DOCKER_LAYER, DOCKER_LAYER_GZIP, DOCKER_LAYER_ZSTD}
)
_FOREIGN: Final = frozenset(
    {OCI_FOREIGN_LAYER, f"{OCI_FOREIGN_LAYER}+gzip", f"{OCI_FOREIGN_LAYER}+zstd", DOCKER_FOREIGN_LAYER}
)
_BY_COMPRESSION: Final = {
    "none": (OCI_LAYER, DOCKER_LAYER),
    "gzip": (OCI_LAYER_GZIP, DOCKER_LAYER_GZIP),
    "zstd": (OCI_LAYER_ZSTD, DOCKER_LAYER_ZSTD),
}

_DOCKER_OF: Final = {
    OCI_MANIFEST: DOCKER_MANIFEST,
    OCI_INDEX: DOCKER_MANIFEST_LIST,
    OCI_CONFIG: DOCKER_CONFIG,
    OCI_LAYER: DOCKER_LAYER,
    OCI_LAYER_GZIP: DOCKER_LAYER_GZIP,
    f"{OCI_FOREIGN_LAYER}+gzip": DOCKER_FOREIGN_LAYER,
}
_OCI_OF: Final = {docker: oci for oci, docker in _DOCKER_OF.items()} | {DOCKER_LAYER_ZSTD: OCI_LAYER_ZSTD}


def is_name(text: str) -> bool:
    """Say whether a text can be a media type at all (RFC 6838 section 4.2)."""
    part = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
    return re.fullmatch(f"{part}/{part}", text) is not None


def is_manifest(media_type: str) -> bool:
    """Say whether it is one image's manifest."""
    return media_type in _MANIFESTS


def is_index(media_type: str) -> bool:
    """Say whether it is a list of manifests."""
    return media_type in _INDEXES


def is_config(media_type: str) -> bool:
    """Say whether it is the config of a container image; other artifacts have configs of their own."""
    return media_type in _CONFIGS


def is_layer(media_type: str) -> bool:
    """Say whether it is a layer of a container image, one that may not be distributed included."""
    return media_type in _DISTRIBUTABLE or media_type in _FOREIGN


def is_foreign_layer(media_type: str) -> bool:
    """Say whether it is a layer that is fetched from its `urls` and not handed on."""
    return media_type in _FOREIGN


def is_docker(media_type: str) -> bool:
    """Say whether it is one of Docker's schema 2 rather than OCI's."""
    return media_type.startswith("application/vnd.docker.")


def layer_media_type(compression: Compression, *, docker: bool = False) -> str:
    """Name the media type of a tar layer that is compressed so."""
    return _BY_COMPRESSION[compression.value][docker]


def compression_of(media_type: str) -> str | None:
    """Say by a `Compression`'s name how a layer of this media type is compressed; None if it does not say."""
    if not is_layer(media_type):
        return None
    for name in ("gzip", "zstd"):
        if media_type.endswith((f"+{name}", f".{name}")):
            return name
    return "none"


def in_format(media_type: str, *, docker: bool) -> str:
    """Name what means the same in Docker's format, or in OCI's; what has no such name keeps its own."""
    return (_DOCKER_OF if docker else _OCI_OF).get(media_type, media_type)
