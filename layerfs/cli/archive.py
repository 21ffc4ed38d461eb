"""`load` and `save`: what docker load and docker save read and write."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from layerfs.cli.commands import Command
from layerfs.cli.context import Context
from layerfs.cli.copy_options import add_squash_owners
from layerfs.cli.output import document, line
from layerfs.cli.parser import CommandParser, UsageError
from layerfs.cli.progress import COPY, LOAD, showing


def _configure_load(parser: CommandParser) -> None:
    parser.add_argument(
        "-i", "--input", metavar="FILE", help="the archive; standard input when left out or -"
    )
    add_squash_owners(parser)
    parser.flag("-q", "--quiet", help="show no progress")


def _load(context: Context, arguments: argparse.Namespace) -> int:
    given = arguments.input
    if given in (None, "-") and sys.stdin.isatty():
        raise UsageError("standard input is a terminal", hint="name an archive with -i FILE, or pipe one in")
    with context.open_store(squash_owners=arguments.squash_owners) as store:
        with showing(LOAD, quiet=arguments.quiet) as progress:
            images = store.load(sys.stdin.buffer if given in (None, "-") else Path(given), progress=progress)
        if context.json:
            document([{"id": str(image.id), "names": list(image.names)} for image in images])
            return 0
        for image in images:
            for name in image.names:
                line(f"Loaded image: {name}")
            if not image.names:
                line(f"Loaded image ID: {image.id}")
    return 0


def _configure_save(parser: CommandParser) -> None:
    parser.add_argument(
        "images", metavar="IMAGE", nargs="+", help="a name, or an id, of an image in the store"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="the archive, which is replaced if it exists; standard output when left out or -",
    )
    parser.add_argument(
        "--format",
        metavar="FORMAT",
        choices=["docker", "oci"],
        default="docker",
        help="docker (an OCI layout with docker's manifest.json, as docker save writes today), or oci",
    )
    parser.flag("-q", "--quiet", help="show no progress")


def _save(context: Context, arguments: argparse.Namespace) -> int:
    to_stdout = arguments.output in (None, "-")
    if to_stdout and sys.stdout.isatty():
        raise UsageError(
            "a tar archive is not for a terminal", hint="write to a file with -o FILE, or pipe it on"
        )
    with context.open_store() as store, showing(COPY, quiet=arguments.quiet or to_stdout) as progress:
        store.save(
            arguments.images,
            sys.stdout.buffer if to_stdout else Path(arguments.output),
            format=arguments.format,
            progress=progress,
        )
    if to_stdout:
        sys.stdout.buffer.flush()
    return 0


COMMANDS = {
    "load": Command(
        description="Reads what docker save wrote, of any age, and OCI archives; plain or compressed.",
        examples=["layerfs load -i debian.tar", "docker save debian:12 | layerfs load"],
        configure=_configure_load,
        run=_load,
    ),
    "save": Command(
        description="The blobs go out exactly as they came in; docker, podman and skopeo read the result.",
        examples=["layerfs save -o app.tar app:1", "layerfs save app:1 | docker load"],
        configure=_configure_save,
        run=_save,
    ),
}
