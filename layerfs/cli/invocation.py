"""Carries one command line out and turns every failure into one clear line and an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from layerfs.cli import commands, output
from layerfs.cli.parser import HelpShown, UsageError, build, overview, similar, split_global
from layerfs.errors import LayerfsError, ProcessError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXIT_FAILED = 1
# 128 and the signal's number, as shells have it: SIGINT, SIGPIPE.
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141


def invoke(words: Sequence[str]) -> int:
    """Run one command line; the status is that of DESIGN.md section 4."""
    line = _Line()
    try:
        status = line.carry_out(words)
        # Flush now, where a full disk or a closed pipe can still become an exit status.
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        _complain("layerfs: interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return _broken_pipe()
    except UsageError as error:
        return _failed(str(error), error.hint, error.status)
    except LayerfsError as error:
        _trace(line.debug)
        status = error.status if isinstance(error, ProcessError) else line.failure
        return _failed(str(error), error.hint, status)
    except OSError as error:
        _trace(line.debug)
        return _failed(_describe(error), _advice(error), line.failure)
    except Exception as error:
        _trace(line.debug)
        hint = (
            None
            if line.debug
            else "this is a fault of layerfs; `layerfs --debug ...` shows where it came from"
        )
        return _failed(f"internal error: {type(error).__name__}: {error}", hint, line.failure)


class _Line:
    """One command line under way: what is known of it so far decides how its failure is told."""

    def __init__(self) -> None:
        self.failure = EXIT_FAILED
        self.debug = False

    def carry_out(self, words: Sequence[str]) -> int:
        if text := os.environ.get("LAYERFS_FAILPOINTS"):
            from layerfs import failpoints

            failpoints.arm(text)
        # Names inside layers are bytes; where one reaches a terminal it must come out as it went in.
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="surrogateescape")
        given, rest = split_global(words)
        self.debug = given.debug
        if given.version:
            from layerfs import __version__

            sys.stdout.write(f"layerfs {__version__}\n")
            return 0
        if given.help or rest == ["help"]:
            sys.stdout.write(overview())
            return 0
        if not rest:
            raise UsageError("a command is missing", hint="`layerfs --help` lists the commands")
        if rest[0] == "help":
            rest = [rest[1], "--help"]
        name = rest[0]
        if name not in commands.COMMANDS:
            raise _unknown(name)
        parser = build(name)
        self.failure = parser.command.failure
        try:
            arguments = parser.parse(rest[1:])
        except HelpShown:
            return 0
        _overlay(given, arguments)
        self.debug = given.debug

        from layerfs.cli.context import Context

        return parser.command.run(Context(given), arguments)


def _overlay(given: argparse.Namespace, arguments: argparse.Namespace) -> None:
    """Let global options that stand after the command win over those before it."""
    for option in ("root", "driver", "budget", "json", "debug"):
        if hasattr(arguments, option):
            setattr(given, option, getattr(arguments, option))


# Commands of docker and podman that people will try here.
_ELSEWHERE = {
    "build": "`layerfs run` a container, then `layerfs commit` it",
    "logs": "nothing is kept; `layerfs start --attach` shows what a container writes",
    "restart": "`layerfs stop` a container, then `layerfs start` it",
    "search": "registries share no way to search; `layerfs tags` lists the tags of a repository",
    "unmount": "did you mean umount?",
}


def _unknown(name: str) -> UsageError:
    close = similar(name, commands.COMMANDS)
    hint = f"did you mean {' or '.join(close)}?" if close else "`layerfs --help` lists the commands"
    hint = _ELSEWHERE.get(name, hint)
    return UsageError(f"{name!r} is not a command of layerfs", hint=hint)


def _failed(message: str, hint: str | None, status: int) -> int:
    _complain(f"layerfs: {message}")
    if hint:
        _complain(f"hint: {hint}")
    return status


def _complain(text: str) -> None:
    """Write a line of words after whatever data came before; a closed stderr is nobody's fault."""
    try:
        sys.stdout.flush()
    except OSError:
        _silence(sys.stdout.fileno())
    try:
        sys.stderr.write(output.words(text) + "\n")
        sys.stderr.flush()
    except OSError:
        _silence(sys.stderr.fileno())


def _broken_pipe() -> int:
    """End as a program that SIGPIPE ended: silently, since the reader has what it wanted."""
    _silence(sys.stdout.fileno())
    return EXIT_PIPE


def _silence(descriptor: int) -> None:
    """Point a stream at /dev/null, or Python would complain again when it closes it."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def _describe(error: OSError) -> str:
    """Say what the system refused and where, without the number."""
    text = error.strerror or str(error)
    names = [
        os.fsdecode(n) for n in (error.filename, error.filename2) if isinstance(n, str | bytes | os.PathLike)
    ]
    return f"{': '.join(names)}: {text}" if names else text


def _advice(error: OSError) -> str | None:
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            "make room there; of a store `layerfs gc --grace 0` removes what nothing needs, and `layerfs du`"
            " shows what there is. TMPDIR says where temporary files lie"
        )
    if error.errno in (errno.EACCES, errno.EPERM) and os.geteuid() != 0:
        return "run as root, or choose a store of your own with --root"
    if error.errno == errno.EROFS:
        return "the store must lie on a file system that can be written: choose one with --root"
    return None


def _trace(debug: bool) -> None:
    if debug:
        import traceback

        for line in traceback.format_exc().split("\n")[:-1]:
            _complain(line)
