"""The terminal of `run -t`: one of the container's own, with ours in raw mode passing bytes on."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import select
import socket
import struct
import termios
import tty
from collections.abc import Mapping
from typing import Any, Final

from layerfs import linux
from layerfs.files import write_all
from layerfs.runtime import mounts

# <asm-generic/ioctls.h>; the module termios has these only from Python 3.13 on.
_TIOCGPTN: Final = 0x80045430
_TIOCSPTLCK: Final = 0x40045431
_CHUNK: Final = 65536
_END_OF_INPUT: Final = b"\x04"
_INPUT: Final = 0
_OUTPUT: Final = 1


class Terminal:
    """One pseudoterminal, from before the fork on: the process makes it, and sends its master here.

    With `read_input`, what comes on our standard input goes to it; with `console` it is /dev/console too.
    """

    def __init__(self, *, read_input: bool, console: bool) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._size = _window_size()
        self._master = -1
        self._pending = bytearray()
        self._read_input = read_input
        self._console = console
        self._saved: list[Any] | None = None

    # The process's side.

    def leave_to_process(self) -> None:
        """Close, in the monitor, what only the process needs: else nobody would notice that it failed."""
        self._theirs.close()

    def take(self, uid: int) -> None:
        """Make a terminal in the container's devpts ours: controlling, and standard streams.

        Runs in the process, in its root, as leader of a session without a terminal.
        """
        master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        number = array.array("i", [0])
        fcntl.ioctl(master, _TIOCGPTN, number)
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        name = f"/dev/pts/{number[0]}"
        slave = os.open(name, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        os.fchown(slave, uid, -1)
        if self._size is not None:
            fcntl.ioctl(slave, termios.TIOCSWINSZ, self._size)
        if self._console:
            dev = os.open("/dev", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            mounts.put(mounts.clone(linux.AT_FDCWD, name), dev, "console")
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        socket.send_fds(self._theirs, [b"t"], [master])
        for stream in (0, 1, 2):
            os.dup2(slave, stream)

    # The caller's side.

    def receive(self) -> None:
        """Wait for the master; there is none when the process could not be started."""
        self._theirs.close()
        _, descriptors, _, _ = socket.recv_fds(self._ours, 1, 1)
        if not descriptors:
            return
        self._master = descriptors[0]
        os.set_inheritable(self._master, False)
        os.set_blocking(self._master, False)
        if self._read_input and os.isatty(_INPUT):
            self._saved = termios.tcgetattr(_INPUT)
            tty.setraw(_INPUT)

    def resize(self) -> None:
        """Give the container's terminal the size of ours; the kernel tells its foreground processes."""
        size = _window_size()
        if size is not None and self._master >= 0:
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def register(self, poller: select.poll) -> None:
        """Say what we wait for now."""
        if self._master >= 0:
            poller.register(self._master, select.POLLIN | (select.POLLOUT if self._pending else 0))
        if self._read_input and len(self._pending) < _CHUNK:
            poller.register(_INPUT, select.POLLIN)

    def pass_on(self, ready: Mapping[int, int]) -> None:
        """Move bytes both ways, as far as that goes without waiting for the container."""
        if _INPUT in ready and self._read_input:
            data = os.read(_INPUT, _CHUNK)
            self._pending += data or _END_OF_INPUT
            if not data:
                self._read_input = False
        if self._master >= 0 and ready.get(self._master):
            self._write_pending()
            self._copy_output()

    def drain(self) -> None:
        """Show what the container wrote last."""
        while self._master >= 0 and self._copy_output():
            pass

    def close(self) -> None:
        """Put our terminal back as it was."""
        if self._saved is not None:
            termios.tcsetattr(_INPUT, termios.TCSAFLUSH, self._saved)
            self._saved = None
        self._close_master()
        self._ours.close()
        self._theirs.close()

    def _write_pending(self) -> None:
        try:
            while self._pending:
                del self._pending[: os.write(self._master, self._pending)]
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self._pending.clear()

    def _copy_output(self) -> bool:
        """Copy one piece; False when there is none now, or no more at all."""
        try:
            data = os.read(self._master, _CHUNK)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EIO:  # EIO: nobody has the terminal open any more
                raise
            data = b""
        if not data:
            self._close_master()
            return False
        write_all(_OUTPUT, data)
        return True

    def _close_master(self) -> None:
        if self._master >= 0:
            os.close(self._master)
            self._master = -1


def _window_size() -> bytes | None:
    for stream in (0, 1, 2):
        try:
            return fcntl.ioctl(stream, termios.TIOCGWINSZ, b"\0" * 8)
        except OSError as error:
            if error.errno not in (errno.ENOTTY, errno.EBADF, errno.EINVAL):
                raise
    return None
