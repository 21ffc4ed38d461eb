"""Entries as an archive or an index names them, brought into the form that trees have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from layerfs.errors import LayerError
from layerfs.tree.entry import Entry, Kind
from layerfs.tree.names import split
from layerfs.tree.whiteouts import AUFS_PREFIX, OPAQUE, PREFIX

_LONGEST_TARGET: Final = 4095  # PATH_MAX of <linux/limits.h>, and its NUL


def normalised(entry: Entry, warn: Callable[[str], None]) -> Entry | None:
    """Normalise an entry's path and a hard link's target; None for what no tree shows (aufs's own files).

    Raises:
        LayerError: no tree can hold the entry (as `tree.extract` has it).
    """
    parts = split(entry.path, strict=False, warn=warn)
    if entry.kind is Kind.CHARACTER and entry.device == (0, 0):
        raise LayerError("a character device 0:0 would hide files of older layers", entry=entry.path)
    if len(entry.target) > _LONGEST_TARGET:
        raise LayerError(f"a link to more than {_LONGEST_TARGET} bytes", entry=entry.path)
    if not parts and entry.kind is not Kind.DIRECTORY:
        raise LayerError("the root of a layer must be a directory", entry=entry.path)
    if b".wh." in entry.path:
        reserved = next((place for place, part in enumerate(parts) if part.startswith(PREFIX)), len(parts))
        if reserved < len(parts) - 1:
            return None
        if reserved < len(parts) and parts[reserved].startswith(AUFS_PREFIX) and parts[reserved] != OPAQUE:
            return None
    target = entry.target
    if entry.kind is Kind.HARDLINK:
        target = b"/".join(split(target, strict=False, warn=warn))
    path = b"/".join(parts)
    if path == entry.path and target == entry.target:
        return entry
    return entry._replace(path=path, target=target)
