"""`exec`, `stop` and `kill`: what is done with a container while its process runs."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import Final

from layerfs.cli.commands import Command
from layerfs.cli.context import Context
from layerfs.cli.output import line
from layerfs.cli.parser import CommandParser, UsageError
from layerfs.cli.run import EXIT_RUN_FAILED, configure_environment, environment
from layerfs.errors import InUseError, InvalidError

# What poll(2) takes, in seconds.
_LONGEST: Final = 2_000_000


def _configure_exec(parser: CommandParser) -> None:
    configure_environment(parser)
    parser.add_argument("-w", "--workdir", metavar="DIR", help="the directory to start in")
    parser.add_argument(
        "-u", "--user", metavar="USER[:GROUP]", help="names or numbers of the container's passwd and group"
    )
    parser.flag("-t", "--tty", help="give the process a terminal of its own")
    parser.flag("-i", "--interactive", help="pass standard input on")
    parser.add_argument("container", metavar="CONTAINER", help="a name, or an id")
    parser.add_argument(
        "command",
        metavar="COMMAND",
        nargs=argparse.REMAINDER,
        help="the command with its arguments, whatever they look like",
    )


def _exec(context: Context, arguments: argparse.Namespace) -> int:
    from layerfs.runtime.enter import enter

    if not arguments.command:
        raise UsageError(
            "no command is given", hint="`layerfs exec CONTAINER sh`, for instance", status=EXIT_RUN_FAILED
        )
    container, spec = context.ask_store(
        lambda store: store.containers.entrance(
            arguments.container,
            arguments.command,
            env=environment(arguments.env, arguments.env_file),
            working_dir=arguments.workdir,
            user=arguments.user,
            tty=arguments.tty,
            interactive=arguments.interactive,
        ),
    )
    return enter(container, spec)


def _configure_stop(parser: CommandParser) -> None:
    parser.add_argument("containers", metavar="CONTAINER", nargs="+", help="a name, or an id")
    parser.add_argument(
        "-t",
        "--time",
        metavar="SECONDS",
        type=float,
        default=10.0,
        help="how long the process has to end before it is killed (10)",
    )
    parser.add_argument("-s", "--signal", metavar="SIGNAL", help="sent first; the image's own, or TERM")


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    from layerfs import signals

    try:
        return signals.parse(text)
    except InvalidError as error:
        raise UsageError(str(error), hint=error.hint or "") from error


@contextlib.contextmanager
def _permitted(name: str) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise InUseError(
            f"the process of container {name} is not ours to signal: another user started it, or it was"
            " started outside of this user namespace",
            hint="whoever started it may, outside of `layerfs unshare`",
        ) from error


def _stop(context: Context, arguments: argparse.Namespace) -> int:
    from layerfs import signals

    given = _number(arguments.signal)
    if not 0 <= arguments.time < _LONGEST:
        raise UsageError(f"{arguments.time:g} is no number of seconds to wait", hint="--time 0 is no time")

    def stop(name: str) -> None:
        owner, number = context.ask_store(lambda store: store.containers.stoppable(name, signal=given))
        if owner is not None:
            with _permitted(name):
                signals.stop(owner, number, seconds=arguments.time)
            context.ask_store(lambda store: store.containers.wait_at_rest(name))
        line(name)

    return context.each(arguments.containers, stop)


def _configure_kill(parser: CommandParser) -> None:
    parser.add_argument("containers", metavar="CONTAINER", nargs="+", help="a name, or an id")
    parser.add_argument("-s", "--signal", metavar="SIGNAL", help="sent in place of KILL")


def _kill(context: Context, arguments: argparse.Namespace) -> int:
    from layerfs import signals

    given = _number(arguments.signal)
    number = signals.KILL if given is None else given

    def kill(name: str) -> None:
        owner, _ = context.ask_store(lambda store: store.containers.stoppable(name, signal=number))
        with _permitted(name):
            was_sent = owner is not None and signals.send(owner, number)
        if not was_sent:
            raise InUseError(f"container {name} is not running", hint="`layerfs ps -a` lists what there is")
        if number == signals.KILL:
            context.ask_store(lambda store: store.containers.wait_at_rest(name))
        line(name)

    return context.each(arguments.containers, kill)


COMMANDS = {
    "exec": Command(
        description="""\
Runs one more process in a running container: on its tree, in its namespaces, with its environment. The exit
status is that of the process; 125 when layerfs failed, 126 for a program that cannot be executed, 127 for
one that was not found. The process ends with the container.""",
        examples=["layerfs exec -it web sh", "layerfs exec -u www-data -w /srv web ls -l"],
        configure=_configure_exec,
        run=_exec,
        passthrough=True,
        failure=EXIT_RUN_FAILED,
        usage=EXIT_RUN_FAILED,
    ),
    "stop": Command(
        description="""\
Asks the container's process to end, with the image's STOPSIGNAL or TERM, and kills it if it stays. What it
changed stays in the container. One that does not run is left as it is.""",
        examples=["layerfs stop web", "layerfs stop -t 1 $(layerfs ps -q)"],
        configure=_configure_stop,
        run=_stop,
    ),
    "kill": Command(
        description="Sends the container's process a signal, KILL if none is given, and prints the name.",
        examples=["layerfs kill web", "layerfs kill -s HUP web"],
        configure=_configure_kill,
        run=_kill,
    ),
}
