"""eStargz layers: gzip layers whose files are members of their own, with a table of contents at the end.

Follows stargz-snapshotter's docs/estargz.md. The table is one more entry of the tar stream, and so a file of
the layer for everybody who unpacks it; it is given as one here, so that the tree is the same.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Callable, Iterator
from typing import Final

from layerfs.compression import open_decompressed
from layerfs.digest import Digest
from layerfs.errors import BudgetError, InvalidError, LayerError, VerificationError
from layerfs.seekable.bodies import pieces_of, read_body
from layerfs.seekable.extent import Chunk, Extent, Indexed
from layerfs.seekable.ranges import Ranges, tail_of
from layerfs.seekable.toc_json import read_entries
from layerfs.tree.budget import Budget
from layerfs.tree.entry import Entry, Kind
from layerfs.tree.tar_reader import TarReader

TOC_DIGEST: Final = "containerd.io/snapshot/stargz/toc.digest"
UNCOMPRESSED_SIZE: Final = "io.containers.estargz.uncompressed-size"
TOC_NAME: Final = b"stargz.index.json"
PREFETCH: Final = b".prefetch.landmark"
NO_PREFETCH: Final = b".no.prefetch.landmark"
LANDMARK: Final = b"\x0f"

_FOOTER: Final = 51
# "Footer": an empty member whose header says where the table begins, and whose deflate stream is one stored
# block; the 16 hexadecimal digits stand between.
_BEFORE: Final = b"\x1a\0SG\x16\0"
_AFTER: Final = b"STARGZ"
_DIGITS: Final = frozenset(b"0123456789abcdefABCDEF")


def format_footer(offset: int) -> bytes:
    """Write the footer of a blob whose table begins at `offset`."""
    header = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff"
    return header + _BEFORE + b"%016x" % offset + _AFTER + b"\x01\0\0\xff\xff" + bytes(8)


def parse_footer(footer: bytes) -> int | None:
    """Read where the table begins out of a blob's last 51 bytes; None when they are no footer."""
    digits = footer[16:32]
    known = footer[:4] == b"\x1f\x8b\x08\x04" and footer[10:16] == _BEFORE and footer[32:38] == _AFTER
    if len(footer) != _FOOTER or not known or not _DIGITS.issuperset(digits):
        return None
    try:
        empty = zlib.decompress(footer, 31) == b""
    except zlib.error:
        return None
    return int(digits, 16) if empty else None


class EstargzLayer:
    """An eStargz layer (`layer.IndexedLayer`); `open_estargz` makes one."""

    def __init__(
        self,
        ranges: Ranges,
        start: int,
        member: bytes,
        *,
        budget: Budget,
        warn: Callable[[str], None],
    ) -> None:
        self._ranges = ranges
        self._start = start
        self._member = member
        self._budget = budget
        self._warn = warn
        hasher = hashlib.sha256()
        entry, offset, reader = self._open()
        for _, data in reader.chunks():
            hasher.update(data)
        self.toc_digest = Digest("sha256", hasher.hexdigest())
        chunk = Chunk(0, entry.size, start, start + len(member), offset, str(self.toc_digest))
        self._own = Indexed(entry, hasher.hexdigest(), Extent(entry.size, (chunk,)))

    def entries(self) -> Iterator[Indexed]:
        """Give the entries of the layer, that of the table last; see `IndexedLayer`."""
        entry, _, reader = self._open()
        if entry.size:
            document = _Body(reader)
            yield from read_entries(document, limit=self._start, budget=self._budget, warn=self._warn)
        yield self._own

    def read(self, extent: Extent, offset: int = 0, size: int | None = None) -> Iterator[bytes]:
        """Give a part of a file; see `IndexedLayer`."""
        return read_body(pieces_of(self._ranges, self._budget), extent, offset=offset, size=size)

    def table(self, longest: int) -> tuple[bytes, tuple[Indexed, ...]] | None:
        """Give the table as a whole, and the entries that it does not list; None when it is longer."""
        entry, _, reader = self._open()
        if entry.size > longest:
            return None
        return b"".join(data for _, data in reader.chunks()), (self._own,)

    def _open(self) -> tuple[Entry, int, TarReader]:
        """Begin to read the table; give its entry and where in the uncompressed member its data begins."""
        plain = open_decompressed(io.BytesIO(self._member), budget=self._budget)
        reader = TarReader(plain, budget=self._budget, warn=self._warn)
        entry = next(iter(reader), None)
        if (
            entry is None
            or entry.path != TOC_NAME
            or entry.kind is not Kind.FILE
            or entry.segments is not None
        ):
            raise LayerError("an eStargz layer without its table of contents")
        if entry.size > self._budget.toc_bytes:
            raise BudgetError(f"a table of contents of {entry.size} bytes")
        return entry, reader.offset, reader


class _Body:
    """The data of a tar stream's current entry as a stream."""

    def __init__(self, reader: TarReader) -> None:
        self._pieces = reader.chunks()
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        if not self._rest:
            _, self._rest = next(self._pieces, (0, b""))
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


def open_estargz(
    ranges: Ranges, promised: str, *, budget: Budget, warn: Callable[[str], None]
) -> EstargzLayer | None:
    """Open a blob if it is an eStargz layer; None when it has no footer of one.

    Args:
        ranges: the blob; read by one request, or two when the table is large.
        promised: the value of the annotation `TOC_DIGEST`.
        budget: bounds the table.
        warn: told what was odd.

    Raises:
        VerificationError: the table's digest is not the promised one.
        LayerError: the blob has a footer, and no sound table.
        BudgetError: the table is larger than the budget.
    """
    if ranges.size < _FOOTER:
        return None
    tail = tail_of(ranges)
    start = parse_footer(tail[-_FOOTER:])
    if start is None:
        return None
    end = ranges.size - _FOOTER
    if not 0 <= start < end:
        raise LayerError("an eStargz layer whose footer leads out of it")
    if end - start > budget.toc_bytes:
        raise BudgetError(f"a table of contents of {end - start} compressed bytes")
    missing = end - start + _FOOTER - len(tail)
    if missing > 0:
        tail = ranges.read_at(start, missing) + tail
    member = tail[-_FOOTER - (end - start) : -_FOOTER]
    layer = EstargzLayer(ranges, start, member, budget=budget, warn=warn)
    if layer.toc_digest != _parse(promised):
        raise VerificationError(
            f"the layer's table of contents has {layer.toc_digest}, its descriptor promises {promised[:200]}"
        )
    return layer


def _parse(promised: str) -> Digest | None:
    try:
        return Digest.parse(promised)
    except InvalidError:
        return None
