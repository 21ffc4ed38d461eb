"""`import` and `export`: whole root file systems, in and out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from layerfs.cli.commands import Command
from layerfs.cli.context import Context
from layerfs.cli.copy_options import add_squash_owners
from layerfs.cli.output import document, line
from layerfs.cli.parser import CommandParser, UsageError


def _configure_import(parser: CommandParser) -> None:
    parser.add_argument(
        "source", metavar="TAR-or-DIR", help="a tar file, plain or compressed, a directory, or -"
    )
    parser.add_argument("name", metavar="NAME", help="the image's name")
    parser.add_argument(
        "-c",
        "--change",
        metavar="INSTRUCTION",
        action="append",
        default=[],
        help="set a part of the image's config, as in a Dockerfile: 'ENV A=1'; may be repeated",
    )
    parser.add_argument("-m", "--message", metavar="TEXT", help="the comment in the image's history")
    add_squash_owners(parser)
    parser.flag("-q", "--quiet", help="show no progress")


def _import(context: Context, arguments: argparse.Namespace) -> int:
    with context.open_store(squash_owners=arguments.squash_owners) as store:
        image = store.import_tree(
            sys.stdin.buffer if arguments.source == "-" else Path(arguments.source),
            arguments.name,
            changes=arguments.change,
            message=arguments.message or "",
            progress=context.progress(quiet=arguments.quiet),
        )
        if context.json:
            document({"id": str(image.id), "names": list(image.names)})
        else:
            line(str(image.id))
    return 0


def _configure_export(parser: CommandParser) -> None:
    parser.add_argument("container", metavar="CONTAINER", help="a name, or an id")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="the tar file; standard output when left out or -"
    )


def _export(context: Context, arguments: argparse.Namespace) -> int:
    to_stdout = arguments.output in (None, "-")
    if to_stdout and sys.stdout.isatty():
        raise UsageError(
            "a tar archive is not for a terminal", hint="write to a file with -o FILE, or pipe it on"
        )
    with context.open_store() as store:
        container = store.containers.get(arguments.container)
        if to_stdout:
            container.export(sys.stdout.buffer.write)
            sys.stdout.buffer.flush()
        else:
            from layerfs.cli.files import replacing

            with replacing(Path(arguments.output)) as file:
                container.export(file.write)
    return 0


COMMANDS = {
    "import": Command(
        description="Prints the image's id.",
        examples=[
            "layerfs import rootfs.tar.gz base:1",
            'layerfs import -c "CMD [\\"sh\\"]" ./rootfs base:1',
        ],
        configure=_configure_import,
        run=_import,
    ),
    "export": Command(
        description="The tree is that which the container's processes see, as one tar without layers.",
        examples=["layerfs export -o tree.tar web", "layerfs export web | tar -t"],
        configure=_configure_export,
        run=_export,
    ),
}
