"""Gets the data that files of lazy layers lack, in a process beside the server that shows them.

Data is written to the very file that shows it, verified before; it counts as there only once it is on disk.
Several such processes may be at one layer, for several mounts of it: locks on the file's pieces see to it
that each is fetched once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import queue
import socket
import struct
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from layerfs import linux
from layerfs.errors import LayerfsError, StoreError, VerificationError
from layerfs.lazy.blob import LazyBlob
from layerfs.lazy.bodies_list import Body, read_body_line
from layerfs.lazy.origin import Origin
from layerfs.lazy.sources import Sources
from layerfs.tree.absent import CAPABILITY, PIECE, Mark, last_piece, read_mark
from layerfs.value import frozen

if TYPE_CHECKING:
    from layerfs.driver import Lazy
    from layerfs.lazy.finishing import Unfinished
    from layerfs.lazy.setting import Setting

# As `layerfs_fuse.fetches` has them.
_ASKED: Final = struct.Struct("=QIII")
_ANSWERED: Final = struct.Struct("=QiB")
_HOLD: Final = (1 << 64) - 1
_OUTLINED: Final = _HOLD - 1
_GO: Final = b"g"
_OUTLINER: Final = b"layerfs-outline"
_MOST_WORDS: Final = 2000
_THREADS: Final = 8
_IN_MEMORY: Final = 8 << 20
_CHUNK: Final = 1 << 20
# What a reader is told as it is; of everything else the log tells.
_TOLD: Final = (errno.ENOSPC, errno.EDQUOT)
# FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE of <linux/falloc.h>.
_PUNCH: Final = 2 | 1
_FLOCK: Final = struct.Struct("hhqqi4x")
# Locked while a mark is changed; no file has such a piece.
_OF_MARK: Final = 1 << 62


class Lacking:
    """One lazy layer of a mount: its blob, and the list of bodies in a file that is opened when needed."""

    def __init__(self, blob: LazyBlob, bodies_list: Path) -> None:
        self.blob = blob
        self._path = bodies_list
        self._lock = threading.Lock()
        self._file = -1

    def body(self, place: int, length: int) -> Body:
        """Read one description."""
        with self._lock:
            if self._file < 0:
                self._file = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        return read_body_line(self._file, place, length)


class Fetching:
    """Serves one mount; a `driver.Bodies`. Pickled, it is made anew; `Recipe.make` makes one.

    Args:
        lacking: the layers, by the driver's ids.
        recipe: says the rest.
    """

    def __init__(self, lacking: Mapping[str, Lacking], recipe: Recipe) -> None:
        self.unfinished = recipe.unfinished is not None
        self.layers = {layer: number for number, layer in enumerate(lacking)}
        self._lacking = list(lacking.values())
        self._recipe = recipe
        self._mark = recipe.mark
        self._durable = recipe.setting.durability != "none"
        self._work: queue.SimpleQueue[tuple[int, int, int, int, int]] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads = 0

    def __reduce__(self) -> tuple[Callable[[Recipe], Fetching], tuple[Recipe]]:
        return Recipe.make, (self._recipe,)

    def serve(self, connection: socket.socket) -> None:
        """Answer requests until the other end is closed."""
        go = -1
        if self._recipe.unfinished is not None:
            go = _begin_to_finish(self._recipe.unfinished, connection)
        while True:
            message, files, _, _ = socket.recv_fds(connection, _ASKED.size, 1)
            if not message:
                return
            if message == _GO:
                # It may have been for one before us.
                if go >= 0:
                    os.write(go, message)
                continue
            number, layer, first, last = _ASKED.unpack(message)
            self._work.put((number, layer, first, last, files[0]))
            if not self._idle.acquire(blocking=False) and self._threads < _THREADS:
                self._threads += 1
                threading.Thread(target=self._run, args=(connection,), daemon=True).start()

    def _run(self, connection: socket.socket) -> None:
        while True:
            number, layer, first, last, file = self._work.get()
            error, whole, words = errno.EIO, False, ""
            try:
                whole, error = self._bring(file, self._lacking[layer], first, last), 0
            except LayerfsError as problem:
                words = str(problem)
            except OSError as problem:
                words = str(problem)
                if problem.errno in _TOLD:
                    error = problem.errno or errno.EIO
            except Exception:
                # Of whatever kind: who reads the file waits for an answer.
                words = traceback.format_exc()
            finally:
                os.close(file)
            head = _ANSWERED.pack(number, error, whole)
            with contextlib.suppress(OSError):
                connection.send(head + words.encode(errors="replace")[-_MOST_WORDS:])
            self._idle.release()

    def _bring(self, file: int, lacking: Lacking, first: int, last: int) -> bool:
        """Bring pieces of a file; say whether it has all of its data now."""
        with _locked(file, first, last - first + 1):
            mark = read_mark(file, self._mark)
            if mark is None:
                return True
            body, size = lacking.body(mark.place, mark.length), os.fstat(file).st_size
            if body.extent.size != size:
                raise StoreError(f"the layer's list says {body.extent.size} bytes, the file has {size}")
            if body.in_parts:
                for begin, end in mark.missing(first, last):
                    offset, size_here = begin * PIECE, (end + 1 - begin) * PIECE
                    with _emptied(file, mark, offset, size_here):
                        _write(file, offset, lacking.blob.read(body.extent, offset, size_here))
            else:
                first, last = 0, last_piece(size)
                self._bring_whole(file, mark, lacking.blob, body)
            if self._durable:
                os.fdatasync(file)
            return self._note(file, first, last, size)

    def _bring_whole(self, file: int, mark: Mark, blob: LazyBlob, body: Body) -> None:
        """Bring a file whose data is verified by one digest."""
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as small:
            spooled: BinaryIO = small  # type: ignore[assignment]
            with contextlib.ExitStack() as opened:
                if body.extent.size > _IN_MEMORY:
                    spooled = opened.enter_context(self._recipe.spool())
                hasher = hashlib.sha256()
                for data in blob.read(body.extent, 0, None):
                    hasher.update(data)
                    spooled.write(data)
                if body.digest is None or hasher.hexdigest() != body.digest:
                    raise VerificationError(
                        f"the file's data has sha256:{hasher.hexdigest()}, the table of contents promises"
                        f" {body.digest}"
                    )
                spooled.seek(0)
                with _emptied(file, mark, 0, body.extent.size):
                    _write(file, 0, iter(lambda: spooled.read(_CHUNK), b""))

    def _note(self, file: int, first: int, last: int, size: int) -> bool:
        with _locked(file, _OF_MARK, 1):
            mark = read_mark(file, self._mark)
            if mark is None:
                return True
            mark = mark.with_pieces(first, last)
            # Before the mark goes: until then it says what is the file's own.
            _restore(file, mark)
            if mark.lacks(0, last_piece(size)):
                os.setxattr(file, self._mark, mark.pack())
                return False
            os.removexattr(file, self._mark)
            return True


def _begin_to_finish(unfinished: Unfinished, connection: socket.socket) -> int:
    """Have outlines made by a process of their own; give where to write when they may be shown."""
    from layerfs.worker import Worker

    asked, go = os.pipe()

    def work(tell: Callable[[object], None]) -> None:
        linux.set_process_name(_OUTLINER)

        def show() -> None:
            tell(None)
            os.read(asked, 1)

        unfinished.finish(show)

    def hear(_: object) -> None:
        connection.send(_ANSWERED.pack(_HOLD, 0, False))

    # Before there are threads: those of a forked process are gone.
    worker = Worker(work, hear=hear, keep=[asked])
    os.close(asked)

    def listen() -> None:
        error, words = errno.EIO, ""
        try:
            while worker.running:
                worker.listen()
            worker.result()
            error = 0
        except Exception as problem:
            # Of whatever kind: many may wait for an answer.
            words = str(problem) if isinstance(problem, LayerfsError | OSError) else traceback.format_exc()
        with contextlib.suppress(OSError):
            head = _ANSWERED.pack(_OUTLINED, error, False)
            connection.send(head + words.encode(errors="replace")[-_MOST_WORDS:])

    threading.Thread(target=listen, daemon=True).start()
    return go


@frozen
class Recipe:
    """What a `Fetching` is made of, and can be made of again in another process.

    `layers` are the driver's ids with `Origin.pack`, the paths of blob and table in the store, that of the
    list of bodies last. `unfinished` are those of which the outlines are to be made.
    """

    layers: tuple[tuple[str, str, Path, Path | None, Path], ...]
    mark: bytes
    setting: Setting
    unfinished: Unfinished | None = None

    def make(self) -> Fetching:
        """Make one."""
        setting = self.setting
        sources = Sources(spool=self.spool, budget=setting.budget, warn=_ignore, options=setting.options)
        lacking = {}
        for layer, packed, stored, table, bodies_list in self.layers:
            origin = Origin.unpack(packed)
            blob = LazyBlob(origin, sources, stored=stored, table=table, budget=setting.budget)
            lacking[layer] = Lacking(blob, bodies_list)
        return Fetching(lacking, self)

    def spool(self) -> BinaryIO:
        """Make an empty temporary file."""
        return tempfile.TemporaryFile(dir=self.setting.root / "tmp", buffering=0)


def fetching_of(
    origins: Mapping[str, Origin], *, setting: Setting, driver: Lazy, unfinished: Unfinished | None = None
) -> Fetching:
    """Give what gets the data that layers lack, by the driver's ids of them, and makes their outlines."""
    path = setting.blobs.path
    recipe = Recipe(
        tuple(
            (
                layer,
                origin.pack(),
                path(origin.descriptor.digest),
                None if origin.table is None else path(origin.table),
                driver.bodies_list(layer),
            )
            for layer, origin in origins.items()
        ),
        driver.absent_mark(),
        setting,
        unfinished,
    )
    return recipe.make()


def _ignore(words: str) -> None:
    """Nobody is there to be told."""


def _restore(file: int, mark: Mark) -> None:
    """Give a file back what writing has changed besides the data."""
    if mark.capabilities:
        os.setxattr(file, CAPABILITY, mark.capabilities)
    os.utime(file, ns=(mark.mtime_ns, mark.mtime_ns))


def _write(file: int, offset: int, pieces: Iterator[bytes]) -> None:
    for data in pieces:
        view = memoryview(data)
        while view:
            written = os.pwrite(file, view, offset)
            offset += written
            view = view[written:]


@contextlib.contextmanager
def _emptied(file: int, mark: Mark, offset: int, size: int) -> Iterator[None]:
    """Give the room of a part of a file back when the block fails, most of all for want of room."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            linux.fallocate(file, _PUNCH, offset, size)
        with contextlib.suppress(OSError):
            _restore(file, mark)
        raise


@contextlib.contextmanager
def _locked(file: int, first: int, count: int) -> Iterator[None]:
    """Hold a lock (fcntl(2), open file description locks) whose bytes stand for pieces."""
    fcntl.fcntl(file, fcntl.F_OFD_SETLKW, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, first, count, 0))
    try:
        yield
    finally:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, first, count, 0))
