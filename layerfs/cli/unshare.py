"""`unshare`: a shell, or one command, in the user namespace in which an ordinary user's store is made."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import NoReturn

from layerfs.cli.commands import Command
from layerfs.cli.context import Context, warn
from layerfs.cli.parser import CommandParser
from layerfs.cli.run import EXIT_RUN_FAILED
from layerfs.errors import ProcessError

# As shells have them.
_NOT_EXECUTABLE = 126
_NOT_FOUND = 127


def _configure(parser: CommandParser) -> None:
    parser.add_argument("program", metavar="COMMAND", nargs="?", help="a program; $SHELL when left out")
    command = parser.add_argument(
        "command", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="its arguments, whatever they look like"
    )
    command.required = False


def _unshare(context: Context, arguments: argparse.Namespace) -> int:
    program = arguments.program or os.environ.get("SHELL") or "/bin/sh"
    if context.rootless:
        from layerfs.runtime import userns

        userns.enter(warn=warn)
    # There, everybody is root, whose store is another one.
    environment = {**os.environ, "LAYERFS_ROOT": str(context.root.absolute())}
    if context.driver is not None:
        environment["LAYERFS_DRIVER"] = context.driver
    sys.stdout.flush()
    sys.stderr.flush()
    _become(program, [program, *arguments.command], environment)


def _become(program: str, words: list[str], environment: dict[str, str]) -> NoReturn:
    # Python ignores them, and a program begins with what was ignored before it (execve(2)).
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execvpe(program, words, environment)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ProcessError(f"{program}: command not found", status=_NOT_FOUND) from error
    except OSError as error:
        raise ProcessError(f"{program}: {error.strerror}", status=_NOT_EXECUTABLE) from error


COMMANDS = {
    "unshare": Command(
        description="""\
For ordinary users. In there the user is root: id 0 is his own on the host, and the ids from 1 on are those
of /etc/subuid and /etc/subgid. So a shell sees the owners of files in the store as containers do, and may
do with these files what root may: `layerfs unshare rm -rf ~/.local/share/layerfs` removes a whole store,
where rm alone is refused files of other ids. What is mounted in there is seen in there alone, with any
driver, and goes with the last process. For root there is nothing to enter: the command is run as it is.

LAYERFS_ROOT, and LAYERFS_DRIVER if --driver was given, are set, so that layerfs uses the same store in
there. A container that was started outside runs in a namespace beside this one: run `exec`, `stop`, `kill`
and `cp` on it outside.

The exit status is that of the command; 125 when layerfs failed, 126 for a program that cannot be executed,
127 for one that was not found.""",
        examples=[
            "layerfs unshare",
            "layerfs unshare sh -c 'layerfs mount app:1 /mnt && tar -C /mnt -cf app.tar .'",
            "layerfs unshare ls -ln ~/.local/share/layerfs/drivers",
        ],
        configure=_configure,
        run=_unshare,
        passthrough=True,
        failure=EXIT_RUN_FAILED,
        usage=EXIT_RUN_FAILED,
    ),
}
