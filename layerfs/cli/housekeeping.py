"""`gc`, `check`, `du`, `info` and `drivers`: how the store is, and how to keep it well."""

from __future__ import annotations

import argparse

from layerfs.cli import output
from layerfs.cli.commands import Command
from layerfs.cli.context import Context
from layerfs.cli.parser import CommandParser


def _configure_gc(parser: CommandParser) -> None:
    parser.flag("-n", "--dry-run", help="only say what would go, and why the rest stays")


def _gc(context: Context, arguments: argparse.Namespace) -> int:
    raise NotImplementedError


def _configure_check(parser: CommandParser) -> None:
    parser.flag("--repair", help="mend what is damaged, from the kept blobs")


def _check(context: Context, arguments: argparse.Namespace) -> int:
    raise NotImplementedError


def _configure_nothing(parser: CommandParser) -> None:
    """Take no arguments of its own."""


def _du(context: Context, arguments: argparse.Namespace) -> int:
    raise NotImplementedError


def _info(context: Context, arguments: argparse.Namespace) -> int:
    raise NotImplementedError


def _drivers(context: Context, arguments: argparse.Namespace) -> int:
    from layerfs import plugins

    context.become_root()
    # Asking must not make a store: the file system that would hold it is probed.
    root = context.root.absolute() / "drivers"
    found = plugins.explain(next(path for path in (root, *root.parents) if path.is_dir()))
    if context.json:
        output.document(
            [{"name": one.name, "works": one.works, "reason": one.reason, "hint": one.hint} for one in found]
        )
        return 0
    rows = [(one.name, "yes" if one.works else "no", one.reason) for one in found]
    output.table(["DRIVER", "WORKS", "WHY"], rows)
    return 0


COMMANDS = {
    "gc": Command(
        description="""\
Images stay while they have a name or a container; layers while an image, a container or a mount needs
them; what was made a moment ago stays too.""",
        examples=["layerfs gc --dry-run", "layerfs gc"],
        configure=_configure_gc,
        run=_gc,
    ),
    "check": Command(
        description="""\
Compares every blob with its digest, every layer with its table of contents, and the database with both.
The exit status is 1 when something is wrong and was not repaired.""",
        examples=["layerfs check", "layerfs check --repair"],
        configure=_configure_check,
        run=_check,
    ),
    "du": Command(
        description="RECLAIMABLE is what would be free if everything that nothing uses were removed.",
        examples=["layerfs du"],
        configure=_configure_nothing,
        run=_du,
    ),
    "info": Command(
        description="The directory, the driver, what the host offers, and how much is stored.",
        examples=["layerfs info", "layerfs --json info"],
        configure=_configure_nothing,
        run=_info,
    ),
    "drivers": Command(
        description="Each, best first, is tried on the file system of the store, and says what it lacks.",
        examples=["layerfs drivers"],
        configure=_configure_nothing,
        run=_drivers,
    ),
}
