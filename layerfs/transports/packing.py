"""One layer packed anew: the blob is another, its plain bytes and so its diff id stay (but for eStargz)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, BinaryIO, Final

from layerfs import files
from layerfs.compression import Compression, compressor, open_decompressed, readahead
from layerfs.digest import Digest
from layerfs.errors import InvalidError, VerificationError
from layerfs.hashing import Hasher
from layerfs.progress import Counted
from layerfs.transports.endpoint import verified
from layerfs.value import frozen

if TYPE_CHECKING:
    from layerfs.compression import Readable
    from layerfs.oci.descriptor import Descriptor
    from layerfs.seekable.writing import Format, Written
    from layerfs.tree.budget import Budget

# Bytes that go from one thread to the next; several wait between each two.
_PIECE = 1 << 18
# The ends of what levels there are (`compression.compressor`).
_LEVELS = {Compression.GZIP: (0, 9), Compression.ZSTD: (1, 22)}


FORMATS: Final = ("estargz", "zstd:chunked")
NAMES: Final = (*(each.value for each in Compression), *FORMATS)
# What tells a layer of a format from any other.
_MARKS: Final = {
    "estargz": "containerd.io/snapshot/stargz/toc.digest",
    "zstd:chunked": "io.github.containers.zstd-chunked.manifest-checksum",
}


@frozen
class Packing:
    """How layers are to be compressed: a compression, or one of the `FORMATS` that carry an index.

    `level` is as `compression.compressor` has it, None for a good one.
    """

    name: str
    level: int | None = None

    @classmethod
    def parse(cls, name: str, level: int | None = None) -> Packing:
        """Read the name of a compression: ``gzip``, ``zstd``, ``none``, ``estargz`` or ``zstd:chunked``.

        Raises:
            InvalidError: there is none of that name, or it has no such level.
        """
        if name not in NAMES:
            known = ", ".join(NAMES)
            raise InvalidError(f"{name[:100]!r} is no compression of layers", hint=f"there is {known}")
        made = cls(name, level)
        if level is not None:
            if made.compression not in _LEVELS:
                raise InvalidError("what is not compressed has no level")
            lowest, highest = _LEVELS[made.compression]
            if not lowest <= level <= highest:
                raise InvalidError(f"{name} has levels {lowest} to {highest}, not {level}")
        return made

    @property
    def compression(self) -> Compression:
        """What a layer is for those who know none of the formats."""
        return {"estargz": Compression.GZIP, "zstd:chunked": Compression.ZSTD}.get(self.name) or Compression(
            self.name
        )

    def made(self, layer: Descriptor, compression: Compression) -> bool:
        """Say whether a layer that is compressed so is packed like this already, at whatever level."""
        if compression is not self.compression:
            return False
        mark = _MARKS.get(self.name)
        return mark is None or mark in layer.annotations


@frozen
class Packed:
    """A layer that was packed: the blob's digest and size, the file that holds it, open, and what it is.

    `diff_id` is that of before, but for eStargz. The annotations are for the layer's descriptor.
    """

    digest: Digest
    size: int
    file: BinaryIO
    diff_id: Digest
    annotations: Mapping[str, str]


def pack(
    stream: Readable,
    descriptor: Descriptor,
    packing: Packing,
    *,
    diff_id: Digest,
    target: BinaryIO,
    threads: int = 1,
    budget: Budget,
    warn: Callable[[str], None],
    check: Callable[[], object],
) -> Packed:
    """Write a layer's blob in another compression into an empty file, in one pass that proves both digests.

    Args:
        stream: the blob as it is, not verified yet.
        descriptor: what it has to be.
        packing: how it is to be compressed.
        diff_id: what its plain bytes have to be.
        target: an empty file, which stays the caller's.
        threads: how many compress at once, where the compression can do so; the output is the same.
        budget: what the layer may ask for.
        warn: told of what is odd in it.
        check: called now and then; what it raises ends the work.

    Raises:
        LayerError: the compression is broken, or the layer where it has to be understood.
        VerificationError: the blob, or its content, is not the promised one.
    """
    size = 0
    annotations: Mapping[str, str] = {}
    packed_id = diff_id
    with Hasher() as hasher:
        inner, outer = hasher.begin(diff_id.algorithm), hasher.begin()

        def write(data: bytes) -> None:
            nonlocal size
            size += len(data)
            hasher.update(outer, data)
            files.write_all(target.fileno(), data)

        with (
            open_decompressed(_Verified(verified(stream, descriptor)), budget=budget, piece=_PIECE) as plain,
            readahead(plain, chunk=_PIECE) as ahead,
        ):

            def read(size: int) -> bytes:
                check()
                data = ahead.read(min(size, _PIECE))
                hasher.update(inner, data)
                return data

            if packing.name in FORMATS:
                written = _write_format(read, write, packing, budget, warn)
                packed_id, annotations = written.diff_id, written.annotations
            else:
                packer = compressor(write, packing.compression, level=packing.level, threads=threads)
                while data := read(_PIECE):
                    packer.write(data)
                packer.close()
        hasher.end(inner)
        hasher.end(outer)
        if str(inner) != diff_id.hex:
            raise VerificationError(
                f"layer {descriptor.digest} holds {diff_id.algorithm}:{inner}, the config promises {diff_id}"
            )
        return Packed(Digest("sha256", str(outer)), size, target, packed_id, annotations)


def _write_format(
    read: Callable[[int], bytes],
    write: Callable[[bytes], object],
    packing: Packing,
    budget: Budget,
    warn: Callable[[str], None],
) -> Written:
    from layerfs.seekable.writing import write_layer

    format: Format = "estargz" if packing.name == "estargz" else "zstd:chunked"
    written = write_layer(
        Counted(read, _ignore), write, format, level=packing.level, budget=budget, warn=warn
    )
    while read(_PIECE):
        pass  # what stands behind the end of the archive
    return written


def _ignore(count: int) -> None:
    pass


class _Verified:
    """Pieces as a stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        rest = self._rest or next(self._pieces, b"")
        self._rest = rest[size:]
        return rest[:size]
