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
_DELAY: Final = 20_000
"""Nanoseconds of one look above which another process must have run in between."""
_MOST_PATIENCE: Final = 63
"""How many times at most to go to sleep at once after looking was of no use."""

RUNG: Final = -1


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
        self._patience = self._sleeps = 0
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self._poll.register(self._bell, select.POLLIN)

    def ring(self) -> None:
        """Let `receive` return, from another thread."""
        os.eventfd_write(self._bell, 1)

    def receive(self) -> int:
        """Read the next request into `buffer` and give its length.

        It is 0 when the file system is unmounted, `RUNG` when there is none but `ring` was called.
        """
        buffers = (self.buffer,)
        while True:
            try:
                return os.readv(self.descriptor, buffers)
            except BlockingIOError:
                if self._wait():
                    return RUNG
            except OSError as error:
                if error.errno in _GONE:
                    return 0
                if error.errno not in _AGAIN:
                    raise

    def _wait(self) -> bool:
        """Wait for a request, awake at first; says whether `ring` was called.

        Where processors are scarce this only takes time from whoever is to make the request, and who
        does not sleep is served last: then it is left off for a while.
        """
        if self._sleeps:
            self._sleeps -= 1
        else:
            before = time.monotonic_ns()
            until = before + _SPIN
            while True:
                # Whoever was answered just now may wait for this very processor.
                os.sched_yield()
                if ready := self._poll.poll(0):
                    self._patience >>= 1
                    return self._is_rung(ready)
                now = time.monotonic_ns()
                if now > until or now - before > _DELAY:
                    break
                before = now
            self._patience = min(2 * self._patience + 1, _MOST_PATIENCE)
            self._sleeps = self._patience
        return self._is_rung(self._poll.poll())

    def _is_rung(self, ready: list[tuple[int, int]]) -> bool:
        for descriptor, _ in ready:
            if descriptor == self._bell:
                os.eventfd_read(self._bell)
                return True
        return False

    def send(self, unique: int, answer: bytes, number: int = 0) -> None:
        """Answer a request, with an errno if it failed."""
        self._write(p.REPLY.pack(p.REPLY.size + len(answer), -number, unique) + answer)

    def send_room(self, unique: int, length: int) -> None:
        """Answer a request with the first bytes of `room`."""
        length += p.REPLY.size
        p.REPLY.pack_into(self.answer, 0, length, 0, unique)
        self._write(self._whole[:length])

    def notify(self, code: int, body: bytes) -> bool:
        """Tell the kernel something unasked; False when it does not know what is told."""
        try:
            os.write(self.descriptor, p.REPLY.pack(p.REPLY.size + len(body), code, 0) + body)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT, *_GONE):
                raise
            return False
        return True

    def _write(self, message: bytes | memoryview) -> None:
        try:
            os.write(self.descriptor, message)
        except OSError as error:
            # ENOENT: the process that asked has been killed.
            if error.errno not in (errno.ENOENT, *_GONE):
                raise
