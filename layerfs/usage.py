"""What images, containers, layers and blobs occupy: by themselves, together with others, and for nothing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from layerfs.blobs import Blobs
from layerfs.containers import Container, Containers
from layerfs.database import Database
from layerfs.driver import Usage
from layerfs.errors import LayerfsError, NotFoundError
from layerfs.garbage import GRACE_SECONDS, orphans
from layerfs.images import Image, Images
from layerfs.layers import Layers
from layerfs.leftovers import Leftovers, is_due
from layerfs.quarantine import Quarantine
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
    """What a container's own layer occupies, in bytes and inodes; reclaimable while nobody uses it.

    `shared` are the bytes of its image's layers.
    """

    container: Container
    bytes: int
    inodes: int
    shared: int
    reclaimable: int


@frozen
class LayerUsage:
    """What one committed layer occupies by itself, in bytes and inodes, as counted when it was committed.

    `images` and `containers` are how many need it, by themselves or by what lies above it. `reclaimable` is
    what would be free if nothing that has no container stayed.
    """

    name: str
    driver: str
    bytes: int
    inodes: int
    images: int
    containers: int
    reclaimable: int


@frozen
class DiskUsage:
    """What a store occupies, in bytes and inodes.

    `layer_bytes` and `layer_inodes` count every committed layer once. `blob_reclaimable` is in blobs to
    which nothing refers. `leftover_bytes` are of what stopped processes left behind, of which
    `leftover_reclaimable` are old enough to go; `orphans` are layers that nobody knows, by driver and id.
    `quarantine_bytes` are of what repairs moved aside.
    """

    images: tuple[ImageUsage, ...]
    containers: tuple[ContainerUsage, ...]
    layers: tuple[LayerUsage, ...]
    layer_bytes: int
    layer_inodes: int
    layer_reclaimable: int
    blob_count: int
    blob_bytes: int
    blob_reclaimable: int
    leftover_count: int
    leftover_bytes: int
    leftover_reclaimable: int
    quarantine_bytes: int
    quarantine_inodes: int
    orphans: tuple[tuple[str, str], ...]


def measure(
    root: Path,
    database: Database,
    blobs: Blobs,
    images: Images,
    containers: Containers,
    all_layers: Callable[[], Sequence[Layers]],
) -> DiskUsage:
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
    blob_count, blob_bytes, blob_reclaimable = _measure_blobs(database, blobs)
    leftovers = [one for one in Leftovers(root, database, blobs).find() if one.kind != "lock"]
    before = time.time() - GRACE_SECONDS
    return DiskUsage(
        tuple(image_usages),
        tuple(_measure_containers(containers, layers_of, sizes)),
        tuple(_measure_layers(database, sizes, holders, users)),
        sum(size for size, _ in sizes.values()),
        sum(inodes for _, inodes in sizes.values()),
        sum(sizes[number][0] for number in sizes.keys() - needed),
        blob_count,
        blob_bytes,
        blob_reclaimable,
        len(leftovers),
        sum(one.bytes for one in leftovers),
        sum(one.bytes for one in leftovers if is_due(one, older_than=before)),
        *Quarantine(root).occupied(),
        tuple((layers.driver.name, one) for layers in all_layers() for one in orphans(layers)),
    )


def _measure_containers(
    containers: Containers, layers_of: dict[str, set[int]], sizes: dict[int, tuple[int, int]]
) -> list[ContainerUsage]:
    found = []
    for container in containers.list():
        try:
            layers = containers.layers_of(container.driver)
        except LayerfsError:
            continue  # its driver cannot work here
        try:
            used = layers.usage(container.id)
        except (NotFoundError, FileNotFoundError):
            if not layers.has(container.id):
                continue  # it was removed a moment ago
            used = Usage(0, 0)  # its files are lost, or on their way to another driver
        busy = container.status == "running" or container.mounts() or container.private_mounts()
        shared = sum(sizes[number][0] for number in layers_of.get(container.image_digest, ()))
        found.append(ContainerUsage(container, used.bytes, used.inodes, shared, 0 if busy else used.bytes))
    return found


def _measure_layers(
    database: Database,
    sizes: dict[int, tuple[int, int]],
    holders: dict[int, set[str]],
    users: dict[str, int],
) -> list[LayerUsage]:
    found = []
    for number, name, driver in database.rows(
        "SELECT id, name, driver FROM layers WHERE state = 'committed' ORDER BY id"
    ):
        size, inodes = sizes.get(number, (0, 0))
        own = holders.get(number, set())
        boxes = sum(users.get(manifest, 0) for manifest in own)
        found.append(LayerUsage(name, driver, size, inodes, len(own), boxes, 0 if boxes else size))
    return found


def _measure_blobs(database: Database, blobs: Blobs) -> tuple[int, int, int]:
    """Give how many blobs there are, their bytes, and the bytes of those to which nothing refers."""
    referred = {
        blob for (blob,) in database.rows("SELECT blob FROM links UNION SELECT blob FROM index_links")
    }
    for row in database.rows("SELECT blob, toc, skeleton FROM layers"):
        referred.update(blob for blob in row if blob is not None)
    referred.update(
        seek for blob, seek in database.rows("SELECT blob, seek FROM seek_tables") if blob in referred
    )
    sizes = {}
    for digest in blobs.list():
        # One that is collected meanwhile occupies nothing.
        with contextlib.suppress(NotFoundError):
            sizes[str(digest)] = blobs.size(digest)
    return (
        len(sizes),
        sum(sizes.values()),
        sum(size for name, size in sizes.items() if name not in referred),
    )
