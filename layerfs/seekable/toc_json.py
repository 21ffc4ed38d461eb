"""Tables of contents in JSON, as eStargz and zstd:chunked layers carry them, entry by entry.

Both formats have the members of stargz-snapshotter's docs/estargz.md, "TOC and TOCEntries". A table is read
as a stream: neither the text nor what it says is ever in memory as a whole.
"""

from __future__ import annotations

import codecs
import collections
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

from layerfs.compression import Readable
from layerfs.digest import Digest
from layerfs.errors import BudgetError, InvalidError, LayerError
from layerfs.seekable.extent import Chunk, Extent, Indexed
from layerfs.seekable.names import normalised
from layerfs.tree.budget import Budget
from layerfs.tree.entry import NO_XATTRS, Entry, Kind
from layerfs.tree.tar_header import check_id

_KINDS: Final = {
    "reg": Kind.FILE,
    "dir": Kind.DIRECTORY,
    "symlink": Kind.SYMLINK,
    "hardlink": Kind.HARDLINK,
    "char": Kind.CHARACTER,
    "block": Kind.BLOCK,
    "fifo": Kind.FIFO,
}
_READ: Final = 1 << 18
_LARGEST_VALUE: Final = 2 << 20
_LARGEST: Final = (1 << 63) - 1
# A chunk is kept in a temporary file until all of it is verified.
_LONGEST_CHUNK: Final = 1 << 30
# Entries that wait for the end of a compressed piece, which is known when the next piece begins.
_WAITING: Final = 1 << 16
_EMPTY: Final = hashlib.sha256().hexdigest()
_BLANK: Final = re.compile(r"[ \t\n\r]*")
_TIME: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d{1,18}))?(?:[Zz]|([+-])(\d\d):(\d\d))"
)


def read_entries(
    stream: Readable, *, limit: int, budget: Budget, warn: Callable[[str], None]
) -> Iterator[Indexed]:
    """Read a table of contents: every entry with normalised names, in the order of the layer.

    Args:
        stream: the JSON document, already verified as far as it will be.
        limit: offsets of compressed data lie below it.
        budget: bounds what the table may ask for.
        warn: told, one sentence each, what was odd.

    Raises:
        LayerError: it is no such table, or does not fit the layer.
        BudgetError: it asks for more than the budget.
    """
    files = _Files(limit)
    entry: Entry | None = None
    for count, members in enumerate(_objects(stream), 1):
        if count > budget.entries:
            raise BudgetError(f"a table of contents of more than {budget.entries} entries")
        if members.get("type") == "chunk":
            if entry is not None or count == 1:
                files.go_on(members)
        elif (entry := normalised(entry_of(members), warn)) is not None:
            digest = _digest(members, "digest") if entry.kind is Kind.FILE else None
            files.begin(entry, digest, members)
            yield from files.finished()
    yield from files.end()


class _Files:
    """Entries on their way: a chunk ends where the next one begins, which stands further on in the table."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._queue: collections.deque[tuple[Entry, str | None, list[Chunk]]] = collections.deque()
        # The last of the queue may get more chunks; chunks from this offset on have no end yet.
        self._last = -1
        self._covered = 0

    def begin(self, entry: Entry, digest: str | None, members: dict[str, Any]) -> None:
        """Take an entry that is no chunk."""
        self._close_last()
        chunks: list[Chunk] = []
        if len(self._queue) >= _WAITING:
            # That it ends further on than it does costs nothing but a larger request.
            self._settle(self._limit)
        self._queue.append((entry, digest, chunks))
        self._covered = 0
        if entry.kind is Kind.FILE and entry.size:
            self._add(members)

    def go_on(self, members: dict[str, Any]) -> None:
        """Take a further chunk of the file before it."""
        if not self._queue or self._queue[-1][0].kind is not Kind.FILE:
            raise LayerError("a table of contents with a chunk of no file")
        self._add(members)

    def finished(self) -> Iterator[Indexed]:
        """Give the entries about which nothing more can come."""
        queue = self._queue
        while len(queue) > 1 and (not queue[0][2] or queue[0][2][-1].end <= self._limit):
            yield self._first()

    def end(self) -> Iterator[Indexed]:
        """Give the rest."""
        self._close_last()
        self._settle(self._limit)
        while self._queue:
            yield self._first()

    def _first(self) -> Indexed:
        entry, digest, chunks = self._queue.popleft()
        if entry.kind is Kind.FILE and not entry.size:
            digest = _EMPTY
        extent = Extent(entry.size, tuple(chunks)) if entry.kind is Kind.FILE else None
        return Indexed(entry, digest, extent)

    def _close_last(self) -> None:
        if self._queue and self._queue[-1][0].size != self._covered:
            entry = self._queue[-1][0]
            raise LayerError("a table of contents whose chunks do not make up the file", entry=entry.path)

    def _add(self, members: dict[str, Any]) -> None:
        entry, digest, chunks = self._queue[-1]
        offset = _integer(members, "chunkOffset")
        size = _integer(members, "chunkSize") or entry.size - offset
        if offset != self._covered or not 0 < size <= entry.size - offset:
            raise LayerError("a table of contents whose chunks do not make up the file", entry=entry.path)
        self._covered = offset + size
        if size > _LONGEST_CHUNK and members.get("chunkType") != "zeros":
            raise BudgetError(f"a file of {size} bytes that can be verified only as a whole")
        start, skip = _integer(members, "offset"), _integer(members, "innerOffset")
        if start < self._last or start >= self._limit:
            raise LayerError("a table of contents with an offset out of order or range", entry=entry.path)
        if start > self._last:
            self._settle(start)
            self._last = start
        if members.get("chunkType") == "zeros":
            return
        own = _digest(members, "chunkDigest")
        if own is None and size == entry.size:
            own = digest
        if own is None:
            raise LayerError("a table of contents without the digest of a chunk", entry=entry.path)
        chunks.append(Chunk(offset, size, start, self._limit + 1, skip, f"sha256:{own}"))

    def _settle(self, end: int) -> None:
        """Say where the chunks end that were the last so far."""
        for _, _, chunks in reversed(self._queue):
            for place in range(len(chunks) - 1, -1, -1):
                if chunks[place].end <= self._limit:
                    return
                chunks[place] = chunks[place]._replace(end=end)


def entry_of(members: dict[str, Any]) -> Entry:
    """Read an entry that is no chunk, its names as they stand there.

    Raises:
        LayerError: a member is malformed.
    """
    name = _name(members, "name")
    kind = _KINDS.get(str(members.get("type")))
    if kind is None:
        raise LayerError("a table of contents with an unknown type", entry=name)
    target = b""
    if kind is Kind.SYMLINK or kind is Kind.HARDLINK:
        target = _name(members, "linkName")
    device = (0, 0)
    if kind is Kind.CHARACTER or kind is Kind.BLOCK:
        device = (_integer(members, "devMajor", (1 << 12) - 1), _integer(members, "devMinor", (1 << 20) - 1))
    return Entry(
        name,
        kind,
        _integer(members, "mode") & 0o7777,
        check_id(_integer(members, "uid"), "uid"),
        check_id(_integer(members, "gid"), "gid"),
        _time(members, "modtime"),
        _integer(members, "size") if kind is Kind.FILE else 0,
        target,
        device,
        _xattrs(members, name),
    )


def _integer(members: dict[str, Any], name: str, largest: int = _LARGEST) -> int:
    value = members.get(name) or 0
    if type(value) is not int or not 0 <= value <= largest:
        raise LayerError(f"a table of contents with a {name} that is no number or out of range")
    return value


def _name(members: dict[str, Any], name: str) -> bytes:
    value = members.get(name)
    if not isinstance(value, str) or not value or "\0" in value:
        raise LayerError(f"a table of contents with a {name} that is none")
    try:
        # Bytes that are not UTF-8 are what we write as halves of surrogate pairs; others lose them.
        return os.fsencode(value)
    except UnicodeEncodeError as error:
        raise LayerError(f"a table of contents with a {name} that is no Unicode") from error


def _digest(members: dict[str, Any], name: str) -> str | None:
    value = members.get(name)
    if not value:
        return None
    try:
        digest = Digest.parse(value if isinstance(value, str) else "")
    except InvalidError as error:
        raise LayerError(f"a table of contents with a {name} that is none: {error}") from error
    if digest.algorithm != "sha256":
        raise LayerError(f"a table of contents with a {name} that is not of sha256")
    return digest.hex


def _xattrs(members: dict[str, Any], entry: bytes) -> dict[bytes, bytes]:
    import binascii

    value = members.get("xattrs")
    if not value:
        return dict(NO_XATTRS)
    found = {}
    try:
        for name, text in value.items():
            key = os.fsencode(name)
            if not key or b"\0" in key:
                raise ValueError("a name that is none")
            found[key] = binascii.a2b_base64(text, strict_mode=True) if text else b""
    except (ValueError, TypeError, AttributeError) as error:
        raise LayerError(f"a table of contents with malformed xattrs: {error}", entry=entry) from error
    return found


def _time(members: dict[str, Any], name: str) -> int:
    """Read a time of RFC 3339 as nanoseconds; Go's zero time, of the year 1, is none."""
    value = members.get(name)
    if not value:
        return 0
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    try:
        if match is None:
            raise ValueError("it has another form")
        year, month, day, hour, minute, second = (int(match[group]) for group in range(1, 7))
        seconds = int(datetime(year, month, day, hour, minute, min(second, 59), tzinfo=UTC).timestamp())
    except (ValueError, OverflowError) as error:
        raise LayerError(f"a table of contents with a {name} that is no time: {error}") from error
    if match[8]:
        shift = 3600 * int(match[9]) + 60 * int(match[10])
        seconds += shift if match[8] == "-" else -shift
    if year == 1:
        return 0
    return seconds * 1_000_000_000 + int((match[7] or "0")[:9].ljust(9, "0"))


def _objects(stream: Readable) -> Iterator[dict[str, Any]]:
    """Give the objects of the list `entries`, and check the version if it stands before them."""
    text = _Text(stream)
    text.expect("{")
    found = False
    separator = "," if text.peek() != "}" else "}"
    if separator == "}":
        text.expect("}")
    while separator == ",":
        key = text.value()
        text.expect(":")
        if key == "entries" and text.peek() == "[":
            if found:
                raise LayerError("a table of contents with two lists of entries")
            found = True
            text.expect("[")
            more = text.peek() != "]"
            while more:
                value = text.value()
                if not isinstance(value, dict):
                    raise LayerError("a table of contents with an entry that is no object")
                yield value
                more = text.peek() == ","
                if more:
                    text.expect(",")
            text.expect("]")
        elif text.value() != 1 and key == "version":
            raise LayerError("a table of contents of an unknown version")
        separator = text.expect(",}")
    if text.peek():
        raise LayerError("data after the end of a table of contents")


class _Text:
    """JSON text that comes in pieces."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._scan = json.JSONDecoder(parse_float=str).raw_decode
        self._text = ""
        self._position = 0
        self._ended = False

    def peek(self) -> str:
        """Give the next character that is no blank, "" at the end."""
        while True:
            match = _BLANK.match(self._text, self._position)
            assert match is not None
            self._position = match.end()
            if self._position < len(self._text) or self._ended:
                return self._text[self._position : self._position + 1]
            self._more(_READ)

    def expect(self, allowed: str) -> str:
        """Take the next character, one of those allowed."""
        found = self.peek()
        if not found or found not in allowed:
            raise LayerError(f"a table of contents with {found!r} instead of {' or '.join(allowed)!r}")
        self._position += 1
        return found

    def value(self) -> Any:
        """Take a whole value."""
        self.peek()
        wanted = _READ
        while True:
            try:
                value, end = self._scan(self._text, self._position)
            except RecursionError as error:
                raise LayerError("a table of contents that is nested too deep") from error
            except ValueError as error:
                if self._ended:
                    raise LayerError(f"a table of contents that is no JSON: {error}") from error
            else:
                # A number may go on in the next piece.
                if end < len(self._text) or self._ended:
                    self._position = end
                    return value
            if len(self._text) - self._position > _LARGEST_VALUE:
                raise BudgetError(
                    f"a table of contents with more than {_LARGEST_VALUE} bytes for one entry, or no JSON"
                )
            self._more(wanted)
            wanted *= 2

    def _more(self, wanted: int) -> None:
        parts = [self._text[self._position :]]
        self._position = 0
        while wanted > 0 and not self._ended:
            data = self._stream.read(wanted)
            wanted -= len(data)
            self._ended = not data
            try:
                parts.append(self._decode(data, final=not data))
            except UnicodeDecodeError as error:
                raise LayerError(f"a table of contents that is not UTF-8: {error}") from error
        self._text = "".join(parts)
