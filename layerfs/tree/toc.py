"""A layer's table of contents: one line of JSON an entry, compressed with zstd, in the order of the layer.

Of two lines with one path the later holds. Whiteouts stand under their OCI names. Written while a
layer is unpacked and read as a stream, so that neither takes memory that grows with the layer.

The members of a line, left out where they are the default: ``path`` (surrogate escapes for bytes that are
not UTF-8), ``type`` (of the list in `_TYPES`), ``mode``, ``uid``, ``gid``, ``mtime`` (nanoseconds),
``size`` (bytes), ``link``, ``device`` ([major, minor]), ``xattrs`` (name to base64), ``segments``
([[offset, length], ...] of a sparse file) and ``sha256`` of the data, holes left out.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, Final

from layerfs.compression import Compression, Readable, compressor, open_decompressed
from layerfs.errors import StoreError
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
_READ: Final = 1 << 18


class TocWriter:
    """Writes a table of contents, entry by entry; `close` ends it."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._compressor = compressor(write, Compression.ZSTD, level=1)
        self._encode = json.JSONEncoder(separators=(",", ":")).encode
        self._lines: list[str] = []

    def add(self, entry: Entry, digest: str | None) -> None:
        """Add an entry; `digest` is the SHA-256 (hex) of a file's data."""
        line: dict[str, Any] = {"path": os.fsdecode(entry.path), "type": _TYPES[entry.kind]}
        if entry.mode:
            line["mode"] = entry.mode
        if entry.uid:
            line["uid"] = entry.uid
        if entry.gid:
            line["gid"] = entry.gid
        if entry.mtime_ns:
            line["mtime"] = entry.mtime_ns
        if entry.size:
            line["size"] = entry.size
        if entry.target:
            line["link"] = os.fsdecode(entry.target)
        if entry.device != (0, 0):
            line["device"] = entry.device
        if entry.xattrs:
            line["xattrs"] = {
                os.fsdecode(name): base64.b64encode(value).decode() for name, value in entry.xattrs.items()
            }
        if entry.segments is not None:
            line["segments"] = entry.segments
        if digest is not None:
            line["sha256"] = digest
        self._lines.append(self._encode(line))
        if len(self._lines) >= _LINES_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        if self._lines:
            self._compressor.write(("\n".join(self._lines) + "\n").encode())
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
    for number, line in enumerate(_lines(stream), 1):
        try:
            yield _parse(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"line {number} of a table of contents cannot be read: {error}") from error


def _lines(stream: Readable) -> Iterator[bytes]:
    with open_decompressed(stream) as plain:
        rest = b""
        while data := plain.read(_READ):
            lines = (rest + data).split(b"\n")
            rest = lines.pop()
            yield from lines
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
    entry = Entry(
        os.fsencode(line["path"]),
        _KINDS[line["type"]],
        line.get("mode", 0),
        line.get("uid", 0),
        line.get("gid", 0),
        line.get("mtime", 0),
        line.get("size", 0),
        os.fsencode(line.get("link", "")),
        (major, minor),
        xattrs,
        segments,
    )
    return entry, line.get("sha256")
