"""Changes an input as somebody would who knows its format: for the fuzzer."""

from __future__ import annotations

import gzip
import json
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Final

Mutator = Callable[[random.Random, bytes, Sequence[bytes]], bytes]

LARGEST: Final = 1 << 16
_INTEGERS: Final = (
    0, 1, 2, 7, 127, 128, 255, 256, 511, 512, 513, 4095, 4096, 65535, 65536, (1 << 31) - 1, 1 << 31,
    (1 << 32) - 2, (1 << 32) - 1, 1 << 32, (1 << 62), (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip
_BYTES: Final = b"\0\x01\x09\x0a\x0d\x20\x2c\x2d\x2e\x2f\x30\x31\x37\x39\x3a\x3d\x40\x5c\x7f\x80\xc0\xed\xff"


def anyhow(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change bytes without regard to what they mean."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        _change(rng, changed, others)
    return bytes(changed[:LARGEST])


def _change(rng: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    size = len(data)
    at = rng.randrange(size + 1)
    end = min(size, at + rng.choice((1, 2, 4, 8, 64, 512, 4096)))
    kind = rng.randrange(9)
    if kind == 0 and at < size:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1 and at < size:
        data[at] = rng.choice(_BYTES)
    elif kind == 2:
        del data[at:end]
    elif kind == 3:
        data[at:at] = data[at:end] * rng.choice((1, 1, 2, 16))
    elif kind == 4:
        data[at:at] = rng.randbytes(rng.choice((1, 2, 8, 64)))
    elif kind == 5:
        number = rng.choice(_INTEGERS)
        form = rng.choice(("<H", "<I", "<Q", ">I", ">Q"))
        packed = struct.pack(form, number & ((1 << 8 * struct.calcsize(form)) - 1))
        data[at : at + len(packed)] = packed
    elif kind == 6 and others:
        other = rng.choice(others)
        start = rng.randrange(len(other) + 1)
        data[at:end] = other[start : start + rng.choice((8, 64, 512, 4096))]
    elif kind == 7:
        del data[at:]
    else:
        data[at:end] = rng.choice(_BYTES).to_bytes() * (end - at)


def words(*tokens: bytes) -> Mutator:
    """Make a mutator of text: it puts tokens of the format in, and takes lines and words away."""

    def mutate(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
        if rng.random() < 0.3:
            return anyhow(rng, data, others)
        for _ in range(rng.choice((1, 1, 2, 4))):
            at = rng.randrange(len(data) + 1)
            token = rng.choice(tokens) * rng.choice((1, 1, 1, 2, 300))
            kept = rng.choice((0, 0, len(token), 1))
            data = (data[:at] + token + data[at + kept :])[:LARGEST]
            if rng.random() < 0.2:
                parts = data.split(b"\n")
                rng.shuffle(parts)
                data = b"\n".join(parts)
        return data

    return mutate


# -- JSON -------------------------------------------------------------------------------------------

_VALUES: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1, 1.5, -0.0, 1e308, (1 << 31), (1 << 53) + 1, (1 << 62), (1 << 63) - 1,
    1 << 63,
    -(1 << 63), 10**400, "", " ", "a", "\0", "\n", "\ud800", "\udcff", "\u202e", "é" * 300, "a" * 5000, "/",
    "..", "../../etc/passwd", ".wh.a", ".wh..wh..opq", "sha256:" + "0" * 64, "sha256:x",
    "sha512:" + "f" * 128,
    "1970-01-01T00:00:00Z", "9999-12-31T23:59:60.999999999Z", "0001-01-01T00:00:00Z", "١٩٧٠-01-01T00:00:00Z",
    "=", "PATH=", "AAAA", "A", "http://[", "application/vnd.oci.image.manifest.v1+json", [], [[]], {},
    {"": {}},
    [None], [1, "a", {}], ["a"] * 100, {"a": 1},
)  # fmt: skip


def of_json(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change a JSON document: values, names, places, nesting, and sometimes its text."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return anyhow(rng, data, others)
    try:
        for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
            value = _change_value(rng, value)
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    except (ValueError, RecursionError):
        return data
    if rng.random() < 0.1:
        text = text.replace("1", rng.choice(("1e999", "NaN", "-", "0x1", "01", "1" * 5000, "1.0")), 1)
    if rng.random() < 0.05:
        deep = rng.choice((50, 1500, 20000))
        text = "[" * deep + text + "]" * deep
    raw = text[:LARGEST].encode("utf-8", "surrogatepass")
    return anyhow(rng, raw, others) if rng.random() < 0.15 else raw


def _change_value(rng: random.Random, value: Any) -> Any:
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, below in items:
            places.append((node, key))
            if len(places) < 2000:
                walk(below)

    walk(value)
    if not places:
        return rng.choice(_VALUES)
    holder, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind < 4:
        holder[key] = rng.choice(_VALUES)
    elif kind == 4:
        del holder[key]
    elif kind == 5:
        source, name = rng.choice(places)
        if (isinstance(source, dict) and name in source) or (isinstance(source, list) and name < len(source)):
            # Deep copies only: a value inside itself cannot be written.
            holder[key] = json.loads(json.dumps(source[name]))
    elif kind == 6 and isinstance(holder, list):
        holder.extend(holder[key : key + 1] * rng.choice((1, 2, 20)))
    elif isinstance(holder, dict):
        found = holder.pop(key)
        holder[rng.choice(("", "a", "\0", key.upper(), key + " ", "type", "size", "digest", "urls"))] = found
    return value


def of_json_lines(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change one line of JSON of several."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = of_json(rng, lines[at], others)
    if rng.random() < 0.2:
        rng.shuffle(lines)
    return b"\n".join(lines)[:LARGEST]


# -- tar --------------------------------------------------------------------------------------------

_FIELDS: Final = {
    "name": (0, 100), "mode": (100, 8), "uid": (108, 8), "gid": (116, 8), "size": (124, 12), "mtime": (136,
    12),
    "flag": (156, 1), "link": (157, 100), "magic": (257, 8), "major": (329, 8), "minor": (337, 8),
    "prefix": (345, 155), "map": (386, 96), "real": (483, 12), "more": (482, 1),
}  # fmt: skip
_NAMES: Final = (
    b"", b".", b"..", b"/", b"./", b"a", b"a/b", b"a/../../b", b"/etc/passwd", b".wh.a", b".wh.", b".wh..",
    b".wh..wh..opq", b".wh..wh.plnk/1.2", b"d/.wh..wh..opq", b"d", b"d/", b"l", b"l/x", b"\xff\xfe", b"a\nb",
    b"x" * 100, b"d/d/d/d/d/d/d/d/d/d", b"stargz.index.json",
)  # fmt: skip
_FLAGS: Final = b"01234567xgXLKSVDMN\0 Zz"
_KEYWORDS: Final = (
    b"path", b"linkpath", b"size", b"mtime", b"uid", b"gid", b"uname", b"atime", b"hdrcharset", b"comment",
    b"SCHILY.xattr.user.a", b"SCHILY.xattr.security.capability", b"SCHILY.xattr.trusted.overlay.opaque",
    b"SCHILY.xattr.system.posix_acl_access", b"SCHILY.acl.access", b"LIBARCHIVE.xattr.user.b", b"SCHILY.dev",
    b"GNU.sparse.major", b"GNU.sparse.minor", b"GNU.sparse.name", b"GNU.sparse.realsize", b"GNU.sparse.size",
    b"GNU.sparse.map", b"GNU.sparse.numblocks", b"GNU.sparse.offset", b"GNU.sparse.numbytes",
    b"SCHILY.devmajor",
    b"SCHILY.devminor", b"LAYERFS", b"",
)  # fmt: skip
_TEXTS: Final = (
    b"", b"0", b"1", b"-1", b"1.5", b"-1.5", b"1e9", b".5", b"99999999999999999999", b"9" * 5000, b"0x10",
    b" 1", b"1 ", b"4294967295", b"9223372036854775807", b"0,1", b"0,1,2", b"0,512,1024,512",
    b"0,9223372036854775807",
    b"a", b"a\0b", b"\xff", b"../../x", b"/", b"=", b"\n", b"QUJD", b"%41", b"x" * 70000,
)  # fmt: skip


def number(rng: random.Random, size: int) -> bytes:
    """Write a number as a field of a tar header can hold it, or not quite."""
    value = rng.choice(_INTEGERS)
    kind = rng.randrange(6)
    if kind == 0:
        field = bytes([0x80]) + value.to_bytes(9, "big")[-(size - 1) :].rjust(size - 1, b"\0")
    elif kind == 1:
        field = b"\xff" * size
    elif kind == 2:
        field = rng.choice((b"-1", b"8", b"  ", b"0x", b"7" * size, b"1 2", b"\0" * size))
    else:
        field = b"%0*o" % (size - 1, value)
    return field[:size].ljust(size, b"\0")


def of_tar(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change headers of an archive, with right checksums mostly, and the order and number of its blocks."""
    blocks = [bytearray(data[at : at + 512].ljust(512, b"\0")) for at in range(0, len(data), 512)]
    if not blocks or rng.random() < 0.05:
        return anyhow(rng, data, others)
    heads = [at for at, block in enumerate(blocks) if block[257:262] == b"ustar" or block[148:154].isdigit()]
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        at = rng.choice(heads) if heads and rng.random() < 0.8 else rng.randrange(len(blocks))
        at = min(at, len(blocks) - 1)
        kind = rng.randrange(10)
        if kind < 6:
            _change_header(rng, blocks[at])
        elif kind == 6:
            blocks.insert(rng.randrange(len(blocks) + 1), bytearray(blocks[at]))
        elif kind == 7 and len(blocks) > 1:
            del blocks[at]
        elif kind == 8:
            records = pax_body(rng)
            head = pax_header(len(records))
            padded = records + bytes(-len(records) % 512)
            blocks[at:at] = [
                bytearray((head + padded)[i : i + 512]) for i in range(0, len(head + padded), 512)
            ]
        else:
            blocks[at] = bytearray(anyhow(rng, bytes(blocks[at]), others)[:512].ljust(512, b"\0"))
    return b"".join(blocks)[: LARGEST * 2]


def _change_header(rng: random.Random, block: bytearray) -> None:
    name = rng.choice(tuple(_FIELDS))
    start, size = _FIELDS[name]
    if name in ("name", "link", "prefix"):
        value = rng.choice(_NAMES)[:size].ljust(size, b"\0")
    elif name == "flag":
        value = rng.choice(_FLAGS).to_bytes()
    elif name == "magic":
        value = rng.choice((b"ustar\x0000", b"ustar  \0", bytes(8), b"ustar\0\0\0", b"tar\0\0\0\0\0"))
    elif name == "more":
        value = rng.choice((b"\0", b"\1"))
    elif name == "map":
        value = b"".join(number(rng, 12) for _ in range(8))
    else:
        value = number(rng, size)
    block[start : start + size] = value
    if rng.random() < 0.95:
        seal(block)


def seal(block: bytearray) -> None:
    """Write the right checksum."""
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)


def pax_header(size: int, flag: bytes = b"x") -> bytes:
    """Make the header of an extended header."""
    block = bytearray(512)
    block[0:6] = b"PaxHdr"
    block[100:108] = b"0000644\0"
    block[124:136] = b"%011o\0" % size
    block[156:157] = flag
    block[257:265] = b"ustar\x0000"
    seal(block)
    return bytes(block)


def pax_body(rng: random.Random) -> bytes:
    """Make records of an extended header, most of them well-formed."""
    records = []
    for _ in range(rng.choice((1, 1, 2, 4, 30))):
        body = b" " + rng.choice(_KEYWORDS) + b"=" + rng.choice(_TEXTS) + b"\n"
        length = len(body)
        while length != len(body) + len(b"%d" % length):
            length = len(body) + len(b"%d" % length)
        if rng.random() < 0.1:
            length += rng.choice((-1, 1, 10**9, -length))
        records.append(b"%d" % length + body)
    return b"".join(records)


def of_pax(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change records of an extended header."""
    if rng.random() < 0.4:
        return anyhow(rng, data, others)
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at:at] = pax_body(rng).split(b"\n")[:-1]
    return b"\n".join(lines)[:LARGEST]


# -- compressed streams -----------------------------------------------------------------------------


def of_compressed(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change a gzip or zstd stream: its bytes, its members, and odd things between and behind them."""
    kind = rng.randrange(8)
    if kind == 0:
        return data + rng.choice((data, b"\0" * 512, b"\0a", gzip.compress(b"", mtime=0), b"\x1f\x8b", b"x"))
    if kind == 1:
        size = rng.choice((0, 1, 100, (1 << 32) - 1))
        frame = struct.pack("<II", 0x184D2A50 + rng.randrange(16), size) + bytes(min(size, 100))
        return rng.choice((frame + data, data + frame))
    if kind == 2:
        flags = rng.randrange(256)
        text = rng.choice((b"name\0", b"x" * 100, b"\5\0abcde", b""))
        packed = zlib.compressobj(6, zlib.DEFLATED, -15)
        body = packed.compress(b"text") + packed.flush()
        return (
            b"\x1f\x8b\x08"
            + bytes([flags])
            + bytes(6)
            + text
            + body
            + struct.pack("<II", zlib.crc32(b"text"), 4)
        )
    if kind == 3:
        descriptor, window = rng.randrange(256), rng.randrange(256)
        run = ((1 << 17) << 3 | 1 << 1 | rng.randrange(2)).to_bytes(3, "little") + b"\0"
        return (
            b"\x28\xb5\x2f\xfd" + bytes([descriptor, window]) + rng.randbytes(8) + run * rng.choice((1, 50))
        )
    return anyhow(rng, data, others)
