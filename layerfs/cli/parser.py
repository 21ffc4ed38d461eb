"""Reads command lines: argparse for one command's arguments, by hand what stands before the command."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterable, Sequence
from typing import NoReturn

from layerfs.cli import commands

GLOBAL_OPTIONS = (
    ("--root", "DIR", "the store's directory (LAYERFS_ROOT; /var/lib/layerfs for root)"),
    ("--driver", "DRIVER", "the storage driver (LAYERFS_DRIVER; the best that works here)"),
    ("--budget", "LIMITS", "what a layer may ask for, such as bytes=10G,entries=1M (LAYERFS_BUDGET)"),
    ("--json", None, "print JSON in place of tables"),
    ("--debug", None, "show where an error came from"),
    ("--version", None, "print the version and leave"),
    ("--help", None, "show help and leave"),
)


class UsageError(Exception):
    """A command line that cannot be understood; the message is for the user."""

    def __init__(self, message: str, *, hint: str, status: int = 2) -> None:
        super().__init__(message)
        self.hint = hint
        self.status = status


class HelpShown(Exception):
    """The command line asked for help, which is printed by now."""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Writes an option whose value stands after ``=`` alone without a blank between."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return super()._format_action_invocation(action).replace(" [=", "[=")


class CommandParser(argparse.ArgumentParser):
    """The parser of one command; raises `UsageError` or `HelpShown` where argparse would exit."""

    def __init__(self, name: str, command: commands.Command, *, summary: str) -> None:
        examples = "\n".join(f"  {line}" for line in command.examples)
        super().__init__(
            prog=f"layerfs {name}",
            description=f"{summary}.\n\n{command.description}",
            epilog=f"{'example' if len(command.examples) == 1 else 'examples'}:\n{examples}",
            # Without a width argparse imports shutil to find one, for every argument that is added.
            formatter_class=functools.partial(_Formatter, width=80),
            allow_abbrev=False,
        )
        self.command = command
        # Options that take a value only after ``=``; completion asks.
        self.switches: set[str] = set()
        # Of positional arguments that are places of images; completion asks.
        self.places: set[str] = set()
        command.configure(self)
        self.usage = f"{self.prog} [OPTIONS] {' '.join(self.needed() + self.positionals())}".rstrip()
        shared = self.add_argument_group("global options")
        for option, metavar, text in GLOBAL_OPTIONS[:5]:
            if metavar is None:
                shared.add_argument(option, action="store_true", default=argparse.SUPPRESS, help=text)
            else:
                shared.add_argument(option, metavar=metavar, default=argparse.SUPPRESS, help=text)

    def flag(self, *names: str, help: str) -> None:
        """Add an option without a value."""
        self.add_argument(*names, action="store_true", help=help)

    def place(self, name: str, *, metavar: str, nargs: str | None = None, help: str) -> None:
        """Add a positional argument that says where an image is, as `transports.parse` reads it."""
        self.add_argument(name, metavar=metavar, nargs=nargs, help=help)
        self.places.add(name)

    def switch(self, name: str, *, help: str) -> None:
        """Add an option that is true by itself, and takes a value only after ``=``, as Go's flags do."""
        self.add_argument(name, metavar="[=true|false]", choices=["true", "false"], help=help)
        self.switches.add(name)

    def needed(self) -> list[str]:
        """Write each option that must be given: ``--to DRIVER``."""
        return [
            f"{action.option_strings[-1]} {action.metavar}"
            for action in self._actions
            if action.option_strings and action.required
        ]

    def positionals(self) -> list[str]:
        """Write each positional argument as a synopsis does: ``NAME``, ``[NAME]``, ``NAME...``."""
        shapes = {"?": "[{}]", "*": "[{}...]", "+": "{}...", argparse.REMAINDER: "[{}...]"}
        return [
            shapes.get(str(action.nargs), "{}").format(action.metavar)
            for action in self._actions
            if not action.option_strings
        ]

    def format_help(self) -> str:
        """Write the help text, as wide as the terminal is."""
        self.formatter_class = _Formatter
        return super().format_help()

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Leave as argparse does after --help, but by an exception that `invoke` knows."""
        raise HelpShown

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found wrong as a `UsageError`."""
        hint = f"`{self.prog} --help` shows what it takes"
        if message.startswith("unrecognized arguments: -"):
            unknown = message.split()[2].partition("=")[0]
            close = similar(unknown, self._option_string_actions)
            message = f"unknown option {unknown}"
            if close:
                hint = f"did you mean {' or '.join(close)}?"
        raise UsageError(message, hint=hint, status=self.command.usage)

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse what stands after the command's name."""
        if not self.command.passthrough:
            return self.parse_args(self._ordered(words))
        own, rest = self._split(words)
        arguments = self.parse_args(own)
        arguments.command = rest
        return arguments

    def _ordered(self, words: Sequence[str]) -> list[str]:
        """Put the options before the positional arguments, wherever they stood.

        argparse itself gives an optional positional argument up at the first option that stands before it.
        """
        options: list[str] = []
        positionals: list[str] = []
        waiting = list(words)
        while waiting:
            word = waiting.pop(0)
            if word == "--":
                positionals += waiting
                break
            if word in self.switches:
                if waiting and waiting[0] in ("true", "false"):
                    self.error(f"{word} takes its value after an equals sign: {word}={waiting[0]}")
                options.append(f"{word}=true")
            elif not word.startswith("-") or word == "-":
                positionals.append(word)
            else:
                options.append(word)
                if self._takes_next(word):
                    if not waiting:
                        self.error(f"argument {word}: expected one argument")
                    options.append(waiting.pop(0))
        return [*options, "--", *positionals] if positionals else options

    def _split(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """Cut after the first positional argument: what follows is the process's own, ``--`` included.

        argparse.REMAINDER is not enough: it looks at every word before it decides, drops ``--``, and
        stumbles over words of the process that look like our options.
        """
        index = 0
        while index < len(words):
            word = words[index]
            if word == "--":
                index += 2
                break
            if not word.startswith("-") or word == "-":
                index += 1
                break
            index += 2 if self._takes_next(word) else 1
        return list(words[:index]), list(words[index:])

    def _takes_next(self, word: str) -> bool:
        """Say whether the option `word` takes the word after it as its value."""
        action = self._option_string_actions.get(word)
        if action is not None or word.startswith("--"):
            return action is not None and action.nargs is None
        # A cluster such as -itv: the first letter that takes a value takes the rest of the word, or the next.
        for position, letter in enumerate(word[1:], 2):
            action = self._option_string_actions.get(f"-{letter}")
            if action is not None and action.nargs is None:
                return position == len(word)
        return False


def build(name: str) -> CommandParser:
    """Make the parser of one command (KeyError when there is none)."""
    return CommandParser(name, commands.load(name), summary=commands.COMMANDS[name][1])


def split_global(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Read the options before the command; what is left begins with the command, or is empty.

    Raises:
        UsageError: an option that is unknown, lacks its value, or has one that it cannot take.
    """
    given = argparse.Namespace(
        root=None, driver=None, budget=None, json=False, debug=False, version=False, help=False
    )
    rest = list(words)
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        name = {"-h": "--help"}.get(name, name)
        known = {option: metavar for option, metavar, _ in GLOBAL_OPTIONS}
        if name not in known:
            close = similar(name, known)
            hint = f"did you mean {' or '.join(close)}?" if close else "`layerfs --help` lists what there is"
            raise UsageError(f"unknown option {name}", hint=hint)
        if known[name] is None:
            if equals:
                raise UsageError(f"{name} takes no value", hint=f"write only {name}")
            setattr(given, name[2:], True)
        else:
            if not equals:
                if not rest:
                    raise UsageError(f"{name} needs a value", hint=f"write {name} {known[name]}")
                value = rest.pop(0)
            setattr(given, name[2:], value)
    return given, rest


def similar(word: str, known: Iterable[str]) -> list[str]:
    """Name up to three of `known` that `word` could be a slip of, the nearest first."""
    import difflib

    return difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)


def overview() -> str:
    """Write the help text of ``layerfs`` itself."""
    lines = [
        "usage: layerfs [--root DIR] [--driver DRIVER] [--json] COMMAND ...",
        "",
        "Container file systems: content-addressed layers, copy-on-write mounts, exact diffs.",
    ]
    for title, group in commands.GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {name:<12}{summary}" for name, (_, summary) in group.items()]
    lines += ["", "global options:"]
    for option, metavar, text in GLOBAL_OPTIONS:
        lines.append(f"  {option if metavar is None else f'{option} {metavar}':<16}{text}")
    lines += [
        "",
        "exit status:",
        "  0 done, 1 failed, 2 wrong usage; run and start -a give the status of the process,",
        "  or 125 when layerfs failed, 126 for a program that is not executable, 127 for one not found",
        "",
        "example:",
        "  layerfs load -i debian.tar && layerfs run --rm debian:12 cat /etc/os-release",
        "",
        "`layerfs COMMAND --help` tells more about a command.",
    ]
    return "\n".join(lines) + "\n"
