"""Maps of sparse files in tar: old GNU's, and PAX 0.0, 0.1 and 1.0 (GNU tar's manual, "Sparse Formats")."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from layerfs.errors import BudgetError, LayerError
from layerfs.tree.pax import parse_number
from layerfs.tree.tar_header import BLOCK, parse_size

Segments = tuple[tuple[int, int], ...]
Records = Sequence[tuple[bytes, bytes]]

PREFIX: Final = b"GNU.sparse."

_SLOT: Final = 24
_MAXIMUM_LINE: Final = 21


def check(pairs: Iterable[tuple[int, int]], *, size: int, stored: int) -> Segments:
    """Return the runs of data without the empty ones.

    Args:
        pairs: (offset, length) of each run, in bytes.
        size: the file's length, holes included.
        stored: bytes of data that the archive holds.

    Raises:
        LayerError: runs overlap, are out of order or past the end, or are not the data that is stored.
    """
    segments = []
    end = total = 0
    for offset, length in pairs:
        if offset < end or offset + length > size:
            raise LayerError("a sparse map whose runs overlap or leave the file")
        end = offset + length
        total += length
        if length:
            segments.append((offset, length))
    if total != stored:
        raise LayerError(f"a sparse map of {total} bytes for {stored} bytes of data")
    return tuple(segments)


def read_old_map(
    header: bytes, next_block: Callable[[], bytes], limit: int
) -> tuple[list[tuple[int, int]], int]:
    """Read the map of a header of type S and of the extension blocks after it.

    Returns:
        The runs, and the file's length in bytes.

    Raises:
        LayerError: a number is malformed.
        BudgetError: more than `limit` runs.
    """
    pairs: list[tuple[int, int]] = []
    slots, more = header[386:482], header[482]
    size = parse_size(header[483:495])
    while True:
        for start in range(0, len(slots), _SLOT):
            slot = slots[start : start + _SLOT]
            if not slot[0] or not slot[12]:
                break
            pairs.append((parse_size(slot[:12]), parse_size(slot[12:])))
        _check_limit(len(pairs), limit)
        if not more:
            return pairs, size
        block = next_block()
        slots, more = block[:504], block[504]


def read_pax_map(records: Records, limit: int) -> list[tuple[int, int]]:
    """Read the map of PAX form 0.1 (one record) or 0.0 (a pair of records for each run).

    Raises:
        LayerError: a number is malformed or a pair incomplete.
        BudgetError: more than `limit` runs.
    """
    numbers: list[bytes] = []
    for keyword, value in records:
        if keyword == PREFIX + b"map":
            numbers = value.split(b",") if value else []
            break
        if keyword == PREFIX + (b"numbytes" if len(numbers) % 2 else b"offset"):
            numbers.append(value)
        elif keyword in (PREFIX + b"offset", PREFIX + b"numbytes"):
            raise LayerError("a sparse map with half a pair")
    return _pair(numbers, limit)


def read_data_map(next_block: Callable[[], bytes], limit: int) -> tuple[list[tuple[int, int]], int]:
    """Read the map of PAX form 1.0, which stands in whole blocks before the data.

    Returns:
        The runs, and how many bytes the map took.

    Raises:
        LayerError: a number is malformed.
        BudgetError: more than `limit` runs.
    """
    block = next_block()
    taken = BLOCK
    first, newline, rest = block.partition(b"\n")
    if not newline:
        raise LayerError("a sparse map without a count")
    wanted = parse_number(first, "sparse map's count")
    _check_limit(wanted, limit)
    lines = rest.split(b"\n")
    while len(lines) <= 2 * wanted:
        if len(lines[-1]) > _MAXIMUM_LINE:
            raise LayerError("a sparse map with an overlong number")
        more = (lines.pop() + next_block()).split(b"\n")
        taken += BLOCK
        lines += more
    return _pair(lines[: 2 * wanted], limit), taken


def format_data_map(segments: Segments, size: int) -> bytes:
    """Write the map of PAX form 1.0 in whole blocks."""
    pairs = list(segments)
    if not pairs or sum(pairs[-1]) < size:
        # As GNU tar does: an empty run says where a file that ends in a hole ends.
        pairs.append((size, 0))
    text = b"%d\n" % len(pairs) + b"".join([b"%d\n%d\n" % pair for pair in pairs])
    return text + bytes(-len(text) % BLOCK)


def _pair(numbers: list[bytes], limit: int) -> list[tuple[int, int]]:
    if len(numbers) % 2:
        raise LayerError("a sparse map with half a pair")
    _check_limit(len(numbers) // 2, limit)
    values = [parse_number(number, "sparse map's entry") for number in numbers]
    return list(zip(values[::2], values[1::2], strict=True))


def _check_limit(count: int, limit: int) -> None:
    if count > limit:
        raise BudgetError(f"a sparse file of more than {limit} runs of data")
