"""Calls that may take long, made in threads beside the server, which goes on serving others meanwhile.

They need nothing of the union but open files: data written to the disk, copied, allocated.
"""

from __future__ import annotations

import errno
import os
import queue
import threading
from collections.abc import Callable
from typing import Final

from layerfs_fuse.device import Device

_MOST: Final = 8

Call = Callable[..., bytes | None]


class Aside:
    """Threads that make calls; none runs before the first call comes."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads = 0

    def run(self, call: Callable[[], None]) -> None:
        """Make a call that raises nothing."""
        self._calls.put(call)
        if not self._idle.acquire(blocking=False) and self._threads < _MOST:
            self._threads += 1
            threading.Thread(target=self._work, daemon=True).start()

    def answer(self, unique: int, call: Call, *descriptors: int) -> None:
        """Answer a request with what `call` gives for copies of open files."""
        copies = tuple(map(os.dup, descriptors))

        def answered() -> None:
            number, answer = errno.EIO, b""
            try:
                answer, number = call(*copies) or b"", 0
            except OSError as error:
                number = error.errno or errno.EIO
            finally:
                for copy in copies:
                    os.close(copy)
                self._device.send(unique, answer, number)

        self.run(answered)

    def _work(self) -> None:
        while True:
            self._calls.get()()
            self._idle.release()
