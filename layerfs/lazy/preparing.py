"""Brings what a lazy mount needs before it is made, and what gets the data while it lasts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, BinaryIO, Final

from layerfs.driver import Lazy
from layerfs.errors import ArchiveError, InvalidError
from layerfs.images import DOCUMENT_MAXIMUM, Image, Images, full_name
from layerfs.lazy.blob import Sources
from layerfs.lazy.fetching import Fetching, fetching_of
from layerfs.lazy.finishing import take_over, unfinished_of
from layerfs.lazy.making import Making
from layerfs.lazy.origin import LABEL, Origin
from layerfs.lazy.setting import Setting
from layerfs.oci.config import ImageConfig
from layerfs.oci.manifest import Manifest
from layerfs.transports.endpoint import Hurries, verified
from layerfs.value import frozen, replace

if TYPE_CHECKING:
    from layerfs.layers import Layers
    from layerfs.leases import Lease
    from layerfs.oci.platform import Platform
    from layerfs.registry.settings import Options
    from layerfs.seekable.tables import Tables
    from layerfs.transports import Place
    from layerfs.transports.endpoint import Source

_ATTEMPTS: Final = 4
# Requests that come together once the manifest is here: the config, and the ends of layers.
_SOON: Final = 8


@frozen
class Prepared:
    """An image that can be mounted: its topmost layer, None if it has none."""

    image: Image
    top: str | None


def prepare(
    what: str,
    *,
    layers: Layers,
    images: Images,
    lease: Lease,
    tables: Tables,
    spool: Callable[[], BinaryIO],
    is_stored: bool,
    platform: Platform | None,
    options: Options | None,
    warn: Callable[[str], None],
) -> Prepared:
    """Have the manifest, the config and the outlines of the layers of an image here.

    Args:
        what: the image in the store if `is_stored`, else one as `Store.pull` takes it.
        layers: of the driver that is to show it.
        images: of the store.
        lease: protects what is new until the caller has recorded who needs it.
        tables: of seek points, of the store.
        spool: makes an empty temporary file.
        platform: which image of several.
        options: how a registry is spoken with.
        warn: told what was odd.

    Raises:
        UnsupportedError: the driver cannot.
        NotFoundError, InvalidError, VerificationError: as `Store.pull` does.
    """
    sources = Sources(spool=spool, budget=layers.budget, warn=warn, options=options)
    making = Making(layers, lease, sources=sources, tables=tables, warn=warn)
    with contextlib.closing(sources), contextlib.closing(making):
        if is_stored:
            image = images.get(what)
            lease.add("image", str(image.digest))
            names = making.make(image.manifest, image.config, None)
            return Prepared(
                images.put_lazy(image.manifest.raw, image.manifest.media_type, names), _top(names)
            )
        from layerfs import transports

        place = _absolute(transports.parse(what))
        source = sources.open(str(place))
        if isinstance(source, Hurries):
            source.hurry(_SOON)
        resolved = source.manifest(place.name, platform=platform)
        manifest = Manifest.parse(resolved.raw, resolved.descriptor.media_type)
        lease.add("image", str(manifest.digest))
        lease.add("blob", str(manifest.digest), str(manifest.config.digest))
        if not layers.blobs.has(manifest.config.digest):
            making.expect(manifest.layers, str(place))
        config = _config(source, layers, manifest)
        names = making.make(manifest, config, str(place))
        called = _names(source, place)
        image = images.put_lazy(manifest.raw, manifest.media_type, names, called)
        return Prepared(image, _top(names))


def bodies(lazy: Sequence[str], *, layers: Layers, options: Options | None) -> Fetching:
    """Give what gets the data that layers lack, by the driver's ids of them, top first."""
    driver = layers.driver
    assert isinstance(driver, Lazy)
    if options is not None:
        # Somebody waits for a file, and can try again.
        options = replace(options, attempts=min(_ATTEMPTS, options.attempts))
    labels_of, setting = layers.table.labels_of, Setting.of(layers, options)
    origins = {layer: Origin.unpack(labels_of(layer)[LABEL]) for layer in reversed(lazy)}
    unfinished = unfinished_of(origins, setting=setting, driver=driver)
    take_over(layers)
    return fetching_of(origins, setting=setting, driver=driver, unfinished=unfinished)


def _top(names: Sequence[str]) -> str | None:
    return names[-1] if names else None


def _absolute(place: Place) -> Place:
    return place if place.reference is not None else replace(place, path=place.path.absolute())


def _names(source: Source, place: Place) -> list[str]:
    """Decide what the image is called here: what its source calls it."""
    for available in source.images():
        if place.name is None or available.is_called(place.name):
            if available.references:
                return list(available.references)
            break
    stem = place.path.name.lower()
    with contextlib.suppress(InvalidError):
        return [full_name(f"{stem}:{place.name or 'latest'}")]
    return []


def _config(source: Source, layers: Layers, manifest: Manifest) -> ImageConfig:
    descriptor = manifest.config
    if descriptor.size > DOCUMENT_MAXIMUM:
        raise ArchiveError(f"a config of {descriptor.size} bytes")
    if layers.blobs.is_whole(descriptor.digest):
        raw = layers.blobs.read(descriptor.digest, limit=DOCUMENT_MAXIMUM)
    else:
        with source.open(descriptor) as stream:
            raw = b"".join(verified(stream, descriptor))
    config = ImageConfig.parse(raw)
    if len(config.diff_ids) != len(manifest.layers):
        raise ArchiveError(
            f"image {manifest.digest} has {len(manifest.layers)} layers, its config"
            f" {len(config.diff_ids)} diff ids"
        )
    if layers.blobs.put(raw) != descriptor.digest:
        raise ArchiveError(f"a config's digest is {descriptor.digest}, in this store it would be another")
    return config
