"""Brings a file system's data to disk while other work goes on, so that little is left at the end."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from layerfs import linux

# Each sync ends a transaction of the file system, which whoever makes files then waits for.
_SECONDS_BETWEEN: Final = 0.2


class Flusher:
    """Syncs the file systems that hold some directories again and again until it is left; a context manager.

    With `once`, it does so by itself only when `begin` is called. The descriptors are opened before anything
    is written: syncfs(2) tells an error of writing back only to those who had one open when it happened.
    """

    def __init__(self, *directories: Path, once: bool = False) -> None:
        self._descriptors: dict[int, int] = {}
        for directory in directories:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            if self._descriptors.setdefault(os.fstat(descriptor).st_dev, descriptor) != descriptor:
                os.close(descriptor)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._error: OSError | None = None
        self._thread: threading.Thread | None = None
        if not once:
            self._begin(self._run)

    def begin(self) -> None:
        """Begin to sync once, while other work goes on."""
        self._begin(self._sync_quietly)

    def _begin(self, run: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=run, name="layerfs-flusher", daemon=True)
        self._thread.start()

    def _sync_quietly(self) -> None:
        # Whoever relies on the data is told by `sync`.
        with contextlib.suppress(OSError):
            self.sync()

    def _run(self) -> None:
        while not self._stop.wait(_SECONDS_BETWEEN):
            try:
                self.sync()
            except OSError:
                return

    def sync(self) -> None:
        """Sync once; all that was written before this call is on disk when it returns.

        Raises:
            OSError: something could not be written since this was made.
        """
        with self._lock:
            try:
                for descriptor in self._descriptors.values():
                    linux.syncfs(descriptor)
            except OSError as error:
                # Told once only, so it is kept for whoever relies on the data.
                self._error = error
            if self._error is not None:
                raise self._error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        for descriptor in self._descriptors.values():
            os.close(descriptor)
