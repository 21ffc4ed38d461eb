"""Everything that may be measured: the drivers of layerfs, which are found, and peers, one module each."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from benchmarks.subjects import (
    bare,
    containerd,
    docker,
    floors,
    fuse_overlayfs,
    kernel_overlay,
    layerfs_drivers,
    podman,
    skopeo,
    umoci,
    unionfs_fuse,
)
from benchmarks.subjects.base import Candidate

_PEERS: Final = (
    *(kernel_overlay, fuse_overlayfs, unionfs_fuse, bare),
    *(docker, podman, containerd, umoci, skopeo, floors),
)


def candidates(place: Path) -> list[Candidate]:
    """Give every subject, those that cannot be measured here too; drivers are tried in `place`."""
    peers = [candidate for module in _PEERS for candidate in module.candidates()]
    return layerfs_drivers.candidates(place) + peers
