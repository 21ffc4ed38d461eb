"""A layer's table of contents: one line of JSON an entry, compressed with zstd, in the order of the layer.

Of two lines with one path the later holds. Whiteouts stand under their OCI names. Written while a
layer is unpacked and read as a stream, so that neither takes memory that grows with the layer.

The members of a line, left out where they are the default: ``path`` (surrogate escapes for bytes that are
not UTF-8), ``type`` (of the list in `_TYPES`), ``mode``, ``uid``, ``gid``, ``mtime`` (nanoseconds),
``size`` (bytes), ``link``, ``device`` ([major, minor]), ``xattrs`` (name to base64), ``segments``
([[offset, length], ...] of a sparse file) and ``sha256`` of the data, holes left out. Where the table is
part of an index of the layer's stream (`layerfs.seekable.table`) also ``at`` (where a file's data begins
in the uncompressed stream, in bytes) and ``pieces`` (the SHA-256 of each piece of it, where that is not one).
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from layerfs.compression import Compression, Readable, compressor, open_decompressed
from layerfs.errors import StoreError
from layerfs.hashing import Hash
from layerfs.tree.entry import NO_XATTRS, Entry, Kind

MEDIA_TYPE: Final = "application/vnd.layerfs.toc.v1+zstd"

_TYPES: Final = {
    Kind.FILE: "file",
    Kind.DIRECTORY: "dir",
    Kind.SYMLINK: "symlink",
    Kind.HARDLINK: "hardlink",
    Kind.CHARACTER: "char",
    Kind.BLOCK: "block",
    Kind.FIFO: "fifo",
    Kind.SOCKET: "socket",
}
_KINDS: Final = {name: kind for kind, name in _TYPES.items()}
_LINES_AT_ONCE: Final = 512
_REMEMBERED: Final = 1024
_INTEGER: Final = {int}
_quote: Final = json.encoder.encode_basestring_ascii
_READ: Final = 1 << 18


class Place(NamedTuple):
    """Where a file's data begins in the layer's uncompressed stream, and the SHA-256 (hex) of its pieces."""

    at: int
    pieces: tuple[str, ...] = ()


class TocWriter:
    """Writes a table of contents, entry by entry; `close` ends it. `has_root` says if the root has one."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._compressor = compressor(write, Compression.ZSTD, level=1)
        # A line without its end, and the digest that belongs there, which may not be known yet.
        self._lines: list[tuple[str, Hash | str | None]] = []
        self._usual: dict[tuple[Kind, int, int, int], str] = {}
        self.has_root = False

    def add(self, entry: Entry, digest: Hash | str | None, place: Place | None = None) -> None:
        """Add an entry; `digest` is the SHA-256 (hex) of a file's data, or will say it."""
        # By hand: a json.dumps for each line takes as long as making the file does.
        path, kind, mode, uid, gid, mtime_ns, size, target, device, xattrs, segments = entry
        usual = self._usual.get((kind, mode, uid, gid))
        if usual is None:
            usual = self._describe(kind, mode, uid, gid)
        line = f'{{"path":{_quote(os.fsdecode(path))},{usual}'
        if not path:
            self.has_root = True
        if mtime_ns:
            line += f',"mtime":{mtime_ns}'
        if size:
            line += f',"size":{size}'
        if target:
            line += f',"link":{_quote(os.fsdecode(target))}'
        if device != (0, 0):
            line += f',"device":{json.dumps(device)}'
        if xattrs:
            coded = {os.fsdecode(name): base64.b64encode(value).decode() for name, value in xattrs.items()}
            line += f',"xattrs":{json.dumps(coded)}'
        if segments is not None:
            line += f',"segments":{json.dumps(segments)}'
        if place is not None:
            line += f',"at":{place.at}'
            if place.pieces:
                line += f',"pieces":{json.dumps(place.pieces)}'
        self._lines.append((line, digest))
        if len(self._lines) >= _LINES_AT_ONCE:
            self._flush()

    def _describe(self, kind: Kind, mode: int, uid: int, gid: int) -> str:
        """Write down what most entries have alike."""
        text = f'"type":"{_TYPES[kind]}"'
        if mode:
            text += f',"mode":{mode}'
        if uid:
            text += f',"uid":{uid}'
        if gid:
            text += f',"gid":{gid}'
        if len(self._usual) >= _REMEMBERED:
            self._usual.clear()
        self._usual[kind, mode, uid, gid] = text
        return text

    def _flush(self) -> None:
        if self._lines:
            ended = [
                f"{line}}}\n" if digest is None else f'{line},"sha256":"{digest}"}}\n'
                for line, digest in self._lines
            ]
            self._compressor.write("".join(ended).encode())
            self._lines.clear()

    def close(self) -> None:
        """Write what is left and the end of the stream."""
        self._flush()
        self._compressor.close()


def read_toc(stream: Readable) -> Iterator[tuple[Entry, str | None]]:
    """Read a table of contents back: each entry, and the SHA-256 (hex) of a file's data.

    Raises:
        StoreError: it is not one.
    """
    return ((entry, digest) for entry, digest, _ in read_places(stream))


def read_places(stream: Readable) -> Iterator[tuple[Entry, str | None, Place | None]]:
    """Read a table of contents back, with what it says of places in the layer's stream.

    Raises:
        StoreError: it is not one.
    """
    number = 0
    for lines in _lines(stream):
        try:
            # Line by line would take twice as long.
            for members in json.loads(b"[%b]" % lines.replace(b"\n", b",")):
                number += 1
                place = Place(members["at"], tuple(members.get("pieces", ()))) if "at" in members else None
                yield *_parse(members), place
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise StoreError(
                f"a table of contents cannot be read from line {number + 1} on: {error}"
            ) from error


def _lines(stream: Readable) -> Iterator[bytes]:
    """Give pieces of whole lines, without the last line's end."""
    with open_decompressed(stream) as plain:
        rest = b""
        while data := plain.read(_READ):
            whole, newline, data = data.rpartition(b"\n")
            if newline:
                yield rest + whole
                rest = data
            else:
                rest += data
        if rest:
            yield rest


def _parse(line: dict[str, Any]) -> tuple[Entry, str | None]:
    xattrs = NO_XATTRS
    if "xattrs" in line:
        xattrs = {os.fsencode(n): base64.b64decode(v) for n, v in line["xattrs"].items()}
    segments = None
    if "segments" in line:
        segments = tuple((int(offset), int(length)) for offset, length in line["segments"])
    major, minor = line.get("device", (0, 0))
    mode, uid, gid, mtime_ns = (
        line.get("mode", 0), line.get("uid", 0), line.get("gid", 0), line.get("mtime", 0)
    )  # fmt: skip
    size, digest = line.get("size", 0), line.get("sha256")
    if {type(mode), type(uid), type(gid), type(mtime_ns), type(size), type(major), type(minor)} != _INTEGER:
        raise TypeError("a number that is none")
    if mode > 0o7777 or mode < 0 or uid < 0 or gid < 0 or size < 0 or major < 0 or minor < 0:
        raise ValueError("a number out of range")
    if digest is not None and (type(digest) is not str or len(digest) != 64):
        raise TypeError("a digest that is none")
    entry = Entry(
        os.fsencode(line["path"]),
        _KINDS[line["type"]],
        mode,
        uid,
        gid,
        mtime_ns,
        size,
        os.fsencode(line.get("link", "")),
        (major, minor),
        xattrs,
        segments,
    )
    return entry, digest
