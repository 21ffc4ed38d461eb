"""What `inspect` tells of an image that is in no store: in a registry, a layout or an archive."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from typing import Any

from layerfs.cli import output, registry_options
from layerfs.cli.context import Context, warn
from layerfs.cli.copy_options import platform_of, spool
from layerfs.cli.parser import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerfs.oci.descriptor import Descriptor
    from layerfs.transports import Place
    from layerfs.transports.endpoint import Resolved, Source

PREFIXES = ("docker://", "oci:", "oci-archive:", "docker-archive:")


def is_place(text: str) -> bool:
    """Say whether a text is a place and no image's name; an image that is called oci is found by its id."""
    return text.startswith(PREFIXES)


def inspect(context: Context, arguments: argparse.Namespace) -> int:
    """Carry out `inspect` for places."""
    if arguments.raw or arguments.config:
        if len(arguments.names) != 1:
            raise UsageError("--raw and --config are for one image", hint="name one at a time")
        with _opened(arguments, arguments.names[0]) as (place, source):
            _write_document(arguments, place, source)
        return 0
    found: list[dict[str, Any]] = []

    def look(name: str) -> None:
        with _opened(arguments, name) as (place, source):
            found.append(_details(arguments, place, source))

    status = context.each(arguments.names, look)
    output.document(found)
    return status


@contextlib.contextmanager
def _opened(arguments: argparse.Namespace, name: str) -> Any:
    from layerfs import transports
    from layerfs.tree.budget import DEFAULT_BUDGET

    place = transports.parse(name)
    options = registry_options.read(arguments) if place.reference is not None else None
    source = place.source(spool=spool, budget=DEFAULT_BUDGET, warn=warn, options=options)
    with contextlib.closing(source):
        yield place, source


def _write_document(arguments: argparse.Namespace, place: Place, source: Source) -> None:
    if arguments.config:
        raw = _config(source, source.manifest(place.name, platform=platform_of(arguments)))
    elif arguments.platform is None:
        raw = _root(source, place.name).raw
    else:
        raw = source.manifest(place.name, platform=platform_of(arguments)).raw
    if arguments.raw:
        sys.stdout.flush()
        sys.stdout.buffer.write(raw)
    else:
        output.document(json.loads(raw))


def _details(arguments: argparse.Namespace, place: Place, source: Source) -> dict[str, Any]:
    """Tell what stands in the documents; nothing else is fetched, but the tags of a registry."""
    from layerfs.oci import media_types
    from layerfs.oci.index import Index
    from layerfs.oci.manifest import Manifest

    root = _root(source, place.name)
    platforms: list[dict[str, Any]] | None = None
    if media_types.is_index(root.descriptor.media_type):
        index = Index.parse(root.raw, root.descriptor.media_type)
        platforms = [
            {
                "platform": None if one.platform is None else str(one.platform),
                "digest": str(one.digest),
                "media_type": one.media_type,
                "size": one.size,
            }
            for one in index.manifests
        ]
    chosen = source.manifest(place.name, platform=platform_of(arguments))
    manifest = Manifest.parse(chosen.raw, chosen.descriptor.media_type)
    config = json.loads(_config(source, chosen))
    details: dict[str, Any] = {
        "name": str(place),
        "digest": str(root.descriptor.digest),
        "media_type": root.descriptor.media_type,
        "manifest_digest": str(manifest.digest),
        "id": str(manifest.config.digest),
        "created": config.get("created"),
        "os": config.get("os"),
        "architecture": config.get("architecture"),
        "size": sum(layer.size for layer in manifest.layers),
        "layers": [_layer(layer) for layer in manifest.layers],
        "platforms": platforms,
        "manifest": json.loads(manifest.raw),
        "config": config,
    }
    if place.reference is not None and not arguments.no_tags:
        details["tags"] = _tags(arguments, place)
    return details


def _root(source: Source, name: str | None) -> Resolved:
    from layerfs.transports.endpoint import Documents

    return source.root(name) if isinstance(source, Documents) else source.manifest(name)


def _config(source: Source, image: Resolved) -> bytes:
    from layerfs.errors import BudgetError
    from layerfs.oci import document
    from layerfs.oci.manifest import Manifest
    from layerfs.transports.endpoint import verified

    config = Manifest.parse(image.raw, image.descriptor.media_type).config
    if config.size > document.MAXIMUM_BYTES:
        raise BudgetError(f"the config {config.digest} has {config.size} bytes")
    with source.open(config) as stream:
        return b"".join(verified(stream, config))


def _layer(layer: Descriptor) -> dict[str, Any]:
    return {
        "digest": str(layer.digest),
        "media_type": layer.media_type,
        "size": layer.size,
        "annotations": dict(layer.annotations),
    }


def _tags(arguments: argparse.Namespace, place: Place) -> list[str] | None:
    """List the tags beside the image; None where only images may be read."""
    from layerfs.errors import NotFoundError, TransportError
    from layerfs.registry import manifests
    from layerfs.registry.session import Session

    assert place.reference is not None
    with Session(registry_options.read(arguments), warn=warn) as session:
        try:
            return list(manifests.tags(session.repository(place.reference)))
        except (TransportError, NotFoundError) as error:
            warn(f"the tags are not known: {error}")
            return None
