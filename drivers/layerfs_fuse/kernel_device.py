"""/dev/fuse as a file: opened, or refused with advice."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Final

from layerfs.errors import MountError

_DEVICE: Final = "/dev/fuse"
_HINTS: Final = {
    errno.ENOENT: "try `modprobe fuse`; a container must be given the device",
    errno.ENXIO: "try `modprobe fuse`",
    errno.ENODEV: "try `modprobe fuse`",
    errno.EACCES: f"`chmod 666 {_DEVICE}`, as udev does where fuse3 is installed",
    errno.EPERM: "a container must be given the device",
}


@contextlib.contextmanager
def opened_device() -> Iterator[int]:
    """Open the device for the length of a block and give its descriptor.

    Raises:
        MountError: it cannot be opened.
    """
    try:
        device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise MountError(
            f"cannot open {_DEVICE}: {error.strerror}", errno=error.errno, hint=_HINTS.get(error.errno or 0)
        ) from error
    try:
        yield device
    finally:
        os.close(device)
