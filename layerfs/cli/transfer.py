"""`pull` and `push`: one image between the store and a place that a transport reaches."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from layerfs.cli import registry_options
from layerfs.cli.commands import Command
from layerfs.cli.context import Context, note, warn
from layerfs.cli.copy_options import add_platform, add_rewriting, add_squash_owners, platform_of, rewriting_of
from layerfs.cli.output import document, line, size
from layerfs.cli.parser import CommandParser, UsageError
from layerfs.cli.progress import PULL, PUSH, showing
from layerfs.errors import InvalidError, NotFoundError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerfs.images import Image
    from layerfs.oci.descriptor import Descriptor
    from layerfs.registry.settings import Options
    from layerfs.store import Store

PLACES = """\
SOURCE is written as skopeo writes it: docker://HOST/REPO:TAG for a registry, which is also what no prefix
means, oci:DIR[:TAG] for an OCI layout, oci-archive:FILE[:TAG] for one in a tar file,
docker-archive:FILE[:NAME] for what docker save writes. Without HOST it is Docker Hub, whatever short names
mean to podman (registries.conf)."""


def _configure_pull(parser: CommandParser) -> None:
    parser.place("source", metavar="SOURCE", help="where the image comes from")
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="the name that it gets here; the source's own when left out"
    )
    add_platform(parser)
    parser.flag(
        "--all-platforms", help="keep the other platforms' images and the index, too; they are not unpacked"
    )
    parser.flag("-a", "--all-tags", help="every tag of the repository; SOURCE has none then")
    add_squash_owners(parser)
    parser.flag("-q", "--quiet", help="show no progress")
    registry_options.add(parser)


def _pull(context: Context, arguments: argparse.Namespace) -> int:
    sources = [arguments.source]
    options = registry_options.read(arguments)
    if arguments.all_tags:
        if arguments.name is not None:
            raise UsageError("--all-tags keeps the tags' own names", hint="leave NAME out")
        sources = _tagged(arguments.source, options)
    found = []
    with context.open_store(squash_owners=arguments.squash_owners) as store:
        for source in sources:
            with showing(PULL, quiet=arguments.quiet) as progress:
                image = store.pull(
                    source,
                    arguments.name,
                    platform=platform_of(arguments),
                    all_platforms=arguments.all_platforms,
                    options=options,
                    progress=progress,
                )
            found.append({"id": str(image.id), "names": list(image.names), "digest": str(image.digest)})
            if not context.json:
                line(_name(image, arguments.name or source))
    if context.json:
        document(found if arguments.all_tags else found[0])
    return 0


def _name(image: Image, asked: str) -> str:
    """Choose the name to print: what was asked for, if it has that."""
    from layerfs.images import familiar, full_name

    with contextlib.suppress(InvalidError):
        name = familiar(full_name(asked.removeprefix("docker://")))
        if name in image.names:
            return name
    return image.names[0] if image.names else str(image.id)


def _tagged(source: str, options: Options) -> list[str]:
    """Name every image of a repository."""
    from layerfs import transports
    from layerfs.registry import manifests
    from layerfs.registry.session import Session

    reference = transports.parse(source).reference
    if reference is None:
        raise UsageError("--all-tags is for registries", hint="write docker://HOST/REPOSITORY")
    if source.endswith(f":{reference.tag}") or reference.digest is not None:
        raise UsageError("--all-tags takes every tag, and SOURCE names one", hint="leave it out")
    with Session(options, warn=warn) as session:
        found = list(manifests.tags(session.repository(reference)))
    if not found:
        raise NotFoundError(f"{reference.name} has no tags")
    return [f"docker://{reference.name}:{tag}" for tag in found]


def _configure_push(parser: CommandParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="a name, or an id, of an image in the store")
    parser.place(
        "destination",
        metavar="DEST",
        nargs="?",
        help="where it goes, written like SOURCE of pull, under the name IMAGE where it says none; to the"
        " registry that IMAGE says when left out",
    )
    parser.flag(
        "-a", "--all-tags", help="all of the store's tags of the repository IMAGE, which has none then"
    )
    registry_options.add(parser)
    parser.flag(
        "--all-platforms",
        help="send the index and all platforms that pull --all-platforms kept, not this one alone",
    )
    add_rewriting(parser)
    parser.add_argument(
        "--digestfile", metavar="FILE", help="write the digest of what was put into this file"
    )
    parser.flag("-q", "--quiet", help="show no progress")


def _push(context: Context, arguments: argparse.Namespace) -> int:
    options = registry_options.read(arguments)
    if arguments.all_tags and arguments.destination is not None:
        raise UsageError("--all-tags keeps the images' own names", hint="leave DEST out")
    if arguments.all_tags and arguments.digestfile is not None:
        raise UsageError("--digestfile is for one image", hint="leave --all-tags out, or use --json")
    rewriting = rewriting_of(arguments, context.budget)
    pushed = []
    with context.open_store() as store, rewriting or contextlib.nullcontext():
        images = _tags_here(store, arguments.image) if arguments.all_tags else [arguments.image]
        for image in images:
            destination = arguments.destination
            if destination is None:
                name = store.images.name_of(image)
                if name is None:
                    store.images.get(image)
                    raise UsageError("where to? an id says no registry", hint="write DEST, or push by name")
                destination = f"docker://{name}"
            if arguments.compression is None and not arguments.quiet:
                _tell_plain(store, image, destination)
            with showing(PUSH, quiet=arguments.quiet) as progress:
                descriptor = store.push(
                    image,
                    destination,
                    all_platforms=arguments.all_platforms,
                    rewriting=rewriting,
                    options=options,
                    progress=progress,
                )
            if arguments.all_tags and context.json:
                pushed.append(described(descriptor))
            else:
                tell_pushed(context, descriptor, arguments.digestfile)
    if arguments.all_tags and context.json:
        document(pushed)
    return 0


def _tell_plain(store: Store, image: str, destination: str) -> None:
    """Say of layers that are not compressed, as a commit leaves them, that they go so to a registry."""
    from layerfs import transports
    from layerfs.oci import media_types

    plain = [
        layer.size
        for layer in store.images.get(image).manifest.layers
        if media_types.compression_of(layer.media_type) == "none"
    ]
    if plain and transports.parse(destination).reference is not None:
        goes = "1 layer goes" if len(plain) == 1 else f"{len(plain)} layers go"
        note(f"{goes} uncompressed, {size(sum(plain))}; --compression gzip or zstd makes that less")


def _tags_here(store: Store, repository: str) -> list[str]:
    """Name every image of the store that is of a repository."""
    from layerfs.reference import Reference

    wanted = Reference.parse(repository)
    if repository.endswith(f":{wanted.tag}") or wanted.digest is not None:
        raise UsageError("--all-tags takes every tag, and IMAGE names one", hint="leave it out")
    names = [name for image in store.images.list() for name in image.names]
    found = sorted(name for name in names if Reference.parse(name).name == wanted.name)
    if not found:
        raise NotFoundError(f"there is no image of {wanted.name}", hint="layerfs images lists what there is")
    return found


def tell_pushed(context: Context, descriptor: Descriptor, digestfile: str | None) -> None:
    """Print the digest of what was put, or its whole descriptor as JSON; and write it to a file, if asked."""
    if digestfile is not None:
        Path(digestfile).write_text(str(descriptor.digest))
    if context.json:
        document(described(descriptor))
    else:
        line(str(descriptor.digest))


def described(descriptor: Descriptor) -> dict[str, object]:
    """Give the JSON of what was put."""
    return {
        "digest": str(descriptor.digest),
        "media_type": descriptor.media_type,
        "size": descriptor.size,
    }


COMMANDS = {
    "pull": Command(
        description=f"{PLACES}\nPrints the image's name.",
        examples=[
            "layerfs pull debian:12",
            "layerfs pull --platform linux/arm64 docker://localhost:5000/app:1",
            "layerfs pull oci:./layout:latest app:1",
        ],
        configure=_configure_pull,
        run=_pull,
    ),
    "push": Command(
        description="The blobs go out exactly as they came in, unless a change is asked for: layers that "
        "`layerfs commit` made\nwithout --compression go uncompressed, too. An archive that exists is not "
        "written to.\nPrints the digest of what was put. " + PLACES.replace("SOURCE", "DEST"),
        examples=[
            "layerfs push localhost:5000/app:1",
            "layerfs push --compression zstd app:1 docker://localhost:5000/app:1",
            "layerfs push app:1 docker-archive:app.tar:app:1",
        ],
        configure=_configure_push,
        run=_push,
    ),
}
