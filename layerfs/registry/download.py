"""One blob out of a registry as a stream: gone on with after a cut, by several connections if one is slow."""

from __future__ import annotations

import contextlib
import functools
import time
from typing import TYPE_CHECKING, Final, Self

from layerfs import failpoints
from layerfs.errors import Interrupted
from layerfs.registry import ranges
from layerfs.registry.pieces import PIECE, Pieces
from layerfs.registry.ranges import Cuts

if TYPE_CHECKING:
    from types import TracebackType

    from layerfs.oci.descriptor import Descriptor
    from layerfs.registry.answer import Answer
    from layerfs.registry.repository import Repository

# When one connection is not enough: after so many seconds of reading, slower than so many bytes a second, for
# so large a part of which the reader has waited.
_TRIAL: Final = 0.4
_SLOW: Final = 64 << 20
_WAITED: Final = 0.7
# Bytes that must be left for that.
_WORTH_IT: Final = 4 * PIECE


class Download:
    """The bytes of a blob, in order and not verified; a context manager that lets the connection go.

    Nothing is asked for before the first `read`, so that a process forked until then may do that.

    Args:
        start: the byte to begin with.
        connections: how many there may be at once; each takes up to 4 MiB of memory.
    """

    def __init__(
        self, repository: Repository, descriptor: Descriptor, *, start: int = 0, connections: int = 6
    ) -> None:
        self._repository = repository
        self._descriptor = descriptor
        self._position = start
        self._connections = connections
        self._cuts = Cuts()
        self._answer: Answer | None = None
        self._pieces: Pieces | None = None
        self._begun = self._waited = 0.0
        self._began_at = start
        # Bytes of the answer that come before those that are wanted.
        self._behind = 0
        self._stopped = False

    def descriptors(self) -> list[int]:
        """Name the descriptors that a forked process needs: none (`streams.Portable`)."""
        return []

    def skip(self, count: int) -> None:
        """Leave out the next bytes, before anything was read; they are not fetched."""
        self._position += count
        self._began_at = self._position

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, at least one before the end.

        Raises:
            VerificationError: the blob there has another size than promised.
            Interrupted: the connection was cut again and again.
            TransportError: as `Repository.send`.
        """
        if self._position >= self._descriptor.size:
            self.close()
            return b""
        while True:
            if self._stopped:
                raise Interrupted(f"the download of {self._descriptor.digest} was given up")
            if self._pieces is not None:
                data = self._read_pieces(self._pieces, size)
            else:
                data = self._read_answer(min(size, self._descriptor.size - self._position))
            if data:
                self._position += len(data)
                failpoints.reach("download.read")
                return data

    def stop(self) -> None:
        """Give up, whatever a read in another thread waits for (`streams.Stops`)."""
        self._stopped = True
        answer, pieces = self._answer, self._pieces
        if answer is not None:
            answer.stop()
        if pieces is not None:
            pieces.stop()

    def close(self) -> None:
        """Let go of what is open; idempotent."""
        if self._answer is not None:
            if self._position >= self._descriptor.size:
                self._see_end(self._answer)
            self._answer.close()
            self._answer = None
        if self._pieces is not None:
            self._pieces.close()
            self._pieces = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_answer(self, size: int) -> bytes:
        """Read on by one connection; nothing comes where it was cut."""
        if self._answer is None:
            failpoints.reach("download.begin")
            self._answer, at = ranges.open_from(self._repository, self._descriptor, self._position)
            self._behind = self._position - at
            self._began_at = self._position
            self._begun, self._waited = time.monotonic(), 0.0
        if self._is_slow(self._answer):
            self._begin_pieces()
            return b""
        try:
            self._catch_up(self._answer)
            before = time.monotonic()
            data = self._answer.read(size)
            self._waited += time.monotonic() - before
            if not data:
                raise self._ended_early()
        except Interrupted as error:
            self.close()
            if not self._stopped:
                self._cuts.note(error)
            return b""
        self._cuts.progress()
        return data

    def _catch_up(self, answer: Answer) -> None:
        """Read away what comes before, where the rest can only be had with that."""
        while self._behind:
            data = answer.read(min(PIECE, self._behind))
            if not data:
                raise self._ended_early()
            self._behind -= len(data)

    def _see_end(self, answer: Answer) -> None:
        """Read to the end, so that the connection can be used again."""
        with contextlib.suppress(Interrupted):
            answer.read(1)

    def _ended_early(self) -> Interrupted:
        host, size = self._repository.reference.host, self._descriptor.size
        return Interrupted(f"{host} sent {self._position} of the {size} bytes of {self._descriptor.digest}")

    # -- several connections

    def _is_slow(self, answer: Answer) -> bool:
        if self._connections < 2 or self._descriptor.size - self._position < _WORTH_IT:
            return False
        taken = time.monotonic() - self._begun
        return (
            taken > _TRIAL
            and self._waited > taken * _WAITED
            and self._position - self._began_at < taken * _SLOW
            and ranges.gives_ranges(answer)
        )

    def _begin_pieces(self) -> None:
        self.close()
        fetch = functools.partial(ranges.fetch, self._repository, self._descriptor)
        self._pieces = Pieces(fetch, self._position, self._descriptor.size, most=self._connections)

    def _read_pieces(self, pieces: Pieces, size: int) -> bytes:
        try:
            return pieces.read(size)
        except ranges.NoRangesError:
            # What is promised in one answer need not hold in the next.
            self.close()
            self._connections = 1
            return b""


def fetch_whole(repository: Repository, descriptor: Descriptor) -> bytes:
    """Read a small blob, not verified; raises as `Download.read` does."""
    with Download(repository, descriptor, connections=1) as stream:
        return b"".join(iter(lambda: stream.read(descriptor.size), b""))
