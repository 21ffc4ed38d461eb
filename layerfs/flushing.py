"""Brings a file system's data to disk while it is still being written, so that little is left at the end."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final, Self

from layerfs import linux

# Each sync ends a transaction of the file system, which whoever makes files then waits for.
_SECONDS_BETWEEN: Final = 0.2


class Flusher:
    """Syncs the file systems that hold some directories again and again until it is left; a context manager.

    The descriptors are opened before anything is written: syncfs(2) tells an error of writing back only
    to those who had one open when it happened.
    """

    def __init__(self, *directories: Path) -> None:
        self._descriptors: dict[int, int] = {}
        for directory in directories:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            if self._descriptors.setdefault(os.fstat(descriptor).st_dev, descriptor) != descriptor:
                os.close(descriptor)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="layerfs-flusher", daemon=True)
        self._thread.start()

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
        self._thread.join()
        for descriptor in self._descriptors.values():
            os.close(descriptor)
