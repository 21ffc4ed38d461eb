"""A layer's changes written again in another driver's format, and compared with what they were."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from layerfs.contents import digest_of_data, record
from layerfs.driver import Applies
from layerfs.errors import VerificationError, printable
from layerfs.layers import Layer, Layers
from layerfs.tree.archive import write_layer
from layerfs.tree.change import Change
from layerfs.tree.diff import changes_between, listing
from layerfs.tree.entry import Entry, Kind
from layerfs.tree.extract import extract
from layerfs.tree.merge import unpack_in_place
from layerfs.tree.toc import read_toc
from layerfs.tree.whiteouts import WhiteoutFormat

_AT_ONCE: Final = 1 << 18
_WAITING: Final = 16
_ADVICE: Final = "nothing has changed; `layerfs check --repair` mends damaged layers, then convert again"
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Place:
    """A layer of a driver, with those below it, bottom first, by the driver's ids."""

    def __init__(self, layers: Layers, driver_id: str, below: Sequence[str]) -> None:
        self.layers = layers
        self.driver_id = driver_id
        self.below = below

    def changes(self) -> Iterator[Change]:
        """Give what the layer changes."""
        return self.layers.changes_of(self.driver_id, self.below)

    def open(self) -> int:
        """Open the layer's tree, with all that is below it."""
        return self.layers.open_root(self.layers.driver.mount(self.driver_id, self.below, read_only=True))


def transfer(
    source: Place, target: Place, *, warn: Callable[[str], None], advance: Callable[[int], object]
) -> None:
    """Fill a new layer with what another one changes; sockets are left out with a warning.

    Args:
        source: nobody writes to it.
        target: as the driver has just created it, on the same tree as the source.
        warn: told what was left out, or is odd.
        advance: told how many bytes went over.

    Raises:
        LayerError: a file of it cannot be in a layer.
    """
    with _Stream(source, warn, advance) as stream:

        def unpack(directory: int, *, lower: Callable[[], int] | None, whiteouts: WhiteoutFormat) -> None:
            extract(
                stream, directory, lower=lower, whiteouts=whiteouts, budget=target.layers.budget, warn=warn,
                squash=os.geteuid() != 0,
            )  # fmt: skip
            stream.verify()

        driver = target.layers.driver
        if isinstance(driver, Applies):
            driver.apply(target.driver_id, target.below, unpack)
            return
        root = target.layers.open_root(driver.mount(target.driver_id, target.below, read_only=False))
        try:
            unpack_in_place(root, unpack)
        finally:
            os.close(root)


class _Stream:
    """The changes as a tar stream, written by a thread as it is read; a context manager."""

    def __init__(self, source: Place, warn: Callable[[str], None], advance: Callable[[int], object]) -> None:
        self._source = source
        self._warn = warn
        self._advance = advance
        # An empty piece is the end.
        self._pieces: queue.Queue[bytes] = queue.Queue(_WAITING)
        self._rest = b""
        self._ended = False
        self._given_up = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._write, name="layerfs-transfer", daemon=True)

    def __enter__(self) -> _Stream:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._given_up = True
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._pieces.get(timeout=0.01)
        self._thread.join()

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, none at the end."""
        if not self._rest and not self._ended:
            self._rest = self._pieces.get()
            self._ended = not self._rest
            self._advance(len(self._rest))
            self.verify()
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def verify(self) -> None:
        """Raise what the thread met."""
        if self._ended and self._error is not None:
            raise self._error

    def _write(self) -> None:
        parts: list[bytes] = []
        length = 0

        def write(data: bytes) -> None:
            nonlocal length
            if self._given_up:
                raise _GivenUp
            parts.append(data)
            length += len(data)
            if length >= _AT_ONCE:
                self._pieces.put(b"".join(parts))
                parts.clear()
                length = 0

        try:
            write_layer(self._source.changes(), write, warn=self._warn)
            if parts:
                self._pieces.put(b"".join(parts))
        except BaseException as error:
            # Of whatever kind: it belongs to whoever reads.
            self._error = error
        finally:
            self._pieces.put(b"")


class _GivenUp(Exception):
    """Nobody reads any more."""


def compare_trees(one: Place, other: Place, called: str) -> None:
    """Compare what two layers show, and what they list as changed, sockets left out.

    Raises:
        VerificationError: they differ.
    """
    listed = [[(kind, path) for kind, path in listing(_carried(each.changes()))] for each in (one, other)]
    if listed[0] != listed[1]:
        different = min(set(listed[0]) ^ set(listed[1]), key=lambda each: each[1], default=None)
        where = "" if different is None else f" at {printable(different[1])}"
        raise VerificationError(
            f"{called} does not list the same changes with the other driver{where}", hint=_ADVICE
        )
    with contextlib.ExitStack() as stack:
        roots = []
        for each in (one, other):
            roots.append(each.open())
            stack.callback(os.close, roots[-1])
        for change in _carried(changes_between(*roots)):
            raise VerificationError(
                f"{called} is not the same with the other driver: /{printable(change.entry.path)} differs",
                hint=_ADVICE,
            )


def compare_changes(one: Place, other: Place, called: str) -> None:
    """Compare every entry of two layers in one format, and the data of their files.

    Raises:
        VerificationError: they differ.
    """
    if _contents(one) != _contents(other):
        raise VerificationError(f"the copy of {called} is not what it was", hint=_ADVICE)


def _contents(place: Place) -> list[tuple[Entry, str | None]]:
    found: list[tuple[Entry, str | None]] = []
    record(_carried(place.changes()), lambda entry, digest: found.append((entry, digest)))
    return found


def compare_contents(layer: Layer, place: Place, called: str) -> None:
    """Compare the data of a layer's files with the layer's table of contents.

    Raises:
        VerificationError: a file's data is another.
    """
    assert layer.toc is not None
    digests: dict[bytes, tuple[Entry, str]] = {}
    with place.layers.blobs.open(layer.toc) as file:
        for entry, digest in read_toc(file):
            if digest is not None:
                digests[entry.path] = entry, digest
            else:
                digests.pop(entry.path, None)
    for change in place.changes():
        entry, promised = digests.get(change.entry.path, (change.entry, ""))
        if change.directory < 0 or change.entry.kind is not Kind.FILE or not promised:
            continue
        data = os.open(change.name, _FILE, dir_fd=change.directory)
        try:
            if digest_of_data(data, entry.size, entry.segments) != promised:
                path = printable(entry.path)
                raise VerificationError(
                    f"{called}: /{path} is not what the table of contents says", hint=_ADVICE
                )
        finally:
            os.close(data)


def _carried(changes: Iterator[Change]) -> Iterator[Change]:
    return (change for change in changes if change.entry.kind is not Kind.SOCKET)
