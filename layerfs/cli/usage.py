"""`du` and `info`: what the store occupies, and what it and its host are."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from layerfs.cli import output
from layerfs.cli.commands import Command
from layerfs.cli.context import Context
from layerfs.cli.parser import CommandParser

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerfs.usage import DiskUsage


def _configure_du(parser: CommandParser) -> None:
    parser.flag("-v", "--verbose", help="show each image, each container and each layer too")


def _du(context: Context, arguments: argparse.Namespace) -> int:
    with context.open_store() as store:
        usage = store.disk_usage()
    if context.json:
        output.document(_document(usage))
        return 0
    rows = [
        (name.capitalize(), total, active, output.size(size), output.size(free), inodes)
        for name, (total, active, size, free, inodes) in _totals(usage).items()
        if total or name not in ("leftovers", "quarantine")
    ]
    _table(["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE", "INODES"], rows)
    if arguments.verbose:
        _details(usage)
    return 0


def _totals(usage: DiskUsage) -> dict[str, tuple[int, int, int, int, int]]:
    """Give each line of the summary: how many, how many in use, bytes, reclaimable bytes, inodes."""
    containers = usage.containers
    return {
        "images": (
            len(usage.images), sum(one.containers > 0 for one in usage.images), usage.layer_bytes,
            usage.layer_reclaimable, usage.layer_inodes,
        ),
        "containers": (
            len(containers), sum(one.container.status == "running" for one in containers),
            sum(one.bytes for one in containers), sum(one.reclaimable for one in containers),
            sum(one.inodes for one in containers),
        ),
        "blobs": (
            usage.blob_count, usage.blob_count, usage.blob_bytes, usage.blob_reclaimable, usage.blob_count,
        ),
        "leftovers": (
            usage.leftover_count, 0, usage.leftover_bytes, usage.leftover_reclaimable, usage.leftover_count,
        ),
        "quarantine": (
            usage.quarantine_inodes, 0, usage.quarantine_bytes, usage.quarantine_bytes,
            usage.quarantine_inodes,
        ),
    }  # fmt: skip


def _document(usage: DiskUsage) -> dict[str, object]:
    document: dict[str, object] = {
        name: {"total": total, "active": active, "size": size, "reclaimable": free, "inodes": inodes}
        for name, (total, active, size, free, inodes) in _totals(usage).items()
    }
    document["by_image"] = [
        {
            "id": str(one.image.id),
            "names": list(one.image.names),
            "size": one.bytes,
            "inodes": one.inodes,
            "shared": one.shared,
            "exclusive": one.exclusive,
            "reclaimable": one.reclaimable,
            "containers": one.containers,
        }
        for one in usage.images
    ]
    document["by_container"] = [
        {
            "id": one.container.id,
            "name": one.container.name,
            "size": one.bytes,
            "inodes": one.inodes,
            "shared": one.shared,
            "exclusive": one.bytes,
            "reclaimable": one.reclaimable,
        }
        for one in usage.containers
    ]
    document["by_layer"] = [
        {
            "name": one.name,
            "driver": one.driver,
            "size": one.bytes,
            "inodes": one.inodes,
            "shared": one.bytes if one.images > 1 else 0,
            "exclusive": one.bytes if one.images <= 1 else 0,
            "reclaimable": one.reclaimable,
            "images": one.images,
            "containers": one.containers,
        }
        for one in usage.layers
    ]
    document["orphans"] = [{"driver": driver, "id": identity} for driver, identity in usage.orphans]
    return document


def _details(usage: DiskUsage) -> None:
    output.line("")
    _table(
        ["IMAGE", "ID", "SIZE", "SHARED", "EXCLUSIVE", "RECLAIMABLE", "INODES", "CONTAINERS"],
        [
            (
                one.image.names[0] if one.image.names else "<none>",
                output.short(str(one.image.id)),
                *map(output.size, (one.bytes, one.shared, one.exclusive, one.reclaimable)),
                one.inodes,
                one.containers,
            )
            for one in usage.images
        ],
    )
    output.line("")
    _table(
        ["CONTAINER", "ID", "SIZE", "SHARED", "RECLAIMABLE", "INODES"],
        [
            (
                one.container.name,
                output.short(one.container.id),
                *map(output.size, (one.bytes, one.shared, one.reclaimable)),
                one.inodes,
            )
            for one in usage.containers
        ],
    )
    output.line("")
    _table(
        ["LAYER", "DRIVER", "SIZE", "RECLAIMABLE", "INODES", "IMAGES", "CONTAINERS"],
        [
            (
                output.short(one.name),
                one.driver,
                output.size(one.bytes),
                output.size(one.reclaimable),
                one.inodes,
                one.images,
                one.containers,
            )
            for one in usage.layers
        ],
    )
    for driver, identity in usage.orphans:
        output.line(f"orphan: {driver} holds {identity}, which nobody knows")


def _table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    output.table(headers, [tuple(map(str, row)) for row in rows])


def _configure_info(parser: CommandParser) -> None:
    """Take no arguments of its own."""


def _info(context: Context, arguments: argparse.Namespace) -> int:
    import platform

    from layerfs import __version__

    with context.open_store() as store:
        found = store.info()
    host = os.uname()
    facts: dict[str, object] = {
        "version": __version__,
        "root": str(found.root),
        "format": found.format_version,
        "driver": found.driver,
        "drivers": list(found.drivers),
        "file system": found.file_system,
        "size": found.size,
        "free": found.free,
        "durability": found.durability,
        "images": found.images,
        "layers": found.layers,
        "containers": found.containers,
        "running": found.running,
        "system": _system(),
        "kernel": host.release,
        "architecture": host.machine,
        "processors": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "rootless": context.rootless,
    }
    if context.json:
        output.document({name.replace(" ", "_"): value for name, value in facts.items()})
        return 0
    for name, value in facts.items():
        output.line(f"{name.capitalize() + ':':<14}{_shown(name, value)}")
    return 0


def _shown(name: str, value: object) -> object:
    if isinstance(value, bool):
        return {True: "yes", False: "no"}[value]
    if isinstance(value, list):
        return ", ".join(value) or "none"
    if name in ("size", "free", "memory") and isinstance(value, int):
        return output.size(value)
    return value


def _system() -> str:
    import platform

    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


COMMANDS = {
    "du": Command(
        description="""\
SIZE and INODES of images count each layer once; the layers of a vfs store without the files that they share.
RECLAIMABLE is what would be free if everything that nothing uses were removed. Leftovers are what stopped
processes left behind, quarantine is what `check --repair` moved aside.""",
        examples=["layerfs du", "layerfs du --verbose", "layerfs --json du"],
        configure=_configure_du,
        run=_du,
    ),
    "info": Command(
        description="The directory, the driver, what the host offers, and how much is stored.",
        examples=["layerfs info", "layerfs --json info"],
        configure=_configure_info,
        run=_info,
    ),
}
