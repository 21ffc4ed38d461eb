"""Write changes as a layer: the tar stream of image-spec layer.md ("Representing Changes").

The same changes give the same bytes: order, numbers and padding depend on nothing else.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from layerfs.errors import LayerError, printable
from layerfs.files import open_regular
from layerfs.hashing import Hash, Hasher
from layerfs.tree.change import Change, ChangeKind
from layerfs.tree.entry import Entry, Kind
from layerfs.tree.segments import data_segments
from layerfs.tree.skeleton import SMALLEST
from layerfs.tree.tar_writer import TarWriter
from layerfs.tree.whiteouts import PREFIX

_CHUNK: Final = 1 << 20
# Fewer bytes are hashed sooner than handed to another thread.
_HASHED_APART: Final = 1 << 16


def write_layer(
    changes: Iterable[Change],
    write: Callable[[bytes], object],
    *,
    warn: Callable[[str], None],
    witness: Witness | None = None,
) -> None:
    """Write a layer's uncompressed tar stream.

    Sockets are left out with a warning: tar cannot hold them, and docker leaves them out too.

    Args:
        changes: in the order of `tree.diff`; each is read before the next is asked for.
        write: takes the stream piece by piece.
        warn: told what was left out.
        witness: told what is written where.

    Raises:
        LayerError: a file cannot be stored in a layer, or changed while it was read.
    """
    writer = TarWriter(write)
    for change in changes:
        path = change.entry.path
        parent, _, name = path.rpartition(b"/")
        entry = change.entry
        if change.kind is ChangeKind.DELETED:
            whiteout = PREFIX + name
            entry = Entry(parent + b"/" + whiteout if parent else whiteout, Kind.FILE)
        elif name.startswith(PREFIX):
            raise LayerError(
                "a name that begins with '.wh.' would act as a deletion",
                entry=path,
                hint="rename or remove the file in the container, then commit again",
            )
        elif entry.kind is Kind.SOCKET:
            warn(f"socket {printable(path)!r} left out: a layer cannot hold it")
            continue
        elif entry.kind is Kind.FILE:
            _add_file(writer, change, witness)
            continue
        writer.add(entry)
        if witness is not None:
            witness.record(entry, None)
    writer.close()


class Witness:
    """What is told of a layer while it is written.

    Args:
        record: told each entry, with the SHA-256 (hex) of a file's data, holes left out, or what will say it.
        refer: told, before any of it is written, that a file's data comes next, at an offset in the stream.
        hasher: hashes large files.
    """

    def __init__(
        self,
        record: Callable[[Entry, Hash | str | None], None],
        refer: Callable[[Entry, int], None] | None,
        hasher: Hasher,
    ) -> None:
        self.record = record
        self._refer = refer
        self._hasher = hasher

    def watch(self, writer: TarWriter, entry: Entry, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Pass a file's data on, and tell of it."""
        if self._refer is not None and entry.size >= SMALLEST:
            self._refer(entry, writer.flush())
        if entry.size < _HASHED_APART:
            data = b"".join(chunks)
            yield data
            self.record(entry, hashlib.sha256(data, usedforsecurity=False).hexdigest())
            return
        digest = self._hasher.begin()
        try:
            for data in chunks:
                self._hasher.update(digest, data)
                yield data
        finally:
            self._hasher.end(digest)
        self.record(entry, digest)


def _add_file(writer: TarWriter, change: Change, witness: Witness | None) -> None:
    try:
        file = open_regular(change.directory, change.name)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise LayerError("the file changed while it was read", entry=change.entry.path) from error
    try:
        found = os.fstat(file)
        if found.st_size != change.entry.size:
            raise LayerError("the file changed while it was read", entry=change.entry.path)
        segments = data_segments(file, found.st_size)
        whole = ((0, found.st_size),)
        entry = change.entry if segments is None else change.entry._replace(segments=segments)
        chunks = _read(file, whole if segments is None else segments, entry)
        writer.add(entry, chunks if witness is None else witness.watch(writer, entry, chunks))
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
