"""What every command is given: the global options, the environment's part in them, and the store."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from layerfs.cli import output, progress
from layerfs.errors import InvalidError, LayerfsError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerfs.outside import Outside
    from layerfs.progress import Progress
    from layerfs.registry.settings import Options
    from layerfs.store import Store
    from layerfs.tree.budget import Budget

Result = TypeVar("Result")


class Context:
    """The global options of one command line; options win over LAYERFS_ROOT and its like."""

    def __init__(self, given: argparse.Namespace) -> None:
        root = given.root or os.environ.get("LAYERFS_ROOT")
        self.root = Path(root) if root else default_root()
        self.driver: str | None = given.driver or os.environ.get("LAYERFS_DRIVER") or None
        # Asked for now: in the user namespace that `become_root` enters everyone is root.
        self.rootless = os.geteuid() != 0
        # Where an ordinary user sees what is mounted.
        self.outside: Outside | None = None
        self.budget = read_budget(given.budget or os.environ.get("LAYERFS_BUDGET", ""))
        self.json: bool = given.json
        self.debug: bool = given.debug
        if front := os.environ.get("LAYERFS_FUSE_FRONT"):
            serve_fuse_through(front)

    def open_store(
        self,
        *,
        here: bool = False,
        beside: int | None = None,
        squash_owners: bool = False,
        rebuild: bool = False,
    ) -> Store:
        """Open the store, in a user namespace of our own when we are not root; the caller closes it.

        Args:
            here: an ordinary user's mounts are made in that namespace, where only we see them.
            beside: a process (pidfd_open(2)) whose user namespace is entered instead of a new one.
            squash_owners: as `Store.open` has it.
            rebuild: make a database that is lost anew.
        """
        from layerfs.store import Store

        self.become_root(beside=beside)
        return Store.open(
            self.root,
            driver=self.driver,
            budget=self.budget,
            warn=warn,
            outside=None if here else self.outside,
            registry=registry_options,
            squash_owners=squash_owners,
            rebuild=rebuild,
        )

    def ask_store(self, work: Callable[[Store], Result]) -> Result:
        """Ask the store something, and stay where we are; what is answered can be pickled.

        An ordinary user's container lives in a user namespace of its own. It can be reached from outside,
        but not from the one beside it in which the store is opened: so that is entered by a child.
        """

        def ask(*_: object) -> Result:
            with self.open_store() as store:
                return work(store)

        if not self.rootless:
            return ask()
        from layerfs.worker import Worker

        worker: Worker[Result] = Worker(ask, hear=lambda message: None, keep=())
        try:
            while worker.running:
                worker.listen()
            return worker.result()
        finally:
            worker.end()

    @contextlib.contextmanager
    def open_store_beside(self, container: str) -> Iterator[Store]:
        """Open the store for the length of a block, beside this container's processes if it runs."""
        with contextlib.ExitStack() as stack:
            process = None
            if self.rootless:
                owner = self.ask_store(lambda store: store.containers.process_of(container))
                if owner is not None:
                    from layerfs import signals

                    process = stack.enter_context(signals.opened(owner))
            yield stack.enter_context(self.open_store(beside=process))

    def become_root(self, *, beside: int | None = None) -> None:
        """Enter a user namespace in which we own what a store needs; nothing to do for root.

        With `beside`, a process, it is that of the process.
        """
        if os.geteuid() != 0:
            from layerfs.outside import Outside
            from layerfs.runtime import userns

            outside = Outside()
            if beside is None:
                userns.enter(warn=warn)
            else:
                userns.join(beside)
            self.outside = outside

    def each(self, names: Sequence[str], action: Callable[[str], None]) -> int:
        """Do `action` for every name, tell each failure, and return the exit status."""
        status = 0
        for name in names:
            try:
                action(name)
            except LayerfsError as error:
                complain(error)
                status = 1
        return status

    def progress(self, *, quiet: bool = False) -> Progress:
        """Pick how long work is shown: rows on a terminal, lines elsewhere, nothing when quiet."""
        return progress.choose(quiet=quiet)


def registry_options() -> Options:
    """Say how registries are spoken with where no command line says more."""
    from layerfs.registry.settings import Options

    return Options(environment=dict(os.environ))


def serve_fuse_through(front: str) -> None:
    """Have the driver fuse speak with the kernel in another way than is usual on this system."""
    from layerfs import plugins
    from layerfs.cli.parser import UsageError

    if front not in ("kernel", "fusepy"):
        raise UsageError(
            f"LAYERFS_FUSE_FRONT is {front!r}", hint="set it to kernel or fusepy, or leave it unset"
        )
    driver: Any = plugins.find("fuse").load()
    driver.front = front


def read_budget(text: str) -> Budget:
    """Say what a stranger's layer may ask for: what is not in the text is at its default."""
    from layerfs.tree.budget import DEFAULT_BUDGET, Budget

    if not text:
        return DEFAULT_BUDGET
    try:
        return Budget.parse(text)
    except InvalidError as error:
        from layerfs.cli.parser import UsageError

        raise UsageError(f"--budget: {error}", hint=error.hint or "") from None


def default_root() -> Path:
    """Say where the store lies when nobody said: DESIGN.md section 3."""
    if os.geteuid() == 0:
        return Path("/var/lib/layerfs")
    data = os.environ.get("XDG_DATA_HOME")
    return Path(data) / "layerfs" if data else Path.home() / ".local/share/layerfs"


def complain(error: LayerfsError, where: str = "") -> None:
    """Tell an error of one thing of several, of which `where` says which."""
    sys.stdout.flush()
    lines = [f"layerfs: {where}{error}", *([f"hint: {error.hint}"] if error.hint else [])]
    sys.stderr.write("".join(f"{output.words(line)}\n" for line in lines))


def warn(message: str) -> None:
    """Tell the user something that is no failure."""
    sys.stdout.flush()
    sys.stderr.write(f"warning: {output.words(message)}\n")
    sys.stderr.flush()


def note(message: str) -> None:
    """Tell the user how it went, on stderr, where it is no data."""
    sys.stdout.flush()
    sys.stderr.write(f"{output.words(message)}\n")
    sys.stderr.flush()
