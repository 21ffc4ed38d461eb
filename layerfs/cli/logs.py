"""`logs` and `wait`: what containers in the background have written, and how they end."""

from __future__ import annotations

import argparse
import sys

from layerfs.cli.commands import Command
from layerfs.cli.context import Context
from layerfs.cli.output import line
from layerfs.cli.parser import CommandParser, UsageError
from layerfs.errors import NotFoundError


def _configure_logs(parser: CommandParser) -> None:
    parser.add_argument("container", metavar="CONTAINER", help="a name, or an id")
    parser.flag("-f", "--follow", help="go on with what is added, until the process ends")
    parser.add_argument(
        "-n", "--tail", metavar="LINES", default="all", help="no more lines than that of what is there (all)"
    )
    parser.flag("-t", "--timestamps", help="begin each line with the time when it was written, in UTC")


def _logs(context: Context, arguments: argparse.Namespace) -> int:
    from layerfs.runtime import log

    text = arguments.tail
    if text != "all" and not text.isdecimal():
        raise UsageError(f"{text!r} is no number of lines", hint="--tail all is everything")
    with context.open_store() as store:
        container = store.containers.get(arguments.container)

        def running() -> bool:
            found = store.containers.find(container.id)
            return found is not None and found.status == "running"

        found = log.read(
            container.log, running, last=None if text == "all" else int(text), follow=arguments.follow
        )
        for each in found:
            stream = sys.stdout.buffer if each.stream == "stdout" else sys.stderr.buffer
            stream.write(f"{each.time} ".encode() + each.data if arguments.timestamps else each.data)
            # What the two streams say stays in its order, and nobody who follows waits.
            stream.flush()
    return 0


def _configure_wait(parser: CommandParser) -> None:
    parser.add_argument("containers", metavar="CONTAINER", nargs="+", help="a name, or an id")


def _wait(context: Context, arguments: argparse.Namespace) -> int:
    context.become_root()

    def wait(name: str) -> None:
        with context.open_store() as store:
            status = store.containers.get(name).wait()
        if status is None:
            raise NotFoundError(
                f"nothing is known of how container {name} ended",
                hint="it never ran, or what waited for it was killed",
            )
        line(str(status))

    return context.each(arguments.containers, wait)


COMMANDS = {
    "logs": Command(
        description="""\
Prints what the processes of `run -d` and `start` have written to standard output and error, to the same two
here. It is kept with the container, over several starts.""",
        examples=["layerfs logs -f --tail 10 web", "layerfs logs -t web 2>&1 | grep -i error"],
        configure=_configure_logs,
        run=_logs,
    ),
    "wait": Command(
        description="Prints the exit status of each, once its process has ended.",
        examples=["layerfs wait job"],
        configure=_configure_wait,
        run=_wait,
    ),
}
