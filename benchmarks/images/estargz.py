"""Packs a layer as eStargz: each file's data a gzip member of its own, and a table of contents at the end.

The format is that of stargz-snapshotter's docs/estargz.md. It is written here anew, so that what reads
it is not measured with what its own author has written.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from pathlib import Path
from typing import IO, Any, Final

TOC_DIGEST: Final = "containerd.io/snapshot/stargz/toc.digest"
_CHUNK: Final = 4 << 20
_GZIP: Final = 31
_LEVEL: Final = 6
_KINDS: Final = {
    tarfile.REGTYPE: "reg",
    tarfile.AREGTYPE: "reg",
    tarfile.DIRTYPE: "dir",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hardlink",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
    tarfile.FIFOTYPE: "fifo",
}


class _Members:
    """Writes gzip members one after the other, and hashes what is in them."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target
        self._packer: Any = None
        self.plain = hashlib.sha256()
        self.offset = 0

    def write(self, data: bytes) -> None:
        if data:
            self._packer = self._packer or zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
            self.plain.update(data)
            self._put(self._packer.compress(data))

    def close(self) -> None:
        if self._packer is not None:
            self._put(self._packer.flush())
            self._packer = None

    def _put(self, data: bytes) -> None:
        self._target.write(data)
        self.offset += len(data)


def pack(source: Path, target: Path) -> tuple[str, str]:
    """Pack a tar; give the digest of its table of contents, and that of the packed layer when unpacked."""
    table: list[dict[str, Any]] = []
    with source.open("rb") as plain, target.open("wb") as packed:
        members = _Members(packed)
        end = 0
        with tarfile.open(fileobj=plain, mode="r:") as archive:
            for entry in archive:
                # Whatever stands before the data: this header, and the padding of the one before.
                members.write(_slice(source, end, entry.offset_data))
                end = entry.offset_data
                described = _describe(entry)
                table.append(described)
                if entry.isreg() and entry.size:
                    table += _write_data(source, entry, described, members)
                    end += entry.size
        # Without the blocks of zeros at the end: the table is one more entry.
        members.write(bytes(-end % 512))
        members.close()
        text = json.dumps({"version": 1, "entries": table}, separators=(",", ":")).encode()
        begin = members.offset
        members.write(_table_entry(text))
        members.close()
        packed.write(_footer(begin))
    return f"sha256:{hashlib.sha256(text).hexdigest()}", members.plain.hexdigest()


def _write_data(
    source: Path, entry: tarfile.TarInfo, described: dict[str, Any], members: _Members
) -> list[dict[str, Any]]:
    """Write a file's data in chunks; the first is described with the file, the others are given."""
    whole, more = hashlib.sha256(), []
    members.close()
    for offset in range(0, entry.size, _CHUNK):
        size = min(_CHUNK, entry.size - offset)
        data = _slice(source, entry.offset_data + offset, entry.offset_data + offset + size)
        whole.update(data)
        chunk = {
            "offset": members.offset,
            "chunkDigest": f"sha256:{hashlib.sha256(data).hexdigest()}",
        }
        if entry.size > _CHUNK:
            chunk |= {"chunkOffset": offset, "chunkSize": size}
        if offset:
            more.append({"name": described["name"], "type": "chunk"} | chunk)
        else:
            described |= chunk
        members.write(data)
        members.close()
    described["digest"] = f"sha256:{whole.hexdigest()}"
    return more


def _describe(entry: tarfile.TarInfo) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": entry.name + ("/" if entry.isdir() else ""),
        "type": _KINDS[entry.type],
        "modtime": "2023-11-14T22:13:20Z",
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
    }
    if entry.isreg() and entry.size:
        found["size"] = entry.size
    if entry.issym() or entry.islnk():
        found["linkName"] = entry.linkname
    return found


def _slice(path: Path, begin: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(begin)
        return file.read(end - begin)


def _table_entry(text: bytes) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        entry = tarfile.TarInfo("stargz.index.json")
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text))
    return written.getvalue()


def _footer(offset: int) -> bytes:
    header = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff"
    field = b"SG" + (22).to_bytes(2, "little") + b"%016xSTARGZ" % offset
    return header + len(field).to_bytes(2, "little") + field + b"\x01\0\0\xff\xff" + bytes(8)
