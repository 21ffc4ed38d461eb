"""Write changes as a layer: the tar stream of image-spec layer.md ("Representing Changes").

The same changes give the same bytes: order, numbers and padding depend on nothing else.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from layerfs.errors import LayerError, printable
from layerfs.tree.change import Change, ChangeKind
from layerfs.tree.entry import Entry, Kind
from layerfs.tree.segments import data_segments
from layerfs.tree.tar_writer import TarWriter
from layerfs.tree.whiteouts import PREFIX

_CHUNK: Final = 1 << 20


def write_layer(
    changes: Iterable[Change], write: Callable[[bytes], object], *, warn: Callable[[str], None]
) -> None:
    """Write a layer's uncompressed tar stream.

    Sockets are left out with a warning: tar cannot hold them, and docker leaves them out too.

    Args:
        changes: in the order of `tree.diff`; each is read before the next is asked for.
        write: takes the stream piece by piece.
        warn: told what was left out.

    Raises:
        LayerError: a file cannot be stored in a layer, or changed while it was read.
    """
    writer = TarWriter(write)
    for change in changes:
        path = change.entry.path
        parent, _, name = path.rpartition(b"/")
        if change.kind is ChangeKind.DELETED:
            whiteout = PREFIX + name
            writer.add(Entry(parent + b"/" + whiteout if parent else whiteout, Kind.FILE))
            continue
        if name.startswith(PREFIX):
            raise LayerError(
                "a name that begins with '.wh.' would act as a deletion",
                entry=path,
                hint="rename or remove the file in the container, then commit again",
            )
        if change.entry.kind is Kind.SOCKET:
            warn(f"socket {printable(path)!r} left out: a layer cannot hold it")
        elif change.entry.kind is Kind.FILE:
            _add_file(writer, change)
        else:
            writer.add(change.entry)
    writer.close()


def _add_file(writer: TarWriter, change: Change) -> None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    file = os.open(change.name, flags, dir_fd=change.directory)
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_size != change.entry.size:
            raise LayerError("the file changed while it was read", entry=change.entry.path)
        segments = data_segments(file, found.st_size)
        whole = ((0, found.st_size),)
        entry = change.entry if segments is None else change.entry._replace(segments=segments)
        writer.add(entry, _read(file, whole if segments is None else segments, entry))
    finally:
        os.close(file)


def _read(file: int, segments: tuple[tuple[int, int], ...], entry: Entry) -> Iterator[bytes]:
    for offset, length in segments:
        end = offset + length
        while offset < end:
            data = os.pread(file, min(_CHUNK, end - offset), offset)
            if not data:
                raise LayerError("the file became shorter while it was read", entry=entry.path)
            offset += len(data)
            yield data
