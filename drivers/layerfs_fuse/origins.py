"""From which lower file an upper one was copied: what keeps its inode number over copy-up and remount.

The kernel's overlayfs keeps a file handle in the xattr ``origin`` (struct ovl_fb of its sources); the
same is written and read here. Of a lower file with several names overlayfs wants an index besides, and
answers EIO where it misses it: for those the handle stands in an xattr of our own, which it ignores.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Container
from struct import Struct, error
from typing import Final

from layerfs import linux
from layerfs_fuse.places import Layers

_ORIGIN: Final = b"origin"
_ORIGIN_OF_LINKS: Final = b"layerfs.origin"
# Version, magic, length of the whole, flags, type of the handle, UUID of the file system; the handle follows.
_HEADER: Final = Struct("=BBBBB16s")
_MAGIC: Final = 0xFB
_NATIVE: Final = 0 if sys.byteorder == "little" else 1
_NO_UUID: Final = bytes(16)


class Origins:
    """Writes and follows file handles of the lower layers."""

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self._uuids: dict[int, bytes] = {}
        self._devices: dict[bytes, int] = {}
        # A directory of each file system, by which its handles are opened.
        self._roots: dict[bytes, int] = {}
        for root in layers.roots[1:]:
            uuid = _uuid(root.open())
            device = os.fstat(root.open()).st_dev
            self._uuids.setdefault(device, uuid)
            if self._devices.setdefault(uuid, device) == device:
                self._roots.setdefault(uuid, root.open())
            else:  # handles do not tell these file systems apart
                self._roots[uuid] = -1

    def record(self, above: int, name: bytes, found: os.stat_result) -> tuple[bytes, bytes] | None:
        """Give name and value of the xattr for a copy of a lower file; None where there are no handles."""
        try:
            kind, handle = linux.name_to_handle_at(above, name)
        except OSError:
            return None
        uuid = self._uuids.get(found.st_dev, _NO_UUID)
        several = found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode)
        header = _HEADER.pack(0, _MAGIC, _HEADER.size + len(handle), _NATIVE, kind, uuid)
        mark = self._layers.dialect.mark(_ORIGIN_OF_LINKS if several else _ORIGIN)
        return None if mark is None else (mark, header + handle)

    def number(self, path: bytes, marks: Container[str]) -> int | None:
        """Give the inode number of the file that a copy was made from, None when it cannot be told.

        Args:
            path: the copy.
            marks: the names of its extended attributes.
        """
        for key in (_ORIGIN, _ORIGIN_OF_LINKS):
            mark = self._layers.dialect.mark(key)
            if mark is not None and mark.decode() in marks:
                return self._decoded(os.getxattr(path, mark, follow_symlinks=False))
        return None

    def _decoded(self, value: bytes) -> int | None:
        try:
            _, magic, size, flags, kind, uuid = _HEADER.unpack_from(value)
        except error:
            return None
        root = self._roots.get(uuid, -1)
        if magic != _MAGIC or size != len(value) or flags != _NATIVE or root < 0:
            return None
        try:
            descriptor = linux.open_by_handle_at(root, kind, value[_HEADER.size :], os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return self._layers.number(os.fstat(descriptor))
        finally:
            os.close(descriptor)


def _uuid(descriptor: int) -> bytes:
    try:
        return linux.file_system_uuid(descriptor)
    except OSError:
        return _NO_UUID
