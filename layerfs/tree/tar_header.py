"""The 512-byte header block of tar, as ustar (POSIX.1-1988), GNU tar and star write it."""

from __future__ import annotations

import struct
import zlib
from typing import Final

from layerfs.errors import LayerError

BLOCK: Final = 512
ZERO_BLOCK: Final = bytes(BLOCK)

# name; mode, uid and gid in one; size; mtime; checksum; type; link name; magic and version; (user and group
# names); device numbers in one; prefix.
FIELDS: Final = struct.Struct("100s24s12s12s8sc100s8s64x16s155s12x")

_MAXIMUM: Final = (1 << 63) - 1
_ID_MAXIMUM: Final = (1 << 32) - 2
# The kernel's dev_t: 12 bits of major, 20 of minor.
_MAJOR_MAXIMUM: Final = (1 << 12) - 1
_MINOR_MAXIMUM: Final = (1 << 20) - 1


def parse_number(field: bytes, what: str) -> int:
    """Read a numeric field: octal digits, or GNU's base 256 in two's complement.

    Raises:
        LayerError: the field, called `what` in the message, is neither or does not fit 64 bits.
    """
    digits = field.rstrip(b"\0 ")
    if digits.isdigit():
        # As nearly every writer has it.
        try:
            return int(digits, 8)
        except ValueError:
            raise LayerError(f"a {what} that is not a number") from None
    if field[0] & 0x80:
        bits = 8 * len(field) - 1
        value = int.from_bytes(field, "big") - (1 << bits)
        if field[0] & 0x40:
            value -= 1 << bits
        if not -_MAXIMUM <= value <= _MAXIMUM:
            raise LayerError(f"a {what} that does not fit 64 bits")
        return value
    text = field.lstrip(b" \0").partition(b"\0")[0].partition(b" ")[0]
    if not text:
        return 0
    # bytes.isdigit() first: int() alone takes signs, underscores and blanks.
    if text.isdigit():
        try:
            return int(text, 8)
        except ValueError:
            pass
    raise LayerError(f"a {what} that is not a number")


def parse_size(field: bytes) -> int:
    """Read a size in bytes; a negative one is a LayerError."""
    value = parse_number(field, "size")
    if value < 0:
        raise LayerError("a negative size")
    return value


def check_id(value: int, what: str) -> int:
    """Return a user or group id that the kernel can hold; 2^32-1 means "no change" to it.

    Raises:
        LayerError: it cannot.
    """
    if not 0 <= value <= _ID_MAXIMUM:
        raise LayerError(f"a {what} out of range ({value})")
    return value


def parse_attributes(field: bytes) -> tuple[int, int, int]:
    """Read the 24 bytes of mode, uid and gid; type bits of the mode are masked away.

    Raises:
        LayerError: one of them is no number or out of range.
    """
    mode = parse_number(field[:8], "mode")
    if mode < 0:
        raise LayerError("a negative mode")
    uid = check_id(parse_number(field[8:16], "uid"), "uid")
    return mode & 0o7777, uid, check_id(parse_number(field[16:], "gid"), "gid")


def parse_device(field: bytes) -> tuple[int, int]:
    """Read the 16 bytes of major and minor device number.

    Raises:
        LayerError: one of them is no number, or more than the kernel's 12 and 20 bits.
    """
    major = parse_number(field[:8], "major device number")
    minor = parse_number(field[8:], "minor device number")
    if not (0 <= major <= _MAJOR_MAXIMUM and 0 <= minor <= _MINOR_MAXIMUM):
        raise LayerError(f"a device number out of range ({major}, {minor})")
    return major, minor


def has_valid_checksum(block: bytes) -> bool:
    """Say whether a block carries its own checksum: the sum of its bytes, the field itself taken as blanks.

    Sums of signed bytes are accepted too, as GNU tar does: old Sun and BSD archives have them.
    """
    try:
        stored = parse_number(block[148:156], "checksum")
    except LayerError:
        return False
    if block.isascii():
        return stored == checksum(block) - sum(block[148:156]) + 8 * 32
    rest = block[:148] + block[156:]
    unsigned = sum(rest) + 8 * 32
    if stored == unsigned:
        return True
    return stored == unsigned - 256 * sum(byte >> 7 for byte in rest)


def adler_of(field: bytes) -> int:
    """Give the low half of Adler-32 that an ASCII block with this checksum field must have; -1 for none.

    Raises:
        LayerError: the field is no number.
    """
    needed = parse_number(field, "checksum") - 8 * 32 + sum(field) + 1
    return needed if 0 < needed < 65521 else -1


def checksum(block: bytes) -> int:
    """Sum the bytes of a block; its checksum is that while the field itself holds blanks.

    The low half of Adler-32 is one more than the sum modulo 65521, and in C: exact for ASCII.
    """
    if block.isascii():
        return (zlib.adler32(block) & 0xFFFF) - 1
    return sum(block)
