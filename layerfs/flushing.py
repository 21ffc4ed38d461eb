"""Brings a file system's data to disk while it is still being written, so that little is left at the end."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final, Self

from layerfs import linux

_SECONDS_BETWEEN: Final = 0.2


class Flusher:
    """Syncs the file system that holds a directory again and again until `finish`; a context manager.

    The descriptor is opened before anything is written: syncfs(2) tells an error of writing back only
    to those who had one open when it happened.
    """

    def __init__(self, directory: Path) -> None:
        self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._stop = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="layerfs-flusher", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(_SECONDS_BETWEEN):
            try:
                linux.syncfs(self._descriptor)
            except OSError as error:
                # Told once only, so it is kept for whoever relies on the data.
                self._error = error
                return

    def finish(self) -> None:
        """Sync once more; all that was written before this call is on disk when it returns.

        Raises:
            OSError: something could not be written since this was made.
        """
        self._end()
        if self._error is not None:
            raise self._error
        linux.syncfs(self._descriptor)

    def _end(self) -> None:
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        os.close(self._descriptor)
