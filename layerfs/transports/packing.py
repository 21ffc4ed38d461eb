"""One layer packed anew: its plain bytes stay, and with them its diff id; the blob is another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO

from layerfs import files
from layerfs.compression import Compression, compressor, open_decompressed, readahead
from layerfs.digest import Digest
from layerfs.errors import InvalidError, VerificationError
from layerfs.hashing import Hasher
from layerfs.transports.endpoint import verified
from layerfs.value import frozen

if TYPE_CHECKING:
    from layerfs.compression import Readable
    from layerfs.oci.descriptor import Descriptor
    from layerfs.tree.budget import Budget

# Bytes that go from one thread to the next; several wait between each two.
_PIECE = 1 << 18
# The ends of what levels there are (`compression.compressor`).
_LEVELS = {Compression.GZIP: (0, 9), Compression.ZSTD: (1, 22)}


@frozen
class Packing:
    """How layers are to be compressed; `level` as `compression.compressor` has it, None for a good one."""

    compression: Compression
    level: int | None = None

    @classmethod
    def parse(cls, name: str, level: int | None = None) -> Packing:
        """Read the name of a compression: ``gzip``, ``zstd`` or ``none``.

        Raises:
            InvalidError: there is none of that name, or it has no such level.
        """
        try:
            compression = Compression(name)
        except ValueError:
            known = ", ".join(each.value for each in Compression)
            raise InvalidError(
                f"{name[:100]!r} is no compression of layers", hint=f"there is {known}"
            ) from None
        if level is not None:
            if compression not in _LEVELS:
                raise InvalidError("what is not compressed has no level")
            lowest, highest = _LEVELS[compression]
            if not lowest <= level <= highest:
                raise InvalidError(f"{name} has levels {lowest} to {highest}, not {level}")
        return cls(compression, level)


@frozen
class Packed:
    """A layer that was packed: the blob's digest and size, and the file that holds it, open."""

    digest: Digest
    size: int
    file: BinaryIO


def pack(
    stream: Readable,
    descriptor: Descriptor,
    packing: Packing,
    *,
    diff_id: Digest,
    target: BinaryIO,
    threads: int = 1,
    budget: Budget,
    check: Callable[[], object],
) -> Packed:
    """Write a layer's blob in another compression into an empty file, in one pass that proves both digests.

    Args:
        stream: the blob as it is, not verified yet.
        descriptor: what it has to be.
        diff_id: what its plain bytes have to be.
        target: an empty file, which stays the caller's.
        threads: how many compress at once, where the compression can do so; the output is the same.
        budget: bounds the ratio.
        check: called now and then; what it raises ends the work.

    Raises:
        LayerError: the compression is broken.
        VerificationError: the blob, or its content, is not the promised one.
    """
    size = 0
    with Hasher() as hasher:
        inner, outer = hasher.begin(diff_id.algorithm), hasher.begin()

        def write(data: bytes) -> None:
            nonlocal size
            size += len(data)
            hasher.update(outer, data)
            files.write_all(target.fileno(), data)

        packer = compressor(write, packing.compression, level=packing.level, threads=threads)
        with (
            open_decompressed(_Verified(verified(stream, descriptor)), budget=budget, piece=_PIECE) as plain,
            readahead(plain, chunk=_PIECE) as ahead,
        ):
            while data := ahead.read(_PIECE):
                check()
                hasher.update(inner, data)
                packer.write(data)
        packer.close()
        hasher.end(inner)
        hasher.end(outer)
        if str(inner) != diff_id.hex:
            raise VerificationError(
                f"layer {descriptor.digest} holds {diff_id.algorithm}:{inner}, the config promises {diff_id}"
            )
        return Packed(Digest("sha256", str(outer)), size, target)


class _Verified:
    """Pieces as a stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        rest = self._rest or next(self._pieces, b"")
        self._rest = rest[size:]
        return rest[:size]
