"""Blobs that are not kept whole: put together from a skeleton and the layer that was unpacked from them.

A layer that comes uncompressed would be on the disk twice. Its blob is left out, and given on demand:
the bytes between its files from its skeleton, the others from the layer's own files, verified
against the digest as they stream. A layer whose files were altered can therefore not give its blob.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from layerfs.blobs import CHUNK, Blobs
from layerfs.database import Database
from layerfs.digest import Digest
from layerfs.errors import LayerfsError, NotFoundError, VerificationError, printable
from layerfs.value import frozen

if TYPE_CHECKING:
    from layerfs.layers import Layers
    from layerfs.tree.skeleton import Part

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@frozen
class Assembled:
    """A layer that holds a blob in parts: the blob, its size in bytes, and the skeleton."""

    blob: Digest
    size: int
    skeleton: Digest
    driver: str
    layer: str
    row: int


class Assembly:
    """What the layers of a store can give as blobs; `layers_of` gives the layers of a driver."""

    def __init__(self, database: Database, blobs: Blobs, layers_of: Callable[[str], Layers]) -> None:
        self._database = database
        self._blobs = blobs
        self._layers_of = layers_of

    def all(self) -> list[Assembled]:
        """List every layer that holds its blob in parts, the oldest first."""
        return self._find("TRUE")

    def size(self, digest: Digest) -> int | None:
        """Give a blob's length in bytes; None when no layer holds it."""
        return next((one.size for one in self._holders(digest)), None)

    def open(self, digest: Digest) -> AssembledBlob | None:
        """Open a blob; None when no layer holds it.

        Raises:
            NotFoundError: the layers that hold it cannot be read.
        """
        problem: Exception | None = None
        known: list[Assembled] = []
        # A layer may just be on its way to another driver.
        while (holders := list(self._holders(digest))) != known:
            known, problem = holders, None
            for one in holders:
                try:
                    return AssembledBlob(one, self._blobs, self._layers_of(one.driver))
                except (LayerfsError, OSError) as error:
                    problem = error
        if problem is not None:
            raise NotFoundError(
                f"blob {digest} is in the store as a part of a layer that cannot be read: {problem}",
                hint="load or pull the image again",
            ) from problem
        return None

    def verify(self, one: Assembled) -> None:
        """Put a blob together from one layer, and compare its digest.

        Raises:
            VerificationError: the layer's files are not what they were.
            LayerfsError, OSError: the layer cannot be read.
        """
        with AssembledBlob(one, self._blobs, self._layers_of(one.driver)) as blob:
            while blob.read(CHUNK):
                pass

    def drop(self, row: int) -> None:
        """Rely on a layer no longer for its blob, which is not here then if no other layer has it."""
        with self._database.transaction(durable=True) as connection:
            connection.execute("UPDATE layers SET skeleton = NULL WHERE id = ?", (row,))
            found = connection.execute("SELECT driver_id FROM layers WHERE id = ?", (row,)).fetchone()
            if found is not None:
                self._database.note(connection, "layers", *found)

    def _holders(self, digest: Digest) -> Iterator[Assembled]:
        return (one for one in self._find("blob = ?", str(digest)) if self._blobs.is_whole(one.skeleton))

    def _find(self, condition: str, *values: str) -> list[Assembled]:
        rows = self._database.rows(
            "SELECT blob, blob_size, skeleton, driver, name, id FROM layers"
            f" WHERE skeleton IS NOT NULL AND state = 'committed' AND {condition} ORDER BY id",
            *values,
        )
        return [
            Assembled(Digest.parse(blob), size, Digest.parse(skeleton), driver, name, row)
            for blob, size, skeleton, driver, name, row in rows
        ]


class AssembledBlob:
    """A blob being put together; a context manager, whose layer stays until it is closed."""

    def __init__(self, assembled: Assembled, blobs: Blobs, layers: Layers) -> None:
        # Every command opens the store, and few ask for such a blob.
        from layerfs.tree.skeleton import read_skeleton

        self._assembled = assembled
        self._open = contextlib.ExitStack()
        try:
            root = self._open.enter_context(layers.opened(assembled.layer))
            self._files = self._open.enter_context(contextlib.closing(_Files(root)))
            skeleton = self._open.enter_context(blobs.open(assembled.skeleton))
        except BaseException:
            self._open.close()
            raise
        self._pieces = self._verified(read_skeleton(skeleton))
        self._rest = b""
        self._start = 0

    @property
    def proven(self) -> Digest:
        """The digest that the content has, or the last of it is not given (`transports.endpoint.Proven`)."""
        return self._assembled.blob

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, at least one before the end.

        Raises:
            VerificationError: the layer's files are not those that came out of the blob.
        """
        if self._start >= len(self._rest):
            self._rest, self._start = next(self._pieces, b""), 0
        data = self._rest[self._start : self._start + size]
        self._start += len(data)
        return data

    def close(self) -> None:
        """Let the layer go; idempotent."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _verified(self, records: Iterator[bytes | Part]) -> Iterator[bytes]:
        digest = self._assembled.blob
        hasher = digest.hasher()
        left = self._assembled.size
        last = b""
        for data in self._parts(records):
            hasher.update(data)
            left -= len(data)
            # The last bytes are not given before all are proven.
            if left > 0:
                yield data
            else:
                last = data
        if left or hasher.hexdigest() != digest.hex:
            raise self._altered("they are not what was unpacked")
        yield last

    def _parts(self, records: Iterator[bytes | Part]) -> Iterator[bytes]:
        for record in records:
            if isinstance(record, bytes):
                yield record
                continue
            try:
                yield from self._files.read(record)
            except OSError as error:
                raise self._altered(f"{printable(record.path)!r}: {error.strerror}") from error

    def _altered(self, what: str) -> VerificationError:
        one = self._assembled
        return VerificationError(
            f"blob {one.blob} cannot be put together from the files of layer {one.layer}: {what}",
            hint="layerfs check --repair --deep --from-registry; where no registry has it, --repair --deep"
            " alone gives the blob up: then load or pull the image again, and check once more",
        )


class _Files:
    """The files of a layer's tree, read in the order of its tar stream; no symlink is followed."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._place = b""
        self._directory = os.dup(root)

    def read(self, part: Part) -> Iterator[bytes]:
        place, _, name = part.path.rpartition(b"/")
        if place != self._place:
            self._enter(place)
        file = os.open(name, _FILE, dir_fd=self._directory)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise OSError(0, "it is no file any more")
            offset, end = part.offset, part.offset + part.length
            while offset < end:
                data = os.pread(file, min(CHUNK, end - offset), offset)
                if not data:
                    raise OSError(0, "it is shorter than it was")
                offset += len(data)
                yield data
        finally:
            os.close(file)

    def close(self) -> None:
        os.close(self._directory)

    def _enter(self, place: bytes) -> None:
        directory = os.dup(self._root)
        for name in place.split(b"/") if place else ():
            try:
                below = os.open(name, _DIRECTORY, dir_fd=directory)
            finally:
                os.close(directory)
            directory = below
        os.close(self._directory)
        self._directory, self._place = directory, place
