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
