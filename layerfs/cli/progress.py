"""Shows long work on stderr: bars with rates on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from layerfs.cli.output import size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerfs.progress import Progress


class Lines:
    """One line when a task ends, with its amount and rate: for logs and pipes."""

    @contextlib.contextmanager
    def task(self, label: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Count the task's bytes, and say at its end how many and how fast."""
        done = 0
        started = time.monotonic()

        def advance(count: int) -> None:
            nonlocal done
            done += count

        yield advance
        seconds = max(time.monotonic() - started, 1e-9)
        sys.stderr.write(f"{label}: {size(done)} in {seconds:.1f} s, {size(done / seconds)}/s\n")
        sys.stderr.flush()


class Bars:
    """A bar for each task under way, with rate and time left; rich is loaded when the first is drawn."""

    def __init__(self) -> None:
        self._active = 0
        self._progress: object = None

    @contextlib.contextmanager
    def task(self, label: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Draw the task's bar until it ends."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        progress = self._progress
        if not isinstance(progress, Progress):
            progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._progress = progress
        if self._active == 0:
            progress.start()
        self._active += 1
        drawn = progress.add_task(label, total=total)
        try:
            yield lambda count: progress.advance(drawn, count)
            if total is None:
                progress.update(drawn, total=progress.tasks[progress.task_ids.index(drawn)].completed)
        finally:
            self._active -= 1
            if self._active == 0:
                progress.stop()
                self._progress = None


def choose(*, quiet: bool) -> Progress:
    """Pick how this run shows its progress."""
    if quiet:
        from layerfs.progress import Silent

        return Silent()
    if sys.stderr.isatty():
        return Bars()
    return Lines()
