"""Where a repository really is: mirrors, other locations, blocked names (containers-registries.conf(5))."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from layerfs.reference import Reference
    from layerfs.registry.settings import Options


class Endpoint(NamedTuple):
    """A registry's host and a repository there, as requests are sent to."""

    host: str
    repository: str
    insecure: bool = False
    is_mirror: bool = False
    tags: bool = True
    digests: bool = True


def endpoints(reference: Reference, options: Options) -> tuple[Endpoint, ...]:
    """Give the places to pull from, best first; the last is the registry itself, the place to push to."""
    return (Endpoint(reference.host, reference.repository),)
