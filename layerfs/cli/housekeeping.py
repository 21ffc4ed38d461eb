"""`gc`, `check` and `drivers`: how to keep the store well, and what could serve it."""

from __future__ import annotations

import argparse
import sys

from layerfs.cli import output, registry_options
from layerfs.cli.commands import Command
from layerfs.cli.context import Context, note
from layerfs.cli.parser import CommandParser, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerfs.check.findings import Findings

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _configure_gc(parser: CommandParser) -> None:
    parser.flag("-n", "--dry-run", help="only say what would go")
    parser.flag("-v", "--verbose", help="say of everything else why it stays")
    parser.add_argument(
        "--grace",
        metavar="AGE",
        type=_seconds,
        help="leave alone what is younger, in seconds, or as 90m, 12h or 7d; an hour by default, since a pull"
        " may be about to name it",
    )


def _gc(context: Context, arguments: argparse.Namespace) -> int:
    with context.open_store() as store:
        report = store.collect(dry_run=arguments.dry_run, grace=arguments.grace)
    if context.json:
        output.document(
            {
                "dry_run": report.dry_run,
                "freed": report.freed,
                "items": [one._asdict() for one in report.items],
            }
        )
        return 0
    for item in report.items if arguments.verbose else report.removed:
        done = "remove" if item.removed else "keep  "
        told = f"{done} {item.kind} {item.name} ({output.size(item.bytes)}): {item.reason}"
        output.line(output.words(told))
    note(f"{output.size(report.freed)} {'would be' if report.dry_run else 'were'} freed")
    if report.young:
        grace = "an hour" if arguments.grace is None else output.age(arguments.grace)
        things = _counted(len(report.young), "thing")
        note(f"{things} that nothing needs, younger than {grace}, stay: see --verbose and --grace")
    return 0


def _seconds(text: str) -> float:
    """Read an age: seconds, or a number with a unit."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS else (text, "s")
    try:
        found = float(number) * _UNITS[unit]
    except ValueError:
        found = -1
    if not 0 <= found < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no age; such as 0, 90, 30m, 12h or 7d")
    return found


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _configure_check(parser: CommandParser) -> None:
    parser.flag("--repair", help="mend what is damaged, and move what nobody knows to ROOT/quarantine")
    parser.flag(
        "--deep", "--contents", help="read the data of every file and of every blob too, which takes long"
    )
    parser.flag(
        "--from-registry",
        help="for a repair, get what is not here any more from the registries that the images' names say",
    )
    registry_options.add(parser)
    parser.flag("-v", "--verbose", help="name what stopped processes left behind, too")
    parser.flag("-q", "--quiet", help="show no progress")


def _check(context: Context, arguments: argparse.Namespace) -> int:
    if arguments.from_registry and not arguments.repair:
        raise UsageError("--from-registry is for a repair", hint="add --repair")
    with context.open_store(rebuild=arguments.repair) as store:
        found = store.check(
            repair=arguments.repair,
            contents=arguments.deep,
            registry=registry_options.read(arguments) if arguments.from_registry else None,
            progress=context.progress(quiet=arguments.quiet or not sys.stderr.isatty()),
        )
    if context.json:
        output.document(
            {
                "sound": found.sound,
                "blobs": found.blobs,
                "layers": found.layers,
                "files": found.files,
                "problems": [one._asdict() for one in found.problems],
                "notes": [one._asdict() for one in found.notes],
                "leftovers": [{**one._asdict(), "what": one.what} for one in found.leftovers],
            }
        )
        return 0 if found.sound else 1
    for problem in found.problems:
        done = f" (repaired: {problem.how})" if problem.repaired else ""
        output.line(output.words(f"{problem.kind} {problem.subject}: {problem.what}{done}"))
    for told in found.notes:
        output.line(output.words(f"{told.kind} {told.subject}: {told.what} (no damage)"))
    for one in found.leftovers if arguments.verbose else ():
        left = f"left behind: {one.kind} {one.name} ({output.size(one.bytes)}): {one.what}"
        output.line(output.words(left))
    _conclude(found, repair=arguments.repair)
    return 0 if found.sound else 1


def _conclude(found: Findings, *, repair: bool) -> None:
    left = [problem for problem in found.problems if not problem.repaired]
    problems = _counted(len(found.problems), "problem")
    counted = f"{problems}, {len(left)} left" if found.problems else "all sound"
    note(
        f"{_counted(found.blobs, 'blob')}, and {_counted(found.layers, 'layer')} with"
        f" {_counted(found.files, 'file')}, checked: {counted}"
    )
    if found.leftovers and not repair:
        left_behind = _counted(len(found.leftovers), "thing")
        note(f"stopped processes left {left_behind} behind, which `layerfs gc` removes")
    for hint in dict.fromkeys(one.hint for one in (*left, *found.notes) if one.hint):
        note(f"hint: {hint}")


def _configure_drivers(parser: CommandParser) -> None:
    """Take no arguments of its own."""


def _drivers(context: Context, arguments: argparse.Namespace) -> int:
    from layerfs import plugins

    context.become_root()
    # Asking must not make a store: the file system that would hold it is probed.
    root = context.root.absolute() / "drivers"
    found = plugins.explain(next(path for path in (root, *root.parents) if path.is_dir()))
    if context.json:
        output.document(
            [
                {
                    "name": one.name,
                    "works": one.works,
                    "reason": one.reason or None,
                    "note": one.note or None,
                    "hint": one.hint or None,
                }
                for one in found
            ]
        )
        return 0
    rows = [(one.name, "yes" if one.works else "no", one.reason or one.note) for one in found]
    output.table(["DRIVER", "WORKS", "WHY"], rows)
    for one in found:
        if one.hint:
            note(f"hint: {one.name}: {one.hint}")
    return 0


COMMANDS = {
    "gc": Command(
        description="""\
Images stay while they have a name or a container; layers while an image, a container or a mount needs
them; what was made a moment ago stays too.""",
        examples=["layerfs gc --dry-run --verbose", "layerfs gc --grace 0"],
        configure=_configure_gc,
        run=_gc,
    ),
    "check": Command(
        description="""\
Compares every blob with its digest, every layer with its table of contents, the database with both and with
the records beside it, and the recorded mounts with the kernel's. The exit status is 1 when something is wrong
and was not repaired.

Without --deep the data of files, and of layers' blobs larger than 4 MiB, is not read: sizes, times and all
attributes are compared. With --repair damaged layers are made anew from their blobs, and a database that is
lost or damaged from the records. Nothing is deleted: what is damaged or unknown is moved to ROOT/quarantine,
and stays there until you remove it. So are the logs of FUSE servers, which are told of until then; one that
only says which data of a lazy mount could not be fetched is no damage, and leaves the exit status alone.""",
        examples=["layerfs check", "layerfs check --repair", "layerfs check --deep --repair --from-registry"],
        configure=_configure_check,
        run=_check,
    ),
    "drivers": Command(
        description="""\
Each, best first, is tried on the file system of the store, and says what it lacks, or what serves it.""",
        examples=["layerfs drivers"],
        configure=_configure_drivers,
        run=_drivers,
    ),
}
