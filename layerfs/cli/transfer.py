"""`pull` and `push`: one image between the store and a place that a transport reaches."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from layerfs.cli.commands import Command
from layerfs.cli.context import Context
from layerfs.cli.copy_options import add_platform, add_rewriting, platform_of, rewriting_of
from layerfs.cli.output import document, line
from layerfs.cli.parser import CommandParser
from layerfs.cli.progress import PULL, PUSH, showing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerfs.oci.descriptor import Descriptor

PLACES = """\
SOURCE is written as skopeo writes it: oci:DIR[:TAG] for an OCI layout, oci-archive:FILE[:TAG] for one in a
tar file, docker-archive:FILE[:NAME] for what docker save writes, docker://HOST/REPO:TAG for a registry (not
yet; no prefix means docker:// too)."""


def _configure_pull(parser: CommandParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="where the image comes from")
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="the name that it gets here; the source's own when left out"
    )
    add_platform(parser)
    parser.flag(
        "--all-platforms", help="keep the other platforms' images and the index, too; they are not unpacked"
    )
    parser.flag("-q", "--quiet", help="show no progress")


def _pull(context: Context, arguments: argparse.Namespace) -> int:
    with context.open_store() as store:
        with showing(PULL, quiet=arguments.quiet) as progress:
            image = store.pull(
                arguments.source,
                arguments.name,
                platform=platform_of(arguments),
                all_platforms=arguments.all_platforms,
                progress=progress,
            )
        if context.json:
            document({"id": str(image.id), "names": list(image.names), "digest": str(image.digest)})
        else:
            line(image.names[0] if image.names else str(image.id))
    return 0


def _configure_push(parser: CommandParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="a name, or an id, of an image in the store")
    parser.add_argument(
        "destination", metavar="DEST", help="where it goes: oci:DIR[:TAG], oci-archive:FILE[:TAG], ..."
    )
    parser.flag("--all-platforms", help="send the index and all platforms that pull --all-platforms kept")
    add_rewriting(parser)
    parser.add_argument(
        "--digestfile", metavar="FILE", help="write the digest of what was put into this file"
    )
    parser.flag("-q", "--quiet", help="show no progress")


def _push(context: Context, arguments: argparse.Namespace) -> int:
    rewriting = rewriting_of(arguments)
    with context.open_store() as store:
        with rewriting or contextlib.nullcontext(), showing(PUSH, quiet=arguments.quiet) as progress:
            descriptor = store.push(
                arguments.image,
                arguments.destination,
                all_platforms=arguments.all_platforms,
                rewriting=rewriting,
                progress=progress,
            )
        tell_pushed(context, descriptor, arguments.digestfile)
    return 0


def tell_pushed(context: Context, descriptor: Descriptor, digestfile: str | None) -> None:
    """Print the digest of what was put, or its whole descriptor as JSON; and write it to a file, if asked."""
    if digestfile is not None:
        Path(digestfile).write_text(str(descriptor.digest))
    if context.json:
        document(
            {
                "digest": str(descriptor.digest),
                "media_type": descriptor.media_type,
                "size": descriptor.size,
            }
        )
    else:
        line(str(descriptor.digest))


COMMANDS = {
    "pull": Command(
        description=f"{PLACES}\nPrints the image's name.",
        examples=["layerfs pull oci:./layout:latest app:1", "layerfs pull docker-archive:debian.tar"],
        configure=_configure_pull,
        run=_pull,
    ),
    "push": Command(
        description="The blobs go out exactly as they came in, unless a change is asked for.\n"
        "Prints the digest of what was put. " + PLACES.replace("SOURCE", "DEST"),
        examples=["layerfs push app:1 oci:./layout:1", "layerfs push app:1 docker-archive:app.tar:app:1"],
        configure=_configure_push,
        run=_push,
    ),
}
