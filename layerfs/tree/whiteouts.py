"""How a hidden name and an opaque directory are written down, in each of the formats that drivers keep.

The formats: OCI's and aufs's ``.wh.`` files (image-spec layer.md, "Whiteouts"; aufs(5)), and
overlayfs's character devices 0:0 and opaque xattr (kernel documentation, filesystems/overlayfs.rst,
"whiteouts and opaque directories").
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from typing import Final, Protocol

from layerfs.tree.names import LONGEST_PART

PREFIX: Final = b".wh."
OPAQUE: Final = b".wh..wh..opq"
AUFS_PREFIX: Final = b".wh..wh."
# Names of aufs's own are in no layer's tree, so that nothing can be mistaken for one of these.
_MARKER: Final = os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_LONG: Final = b".wh..wh.long."


class WhiteoutFormat(Protocol):
    """Writes and reads whiteouts relative to an open directory."""

    def hide(self, directory: int, name: bytes) -> None:
        """Hide `name` of the layers below; nothing of that name stands in the directory."""

    def unhide(self, directory: int, name: bytes) -> None:
        """Take a whiteout away again."""

    def hides(self, directory: int, name: bytes) -> bool:
        """Say whether `name` is hidden by a whiteout in this directory."""

    def hidden(self, directory: int, marker: bytes) -> bytes | None:
        """Give the name that the file `marker` of this directory hides, None when it is no whiteout."""

    def make_opaque(self, directory: int) -> None:
        """Hide everything that the layers below have in this directory; idempotent."""

    def make_transparent(self, directory: int) -> None:
        """Undo `make_opaque`; the directory is opaque."""

    def is_opaque(self, directory: int) -> bool:
        """Say whether the directory hides everything below."""


class AufsWhiteouts:
    """``.wh.NAME`` files and ``.wh..wh..opq``: needs no privilege and no xattrs.

    A tree in this format can hold every name but those that begin with ``.wh.``. A name too long to have
    ``.wh.`` before it stands inside a file named after its digest.
    """

    def hide(self, directory: int, name: bytes) -> None:
        marker = aufs_marker(name)
        file = os.open(marker, _MARKER, 0o600, dir_fd=directory)
        try:
            if marker.startswith(_LONG):
                os.pwrite(file, name, 0)
        finally:
            os.close(file)

    def unhide(self, directory: int, name: bytes) -> None:
        os.unlink(aufs_marker(name), dir_fd=directory)

    def hides(self, directory: int, name: bytes) -> bool:
        return _lstat(directory, aufs_marker(name)) is not None

    def hidden(self, directory: int, marker: bytes) -> bytes | None:
        if not marker.startswith(_LONG):
            own = marker.startswith(AUFS_PREFIX) or not marker.startswith(PREFIX)
            return None if own else marker[len(PREFIX) :]
        name = _content(directory, marker)
        return name if aufs_marker(name) == marker else None

    def make_opaque(self, directory: int) -> None:
        os.close(os.open(OPAQUE, _MARKER, 0o600, dir_fd=directory))

    def make_transparent(self, directory: int) -> None:
        os.unlink(OPAQUE, dir_fd=directory)

    def is_opaque(self, directory: int) -> bool:
        return _lstat(directory, OPAQUE) is not None


class OverlayWhiteouts:
    """Character devices 0:0, and ``trusted.overlay.opaque`` or, in user namespaces, ``user.``."""

    def __init__(self, *, user: bool) -> None:
        self.xattr_prefix = "user.overlay." if user else "trusted.overlay."
        self._opaque = self.xattr_prefix + "opaque"

    def hide(self, directory: int, name: bytes) -> None:
        os.mknod(name, stat.S_IFCHR, 0, dir_fd=directory)

    def unhide(self, directory: int, name: bytes) -> None:
        os.unlink(name, dir_fd=directory)

    def hides(self, directory: int, name: bytes) -> bool:
        found = _lstat(directory, name)
        return found is not None and is_overlay_whiteout(found)

    def hidden(self, directory: int, marker: bytes) -> bytes | None:
        return marker if self.hides(directory, marker) else None

    def make_opaque(self, directory: int) -> None:
        os.setxattr(directory, self._opaque, b"y")

    def make_transparent(self, directory: int) -> None:
        os.removexattr(directory, self._opaque)

    def is_opaque(self, directory: int) -> bool:
        try:
            return os.getxattr(directory, self._opaque) == b"y"
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.ENOTSUP):
                return False
            raise


def aufs_marker(name: bytes) -> bytes:
    """Give the name of the file that hides a name in aufs's format."""
    if len(PREFIX) + len(name) <= LONGEST_PART:
        return PREFIX + name
    return _LONG + hashlib.sha256(name).hexdigest().encode()


def is_overlay_whiteout(found: os.stat_result) -> bool:
    """Say whether this is overlayfs's character device 0:0."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _content(directory: int, name: bytes) -> bytes:
    """Read the beginning of a regular file, whatever may stand there in its stead: that is empty."""
    found = _lstat(directory, name)
    if found is None or not stat.S_ISREG(found.st_mode):
        return b""
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(file, LONGEST_PART)
    finally:
        os.close(file)


def _lstat(directory: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
