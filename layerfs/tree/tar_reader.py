"""Read a tar stream strictly: what is malformed is an error, what is odd has one defined result.

Python's tarfile cannot serve: it accepts truncated and damaged archives in silence, and is far slower.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NoReturn, TypeVar

from layerfs.compression import Readable
from layerfs.errors import BudgetError, LayerError, printable
from layerfs.tree import pax, sparse, tar_header
from layerfs.tree.budget import DEFAULT_BUDGET, Budget
from layerfs.tree.entry import NO_XATTRS, Entry, Kind
from layerfs.tree.tar_header import BLOCK, FIELDS, ZERO_BLOCK

_CHUNK: Final = 1 << 20
# How many distinct texts of a header field are remembered with their meaning.
_REMEMBERED: Final = 2048

_KINDS: Final = {
    b"\0": Kind.FILE,
    b"0": Kind.FILE,
    b"1": Kind.HARDLINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHARACTER,
    b"4": Kind.BLOCK,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
    b"7": Kind.FILE,  # a contiguous file, which nothing tells apart today
}
# GNU's directory of an incremental archive; its data is a list of names.
_DUMP_DIRECTORY: Final = b"D"
_SPARSE: Final = b"S"
_CONTINUED: Final = b"M"
_META: Final = frozenset({b"x", b"X", b"g", b"L", b"K", b"V"})
# Records that say nothing about an entry.
_COMMENTS: Final = frozenset({b"comment", b"hdrcharset", b"charset"})
_ACLS: Final = frozenset({b"SCHILY.acl.access", b"SCHILY.acl.default", b"SCHILY.acl.ace"})


_Value = TypeVar("_Value")


def _remember(known: dict[bytes, _Value], field: bytes, value: _Value) -> _Value:
    if len(known) >= _REMEMBERED:
        known.clear()
    known[field] = value
    return value


class TarReader:
    """Iterates the entries of an uncompressed tar stream; names are raw bytes, exactly as the archive says.

    Understands v7, ustar (POSIX.1-1988), PAX (POSIX.1-2001), star and GNU headers: long names, base-256
    numbers and the four forms of sparse files. A directory's name may end in a slash. Memory is bounded
    by the budget, whatever the stream says.

    Entries are yielded in the order of the stream. The body of the current one is read with `chunks`, once;
    what of it is not read is skipped. Iterating ends at the end marker, or at the stream's end when there
    is none; `drain` then reads what may follow.

    Args:
        stream: the uncompressed stream; stays the caller's.
        budget: bounds extended headers, long names and sparse maps.
        warn: told, one sentence each, what was odd; whatever it raises ends the iteration.

    Raises:
        LayerError: iterating or in `chunks`: the stream is malformed or truncated; names entry and offset.
        BudgetError: likewise: it asks for more than the budget.
    """

    def __init__(
        self, stream: Readable, *, budget: Budget = DEFAULT_BUDGET, warn: Callable[[str], None]
    ) -> None:
        self._read = stream.read
        self._budget = budget
        self._warn = warn
        # Offsets count bytes of the stream. The buffer begins at _base; what lies before _position in it is
        # consumed; the current entry's data ends at _data_end, and the next header stands at _next.
        self._buffer = b""
        self._base = 0
        self._position = 0
        self._data_end = 0
        self._next = 0
        self._name: bytes | None = None
        self._segments: sparse.Segments | None = None
        self._ended = False
        # What 'x', 'L' and 'K' said about the entry to come, and whether one of them did.
        self._waiting = False
        self._records: list[tuple[bytes, bytes]] | None = None
        self._long_name: bytes | None = None
        self._long_target: bytes | None = None
        # Texts of checksum fields and the low half of Adler-32 that the block must have.
        self._adlers: dict[bytes, int] = {}
        self._attributes: dict[bytes, tuple[int, int, int]] = {}
        self._sizes: dict[bytes, int] = {}
        self._times: dict[bytes, int] = {}

    @property
    def offset(self) -> int:
        """Bytes of the stream consumed so far."""
        return self._base + self._position

    def __iter__(self) -> Iterator[Entry]:
        try:
            yield from self._entries()
        except LayerError as error:
            if error.offset is not None:
                raise
            raise LayerError(str(error), entry=self._name, offset=self.offset, hint=error.hint) from error

    def _entries(self) -> Iterator[Entry]:
        # The loop below is the hottest of an unpack: a field that was seen before costs one look into a
        # dictionary, an ASCII block is summed in C, and everything rare is done elsewhere.
        unpack, adler32, make = FIELDS.unpack, zlib.adler32, tuple.__new__
        adlers, attributes, sizes, times = self._adlers, self._attributes, self._sizes, self._times
        kinds, meta = _KINDS, _META
        file, directory = Kind.FILE, Kind.DIRECTORY
        while not self._ended:
            at = self._next
            position = at - self._base
            block = self._buffer[position : position + BLOCK]
            if len(block) < BLOCK:
                if not self._has_block(at):
                    return
                position = self._position
                block = self._buffer[position : position + BLOCK]
            self._position = position
            (name, attribute_field, size_field, time_field, checksum_field, flag, target, magic, device_field,
             prefix) = unpack(block)  # fmt: skip
            adler = adlers.get(checksum_field)
            if adler is None:
                adler = self._adler(checksum_field)
            if adler32(block) & 0xFFFF != adler or not block.isascii():
                if block == ZERO_BLOCK:
                    self._end(at)
                    return
                self._check(block)
            path = self._name = name.partition(b"\0")[0]
            if prefix[0] and magic.startswith(b"ustar\0"):
                path = self._name = self._prefixed(path, prefix, block)
            size = sizes.get(size_field)
            if size is None:
                size = _remember(sizes, size_field, tar_header.parse_size(size_field))
            if flag in meta:
                self._read_meta(flag, size)
                continue
            found = attributes.get(attribute_field)
            if found is None:
                found = _remember(attributes, attribute_field, tar_header.parse_attributes(attribute_field))
            mode, uid, gid = found
            time = times.get(time_field)
            if time is None:
                seconds = tar_header.parse_number(time_field, "modification time")
                time = _remember(times, time_field, seconds * 1_000_000_000)
            kind = kinds.get(flag)
            self._segments = None
            self._position = position + BLOCK
            if kind is None or self._waiting:
                text = target.partition(b"\0")[0]
                yield self._extended(
                    block, flag, Entry(path, kind or file, mode, uid, gid, time, size, text), device_field
                )
                continue
            if not path:
                raise LayerError("an entry without a name")
            if kind is file:
                self._data_end = end = at + BLOCK + size
                self._next = (end + 511) & -512
                if flag == b"\0" and path[-1] == 0x2F:
                    # v7 had no type for directories.
                    kind, size = directory, 0
                    self._data_end = at + BLOCK
                yield make(
                    Entry,
                    (path, kind, mode, uid, gid, time, size, b"", (0, 0), NO_XATTRS, None),
                )
                continue
            self._data_end = self._next = at + BLOCK
            if size:
                self._skip_body(at, size)
            if kind is directory:
                yield make(Entry, (path, kind, mode, uid, gid, time, 0, b"", (0, 0), NO_XATTRS, None))
                continue
            yield self._special(
                Entry(path, kind, mode, uid, gid, time, 0, target.partition(b"\0")[0]), device_field
            )

    def chunks(self) -> Iterator[tuple[int, bytes]]:
        """Give the current entry's data as (offset in the file, bytes) pieces of at most 1 MiB, in order.

        Holes of a sparse file are passed over. The pieces end when the next entry is asked for.

        Raises:
            LayerError: the stream ends first.
        """
        data = self.whole()
        if data is not None:
            return iter(((0, data),)) if data else iter(())
        if self._segments is None:
            return self._pieces(((0, self._data_end - self._base - self._position),))
        return self._pieces(self._segments)

    def whole(self) -> bytes | None:
        """Give the current entry's data as `chunks` would, if it is one piece that is at hand; else None."""
        stop = self._data_end - self._base
        buffer = self._buffer
        if self._segments is not None or stop > len(buffer):
            return None
        position = self._position
        self._position = stop
        return buffer[position:stop]

    def drain(self) -> None:
        """Read the stream to its end; bytes other than zeros after the end marker are warned of."""
        data = self._buffer[self._position :]
        self._base += len(self._buffer)
        self._buffer, self._position = b"", 0
        odd = data != bytes(len(data))
        while data := self._read(_CHUNK):
            self._base += len(data)
            odd = odd or data != bytes(len(data))
        if odd and self._ended:
            self._warn("data after the end of the archive ignored")

    # -- the stream -----------------------------------------------------------------------------

    def _load(self, at: int, size: int) -> int:
        """Bring `size` bytes from offset `at` on into the buffer, at _position; says how many there are.

        Fewer come only where the stream ends. Everything before `at` is consumed.
        """
        position = at - self._base
        buffer = self._buffer
        while position > len(buffer):
            position -= len(buffer)
            self._base += len(buffer)
            self._buffer = buffer = self._read(_CHUNK)
            self._position = 0
            if not buffer:
                self._cut()
        have = len(buffer) - position
        if have < size:
            parts = [buffer[position:]]
            while have < size and (data := self._read(_CHUNK)):
                parts.append(data)
                have += len(data)
            self._buffer = b"".join(parts)
            self._base = at
            position = 0
        self._position = position
        return min(have, size)

    def _cut(self) -> NoReturn:
        raise LayerError("the stream ends inside an entry", entry=self._name, offset=self._base)

    def _has_block(self, at: int) -> bool:
        """Bring the header block at `at` into the buffer; False at the stream's end."""
        have = self._load(at, BLOCK)
        if have == BLOCK:
            return True
        if have:
            what = "the stream ends inside a header" if at else "not a tar archive: shorter than one header"
            raise LayerError(what, entry=self._name, offset=at + have)
        self._check_nothing_waits()
        self._position = len(self._buffer)
        self._ended = True
        return False

    def _end(self, at: int) -> None:
        """Deal with a first block of zeros: another one ends the archive, and so does the stream's end."""
        self._check_nothing_waits()
        have = self._load(at + BLOCK, BLOCK)
        second = self._buffer[self._position : self._position + have]
        if second != ZERO_BLOCK[:have]:
            raise LayerError("data after a zero block", entry=self._name, offset=at + BLOCK)
        self._position += have
        self._data_end = self._next = self.offset
        self._ended = True

    def _check_nothing_waits(self) -> None:
        if self._waiting:
            raise LayerError("the archive ends after an extended header, without its entry")

    def _body(self, size: int, limit: int, what: str) -> bytes:
        """Read a whole body that describes an entry."""
        if size > limit:
            raise BudgetError(f"{what} of more than {limit} bytes (at byte {self.offset})")
        at = self.offset + BLOCK
        if self._load(at, size) < size:
            self._base += len(self._buffer)
            self._cut()
        body = self._buffer[self._position : self._position + size]
        self._position += size
        self._next = (at + size + 511) & -512
        return body

    def _next_block(self) -> bytes:
        """Read the block at the current position."""
        if self._load(self.offset, BLOCK) < BLOCK:
            self._base += len(self._buffer)
            self._cut()
        self._position += BLOCK
        return self._buffer[self._position - BLOCK : self._position]

    def _pieces(self, segments: sparse.Segments) -> Iterator[tuple[int, bytes]]:
        end = self._data_end
        for offset, length in segments:
            while length:
                position, buffer = self._position, self._buffer
                have = len(buffer) - position
                if not have:
                    self._base += len(buffer)
                    self._position = position = 0
                    self._buffer = buffer = self._read(_CHUNK)
                    have = len(buffer)
                    if not have:
                        self._cut()
                taken = min(have, length, _CHUNK)
                self._position = position + taken
                yield offset, buffer[position : position + taken]
                if self._data_end != end:
                    return
                offset += taken
                length -= taken

    # -- headers --------------------------------------------------------------------------------

    def _adler(self, field: bytes) -> int:
        """Say what an ASCII block with this checksum field must have, -1 for none, and remember it."""
        try:
            adler = tar_header.adler_of(field)
        except LayerError:
            return -1
        return _remember(self._adlers, field, adler)

    def _check(self, block: bytes) -> None:
        """Verify the checksum of a block that is not plain ASCII, or wrong."""
        if not tar_header.has_valid_checksum(block):
            if self.offset == 0:
                raise LayerError("not a tar archive: the first header's checksum is wrong", offset=0)
            raise LayerError("a header with a wrong checksum", entry=self._name, offset=self.offset)

    def _odd(self, what: str) -> None:
        name = b"" if self._name is None else self._name
        self._warn(f"{what} in entry {printable(name)!r} at byte {self.offset}")

    def _read_meta(self, flag: bytes, size: int) -> None:
        """Read a header that is no entry: it describes the next one, or nothing."""
        if flag == b"V":
            self._data_end = self.offset + BLOCK + size
            self._next = (self._data_end + 511) & -512
            return
        if flag in (b"L", b"K"):
            name = self._body(size, self._budget.name_bytes, "a long name").partition(b"\0")[0]
            self._waiting = True
            if flag == b"L":
                self._long_name = name
            else:
                self._long_target = name
            return
        records = pax.parse_records(self._body(size, self._budget.pax_bytes, "an extended header"))
        if flag == b"g":
            ignored = sorted({keyword for keyword, _ in records} - _COMMENTS)
            if ignored:
                self._odd(f"global records ({printable(b', '.join(ignored[:8]))}) ignored")
            return
        if self._records is not None:
            self._odd("the first of two extended headers for one entry ignored")
        self._records = records
        self._waiting = True

    def _skip_body(self, at: int, size: int) -> None:
        """Pass over the data of an entry of a type that has none, if there is any.

        Old archives give hard links their file's size and directories any, and store nothing; PAX ones may
        store a hard link's data (pax(1), linkdata). A header or the end right behind tells the first; no
        reader that never expects data could go on in the second.
        """
        self._odd(f"a size of {size} for a type without data ignored")
        position = self._position
        base = self._base
        if self._load(at + BLOCK, BLOCK) == BLOCK:
            block = self._buffer[self._position : self._position + BLOCK]
            if block != ZERO_BLOCK and not tar_header.has_valid_checksum(block):
                self._next = (at + BLOCK + size + 511) & -512
        self._position = position + base - self._base

    def _prefixed(self, name: bytes, prefix: bytes, block: bytes) -> bytes:
        """Put ustar's prefix before a name; star has times in its last 24 bytes."""
        if block[508:] == b"tar\0":
            prefix = prefix[:131]
        directory = prefix.partition(b"\0")[0]
        return directory + b"/" + name if directory else name

    def _extended(self, block: bytes, flag: bytes, entry: Entry, device_field: bytes) -> Entry:
        """Finish an entry of a rare type, or one that extended headers describe."""
        records = self._records or ()
        is_sparse = False
        if records:
            entry = self._with_records(entry, records)
            is_sparse = any(keyword.startswith(sparse.PREFIX) for keyword, _ in records)
        if is_sparse:
            entry = self._with_own_name(entry, records)
        if self._long_name:
            entry = entry._replace(path=self._long_name)
        if self._long_target:
            entry = entry._replace(target=self._long_target)
        self._records = self._long_name = self._long_target = None
        self._waiting = False
        if not entry.path:
            raise LayerError("an entry without a name")
        self._name = entry.path
        at = self.offset
        self._data_end = at + entry.size
        self._next = (self._data_end + 511) & -512
        if entry.kind is not Kind.FILE:
            self._data_end = self._next = at
            if entry.size:
                self._skip_body(at - BLOCK, entry.size)
                entry = entry._replace(size=0)
            return self._special(entry, device_field)
        if flag == _SPARSE:
            pairs, size = sparse.read_old_map(block, self._next_block, self._budget.segments)
            self._data_end = self.offset + entry.size
            self._next = (self._data_end + 511) & -512
            return self._sparse(entry, pairs, size, entry.size)
        if is_sparse:
            return self._pax_sparse(entry, records)
        if flag == _DUMP_DIRECTORY or (flag == b"\0" and entry.path.endswith(b"/")):
            self._data_end = at
            return entry._replace(kind=Kind.DIRECTORY, size=0, target=b"")
        if flag == _CONTINUED:
            raise LayerError("a file continued from another volume")
        if flag not in _KINDS:
            self._odd(f"the unknown type {printable(flag)!r} taken for a file")
        return entry._replace(target=b"") if entry.target else entry

    def _special(self, entry: Entry, device_field: bytes) -> Entry:
        """Finish an entry that is neither a plain file nor, as a rule, a directory."""
        kind = entry.kind
        if kind is Kind.SYMLINK or kind is Kind.HARDLINK:
            if not entry.target:
                raise LayerError("a link without a target")
            return entry
        if kind is Kind.CHARACTER or kind is Kind.BLOCK:
            return entry._replace(target=b"", device=tar_header.parse_device(device_field))
        return entry._replace(target=b"") if entry.target else entry

    def _with_records(self, entry: Entry, records: sparse.Records) -> Entry:
        """Let an extended header replace what the header says; an empty value replaces nothing."""
        path, kind, mode, uid, gid, time, size, target, device, _, _ = entry
        xattrs: dict[bytes, bytes] = {}
        for keyword, value in records:
            if keyword == b"mtime" and value:
                time = pax.parse_time(value)
            elif keyword.startswith(pax.XATTR):
                xattrs[keyword[len(pax.XATTR) :]] = value
            elif keyword.startswith(pax.LIBARCHIVE_XATTR):
                name, data = pax.parse_libarchive_xattr(keyword[len(pax.LIBARCHIVE_XATTR) :], value)
                xattrs.setdefault(name, data)
            elif not value:
                continue
            elif keyword == b"path":
                self._name = path = _text(keyword, value)
            elif keyword == b"linkpath":
                target = _text(keyword, value)
            elif keyword == b"size":
                size = pax.parse_number(value, "size")
            elif keyword == b"uid":
                uid = tar_header.check_id(pax.parse_number(value, "uid"), "uid")
            elif keyword == b"gid":
                gid = tar_header.check_id(pax.parse_number(value, "gid"), "gid")
            elif keyword in _ACLS:
                self._odd(f"an access list in text form ({printable(keyword)}) ignored")
        if xattrs and (b"" in xattrs or any(b"\0" in name for name in xattrs)):
            raise LayerError("an extended attribute without a usable name")
        return Entry(path, kind, mode, uid, gid, time, size, target, device, xattrs or NO_XATTRS)

    def _with_own_name(self, entry: Entry, records: sparse.Records) -> Entry:
        """Give a sparse file its name: it stands under another one, for readers that do not know the form."""
        for keyword, value in records:
            if keyword == sparse.PREFIX + b"name" and value:
                entry = entry._replace(path=_text(keyword, value))
        return entry

    def _pax_sparse(self, entry: Entry, records: sparse.Records) -> Entry:
        """Read the map of a file in one of PAX's three sparse forms."""
        values = dict(records)
        version = (values.get(sparse.PREFIX + b"major"), values.get(sparse.PREFIX + b"minor"))
        limit = self._budget.segments
        stored = entry.size
        pairs: Iterable[tuple[int, int]]
        if version == (b"1", b"0"):
            pairs, taken = sparse.read_data_map(self._next_block, limit)
            stored -= taken
        elif version in ((None, None), (b"0", b"0"), (b"0", b"1")):
            pairs = sparse.read_pax_map(records, limit)
        else:
            raise LayerError("a sparse file of an unknown version")
        size = values.get(sparse.PREFIX + b"realsize") or values.get(sparse.PREFIX + b"size")
        if not size:
            raise LayerError("a sparse file without its size")
        return self._sparse(entry, pairs, pax.parse_number(size, "sparse size"), stored)

    def _sparse(self, entry: Entry, pairs: Iterable[tuple[int, int]], size: int, stored: int) -> Entry:
        self._segments = sparse.check(pairs, size=size, stored=stored)
        return entry._replace(size=size, target=b"", segments=self._segments)


def _text(keyword: bytes, value: bytes) -> bytes:
    if b"\0" in value:
        raise LayerError(f"a PAX {printable(keyword)} with a NUL")
    return value
