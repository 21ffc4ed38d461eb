"""What docker shows differently from the layers it was given, each with its reason; no more is forgiven."""

from __future__ import annotations

from layerfs.testing.snapshot import Snapshot


def as_docker_shows(tree: Snapshot) -> Snapshot:
    """Give the tree that docker makes of the same layers.

    - Times before 1970 become 1970 (moby pkg/archive `boundTime`, which its untar applies to every entry).
    """
    return {path: facts._replace(mtime_ns=max(facts.mtime_ns, 0)) for path, facts in tree.items()}


def without_root_time(tree: Snapshot) -> Snapshot:
    """Leave out when the root was changed: docker's unpacking passes over the times of ``./``."""
    return {**tree, b"": tree[b""]._replace(mtime_ns=0)}


def as_podman_shows(tree: Snapshot) -> Snapshot:
    """Give the tree that podman makes of the same layers.

    - Times before 1970 become 1970: containers/storage has docker's code.
    - The root is 0555 whatever ``./`` says: that of the lowest layer's directory, which it makes itself.
    """
    shown = as_docker_shows(tree)
    return {**shown, b"": shown[b""]._replace(mode=0o555)}
