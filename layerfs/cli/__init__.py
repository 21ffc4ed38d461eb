"""The command line: the only place that prints, exits or reads the environment."""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: "Sequence[str] | None" = None) -> int:
    """Run one command line (`sys.argv` when None is given) and return its exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    # The version is asked for by scripts on every start; it must not wait for argparse.
    if words == ["--version"]:
        from layerfs import __version__

        sys.stdout.write(f"layerfs {__version__}\n")
        return 0
    from layerfs.cli.invocation import invoke

    return invoke(words)
