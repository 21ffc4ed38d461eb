"""What images, containers and blobs occupy: by themselves, together with others, and for nothing."""

from __future__ import annotations

import contextlib

from layerfs.blobs import Blobs
from layerfs.containers import Container, Containers
from layerfs.database import Database
from layerfs.errors import LayerfsError, NotFoundError
from layerfs.images import Image, Images
from layerfs.value import frozen


@frozen
class ImageUsage:
    """What an image's unpacked layers occupy, in bytes and inodes.

    `shared` is in layers that other images have too, `exclusive` in those that none has. `reclaimable`
    is what would be free without the image: nothing while a container needs it.
    """

    image: Image
    bytes: int
    inodes: int
    shared: int
    exclusive: int
    reclaimable: int
    containers: int


@frozen
class ContainerUsage:
    """What a container's own layer occupies, in bytes and inodes; reclaimable while it does not run."""

    container: Container
    bytes: int
    inodes: int
    reclaimable: int


@frozen
class DiskUsage:
    """What a store occupies, in bytes and inodes.

    `layer_bytes` and `layer_inodes` count every committed layer once. `blob_reclaimable` is in blobs to
    which nothing refers.
    """

    images: tuple[ImageUsage, ...]
    containers: tuple[ContainerUsage, ...]
    layer_bytes: int
    layer_inodes: int
    layer_reclaimable: int
    blob_count: int
    blob_bytes: int
    blob_reclaimable: int


def measure(database: Database, blobs: Blobs, images: Images, containers: Containers) -> DiskUsage:
    """Count everything; committed layers as they were counted then, lazy ones as they are."""
    rows = database.rows(
        "SELECT l.id, COALESCE(l.bytes, 0), COALESCE(l.inodes, 0), i.manifest FROM layers l"
        " LEFT JOIN image_layers i ON i.chain_id = l.name WHERE l.state = 'committed'"
    )
    sizes = {number: (size, inodes) for number, size, inodes, _ in rows}
    # These grow as their files are read.
    lazy = "SELECT id, driver, driver_id FROM layers WHERE state = 'committed' AND name GLOB 'lazy:*'"
    for number, driver, driver_id in database.rows(lazy):
        with contextlib.suppress(LayerfsError):
            used = containers.layers_of(driver).measure(driver_id, ())
            sizes[number] = used.bytes, used.inodes
    holders: dict[int, set[str]] = {number: set() for number in sizes}
    layers_of: dict[str, set[int]] = {}
    for number, _, _, manifest in rows:
        if manifest is not None:
            holders[number].add(manifest)
            layers_of.setdefault(manifest, set()).add(number)
    users: dict[str, int] = dict(database.rows("SELECT image, COUNT(*) FROM containers GROUP BY image"))
    needed = {number for manifest in users for number in layers_of.get(manifest, ())}
    image_usages = []
    for image in images.list():
        manifest = str(image.digest)
        own = layers_of.get(manifest, set())
        exclusive = {number for number in own if holders[number] == {manifest}}
        image_usages.append(
            ImageUsage(
                image,
                sum(sizes[number][0] for number in own),
                sum(sizes[number][1] for number in own),
                sum(sizes[number][0] for number in own - exclusive),
                sum(sizes[number][0] for number in exclusive),
                sum(sizes[number][0] for number in exclusive - needed),
                users.get(manifest, 0),
            )
        )
    container_usages = []
    for container in containers.list():
        layers = containers.layers_of(container.driver)
        try:
            used = layers.usage(container.id)
        except (NotFoundError, FileNotFoundError):
            if layers.has(container.id):
                raise
            continue  # it was removed a moment ago
        free = (
            0
            if container.status == "running" or container.mounts() or container.private_mounts()
            else used.bytes
        )
        container_usages.append(ContainerUsage(container, used.bytes, used.inodes, free))
    referred = {
        blob for (blob,) in database.rows("SELECT blob FROM links UNION SELECT blob FROM index_links")
    }
    for row in database.rows("SELECT blob, toc, skeleton FROM layers"):
        referred.update(blob for blob in row if blob is not None)
    referred.update(
        seek for blob, seek in database.rows("SELECT blob, seek FROM seek_tables") if blob in referred
    )
    blob_sizes = {}
    for digest in blobs.list():
        # One that is collected meanwhile occupies nothing.
        with contextlib.suppress(NotFoundError):
            blob_sizes[str(digest)] = blobs.size(digest)
    return DiskUsage(
        tuple(image_usages),
        tuple(container_usages),
        sum(size for size, _ in sizes.values()),
        sum(inodes for _, inodes in sizes.values()),
        sum(sizes[number][0] for number in sizes.keys() - needed),
        len(blob_sizes),
        sum(blob_sizes.values()),
        sum(size for name, size in blob_sizes.items() if name not in referred),
    )
