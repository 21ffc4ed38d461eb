"""`images`, `tag`, `rmi`, `inspect` and `history`: the images that the store holds."""

from __future__ import annotations

import argparse
import json

from layerfs.cli import output, place, registry_options
from layerfs.cli.commands import Command
from layerfs.cli.context import Context
from layerfs.cli.copy_options import add_platform
from layerfs.cli.parser import CommandParser, UsageError
from layerfs.errors import NotFoundError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerfs.containers import Container
    from layerfs.images import Image
    from layerfs.store import Store

NONE = "<none>"


def _configure_images(parser: CommandParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="only this repository, or this name")
    parser.flag("-q", "--quiet", help="print ids only")
    parser.flag("--no-trunc", help="do not shorten ids")
    parser.flag("--digests", help="show the digests of the manifests")


def _images(context: Context, arguments: argparse.Namespace) -> int:
    rows: list[tuple[str, str, Image]] = []
    with context.open_store() as store:
        for image in store.images.list():
            for name in image.names or (f"{NONE}:{NONE}",):
                repository, _, tag = name.rpartition(":")
                if "/" in tag or not repository:
                    repository, tag = name, NONE
                if arguments.name in (None, name, repository):
                    rows.append((repository, tag, image))
    rows.sort(key=lambda row: (-(row[2].created or 0), row[0], row[1]))
    if context.json:
        output.document([_summary(repository, tag, image) for repository, tag, image in rows])
        return 0
    if arguments.quiet:
        for identity in dict.fromkeys(str(image.id) for _, _, image in rows):
            output.line(identity if arguments.no_trunc else output.short(identity))
        return 0
    headers = ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]
    if arguments.digests:
        headers.insert(2, "DIGEST")
    cells = []
    for repository, tag, image in rows:
        row = [
            repository,
            tag,
            output.short(str(image.id), whole=arguments.no_trunc),
            output.ago(image.created),
            output.size(image.size),
        ]
        if arguments.digests:
            row.insert(2, str(image.digest))
        cells.append(row)
    output.table(headers, cells)
    return 0


def _summary(repository: str, tag: str, image: Image) -> dict[str, object]:
    return {
        "id": str(image.id),
        "repository": None if repository == NONE else repository,
        "tag": None if tag == NONE else tag,
        "digest": str(image.digest),
        "created": output.moment(image.created),
        "size": image.size,
    }


def _configure_tag(parser: CommandParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="a name, or an id")
    parser.add_argument("name", metavar="NAME", help="the further name; taken from the image that has it now")


def _tag(context: Context, arguments: argparse.Namespace) -> int:
    with context.open_store() as store:
        store.images.tag(arguments.image, arguments.name)
    return 0


def _configure_rmi(parser: CommandParser) -> None:
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="a name, or an id")
    parser.flag("-f", "--force", help="remove all names of an id, and images that stopped containers use")
    parser.flag("--wait", help="return when the space is free, too; else large layers go in the background")


def _rmi(context: Context, arguments: argparse.Namespace) -> int:
    removed: list[str] = []
    with context.open_store() as store:

        def remove(name: str) -> None:
            for text in store.images.remove(name, force=arguments.force, wait=arguments.wait):
                removed.append(text)
                if not context.json:
                    output.line(text)

        status = context.each(arguments.images, remove)
    if context.json:
        output.document(removed)
    return status


def _configure_inspect(parser: CommandParser) -> None:
    parser.add_argument(
        "names", metavar="IMAGE-or-CONTAINER", nargs="+", help="a name, or an id, or a place of pull's SOURCE"
    )
    parser.add_argument(
        "--type", metavar="TYPE", choices=["image", "container"], help="look only for an image, or container"
    )
    parser.flag(
        "--raw", help="of a place: print its manifest, or index, byte for byte; with --config its config"
    )
    parser.flag("--config", help="of a place: print the image's config alone")
    parser.flag("--no-tags", help="of a registry: do not list the repository's tags")
    add_platform(parser)
    registry_options.add(parser)


def _inspect(context: Context, arguments: argparse.Namespace) -> int:
    if any(map(place.is_place, arguments.names)):
        if not all(map(place.is_place, arguments.names)) or arguments.type == "container":
            raise UsageError(
                "a place and a name of the store are two questions", hint="ask one after the other"
            )
        return place.inspect(context, arguments)
    for option in ("raw", "config", "platform"):
        if getattr(arguments, option):
            raise UsageError(
                f"--{option} is for images in no store", hint="name one as docker://... or oci:..."
            )
    found: list[dict[str, object]] = []
    with context.open_store() as store:
        status = context.each(arguments.names, lambda name: found.append(_look(store, name, arguments.type)))
        output.document(found)
    return status


def _look(store: Store, name: str, sort: str | None) -> dict[str, object]:
    if sort != "image":
        try:
            return _container_details(store.containers.get(name))
        except NotFoundError:
            if sort == "container":
                raise
    try:
        return _image_details(store.images.get(name))
    except NotFoundError as error:
        if sort == "image":
            raise
        raise NotFoundError(
            f"no image or container is called {name}",
            hint="`layerfs images` and `layerfs ps -a` list what there is; docker://NAME asks its registry",
        ) from error


def _image_details(image: Image) -> dict[str, object]:
    return {
        "id": str(image.id),
        "names": list(image.names),
        "digest": str(image.digest),
        "created": output.moment(image.created),
        "size": image.size,
        "layers": [str(diff_id) for diff_id in image.config.diff_ids],
        "manifest": json.loads(image.manifest.raw),
        "config": json.loads(image.config.raw),
    }


def _container_details(container: Container) -> dict[str, object]:
    return {
        "id": container.id,
        "name": container.name,
        "image": container.image,
        "image_digest": container.image_digest,
        "driver": container.driver,
        "status": container.status,
        "exit_code": container.exit_code,
        "pid": container.pid,
        "created": output.moment(container.created),
        "started": output.moment(container.started),
        "finished": output.moment(container.finished),
        "mounts": [str(target) for target in container.mounts()],
        "private_mounts": [{"target": str(target), "pid": pid} for target, pid in container.private_mounts()],
        "settings": json.loads(container.settings.to_json()),
    }


def _configure_history(parser: CommandParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="a name, or an id")
    parser.flag("-q", "--quiet", help="print ids only")
    parser.flag("--no-trunc", help="do not shorten ids and commands")


def _history(context: Context, arguments: argparse.Namespace) -> int:
    with context.open_store() as store:
        identity = str(store.images.get(arguments.image).id)
        stages = store.images.history(arguments.image)
    # Only the newest step is an image of its own here; those below are known by their layers alone.
    ids = [identity, *[None] * (len(stages) - 1)] if stages else []
    if context.json:
        output.document(
            [
                {
                    "id": known,
                    "created": output.moment(stage.created),
                    "created_by": stage.history.created_by,
                    "size": stage.size,
                    "comment": stage.history.comment,
                    "empty_layer": stage.history.empty_layer,
                }
                for known, stage in zip(ids, stages, strict=True)
            ]
        )
        return 0
    whole = arguments.no_trunc
    shown = ["<missing>" if known is None else output.short(known, whole=whole) for known in ids]
    if arguments.quiet:
        for known in shown:
            output.line(known)
        return 0
    rows = []
    for known, stage in zip(shown, stages, strict=True):
        command = output.plain(stage.history.created_by or "")
        rows.append(
            (
                known,
                output.ago(stage.created),
                command if whole else output.shorten(command, 45),
                output.size(stage.size),
                output.plain(stage.history.comment or ""),
            )
        )
    output.table(["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"], rows)
    return 0


COMMANDS = {
    "images": Command(
        description="SIZE is what the layers hold unpacked; layers shared between images count in each.",
        examples=["layerfs images", "layerfs --json images debian"],
        configure=_configure_images,
        run=_images,
    ),
    "tag": Command(
        description="Nothing is copied; `rmi` of one name leaves the others.",
        examples=["layerfs tag app:1 app:latest"],
        configure=_configure_tag,
        run=_tag,
    ),
    "rmi": Command(
        description="A name goes at once; the image goes when no other name and no container needs it.",
        examples=["layerfs rmi app:1"],
        configure=_configure_rmi,
        run=_rmi,
    ),
    "inspect": Command(
        description="Prints one JSON array, but for --raw and --config. Containers are looked for first. Of a"
        " place, which\nis written as for pull with its prefix, only the documents are fetched.",
        examples=[
            "layerfs inspect debian:12",
            "layerfs inspect --type image web",
            "layerfs inspect --raw docker://localhost:5000/app:1",
        ],
        configure=_configure_inspect,
        run=_inspect,
    ),
    "history": Command(
        description="The newest step stands first; steps that changed only the config have no size.",
        examples=["layerfs history debian:12"],
        configure=_configure_history,
        run=_history,
    ),
}
