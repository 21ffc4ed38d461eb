"""Write a tar stream: ustar where that holds an entry exactly, PAX records where it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from layerfs.errors import LayerError
from layerfs.tree import pax, sparse
from layerfs.tree.entry import Entry, Kind
from layerfs.tree.tar_header import BLOCK, FIELDS, checksum

_TYPES: Final = {
    Kind.FILE: b"0",
    Kind.HARDLINK: b"1",
    Kind.SYMLINK: b"2",
    Kind.CHARACTER: b"3",
    Kind.BLOCK: b"4",
    Kind.DIRECTORY: b"5",
    Kind.FIFO: b"6",
}
_MAGIC: Final = b"ustar\x0000"
_BLANKS: Final = b" " * 8
_NO_DEVICE: Final = b"0000000\x000000000\x00"
_PAX_NAME: Final = b"././@PaxHeader"
_PAX_ATTRIBUTES: Final = b"0000644\x000000000\x000000000\x00"
_NAME: Final = 100
_PREFIX: Final = 155
_LARGEST_ID: Final = 0o7777777
_LARGEST: Final = 0o77777777777
_BILLION: Final = 1_000_000_000
# Headers and small bodies go out together, in pieces of about this many bytes.
_BATCH: Final = 1 << 18
# GNU tar reads and writes in records of 20 blocks; two blocks of zeros are what the format asks for.
_END: Final = bytes(2 * BLOCK)
_REMEMBERED: Final = 2048


class TarWriter:
    """Writes entries as a tar stream, in the order in which they are added.

    Times are exact to the nanosecond, extended attributes stand in SCHILY.xattr records, a file with
    `segments` is written in GNU's sparse form 1.0; GNU tar itself reads that only if all segments but the
    last are multiples of 512 bytes long. User and group names are left out: numbers alone count in a
    layer. The output depends on nothing but the entries.

    Args:
        write: takes the stream piece by piece.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._parts: list[bytes] = []
        self._length = 0
        self._written = 0
        self._attributes: dict[tuple[int, int, int], bytes] = {}

    def add(self, entry: Entry, chunks: Iterable[bytes] = ()) -> None:
        """Write an entry.

        Args:
            entry: a path of b"" is the root; a directory's needs no slash at its end.
            chunks: a file's data; of a sparse file, that of its segments alone.

        Raises:
            LayerError: tar cannot hold the entry, or the data is not as long as it says.
        """
        kind = entry.kind
        if kind is Kind.FILE and entry.segments is not None:
            self._add_sparse(entry, entry.segments, chunks)
            return
        path, size = entry.path, 0
        if kind is Kind.FILE:
            size = entry.size
        elif kind is Kind.DIRECTORY and path[-1:] != b"/":
            path = path + b"/" if path else b"./"
        self._put_header(entry, path, size, [])
        if kind is Kind.FILE:
            self._put_body(entry, size, chunks)

    def add_header(self, entry: Entry) -> None:
        """Write the header of a file without holes, whose data and padding the caller writes himself.

        Raises:
            LayerError: tar cannot hold the entry.
        """
        self._put_header(entry, entry.path, entry.size, [])

    def flush(self) -> int:
        """Write what was held back; give how many bytes were written so far."""
        self._flush()
        return self._written

    def close(self) -> None:
        """Write the end marker; what takes the stream stays open."""
        self._put(_END)
        self._flush()

    def _add_sparse(self, entry: Entry, segments: sparse.Segments, chunks: Iterable[bytes]) -> None:
        stored = sum(length for _, length in segments)
        if not entry.path:
            raise LayerError("a name that tar cannot hold", entry=entry.path)
        kept = sparse.check(segments, size=entry.size, stored=stored)
        table = sparse.format_data_map(kept, entry.size)
        records = [
            (sparse.PREFIX + b"major", b"1"),
            (sparse.PREFIX + b"minor", b"0"),
            (sparse.PREFIX + b"name", entry.path),
            (sparse.PREFIX + b"realsize", b"%d" % entry.size),
        ]
        # Readers that do not know the form unpack the map and the data under this name.
        name = b"GNUSparseFile.0/" + _ascii(entry.path.rpartition(b"/")[2])[:80]
        self._put_header(entry, name, len(table) + stored, records)
        self._put(table)
        self._put_body(entry, stored, chunks)

    def _put_header(self, entry: Entry, path: bytes, size: int, records: list[tuple[bytes, bytes]]) -> None:
        _, kind, mode, uid, gid, time, _, target, device, xattrs, _ = entry
        flag = _TYPES.get(kind)
        if flag is None:
            raise LayerError("a socket cannot be stored in a layer", entry=entry.path)
        if not path or b"\0" in entry.path or b"\0" in target:
            raise LayerError("a name that tar cannot hold", entry=entry.path)
        prefix = b""
        name = path
        if len(path) > _NAME or not path.isascii():
            prefix, name = _split(path, records)
        link = target
        if len(target) > _NAME or not target.isascii():
            link = _shorten(b"linkpath", target, records)
        seconds = time // _BILLION
        if time % _BILLION or not 0 <= seconds <= _LARGEST:
            records.append((b"mtime", pax.format_time(time)))
            seconds = min(max(seconds, 0), _LARGEST)
        attributes = self._attributes.get((mode, uid, gid))
        if attributes is None or uid > _LARGEST_ID or gid > _LARGEST_ID:
            attributes = self._format_attributes(mode, uid, gid, records)
        if size > _LARGEST:
            records.append((b"size", b"%d" % size))
        if xattrs:
            records += [pax.format_xattr(*pair) for pair in sorted(xattrs.items())]
        if records:
            self._put_records(records)
        devices = b"%07o\0%07o\0" % device if kind in (Kind.CHARACTER, Kind.BLOCK) else _NO_DEVICE
        self._put(
            _pack(name, attributes, size if size <= _LARGEST else 0, seconds, flag, link, devices, prefix)
        )

    def _format_attributes(self, mode: int, uid: int, gid: int, records: list[tuple[bytes, bytes]]) -> bytes:
        if uid > _LARGEST_ID:
            records.append((b"uid", b"%d" % uid))
        if gid > _LARGEST_ID:
            records.append((b"gid", b"%d" % gid))
        numbers = (mode & 0o7777, uid if uid <= _LARGEST_ID else 0, gid if gid <= _LARGEST_ID else 0)
        text = b"%07o\0%07o\0%07o\0" % numbers
        if len(self._attributes) >= _REMEMBERED:
            self._attributes.clear()
        self._attributes[mode, uid, gid] = text
        return text

    def _put_records(self, records: list[tuple[bytes, bytes]]) -> None:
        if not all(_is_text(value) for keyword, value in records if not keyword.startswith(pax.XATTR)):
            # pax(1): without it, names are UTF-8.
            records.insert(0, (b"hdrcharset", b"BINARY"))
        body = pax.format_records(records)
        self._put(_pack(_PAX_NAME, _PAX_ATTRIBUTES, len(body), 0, b"x", b"", _NO_DEVICE, b""))
        self._put(body + bytes(-len(body) % BLOCK))

    def _put_body(self, entry: Entry, size: int, chunks: Iterable[bytes]) -> None:
        length = 0
        for data in chunks:
            length += len(data)
            if length > size:
                break
            self._put(data)
        if length != size:
            raise LayerError(f"{length} bytes or more of data for {size}", entry=entry.path)
        if size % BLOCK:
            self._put(bytes(-size % BLOCK))

    def _put(self, data: bytes) -> None:
        self._parts.append(data)
        self._length += len(data)
        if self._length >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        self._written += self._length
        if len(self._parts) > 1 and len(self._parts[-1]) >= _BATCH:
            # A large piece is not copied behind small ones.
            last = self._parts.pop()
            self._write(b"".join(self._parts))
            self._write(last)
        elif self._parts:
            self._write(b"".join(self._parts))
        self._parts, self._length = [], 0


def _pack(
    name: bytes,
    attributes: bytes,
    size: int,
    seconds: int,
    flag: bytes,
    link: bytes,
    devices: bytes,
    prefix: bytes,
) -> bytes:
    block = FIELDS.pack(
        name,
        attributes,
        b"%011o\0" % size,
        b"%011o\0" % seconds,
        _BLANKS,
        flag,
        link,
        _MAGIC,
        devices,
        prefix,
    )
    return b"%b%06o\0 %b" % (block[:148], checksum(block), block[156:])


def _split(path: bytes, records: list[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    """Divide a path between ustar's prefix and name, or put it in a record."""
    if path.isascii() or not _is_text(path):
        # Bytes that are not UTF-8 have no place in a record if there is another one for them.
        if len(path) <= _NAME:
            return b"", path
        slash = path.find(b"/", max(len(path) - _NAME - 1, 1), min(_PREFIX + 1, len(path) - 1))
        if slash > 0:
            return path[:slash], path[slash + 1 :]
    if not any(keyword == sparse.PREFIX + b"name" for keyword, _ in records):
        records.append((b"path", path))
    return b"", _ascii(path)[:_NAME]


def _shorten(keyword: bytes, text: bytes, records: list[tuple[bytes, bytes]]) -> bytes:
    if len(text) <= _NAME and not _is_text(text):
        return text
    records.append((keyword, text))
    return _ascii(text)[:_NAME]


def _ascii(name: bytes) -> bytes:
    return name.decode("ascii", "replace").replace("\ufffd", "_").encode()


def _is_text(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
