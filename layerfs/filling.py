"""One layer's stream becomes a driver's layer: unpacked, verified and described in one pass.

Files alone are touched here, nothing that a process shares with those that it forks: no database, no lock.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from layerfs import compression, failpoints, linux
from layerfs.blobs import Ingest
from layerfs.digest import Digest
from layerfs.driver import Applies, Usage
from layerfs.errors import LayerError, VerificationError
from layerfs.hashing import Hasher
from layerfs.incoming import Incoming
from layerfs.layer_table import Step
from layerfs.progress import Counted
from layerfs.streams import Stops, portable_descriptors
from layerfs.tree.budget import Budget
from layerfs.tree.extract import extract
from layerfs.tree.merge import unpack_in_place
from layerfs.tree.skeleton import SkeletonWriter
from layerfs.tree.toc import TocWriter
from layerfs.tree.whiteouts import WhiteoutFormat

if TYPE_CHECKING:
    from types import TracebackType

    from layerfs.compression import Readable, ReadAhead
    from layerfs.driver import Unpack
    from layerfs.layers import Layers

# Pieces to go on with while large files are hashed, or many small ones are made.
_AHEAD: Final = 16
_PIECE: Final = 1 << 20
# Without threads a piece is used up before the next is read: one that the processor's cache holds.
_SMALL_PIECE: Final = 1 << 18
# What is freed is used again soon, and costs a page fault for each page where the kernel had it back.
_KEPT: Final = 8 << 20


class Filled(NamedTuple):
    """What came of a layer: what it occupies, whether it said anything of its root, and digests.

    `skeleton` is None where the blob cannot be put together from the layer, `blob` where it is not kept.
    """

    usage: Usage
    has_root: bool
    toc: Digest
    skeleton: Digest | None
    blob: Digest | None


class Filling:
    """The filling of one layer that the driver has made.

    Args:
        layer: the driver's id of it, and of those `below`.
        stream: the layer's blob, an entered `Incoming` if it is not in the store yet; stays the caller's.
        toc: takes the table of contents; entered.
        skeleton: takes what is not in the layer's files, if the blob is not kept whole; None where it is.
    """

    def __init__(
        self,
        layers: Layers,
        layer: str,
        below: Sequence[str],
        step: Step,
        *,
        stream: Readable,
        toc: Ingest,
        skeleton: Ingest | None,
        budget: Budget,
    ) -> None:
        self.stream = stream
        self.toc = toc
        self.skeleton = skeleton
        self._layers = layers
        self._driver = layers.driver
        self._layer = layer
        self._below = below
        self._step = step
        self._budget = budget

    def run_apart(
        self, *, advance: Callable[[int], object], warn: Callable[[str], None], ready: Callable[[], None]
    ) -> Filled:
        """Do what `run` does, in a process of its own, beside others that keep all processors busy."""
        os.umask(0)
        failpoints.reach("layer.worker")
        linux.keep_freed_memory(_KEPT)
        return self.run(advance=advance, warn=warn, ready=ready, threaded=False, unmasked=True)

    def run(
        self,
        *,
        advance: Callable[[int], object],
        warn: Callable[[str], None],
        ready: Callable[[], None],
        threaded: bool = True,
        unmasked: bool = False,
    ) -> Filled:
        """Do it all.

        Args:
            threaded: read and hash in threads beside this one.
            unmasked: the process's umask(2) is 0.
            advance: told how many bytes of the blob were read.
            warn: told what was odd.
            ready: called before the layers below are looked at.

        Raises:
            LayerError: the layer's stream cannot be accepted.
            VerificationError: the blob or its uncompressed content is not the promised one.
        """
        incoming = self.stream if isinstance(self.stream, Incoming) else None
        try:
            whole, has_root = self._fill(advance, warn, ready, threaded, unmasked)
        except (LayerError, VerificationError):
            if incoming is not None:
                # A blob that was damaged on its way says so here, and is not gone on with the next time.
                incoming.finish()
            raise
        if incoming is not None:
            incoming.finish()
        usage = self._layers.measure(self._layer, self._below)
        skeleton = self.skeleton.digest if self.skeleton is not None and whole else None
        blob = None
        if incoming is not None:
            # What is neither kept nor can be put together is kept after all, if it was stored.
            kept = incoming.ingest if skeleton is None else incoming.kept
            blob = None if kept is None else kept.digest
        return Filled(usage, has_root, self.toc.digest, skeleton, blob)

    def descriptors(self) -> list[int]:
        """Give what a forked process needs to `run` this.

        Raises:
            OSError: the blob is read from something that it cannot read.
        """
        stream = self.stream
        needed = stream.descriptors() if isinstance(stream, Incoming) else portable_descriptors(stream)
        return [*needed, *(ingest.fileno() for ingest in self._ingests())]

    def catch_up(self, filled: Filled | None) -> None:
        """Note what a forked process has made of this; None if it came to no end."""
        for ingest in self._ingests():
            digest = None
            if filled is not None:
                digest = filled.toc if ingest is self.toc else filled.blob
                if ingest is self.skeleton:
                    digest = filled.skeleton
            ingest.catch_up(digest)

    def _ingests(self) -> Iterator[Ingest]:
        yield self.toc
        if self.skeleton is not None:
            yield self.skeleton
        if isinstance(self.stream, Incoming) and self.stream.ingest is not None:
            yield self.stream.ingest

    def _fill(
        self,
        advance: Callable[[int], object],
        warn: Callable[[str], None],
        ready: Callable[[], None],
        threaded: bool,
        unmasked: bool,
    ) -> tuple[bool, bool]:
        """Unpack the stream; say whether the skeleton is of use, and whether the root had an entry."""
        stream = self.stream
        skeleton, known = self.skeleton, False
        if isinstance(stream, Incoming):
            stream.begin()
            # What comes in as it is unpacked compares itself with its digest.
            known = stream.plain and self._step.diff_id == stream.digest
            skeleton = skeleton if stream.kept is None else None
        with contextlib.ExitStack() as threads:
            contents = TocWriter(self.toc.write)
            hasher = threads.enter_context(Hasher()) if threaded else None
            plain = threads.enter_context(
                compression.open_decompressed(
                    Counted(stream.read, advance),
                    budget=self._budget,
                    piece=_PIECE if threaded else _SMALL_PIECE,
                )
            )
            hashed = None if known else _Hashed(plain.read, self._step.diff_id, hasher)
            layer: Readable = hashed or plain
            if threaded:
                # Inflating and hashing in threads of their own overlap with making files here.
                ahead = threads.enter_context(compression.readahead(layer, chunk=_PIECE, depth=_AHEAD))
                threads.push(functools.partial(_give_up, stream, ahead))
                layer = ahead
            bones = None if skeleton is None else SkeletonWriter(layer, skeleton.write)
            layer = layer if bones is None else bones

            def unpack(directory: int, *, lower: Callable[[], int] | None, whiteouts: WhiteoutFormat) -> None:
                extract(
                    layer, directory, lower=_after(ready, lower), whiteouts=whiteouts, budget=self._budget,
                    warn=warn, record=contents.add, skeleton=bones, hasher=hasher, squash=os.geteuid() != 0,
                    unmasked=unmasked,
                )  # fmt: skip

            failpoints.reach("layer.unpack")
            if isinstance(self._driver, Applies):
                self._driver.apply(self._layer, self._below, unpack)
            else:
                self._apply_through_mount(unpack)
            failpoints.reach("layer.unpacked")
            while layer.read(_PIECE):
                pass
            if hashed is not None:
                hashed.verify()
            contents.close()
            if bones is not None:
                bones.close()
            return bones is not None and bones.whole, contents.has_root

    def _apply_through_mount(self, unpack: Unpack) -> None:
        """Unpack through the layer's own mount, for drivers whose format is unknown here."""
        root = self._layers.open_root(self._driver.mount(self._layer, self._below, read_only=False))
        try:
            unpack_in_place(root, unpack)
        finally:
            os.close(root)


def _give_up(
    stream: object,
    ahead: ReadAhead,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
) -> None:
    """Wait for no more of the stream when something else than itself ends the work."""
    # Of a stream that is wrong the rest is read, to say what is.
    wrong = isinstance(error, (LayerError, VerificationError))
    if error is not None and not wrong and isinstance(stream, Stops):
        stream.stop()
        ahead.give_up()


def _after(ready: Callable[[], None], lower: Callable[[], int] | None) -> Callable[[], int] | None:
    """Wait before the layers below are opened."""
    if lower is None:
        return None
    opens = lower

    def wait_and_open() -> int:
        ready()
        return opens()

    return wait_and_open


class _Hashed:
    """A reader that has what passes hashed, in a thread if there is one for that."""

    def __init__(self, read: Callable[[int], bytes], expected: Digest, hasher: Hasher | None) -> None:
        self._read = read
        self._expected = expected
        self._hasher = hasher
        self._here = expected.hasher()
        self._apart = None if hasher is None else hasher.begin(expected.algorithm)

    def read(self, size: int, /) -> bytes:
        data = self._read(size)
        if self._hasher is None or self._apart is None:
            self._here.update(data)
        elif data:
            self._hasher.update(self._apart, data)
        return data

    def verify(self) -> None:
        """Compare, once all was read."""
        found = self._here.hexdigest()
        if self._hasher is not None and self._apart is not None:
            self._hasher.end(self._apart)
            found = str(self._apart)
        if found != self._expected.hex:
            raise VerificationError(
                f"the layer's uncompressed content is {Digest(self._expected.algorithm, found)},"
                f" its diff id promises {self._expected}"
            )
