"""Entries of a layer written down shortly, and the tar stream made of them by Python's own tarfile.

The standard library's writer is used on purpose: a reader and a writer by one author may share a mistake.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from layerfs.testing.snapshot import Facts, Snapshot, snapshot_digest

TIME: Final = 1_600_000_000_123_456_789

_TYPES: Final = {
    "file": tarfile.REGTYPE,
    "directory": tarfile.DIRTYPE,
    "symlink": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
    "character": tarfile.CHRTYPE,
    "block": tarfile.BLKTYPE,
    "fifo": tarfile.FIFOTYPE,
}


class Item(NamedTuple):
    """One entry of a layer, or one file of an expected tree; `type` is as in `Facts`, or "hard link"."""

    path: bytes
    type: str
    data: bytes = b""
    target: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = TIME
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


def file(path: bytes, data: bytes = b"", *, mode: int = 0o644, uid: int = 0, gid: int = 0,
         mtime_ns: int = TIME, xattrs: Mapping[bytes, bytes] | None = None) -> Item:  # fmt: skip
    """Describe a regular file."""
    return Item(path, "file", data, b"", mode, uid, gid, mtime_ns, xattrs=tuple((xattrs or {}).items()))


def directory(path: bytes, *, mode: int = 0o755, uid: int = 0, gid: int = 0,
              mtime_ns: int = TIME, xattrs: Mapping[bytes, bytes] | None = None) -> Item:  # fmt: skip
    """Describe a directory."""
    return Item(path, "directory", b"", b"", mode, uid, gid, mtime_ns, xattrs=tuple((xattrs or {}).items()))


def implied(path: bytes) -> Item:
    """Describe a directory that a layer needs and has no entry for."""
    return directory(path, mtime_ns=0)


def symlink(path: bytes, target: bytes) -> Item:
    """Describe a symbolic link."""
    return Item(path, "symlink", target=target, mode=0o777)


def hard_link(path: bytes, target: bytes) -> Item:
    """Describe another name of a file."""
    return Item(path, "hard link", target=target)


def node(path: bytes, kind: str, device: tuple[int, int] = (0, 0), *, mode: int = 0o600) -> Item:
    """Describe a "character" or "block" device, or a "fifo"."""
    return Item(path, kind, mode=mode, device=device)


def whiteout(path: bytes) -> Item:
    """Describe the deletion of a path of older layers."""
    parent, slash, name = path.rpartition(b"/")
    return file(parent + slash + b".wh." + name)


def opaque(path: bytes) -> Item:
    """Describe the deletion of everything that older layers have in a directory; ``b""`` is the root."""
    return file(path + b"/.wh..wh..opq" if path else b".wh..wh..opq")


def tar(items: Iterable[Item]) -> bytes:
    """Write the items as one uncompressed layer, in their order."""
    stream = io.BytesIO()
    with tarfile.open(
        fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"
    ) as archive:
        for item in items:
            info = tarfile.TarInfo(os.fsdecode(item.path))
            info.type = _TYPES[item.type]
            info.mode, info.uid, info.gid = item.mode, item.uid, item.gid
            info.mtime = item.mtime_ns // 1_000_000_000
            info.linkname = os.fsdecode(item.target)
            info.devmajor, info.devminor = item.device
            info.size = len(item.data) if item.type == "file" else 0
            headers = {"SCHILY.xattr." + os.fsdecode(n): os.fsdecode(v) for n, v in item.xattrs}
            if item.mtime_ns % 1_000_000_000:
                headers["mtime"] = _decimal(item.mtime_ns)
            info.pax_headers = headers
            archive.addfile(info, io.BytesIO(item.data))
    return stream.getvalue()


def _decimal(nanoseconds: int) -> str:
    """Write seconds with nine decimals, which a float cannot hold."""
    sign = "-" if nanoseconds < 0 else ""
    seconds, rest = divmod(abs(nanoseconds), 1_000_000_000)
    return f"{sign}{seconds}.{rest:09}"


def expected(items: Iterable[Item]) -> Snapshot:
    """Give the snapshot that a tree of these items has; the root is in it only if it is among them."""
    found: Snapshot = {}
    groups: dict[bytes, set[bytes]] = {}
    for item in items:
        if item.type == "hard link":
            groups.setdefault(item.target, {item.target}).add(item.path)
            continue
        is_file = item.type == "file"
        found[item.path] = Facts(
            item.type, item.mode, item.uid, item.gid, item.mtime_ns, len(item.data) if is_file else 0,
            snapshot_digest(item.data) if is_file else "", item.target,
            os.makedev(*item.device) if item.type in ("character", "block") else 0, dict(item.xattrs), b"",
        )  # fmt: skip
    for target, paths in groups.items():
        facts = found[target]._replace(links=min(paths))
        found.update(dict.fromkeys(paths, facts))
    return found
