"""`gc`, `check`, `du`, `info` and `drivers`: how the store is, and how to keep it well."""

from __future__ import annotations

import argparse
import os
import sys

from layerfs.cli import output
from layerfs.cli.commands import Command
from layerfs.cli.context import Context, note
from layerfs.cli.parser import CommandParser


def _configure_gc(parser: CommandParser) -> None:
    parser.flag("-n", "--dry-run", help="only say what would go")
    parser.flag("-v", "--verbose", help="say of everything else why it stays")
    parser.add_argument(
        "--grace",
        metavar="SECONDS",
        type=float,
        help="leave alone what is younger; an hour by default, since a pull may be about to name it",
    )


def _gc(context: Context, arguments: argparse.Namespace) -> int:
    with context.open_store() as store:
        report = store.collect(dry_run=arguments.dry_run, grace=arguments.grace)
    if context.json:
        output.document(
            {
                "dry_run": report.dry_run,
                "freed": report.freed,
                "items": [one._asdict() for one in report.items],
            }
        )
        return 0
    for item in report.items if arguments.verbose else report.removed:
        done = "remove" if item.removed else "keep  "
        output.line(f"{done} {item.kind} {item.name} ({output.size(item.bytes)}): {item.reason}")
    note(f"{output.size(report.freed)} {'would be' if report.dry_run else 'were'} freed")
    return 0


def _configure_check(parser: CommandParser) -> None:
    parser.flag("--repair", help="mend what is damaged, from the kept blobs")
    parser.flag("--contents", help="read the data of every file in every layer too, which takes long")
    parser.flag("-q", "--quiet", help="show no progress")


def _check(context: Context, arguments: argparse.Namespace) -> int:
    with context.open_store() as store:
        found = store.check(
            repair=arguments.repair,
            contents=arguments.contents,
            progress=context.progress(quiet=arguments.quiet or not sys.stderr.isatty()),
        )
    if context.json:
        output.document(
            {
                "sound": found.sound,
                "blobs": found.blobs,
                "layers": found.layers,
                "problems": [one._asdict() for one in found.problems],
            }
        )
        return 0 if found.sound else 1
    for problem in found.problems:
        output.line(
            f"{problem.kind} {problem.subject}: {problem.what}{' (repaired)' if problem.repaired else ''}"
        )
    left = [problem for problem in found.problems if not problem.repaired]
    counted = f"{len(found.problems)} problems, {len(left)} left" if found.problems else "all sound"
    note(f"{found.blobs} blobs and {found.layers} layers checked: {counted}")
    for hint in dict.fromkeys(problem.hint for problem in left if problem.hint):
        note(f"hint: {hint}")
    return 0 if found.sound else 1


def _configure_nothing(parser: CommandParser) -> None:
    """Take no arguments of its own."""


def _configure_du(parser: CommandParser) -> None:
    parser.flag("-v", "--verbose", help="show each image and each container too")


def _du(context: Context, arguments: argparse.Namespace) -> int:
    with context.open_store() as store:
        usage = store.disk_usage()
    images, containers = usage.images, usage.containers
    totals = [
        (
            "images",
            len(images),
            sum(one.containers > 0 for one in images),
            usage.layer_bytes,
            usage.layer_reclaimable,
        ),
        (
            "containers",
            len(containers),
            sum(one.container.status == "running" for one in containers),
            sum(one.bytes for one in containers),
            sum(one.reclaimable for one in containers),
        ),
        ("blobs", usage.blob_count, usage.blob_count, usage.blob_bytes, usage.blob_reclaimable),
    ]
    if context.json:
        document: dict[str, object] = {
            name: {"total": total, "active": active, "size": size, "reclaimable": reclaimable}
            for name, total, active, size, reclaimable in totals
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
            for one in images
        ]
        document["by_container"] = [
            {"id": one.container.id, "name": one.container.name, "size": one.bytes, "inodes": one.inodes}
            for one in containers
        ]
        output.document(document)
        return 0
    output.table(
        ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"],
        [
            (name.capitalize(), str(total), str(active), output.size(size), output.size(reclaimable))
            for name, total, active, size, reclaimable in totals
        ],
    )
    if arguments.verbose:
        output.line("")
        output.table(
            ["IMAGE", "ID", "SIZE", "SHARED", "EXCLUSIVE", "RECLAIMABLE", "INODES", "CONTAINERS"],
            [
                (
                    one.image.names[0] if one.image.names else "<none>",
                    output.short(str(one.image.id)),
                    *map(output.size, (one.bytes, one.shared, one.exclusive, one.reclaimable)),
                    str(one.inodes),
                    str(one.containers),
                )
                for one in images
            ],
        )
        output.line("")
        output.table(
            ["CONTAINER", "ID", "SIZE", "INODES"],
            [
                (one.container.name, output.short(one.container.id), output.size(one.bytes), str(one.inodes))
                for one in containers
            ],
        )
    return 0


def _info(context: Context, arguments: argparse.Namespace) -> int:
    from layerfs import __version__

    with context.open_store() as store:
        found = store.info()
    host = os.uname()
    facts: dict[str, object] = {
        "version": __version__,
        "root": str(found.root),
        "format": found.format_version,
        "driver": found.driver,
        "durability": found.durability,
        "images": found.images,
        "layers": found.layers,
        "containers": found.containers,
        "running": found.running,
        "kernel": host.release,
        "architecture": host.machine,
        "rootless": context.rootless,
    }
    if context.json:
        output.document(facts)
        return 0
    for name, value in facts.items():
        shown = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
        output.line(f"{name.capitalize() + ':':<14}{shown}")
    return 0


def _drivers(context: Context, arguments: argparse.Namespace) -> int:
    from layerfs import plugins

    context.become_root()
    # Asking must not make a store: the file system that would hold it is probed.
    root = context.root.absolute() / "drivers"
    found = plugins.explain(next(path for path in (root, *root.parents) if path.is_dir()))
    if context.json:
        output.document(
            [
                {
                    "name": one.name,
                    "works": one.works,
                    "reason": one.reason or None,
                    "note": one.note or None,
                    "hint": one.hint or None,
                }
                for one in found
            ]
        )
        return 0
    rows = [(one.name, "yes" if one.works else "no", one.reason or one.note) for one in found]
    output.table(["DRIVER", "WORKS", "WHY"], rows)
    for one in found:
        if one.hint:
            note(f"hint: {one.name}: {one.hint}")
    return 0


COMMANDS = {
    "gc": Command(
        description="""\
Images stay while they have a name or a container; layers while an image, a container or a mount needs
them; what was made a moment ago stays too.""",
        examples=["layerfs gc --dry-run --verbose", "layerfs gc --grace 0"],
        configure=_configure_gc,
        run=_gc,
    ),
    "check": Command(
        description="""\
Compares every blob with its digest, every layer with its table of contents, and the database with both.
The exit status is 1 when something is wrong and was not repaired.""",
        examples=["layerfs check", "layerfs check --repair"],
        configure=_configure_check,
        run=_check,
    ),
    "du": Command(
        description="RECLAIMABLE is what would be free if everything that nothing uses were removed.",
        examples=["layerfs du"],
        configure=_configure_du,
        run=_du,
    ),
    "info": Command(
        description="The directory, the driver, what the host offers, and how much is stored.",
        examples=["layerfs info", "layerfs --json info"],
        configure=_configure_nothing,
        run=_info,
    ),
    "drivers": Command(
        description="""\
Each, best first, is tried on the file system of the store, and says what it lacks, or what serves it.""",
        examples=["layerfs drivers"],
        configure=_configure_nothing,
        run=_drivers,
    ),
}
