"""`copy`: images between any two places, without a store."""

from __future__ import annotations

import argparse
import contextlib

from layerfs.cli import registry_options
from layerfs.cli.commands import Command
from layerfs.cli.context import Context, warn
from layerfs.cli.copy_options import add_platform, add_rewriting, platform_of, rewriting_of, spool
from layerfs.cli.parser import CommandParser, UsageError
from layerfs.cli.progress import COPY, showing
from layerfs.cli.transfer import PLACES, tell_pushed


def _configure(parser: CommandParser) -> None:
    parser.place("source", metavar="SOURCE", help="where the image is")
    parser.place("destination", metavar="DEST", help="where it goes, written like SOURCE")
    parser.flag(
        "-a",
        "--all",
        "--all-platforms",
        help="keep every platform of an index, and the index with its digest; no referrers",
    )
    add_platform(parser)
    add_rewriting(parser)
    registry_options.add(parser, prefix="src-", of="the registry of SOURCE")
    registry_options.add(parser, prefix="dest-", of="the registry of DEST")
    registry_options.add(parser, of="both registries")
    parser.add_argument(
        "--digestfile", metavar="FILE", help="write the digest of what was put into this file"
    )
    parser.flag("-q", "--quiet", help="show no progress")


def _run(context: Context, arguments: argparse.Namespace) -> int:
    from layerfs import transports
    from layerfs.transports import copying

    if arguments.all and arguments.platform is not None:
        raise UsageError("--all keeps every platform, --platform chooses one", hint="write one of the two")
    source, target = transports.parse(arguments.source), transports.parse(arguments.destination)
    platform = platform_of(arguments)
    with (
        rewriting_of(arguments, context.budget) or contextlib.nullcontext() as rewriting,
        showing(COPY, quiet=arguments.quiet) as progress,
    ):
        descriptor = copying.between(
            source, target, platform=platform, every=arguments.all, rewriting=rewriting, progress=progress,
            options=registry_options.read(arguments, prefix="src-"),
            target_options=registry_options.read(arguments, prefix="dest-"),
            spool=spool, budget=context.budget, warn=warn,
        )  # fmt: skip
    tell_pushed(context, descriptor, arguments.digestfile)
    return 0


COMMANDS = {
    "copy": Command(
        description="No store is opened and nothing is unpacked; what is not asked to change goes byte for"
        " byte.\nReferrers, such as signatures that `attach` put beside it, stay behind, with --all too:"
        "\n`layerfs referrers SOURCE` names them, and each is copied by its digest."
        f"\nAn archive that exists is not written to. Prints the digest of what was put. {PLACES}",
        examples=[
            "layerfs copy --all docker://debian:12 oci:./layout:12",
            "layerfs copy --compression zstd oci:./layout:12 docker://localhost:5000/debian:12",
        ],
        configure=_configure,
        run=_run,
    ),
}
