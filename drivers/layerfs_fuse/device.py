"""The kernel's end of a connection, /dev/fuse: requests read from it, answers written to it."""

from __future__ import annotations

import errno
import os
import select
import time
from typing import Final

from layerfs_fuse import protocol as p

_GONE: Final = (errno.ENODEV, errno.ECONNABORTED)
# ENOENT: the process that asked was killed before its request was read.
_AGAIN: Final = (errno.ENOENT, errno.EINTR)
_SPIN: Final = 100_000
"""Nanoseconds to look for the next request before going to sleep: waking takes longer than most answers."""


class Device:
    """An open /dev/fuse; its descriptor is made non-blocking."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.buffer = bytearray(p.BUFFER)
        os.set_blocking(descriptor, False)
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def receive(self) -> int:
        """Read the next request into `buffer` and give its length, 0 when the file system is unmounted."""
        buffers = [self.buffer]
        until = 0
        while True:
            try:
                return os.readv(self.descriptor, buffers)
            except BlockingIOError:
                now = time.monotonic_ns()
                if not until:
                    until = now + _SPIN
                elif now > until:
                    self._poll.poll()
            except OSError as error:
                if error.errno in _GONE:
                    return 0
                if error.errno not in _AGAIN:
                    raise

    def send(self, unique: int, answer: bytes, number: int = 0) -> None:
        """Answer a request, with an errno if it failed."""
        header = p.REPLY.pack(p.REPLY.size + len(answer), -number, unique)
        try:
            os.writev(self.descriptor, (header, answer))
        except OSError as error:
            # ENOENT: the process that asked has been killed.
            if error.errno not in (errno.ENOENT, *_GONE):
                raise
