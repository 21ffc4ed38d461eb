"""`python -m tests.reliability CAMPAIGN`: run one, print its table, and keep that in a page with --markdown.

A campaign is a module of this package with `HELP`, `add_arguments(parser)` and `run(arguments, tell)`, which
gives a Section; `tell` writes a line of progress.
"""

import argparse
import importlib
import pkgutil
import sys
from pathlib import Path

import tests.reliability
from tests.reliability import report


def main() -> int:
    """Do what the command line says and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.reliability", description="Long campaigns against the store."
    )
    commands = parser.add_subparsers(dest="campaign", required=True)
    campaigns = {}
    for found in pkgutil.iter_modules(tests.reliability.__path__):
        if found.name == "__main__":
            continue
        module = importlib.import_module(f"tests.reliability.{found.name}")
        if hasattr(module, "run"):
            command = commands.add_parser(found.name, help=module.HELP)
            command.add_argument("--markdown", type=Path, metavar="PAGE", help="keep the table there, too")
            module.add_arguments(command)
            campaigns[found.name] = module
    arguments = parser.parse_args()
    section = campaigns[arguments.campaign].run(arguments, _tell)
    sys.stdout.write(section.markdown())
    if arguments.markdown:
        report.write(section, arguments.markdown)
    return 0


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
