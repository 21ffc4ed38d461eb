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

_MOST: Final = 4

Call = Callable[..., bytes | None]


class Aside:
    """Threads that make calls and answer them; none runs before the first call comes."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._calls: queue.SimpleQueue[tuple[int, Call, tuple[int, ...]]] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads = 0

    def answer(self, unique: int, call: Call, *descriptors: int) -> None:
        """Answer a request with what `call` gives for copies of open files."""
        self._calls.put((unique, call, tuple(map(os.dup, descriptors))))
        if not self._idle.acquire(blocking=False) and self._threads < _MOST:
            self._threads += 1
            threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            unique, call, descriptors = self._calls.get()
            number, answer = errno.EIO, b""
            try:
                answer, number = call(*descriptors) or b"", 0
            except OSError as error:
                number = error.errno or errno.EIO
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
                self._device.send(unique, answer, number)
            self._idle.release()
