"""`pull` and `push`: one image between the store and a place that a transport reaches."""

from __future__ import annotations

import argparse

from layerfs.cli.commands import Command
from layerfs.cli.context import Context
from layerfs.cli.output import document, line
from layerfs.cli.parser import CommandParser

PLACES = """\
SOURCE is written as skopeo writes it: oci:DIR[:TAG] for an OCI layout, oci-archive:FILE[:TAG] for one in a
tar file, docker-archive:FILE[:NAME] for what docker save writes, docker://HOST/REPO:TAG for a registry (not
yet; no prefix means docker:// too)."""


def _configure_pull(parser: CommandParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="where the image comes from")
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="the name that it gets here; the source's own when left out"
    )
    parser.add_argument(
        "--platform",
        metavar="OS/ARCH",
        help="which image of an index to take, such as linux/arm64/v8; this host's",
    )
    parser.flag("-q", "--quiet", help="show no progress")


def _pull(context: Context, arguments: argparse.Namespace) -> int:
    platform = None
    if arguments.platform is not None:
        from layerfs.oci.platform import Platform

        platform = Platform.parse(arguments.platform)
    with context.open_store() as store:
        image = store.pull(
            arguments.source,
            arguments.name,
            platform=platform,
            progress=context.progress(quiet=arguments.quiet),
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
    parser.flag("-q", "--quiet", help="show no progress")


def _push(context: Context, arguments: argparse.Namespace) -> int:
    with context.open_store() as store:
        descriptor = store.push(
            arguments.image, arguments.destination, progress=context.progress(quiet=arguments.quiet)
        )
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
    return 0


COMMANDS = {
    "pull": Command(
        description=f"{PLACES}\nPrints the image's name.",
        examples=["layerfs pull oci:./layout:latest app:1", "layerfs pull docker-archive:debian.tar"],
        configure=_configure_pull,
        run=_pull,
    ),
    "push": Command(
        description="The blobs go out exactly as they came in. Prints the digest of the manifest.\n"
        + PLACES.replace("SOURCE", "DEST"),
        examples=["layerfs push app:1 oci:./layout:1", "layerfs push app:1 docker-archive:app.tar:app:1"],
        configure=_configure_push,
        run=_push,
    ),
}
