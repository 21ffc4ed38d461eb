"""`run`, `create` and `start`: processes on a container's tree."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

from layerfs.cli import background
from layerfs.cli.commands import Command
from layerfs.cli.context import Context
from layerfs.cli.output import document, line
from layerfs.cli.parser import CommandParser, UsageError
from layerfs.errors import LayerfsError, NotFoundError, ProcessError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerfs.containers import Container
    from layerfs.progress import Progress
    from layerfs.runtime.settings import RunSettings

EXIT_RUN_FAILED = 125


def configure_environment(parser: CommandParser) -> None:
    """Add -e and --env-file, which `environment` reads."""
    parser.add_argument(
        "-e",
        "--env",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="set a variable; NAME alone passes on the one of this environment; may be repeated",
    )
    parser.add_argument(
        "--env-file",
        metavar="FILE",
        action="append",
        default=[],
        help="read variables from a file, one a line, # begins a comment; may be repeated",
    )


def _configure_create(parser: CommandParser) -> None:
    parser.add_argument("--name", metavar="NAME", help="the container's name; made up when left out")
    configure_environment(parser)
    parser.add_argument("-w", "--workdir", metavar="DIR", help="the directory to start in, made when missing")
    parser.add_argument(
        "-u", "--user", metavar="USER[:GROUP]", help="names or numbers of the image's passwd and group"
    )
    parser.add_argument(
        "-v",
        "--volume",
        metavar="DIR:TARGET[:ro]",
        action="append",
        default=[],
        help="show a directory or file of this host inside; may be repeated",
    )
    parser.add_argument("--hostname", metavar="NAME", help="the host name inside; the id when left out")
    parser.add_argument(
        "--network",
        metavar="KIND",
        choices=["none", "host"],
        default="none",
        help="none (an own network with a loopback device alone), or host",
    )
    parser.add_argument(
        "--entrypoint", metavar="PROGRAM", help="in place of the image's entry point; '' for none"
    )
    parser.flag("-t", "--tty", help="give the process a terminal of its own")
    parser.flag("-i", "--interactive", help="pass standard input on")
    parser.flag("--read-only", help="refuse writes to the container's tree")


def _configure_positionals(parser: CommandParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="a name, or an id")
    command = parser.add_argument(
        "command",
        metavar="COMMAND",
        nargs=argparse.REMAINDER,
        help="the command with its arguments, whatever they look like; the image's own when left out",
    )
    # argparse would name it among what is missing.
    command.required = False


def environment(given: list[str], files: list[str]) -> list[str]:
    """Put NAME=VALUE together as docker does: files first, then options; a bare NAME takes ours.

    One that we have not got takes the image's away, which a bare NAME in the result stands for.

    Raises:
        UsageError: a variable without a name.
    """
    found: dict[str, str | None] = {}
    lines = [text for name in files for text in _variables(Path(name))]
    for text in [*lines, *given]:
        name, equals, value = text.partition("=")
        if not name or any(letter.isspace() for letter in name):
            raise UsageError(
                f"{text!r} sets no variable", hint="write NAME=VALUE, or NAME alone", status=EXIT_RUN_FAILED
            )
        found[name] = value if equals else os.environ.get(name)
    return [name if value is None else f"{name}={value}" for name, value in found.items()]


def _variables(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    return [text.lstrip() for text in lines if text.strip() and not text.lstrip().startswith("#")]


def _configure_run(parser: CommandParser) -> None:
    parser.flag("--rm", help="remove the container when its process ends")
    parser.flag("-d", "--detach", help="run it in the background and print its id; see `logs`")
    _configure_create(parser)
    _configure_positionals(parser)


def _run(context: Context, arguments: argparse.Namespace) -> int:
    if arguments.detach:
        return _run_detached(context, arguments)
    with context.open_store() as store:
        container = store.containers.create(
            arguments.image, name=arguments.name, settings=_settings(arguments), progress=_unpacking(context)
        )
        try:
            return container.start()
        finally:
            if arguments.rm:
                # `rm -f` may have been first.
                with contextlib.suppress(NotFoundError):
                    store.containers.remove(container.id)


def _run_detached(context: Context, arguments: argparse.Namespace) -> int:
    context.become_root()
    with context.open_store() as store:
        container = store.containers.create(
            arguments.image, name=arguments.name, settings=_settings(arguments), progress=_unpacking(context)
        )
    try:
        background.start(context, container.id, remove=arguments.rm)
    except ProcessError:
        if arguments.rm:
            with context.open_store() as store, contextlib.suppress(NotFoundError):
                store.containers.remove(container.id)
        raise
    _print_id(context, container)
    return 0


def _print_id(context: Context, container: Container) -> None:
    if context.json:
        document({"id": container.id, "name": container.name})
    else:
        line(container.id)


def _unpacking(context: Context) -> Progress:
    """Show how an image is unpacked on a terminal only: elsewhere stderr belongs to the process."""
    return context.progress(quiet=not sys.stderr.isatty())


def _settings(arguments: argparse.Namespace) -> RunSettings:
    from layerfs.runtime.settings import RunSettings, Volume

    entrypoint = arguments.entrypoint
    return RunSettings(
        command=tuple(arguments.command) or None,
        entrypoint=None if entrypoint is None else (entrypoint,) if entrypoint else (),
        env=tuple(environment(arguments.env, arguments.env_file)),
        working_dir=arguments.workdir,
        user=arguments.user,
        hostname=arguments.hostname,
        network=arguments.network,
        volumes=tuple(Volume.parse(text) for text in arguments.volume),
        read_only=arguments.read_only,
        tty=arguments.tty,
        interactive=arguments.interactive,
    )


def _configure_create_alone(parser: CommandParser) -> None:
    _configure_create(parser)
    _configure_positionals(parser)


def _create(context: Context, arguments: argparse.Namespace) -> int:
    with context.open_store() as store:
        container = store.containers.create(
            arguments.image, name=arguments.name, settings=_settings(arguments), progress=_unpacking(context)
        )
        _print_id(context, container)
    return 0


def _configure_start(parser: CommandParser) -> None:
    parser.add_argument("containers", metavar="CONTAINER", nargs="+", help="a name, or an id")
    parser.flag("-a", "--attach", help="wait for the process and pass its streams and exit status on")
    parser.flag("-i", "--interactive", help="pass standard input on")


def _start(context: Context, arguments: argparse.Namespace) -> int:
    if arguments.attach or arguments.interactive:
        if len(arguments.containers) != 1:
            raise UsageError("only one container can be attached", hint="start the others without --attach")
        with context.open_store() as store:
            container = store.containers.get(arguments.containers[0])
            try:
                return container.start(interactive=arguments.interactive or None)
            except ProcessError:
                raise
            except LayerfsError as error:
                raise ProcessError(str(error), status=EXIT_RUN_FAILED, hint=error.hint) from error
    context.become_root()

    def start(name: str) -> None:
        with context.open_store() as store:
            running = store.containers.get(name).status == "running"
        if not running:
            background.start(context, name)
        line(name)

    return context.each(arguments.containers, start)


COMMANDS = {
    "run": Command(
        description="""\
Makes a container on the image, mounts its tree, and runs the command in new mount, process, host-name and
IPC namespaces (and a network of its own unless --network host). Everything after IMAGE belongs to the
command. The exit status is that of the process; 125 when layerfs failed, 126 for a program that cannot be
executed, 127 for one that was not found. Without --rm the container stays for diff, commit, export, cp and
start.""",
        examples=[
            "layerfs run --rm debian:12 cat /etc/os-release",
            "layerfs run -it --name work -e LANG=C.UTF-8 -v $PWD:/src:ro debian:12 bash",
            "layerfs run -d --name job debian:12 sh -c 'sleep 60; date' && layerfs logs -f job",
        ],
        configure=_configure_run,
        run=_run,
        passthrough=True,
        failure=EXIT_RUN_FAILED,
        usage=EXIT_RUN_FAILED,
    ),
    "create": Command(
        description="Prints the container's id. Everything after IMAGE belongs to the command.",
        examples=["layerfs create --name job debian:12 sh -c 'echo done > /result'"],
        configure=_configure_create_alone,
        run=_create,
        passthrough=True,
    ),
    "start": Command(
        description="""\
Runs the container's command on the tree as it was left, in the background; `ps` shows how it is, `logs` what
it wrote, `stop` ends it. With --attach it stays, and gives the exit status of the process as `layerfs run`
does.""",
        examples=["layerfs start -a job", "layerfs start job"],
        configure=_configure_start,
        run=_start,
    ),
}
