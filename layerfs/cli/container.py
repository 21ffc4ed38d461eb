"""`ps`, `rm`, `diff`, `commit` and `cp`: containers and what they changed."""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from typing import NamedTuple

from layerfs.cli import output
from layerfs.cli.commands import Command
from layerfs.cli.context import Context
from layerfs.cli.copy_options import annotations_of
from layerfs.cli.parser import CommandParser, UsageError
from layerfs.errors import InvalidError, NotFoundError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerfs.containers import Container
    from layerfs.liveness import Owner
    from layerfs.store import Store


def _configure_diff(parser: CommandParser) -> None:
    parser.add_argument("container", metavar="CONTAINER", help="a name, or an id")


def _diff(context: Context, arguments: argparse.Namespace) -> int:
    with context.open_store() as store:
        lines = store.containers.get(arguments.container).diff()
        if context.json:
            output.document(
                [{"kind": kind.value, "path": path.decode(errors="surrogateescape")} for kind, path in lines]
            )
        else:
            for kind, path in lines:
                output.line(f"{kind.value} {printable(path)}")
    return 0


def _configure_rm(parser: CommandParser) -> None:
    parser.add_argument("containers", metavar="CONTAINER", nargs="+", help="a name, or an id")
    parser.flag("-f", "--force", help="unmount and kill what is in use; who has files of it open keeps these")


def _rm(context: Context, arguments: argparse.Namespace) -> int:
    if arguments.force:
        _kill_from_outside(context, arguments.containers)
    with context.open_store() as store:

        def remove(name: str) -> None:
            store.containers.remove(name, force=arguments.force)
            output.line(name)

        return context.each(arguments.containers, remove)


def _kill_from_outside(context: Context, names: Sequence[str]) -> None:
    """Kill an ordinary user's processes while we may: beside their namespace only those of his own id."""
    if not context.rootless:
        return
    from layerfs import signals

    def running(store: Store) -> list[Owner]:
        found = []
        for name in names:
            with contextlib.suppress(NotFoundError, InvalidError):
                found.append(store.containers.process_of(name))
        return [owner for owner in found if owner is not None]

    for owner in context.ask_store(running):
        signals.kill(owner)


def _configure_commit(parser: CommandParser) -> None:
    parser.add_argument("container", metavar="CONTAINER", help="a name, or an id")
    parser.add_argument("name", metavar="NAME", help="the new image's name")
    parser.add_argument("-a", "--author", metavar="TEXT", help="who made it, such as 'Ada <ada@example.org>'")
    parser.add_argument("-m", "--message", metavar="TEXT", help="the comment in the image's history")
    parser.add_argument(
        "-c",
        "--change",
        metavar="INSTRUCTION",
        action="append",
        default=[],
        help="set a part of the image's config, as in a Dockerfile: 'ENV A=1'; may be repeated",
    )
    parser.add_argument(
        "--annotation",
        metavar="NAME=TEXT",
        action="append",
        default=[],
        help="an annotation of the manifest; may be repeated",
    )
    parser.add_argument(
        "--compression",
        metavar="KIND",
        choices=["gzip", "zstd", "none"],
        default="none",
        help="of the new layer: gzip, zstd, or none, which is by far the fastest and takes no room twice;"
        " `push --compression` packs it then",
    )
    parser.flag("-q", "--quiet", help="show no progress")


def _commit(context: Context, arguments: argparse.Namespace) -> int:
    from layerfs.compression import Compression

    with context.open_store() as store:
        image = store.containers.get(arguments.container).commit(
            arguments.name,
            author=arguments.author or "",
            message=arguments.message or "",
            changes=arguments.change,
            annotations=annotations_of(arguments.annotation),
            compression=Compression(arguments.compression),
            progress=context.progress(quiet=arguments.quiet),
        )
        if context.json:
            output.document({"id": str(image.id), "names": list(image.names)})
        else:
            output.line(str(image.id))
    return 0


def _configure_ps(parser: CommandParser) -> None:
    parser.flag("-a", "--all", help="also containers that are neither running nor mounted")
    parser.flag("-q", "--quiet", help="print ids only")
    parser.flag("--no-trunc", help="do not shorten ids and commands")


def _ps(context: Context, arguments: argparse.Namespace) -> int:
    with context.open_store() as store:
        found = [
            (container, mounts)
            for container, mounts in ((each, _mounts(each)) for each in store.containers.list())
            if arguments.all or mounts.targets or mounts.private or container.status == "running"
        ]
        commands = [_command(store, container) for container, _ in found]
    if context.json:
        output.document(
            [
                {
                    "id": container.id,
                    "name": container.name,
                    "image": container.image,
                    "command": command,
                    "status": container.status,
                    "exit_code": container.exit_code,
                    "created": output.moment(container.created),
                    "started": output.moment(container.started),
                    "finished": output.moment(container.finished),
                    "mounts": mounts.targets,
                    "dead_mounts": mounts.dead,
                    "private_mounts": [{"target": target, "pid": pid} for target, pid in mounts.private],
                }
                for (container, mounts), command in zip(found, commands, strict=True)
            ]
        )
        return 0
    whole = arguments.no_trunc
    if arguments.quiet:
        for container, _ in found:
            output.line(output.short(container.id, whole=whole))
        return 0
    rows = []
    for (container, mounts), command in zip(found, commands, strict=True):
        text = output.plain(" ".join(command))
        rows.append(
            (
                output.short(container.id, whole=whole),
                container.image,
                '"' + (text if whole else output.shorten(text, 20)) + '"',
                output.ago(container.created),
                _status(container, mounts),
                container.name,
            )
        )
    output.table(["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAMES"], rows)
    return 0


def _command(store: Store, container: Container) -> list[str]:
    """Give the words that `start` would run; the image's own where the settings say nothing."""
    settings = container.settings
    config = store.images.get(container.image_digest).config.config
    if settings.entrypoint is not None:
        return [*settings.entrypoint, *(settings.command or ())]
    return [*config.entrypoint, *(settings.command or config.cmd)]


class _Mounts(NamedTuple):
    """Where a tree is mounted; `dead` are of `targets`, `private` are in namespaces of these processes."""

    targets: list[str]
    dead: list[str]
    private: list[tuple[str, int]]


def _mounts(container: Container) -> _Mounts:
    targets = container.mounts()
    return _Mounts(
        list(map(str, targets)),
        list(map(str, container.dead_mounts() if targets else ())),
        [(str(target), pid) for target, pid in container.private_mounts()],
    )


def _status(container: Container, mounts: _Mounts) -> str:
    """Write docker's words for a state, and where the tree is mounted."""
    if container.status == "running":
        text = f"Up {output.age(time.time() - (container.started or time.time()))}"
    elif container.status == "exited":
        code = "unknown" if container.exit_code is None else container.exit_code
        text = f"Exited ({code}) {output.ago(container.finished)}"
    else:
        text = container.status.capitalize()
    living = [target for target in mounts.targets if target not in mounts.dead]
    text += f", mounted at {', '.join(living)}" if living else ""
    text += "".join(f", mounted at {each} in the namespace of process {pid}" for each, pid in mounts.private)
    return text + (f", dead mount at {', '.join(mounts.dead)}" if mounts.dead else "")


def _configure_cp(parser: CommandParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="CONTAINER:PATH or a path here")
    parser.add_argument("destination", metavar="DEST", help="a path here or CONTAINER:PATH")


def _cp(context: Context, arguments: argparse.Namespace) -> int:
    source, destination = _place(arguments.source), _place(arguments.destination)
    if (source[0] is None) == (destination[0] is None):
        raise UsageError(
            "one end is in a container, the other is not",
            hint="write `layerfs cp CONTAINER:PATH FILE` or `layerfs cp FILE CONTAINER:PATH`",
        )
    if "-" in (arguments.source, arguments.destination):
        raise UsageError(
            "cp neither reads nor writes a tar stream",
            hint="write ./- for a file of that name; `layerfs export` writes a whole tree as a tar file",
        )
    name = source[0] or destination[0]
    assert name is not None
    with context.open_store_beside(name) as store:
        container = store.containers.get(name)
        if source[0] is not None:
            container.copy_out(os.fsencode(source[1]), destination[1])
        else:
            container.copy_in(source[1], os.fsencode(destination[1]))
    return 0


def _place(text: str) -> tuple[str | None, str]:
    """Split CONTAINER:PATH; a path that begins with / or . is never one of a container, as with docker cp."""
    name, colon, path = text.partition(":")
    if not colon or text.startswith(("/", ".")) or "/" in name:
        return None, text
    return name, path


COMMANDS = {
    "diff": Command(
        description="One line a path, as docker diff prints them: A for added, C for changed, D for deleted.",
        examples=["layerfs diff web", "layerfs --json diff web"],
        configure=_configure_diff,
        run=_diff,
    ),
    "commit": Command(
        description="The new image has one layer more than the container's. Prints the new image's id.",
        examples=[
            "layerfs commit -m 'add curl' work debian:curl",
            "layerfs commit -c 'CMD [\"sh\"]' work app:2",
        ],
        configure=_configure_commit,
        run=_commit,
    ),
    "cp": Command(
        description="""\
Directories are copied whole. Into an existing directory the copy gets its source's name; owner, mode, times
and xattrs come along. Links inside the container never lead outside of it.""",
        examples=["layerfs cp web:/etc/hosts .", "layerfs cp ./site web:/srv"],
        configure=_configure_cp,
        run=_cp,
    ),
    "ps": Command(
        description="Without -a only those that are running or mounted.",
        examples=["layerfs ps -a", "layerfs ps -aq"],
        configure=_configure_ps,
        run=_ps,
    ),
    "rm": Command(
        description="The image stays. Commit first what should be kept.",
        examples=["layerfs rm web", "layerfs rm -f $(layerfs ps -aq)"],
        configure=_configure_rm,
        run=_rm,
    ),
}
