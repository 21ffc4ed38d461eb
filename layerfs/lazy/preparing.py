"""Brings what a lazy mount needs before it is made, and what gets the data while it lasts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, BinaryIO, Final

from layerfs.driver import Lazy
from layerfs.errors import ArchiveError, InvalidError
from layerfs.images import DOCUMENT_MAXIMUM, Image, Images, full_name
from layerfs.lazy.sources import Sources
from layerfs.oci.config import ImageConfig
from layerfs.oci.manifest import Manifest
from layerfs.transports.endpoint import Hurries, verified
from layerfs.value import frozen, replace

if TYPE_CHECKING:
    from layerfs.layers import Layers
    from layerfs.lazy.fetching import Fetching
    from layerfs.lazy.making import Making
    from layerfs.leases import Lease
    from layerfs.oci.platform import Platform
    from layerfs.registry.settings import Options
    from layerfs.seekable.tables import Tables
    from layerfs.transports import Place
    from layerfs.transports.endpoint import Source

_ATTEMPTS: Final = 4
# Requests that come together once the manifest is here: the config, and the ends of layers.
_SOON: Final = 12


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
    with contextlib.ExitStack() as opened:
        sources = Sources(spool=spool, budget=layers.budget, warn=warn, options=options)
        opened.callback(sources.close)
        found = None if is_stored else _opened(what, sources)
        making = _making(layers, lease, sources, tables, warn)
        opened.callback(making.close)
        if found is None:
            image = images.get(what)
            lease.add("image", str(image.digest))
            names = making.make(image.manifest, image.config, None)
            return Prepared(
                images.put_lazy(image.manifest.raw, image.manifest.media_type, names), _top(names)
            )
        place, source = found
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


def _opened(what: str, sources: Sources) -> tuple[Place, Source]:
    """Open the place of an image, and begin to reach it."""
    from layerfs import transports

    place = transports.parse(what)
    if place.reference is None:
        place = replace(place, path=place.path.absolute())
    source = sources.open(str(place))
    if isinstance(source, Hurries):
        source.hurry(_SOON)
    return place, source


def _making(
    layers: Layers, lease: Lease, sources: Sources, tables: Tables, warn: Callable[[str], None]
) -> Making:
    """Get ready to make layers, which takes some time that a registry needs to answer."""
    from layerfs.lazy.making import Making

    made = Making(layers, lease, sources=sources, tables=tables, warn=warn)
    if isinstance(layers.driver, Lazy):
        layers.driver.get_ready()
    return made


def bodies(lazy: Sequence[str], *, layers: Layers, options: Options | None) -> Fetching:
    """Give what gets the data that layers lack, by the driver's ids of them, top first."""
    from layerfs.lazy.fetching import fetching_of
    from layerfs.lazy.finishing import take_over, unfinished_of
    from layerfs.lazy.origin import LABEL, Origin
    from layerfs.lazy.setting import Setting

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
