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
    """An open /dev/fuse; its descriptor is made non-blocking.

    Long answers are made in place: `room` is where, and what is answered is a slice of it from its
    beginning on.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.buffer = bytearray(p.BUFFER)
        self.answer = bytearray(p.BUFFER)
        self._whole = memoryview(self.answer)
        self.room = self._whole[p.REPLY.size :]
        os.set_blocking(descriptor, False)
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def receive(self) -> int:
        """Read the next request into `buffer` and give its length, 0 when the file system is unmounted."""
        buffers = (self.buffer,)
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
                # Whoever was answered just now may wait for this very processor.
                os.sched_yield()
            except OSError as error:
                if error.errno in _GONE:
                    return 0
                if error.errno not in _AGAIN:
                    raise

    def send(self, unique: int, answer: bytes, number: int = 0) -> None:
        """Answer a request, with an errno if it failed."""
        self._write(p.REPLY.pack(p.REPLY.size + len(answer), -number, unique) + answer)

    def send_room(self, unique: int, length: int) -> None:
        """Answer a request with the first bytes of `room`."""
        length += p.REPLY.size
        p.REPLY.pack_into(self.answer, 0, length, 0, unique)
        self._write(self._whole[:length])

    def _write(self, message: bytes | memoryview) -> None:
        try:
            os.write(self.descriptor, message)
        except OSError as error:
            # ENOENT: the process that asked has been killed.
            if error.errno not in (errno.ENOENT, *_GONE):
                raise
