"""The options of commands that move images: which platform, and what changes on the way."""

from __future__ import annotations

import argparse
from typing import BinaryIO

from layerfs.cli.parser import CommandParser, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerfs.oci.platform import Platform
    from layerfs.transports.rewriting import Rewriting


def add_platform(parser: CommandParser) -> None:
    """Add what chooses one of several platforms."""
    parser.add_argument(
        "--platform",
        metavar="OS/ARCH",
        help="which image of an index to take, such as linux/arm64/v8; this host's",
    )


def platform_of(arguments: argparse.Namespace) -> Platform | None:
    """Give the platform that was chosen, None when none was."""
    if arguments.platform is None:
        return None
    from layerfs.oci.platform import Platform

    return Platform.parse(arguments.platform)


def add_rewriting(parser: CommandParser) -> None:
    """Add what changes an image on its way."""
    parser.add_argument(
        "--compression",
        "--compression-format",
        metavar="NAME",
        choices=["gzip", "zstd", "none", "estargz", "zstd:chunked"],
        help="compress layers so, gzip, zstd, none, or estargz or zstd:chunked, of which parts can be read;"
        " those that are already go byte for byte",
    )
    parser.add_argument(
        "--compression-level", metavar="N", type=int, help="for gzip 0 to 9, for zstd 1 to 22"
    )
    parser.flag("--force-compression", help="compress layers anew also where they are compressed so already")
    parser.add_argument(
        "--format",
        metavar="FORMAT",
        choices=["oci", "docker"],
        help="oci's or docker's manifests; as they are when left out, unless docker's cannot hold the layers",
    )
    parser.flag(
        "--preserve-digests", help="refuse what would change a digest; nothing does that is not asked for"
    )
    parser.add_argument(
        "--annotation",
        metavar="NAME=TEXT",
        action="append",
        default=[],
        help="an annotation of the manifest, or of the index where all platforms go; may be repeated",
    )


def rewriting_of(arguments: argparse.Namespace) -> Rewriting | None:
    """Give what is to change, None when nothing is; the caller enters it."""
    packing = None
    if arguments.compression is None:
        for option in ("compression_level", "force_compression"):
            if getattr(arguments, option):
                name = option.replace("_", "-")
                raise UsageError(f"--{name} needs --compression", hint="add --compression gzip, or zstd")
    else:
        from layerfs.transports.packing import Packing

        packing = Packing.parse(arguments.compression, arguments.compression_level)
    annotations = annotations_of(arguments.annotation)
    if packing is None and arguments.format is None and not annotations:
        return None
    if arguments.preserve_digests:
        raise UsageError(
            "--preserve-digests excludes --compression, --format and --annotation", hint="leave one out"
        )
    from layerfs.cli.context import warn
    from layerfs.transports.rewriting import Rewriting
    from layerfs.tree.budget import DEFAULT_BUDGET

    return Rewriting(
        packing=packing,
        force=arguments.force_compression,
        format=arguments.format,
        annotations=annotations,
        spool=spool,
        budget=DEFAULT_BUDGET,
        warn=warn,
    )


def spool() -> BinaryIO:
    """Make an empty temporary file, where TMPDIR says, else in /var/tmp: not in memory."""
    import os
    import tempfile

    place = None if "TMPDIR" in os.environ or not os.path.isdir("/var/tmp") else "/var/tmp"
    return tempfile.TemporaryFile(buffering=0, dir=place)


def annotations_of(texts: list[str]) -> dict[str, str]:
    """Read ``NAME=TEXT`` of each annotation.

    Raises:
        UsageError: a name is missing.
    """
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise UsageError(f"{text[:100]!r} is no annotation", hint="write NAME=TEXT")
        found[name] = value
    return found
