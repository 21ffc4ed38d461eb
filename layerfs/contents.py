"""Table-of-contents entries from a layer's changes, for layers that did not come from a tar stream."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable

from layerfs.tree.change import Change, ChangeKind
from layerfs.tree.entry import Entry, Kind
from layerfs.tree.segments import data_segments
from layerfs.tree.whiteouts import PREFIX

_CHUNK = 1 << 20


def record(changes: Iterable[Change], add: Callable[[Entry, str | None], None]) -> None:
    """Tell `add` each entry that a change leaves, deletions under their OCI names, with a file's SHA-256."""
    for change in changes:
        entry = change.entry
        if change.kind is ChangeKind.DELETED:
            parent, slash, name = entry.path.rpartition(b"/")
            add(Entry(parent + slash + PREFIX + name, Kind.FILE), None)
        elif entry.kind is Kind.FILE:
            file = os.open(
                change.name,
                os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
                dir_fd=change.directory,
            )
            try:
                segments = data_segments(file, entry.size)
                add(entry._replace(segments=segments), digest_of_data(file, entry.size, segments))
            finally:
                os.close(file)
        else:
            add(entry, None)


def digest_of_data(file: int, size: int, segments: tuple[tuple[int, int], ...] | None) -> str:
    """Hash a file's data as tables of contents do: SHA-256 in hex, holes left out."""
    hasher = hashlib.sha256()
    for offset, length in ((0, size),) if segments is None else segments:
        end = offset + length
        while offset < end and (data := os.pread(file, min(_CHUNK, end - offset), offset)):
            hasher.update(data)
            offset += len(data)
    return hasher.hexdigest()
