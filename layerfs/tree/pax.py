"""Records of PAX extended headers and values in them (POSIX.1-2001, pax(1) "pax Extended Header")."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from layerfs.errors import LayerError

XATTR: Final = b"SCHILY.xattr."
LIBARCHIVE_XATTR: Final = b"LIBARCHIVE.xattr."

_BILLION: Final = 1_000_000_000
_SECONDS: Final = re.compile(rb"(-?)([0-9]{1,19})(?:\.([0-9]*))?", re.DOTALL)
_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_TO_ESCAPE: Final = re.compile(rb"[^!-$&-<>-~]")


def parse_records(data: bytes) -> list[tuple[bytes, bytes]]:
    """Split an extended header's body into (keyword, value) pairs, in order and with duplicates.

    Raises:
        LayerError: a record's length is not that of the record, or a keyword is missing or holds a NUL.
    """
    records = []
    position, end = 0, len(data)
    while position < end:
        blank = data.find(b" ", position, position + 20)
        digits = data[position : max(blank, position)]
        stop = position + int(digits) if digits.isdigit() else 0
        if not blank + 1 < stop <= end or data[stop - 1] != 0x0A:
            raise LayerError("a PAX record with a malformed length")
        equals = data.find(b"=", blank + 1, stop - 1)
        if equals <= blank + 1:
            raise LayerError("a PAX record without a keyword")
        keyword = data[blank + 1 : equals]
        if b"\0" in keyword:
            raise LayerError("a PAX keyword with a NUL")
        records.append((keyword, data[equals + 1 : stop - 1]))
        position = stop
    return records


def format_records(records: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Write (keyword, value) pairs as an extended header's body."""
    return b"".join([_format_record(keyword, value) for keyword, value in records])


def _format_record(keyword: bytes, value: bytes) -> bytes:
    # The length counts its own digits.
    rest = len(keyword) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %b=%b\n" % (length, keyword, value)


def parse_number(value: bytes, keyword: str) -> int:
    """Read a decimal number that is not negative and fits 63 bits.

    Raises:
        LayerError: it is another thing.
    """
    if not value.isdigit() or len(value) > 19 or (number := int(value)) >= 1 << 63:
        raise LayerError(f"a PAX {keyword} that is not a number")
    return number


def parse_time(value: bytes) -> int:
    """Read seconds with any number of decimals as nanoseconds, rounded down; negative before 1970.

    Raises:
        LayerError: it is no time, or its seconds do not fit 64 bits.
    """
    match = _SECONDS.fullmatch(value)
    if match is None or (seconds := int(match[2])) >= 1 << 63:
        raise LayerError("a PAX time that is not a number")
    decimals = match[3] or b""
    time = seconds * _BILLION + int(decimals[:9].ljust(9, b"0"))
    if not match[1]:
        return time
    return -time - 1 if decimals[9:].strip(b"0") else -time


def format_time(time: int) -> bytes:
    """Write nanoseconds as seconds with as few decimals as they need."""
    seconds, rest = divmod(abs(time), _BILLION)
    text = b"%d.%09d" % (seconds, rest) if rest else b"%d" % seconds
    text = text.rstrip(b"0") if rest else text
    return b"-" + text if time < 0 else text


def parse_libarchive_xattr(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Decode an attribute as libarchive writes it: name percent-encoded, value in base 64 without padding.

    Raises:
        LayerError: the value is not base 64.
    """
    import binascii

    try:
        data = binascii.a2b_base64(value + b"=" * (-len(value) % 4), strict_mode=True) if value else b""
    except binascii.Error as error:
        raise LayerError("an extended attribute that is not base 64") from error
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), name), data


def format_xattr(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Give the record of an extended attribute.

    A keyword cannot hold an equals sign: libarchive's form can say it, and is read by us and by bsdtar.
    """
    if b"=" not in name:
        return XATTR + name, value
    import binascii

    escaped = _TO_ESCAPE.sub(lambda match: b"%%%02X" % match[0][0], name)
    return LIBARCHIVE_XATTR + escaped, binascii.b2a_base64(value, newline=False).rstrip(b"=")
