"""The command line: the only place that prints, exits or reads the environment."""

import gc
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

# New objects before Python looks for garbage. Modules being imported make none, however often it looks.
_COLLECT_AFTER = 100_000


def command() -> "NoReturn":
    """Run the command line of this process and end it: what the script `layerfs` calls.

    All is written and closed when `main` returns. Python would go on to free every object one by one, which
    takes half as long as it takes to start.
    """
    gc.set_threshold(_COLLECT_AFTER)
    os._exit(main())


def main(arguments: "Sequence[str] | None" = None) -> int:
    """Run one command line (`sys.argv` when None is given) and return its exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if None in (sys.stdin, sys.stdout, sys.stderr):
        _open_streams()
    # The version is asked for by scripts on every start; it must not wait for argparse.
    if words == ["--version"]:
        from layerfs import __version__

        try:
            sys.stdout.write(f"layerfs {__version__}\n")
            sys.stdout.flush()
            return 0
        except OSError:
            pass  # it fails again below, where failures are told
    from layerfs.cli.invocation import invoke

    return invoke(words)


def _open_streams() -> None:
    """Occupy the numbers of standard streams that were closed, before a file of the store gets them.

    What wants to read or to write there fails as on the closed ones: the modes are the wrong way round.
    """
    for descriptor, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDWR)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
