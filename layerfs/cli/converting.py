"""`convert`: containers and images move to another driver."""

from __future__ import annotations

import argparse

from layerfs.cli import output
from layerfs.cli.commands import Command
from layerfs.cli.context import Context, complain, note
from layerfs.cli.parser import CommandParser, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerfs.converting import Converted
    from layerfs.errors import LayerfsError


def _configure(parser: CommandParser) -> None:
    parser.add_argument("--to", metavar="DRIVER", required=True, help="the driver that gets them")
    parser.add_argument(
        "what",
        metavar="CONTAINER-or-IMAGE",
        nargs="*",
        help="a name, or an id; containers are looked for first",
    )
    parser.flag("-a", "--all", help="every container and image; new ones are made with the driver, too")
    parser.flag("-q", "--quiet", help="show no progress")


def _convert(context: Context, arguments: argparse.Namespace) -> int:
    if arguments.all == bool(arguments.what):
        raise UsageError(
            "either names or --all", hint="name containers and images, or write --all and no name"
        )
    progress = context.progress(quiet=arguments.quiet)
    done: list[Converted] = []
    failures = 0
    with context.open_store() as store:
        if arguments.all:

            def failed(what: str, error: LayerfsError) -> None:
                nonlocal failures
                failures += 1
                complain(error, f"{what}: ")

            done = store.convert_all(arguments.to, failed=failed, progress=progress)
            if failures:
                note("the store keeps its driver for what is new")
        else:
            failures = context.each(
                arguments.what,
                lambda what: done.append(store.convert(what, arguments.to, progress=progress)),
            )
    if context.json:
        output.document([_document(one) for one in done])
    else:
        for one in done:
            output.line(one.name)
            note(f"{one.kind} {one.name}: {_words(one)}")
    return 1 if failures else 0


def _document(one: Converted) -> dict[str, object]:
    return {
        "kind": one.kind,
        "name": one.name,
        "driver": one.driver,
        "former": list(one.former),
        "renamed": one.renamed,
        "copied": one.copied,
        "written": one.written,
        "kept": list(one.kept),
    }


def _words(one: Converted) -> str:
    counts = ((one.renamed, "renamed"), (one.copied, "copied"), (one.written, "written anew"))
    parts = [f"{count} {'layer' if count == 1 else 'layers'} {word}" for count, word in counts if count]
    text = ", ".join(parts) or f"{one.driver} has it already"
    return text + "".join(f"; what it was stays with {each}" for each in one.kept)


COMMANDS = {
    "convert": Command(
        description="""\
The new copy is verified before the old one goes: tree and list of changes of a container's own layer, the
data of images' layers with their tables of contents. Between overlay2 and fuse, which have one format,
directories are renamed instead. If it is killed, everything is as it was, or with the new driver.

A container takes those layers of its image along that nothing else of its old driver needs; the others are
copied. A container that is running or mounted is refused. Sockets stay behind.

Prints the names of what was moved, and tells how on standard error.""",
        examples=[
            "layerfs convert --to fuse work",
            "layerfs convert --to overlay2 debian:12",
            "layerfs convert --to vfs --all",
        ],
        configure=_configure,
        run=_convert,
    )
}
