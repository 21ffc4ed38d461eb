"""Images with eStargz layers, made by hand as docs/estargz.md of stargz-snapshotter says; not by layerfs."""

from __future__ import annotations

import base64
import gzip
import io
import json
import tarfile
from collections.abc import Iterable
from typing import Any

from tests.support.tiny_images import TinyImage, document, sha256

TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
_TYPES = {
    tarfile.REGTYPE: "reg", tarfile.AREGTYPE: "reg", tarfile.DIRTYPE: "dir", tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hardlink", tarfile.CHRTYPE: "char", tarfile.BLKTYPE: "block", tarfile.FIFOTYPE: "fifo",
}  # fmt: skip


class Estargz:
    """One layer: its blob, its plain tar, and the digest of its table of contents.

    Args:
        plain: a tar stream in the PAX format.
        chunk: bytes of a file that are a gzip member.
        more: entries, or members of them, that the table has besides.
    """

    def __init__(self, plain: bytes, *, chunk: int = 1 << 20, more: Iterable[dict[str, Any]] = ()) -> None:
        self._out = io.BytesIO()
        self._tar = io.BytesIO()
        self.entries: list[dict[str, Any]] = []
        with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
            end = 0
            for info in archive:
                self._add(info, plain[end : info.offset_data], archive, chunk)
                end = info.offset_data + ((info.size + 511) // 512 * 512 if info.isreg() else 0)
        for lie in more:
            known = [each for each in self.entries if each["name"] == lie["name"]]
            for each in known:
                each.update(lie)
            if not known:
                self.entries.append({"mode": 0o644, "modtime": _time(0), **lie})
        toc = json.dumps({"version": 1, "entries": self.entries}, indent="\t").encode()
        self.toc_digest = sha256(toc)
        start = self._out.tell()
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
            own = tarfile.TarInfo("stargz.index.json")
            own.size = len(toc)
            archive.addfile(own, io.BytesIO(toc))
        self._member(packed.getvalue())
        self._out.write(
            b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + b"\x1a\0SG\x16\0" + b"%016x" % start + b"STARGZ"
            + b"\x01\0\0\xff\xff" + bytes(8)
        )  # fmt: skip
        self.blob = self._out.getvalue()
        self.plain = self._tar.getvalue()

    def _member(self, data: bytes) -> None:
        self._tar.write(data)
        self._out.write(gzip.compress(data, mtime=0))

    def _add(self, info: tarfile.TarInfo, header: bytes, archive: tarfile.TarFile, chunk: int) -> None:
        self._member(header)
        entry: dict[str, Any] = {
            "name": info.name + ("/" if info.isdir() else ""), "type": _TYPES[info.type], "mode": info.mode,
            "uid": info.uid, "gid": info.gid, "modtime": _time(info.mtime),
        }  # fmt: skip
        xattrs = {
            key.removeprefix("SCHILY.xattr."): value
            for key, value in info.pax_headers.items()
            if key.startswith("SCHILY.xattr.")
        }
        if xattrs:
            entry["xattrs"] = {
                key: base64.b64encode(value.encode("utf-8", "surrogateescape")).decode()
                for key, value in xattrs.items()
            }
        if info.issym() or info.islnk():
            entry["linkName"] = info.linkname
        if info.isdev():
            entry |= {"devMajor": info.devmajor, "devMinor": info.devminor}
        if not info.isreg():
            self.entries.append(entry)
            return
        file = archive.extractfile(info)
        assert file is not None
        data = file.read()
        entry |= {"size": len(data), "digest": sha256(data)}
        if not data:
            self.entries.append(entry)
            return
        for offset in range(0, len(data), chunk):
            part = data[offset : offset + chunk]
            place = {"offset": self._out.tell(), "chunkOffset": offset, "chunkDigest": sha256(part)}
            if offset + chunk < len(data):
                place["chunkSize"] = len(part)
            if offset == 0:
                self.entries.append({**entry, **place})
            else:
                self.entries.append({"name": info.name, "type": "chunk", **place})
            self._member(part)
        self._member(bytes(-len(data) % 512))


def _time(seconds: float) -> str:
    import datetime

    moment = datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


class EstargzImage(TinyImage):
    """An image whose layers are eStargz, out of plain tars."""

    def __init__(self, *tars: bytes, chunk: int = 1 << 20, more: Iterable[dict[str, Any]] = ()) -> None:
        self._tars = tars
        made = [Estargz(plain, chunk=chunk, more=more) for plain in tars]
        super().__init__(tars=[each.plain for each in made])
        self.layers = [each.blob for each in made]
        kind = "application/vnd.oci.image.layer.v1.tar+gzip"
        found = json.loads(self.manifest)
        found["layers"] = [
            self.describe(each.blob, kind, annotations={TOC_DIGEST: each.toc_digest}) for each in made
        ]
        self.manifest = document(found)
        self.blobs = [self.config, *self.layers, self.manifest]

    def with_entry(self, entry: dict[str, Any]) -> EstargzImage:
        """Give an image whose tables have an entry more, or another one of that name."""
        return EstargzImage(*self._tars, more=[entry])


__all__ = ["Estargz", "EstargzImage"]
