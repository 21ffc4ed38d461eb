"""Data of files that the layers do not have yet: asked for beside the server, which goes on serving others.

A process of its own gets the data and writes it (`process.start`): the server hands it the open file and
hears when the data is there. The request that needs the data is begun once more from the start then; until
then nothing has happened.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import socket
import threading
from collections.abc import Callable
from struct import Struct
from typing import Final, NamedTuple

from layerfs.errors import printable
from layerfs.tree.absent import FETCH_FAILED, PIECE, Mark, last_piece
from layerfs_fuse.gate import Gate
from layerfs_fuse.large import Request
from layerfs_fuse.nodes import Node
from layerfs_fuse.places import Layers, LazyPlace
from layerfs_fuse.union import Absent

ASKED: Final = Struct("=QIII")
"""A request, which comes with the file: its number, the layer's, and the first and the last piece."""

ANSWERED: Final = Struct("=QiB")
"""An answer: the request's number, an errno or 0, whether the file has all of its data now; then words."""

HOLD: Final = (1 << 64) - 1
"""In the place of a request's number: the outlines of layers are about to be shown, `GO` lets that happen."""

OUTLINED: Final = HOLD - 1
"""In the place of a request's number: they show now, or there was an error."""

BEGUN_ANEW: Final = HOLD - 2
"""In the place of a request's number: who was asked is gone, another one waits for requests."""

GO: Final = b"g"
LONGEST_ANSWER: Final = 4096
_ABOUT_OUTLINES: Final = (0, HOLD, OUTLINED)
_DESCRIPTOR: Final = Struct("=i")
_MOST_ASKED: Final = 64
_WRITABLE: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_GONE: Final = "the process that fetches data is gone: unmount, and mount again"


class _Answer(NamedTuple):
    """What came of a request; number 0 says that no answer will come any more."""

    number: int
    errno: int
    whole: bool
    words: str


class _Fetch:
    """Pieces that were asked for, and who waits for them."""

    def __init__(self, absent: Absent) -> None:
        self.node = absent.node
        self.first = absent.first
        self.last = absent.last
        self.waiting: list[Request] = []


class Fetches:
    """The data that is on its way.

    Args:
        connection: to the process that gets it.
        gate: what waits for the outlines of layers, if some are still to be made.
        wake: called, in a thread, when `finished` has something for `settle`.
        refuse: answers a request with an errno.
        log: told why data could not be had.
    """

    def __init__(
        self,
        layers: Layers,
        connection: socket.socket,
        *,
        gate: Gate | None,
        wake: Callable[[], None],
        refuse: Callable[[int, int], None],
        log: Callable[[str], None],
    ) -> None:
        self.finished: collections.deque[_Answer] = collections.deque()
        self._layers = layers
        self._connection = connection
        self.gate = gate
        self._wake = wake
        self._refuse = refuse
        self._log = log
        self._next = 1
        self._asked: dict[int, _Fetch] = {}
        self._later: collections.deque[_Fetch] = collections.deque()
        self._known: dict[tuple[Node, int, int], _Fetch] = {}
        self._marks: dict[Node, Mark] = {}
        self._alive = True
        threading.Thread(target=self._listen, daemon=True).start()

    def require(self, node: Node, offset: int, size: int | None) -> None:
        """Go on when a part of a file (None: up to its end) is here.

        Raises:
            Absent: it is not.
        """
        mark = self._marks.get(node) or self._mark(node)
        if mark is None:
            node.whole = True
            return
        assert node.at is not None
        length = os.stat(node.at_name, dir_fd=node.at.open(), follow_symlinks=False).st_size
        first, last = 0, last_piece(length)
        if size is not None:
            if offset >= length:
                return
            first, last = offset // PIECE, min(last, (offset + max(size, 1) - 1) // PIECE)
        if mark.lacks(first, last):
            raise Absent(node, first, last)

    def wait(self, absent: Absent, request: Request) -> None:
        """Begin a request anew when the data that it needs is there; the first one has it fetched."""
        key = (absent.node, absent.first, absent.last)
        fetch = self._known.get(key)
        if fetch is None:
            fetch = self._known[key] = _Fetch(absent)
            absent.node.users += 1
            if len(self._asked) < _MOST_ASKED:
                self._ask(fetch)
            else:
                self._later.append(fetch)
        fetch.waiting.append(request)
        if not self._alive:
            self._end()

    def interrupt(self, unique: int) -> None:
        """Let a process go that was told to stop waiting; the data still comes."""
        if self.gate is not None and self.gate.interrupt(unique):
            self._refuse(unique, errno.EINTR)
            return
        for fetch in self._known.values():
            for request in fetch.waiting:
                if request.unique == unique:
                    fetch.waiting.remove(request)
                    self._refuse(unique, errno.EINTR)
                    return

    def settle(self, answer: Callable[[Request], None], release: Callable[[Node], None]) -> None:
        """Answer who has waited for what has come, or cannot come."""
        while self.finished:
            found = self.finished.popleft()
            if found.number == BEGUN_ANEW:
                self._ask_again()
                continue
            if found.number in _ABOUT_OUTLINES:
                self._settle_outlines(found)
                if not found.number:
                    self._alive = False
                    self._end()
                    return
                continue
            fetch = self._asked.pop(found.number, None)
            if fetch is None:
                continue  # given up, with all others
            if self._later:
                self._ask(self._later.popleft())
            if found.errno:
                self._fail(fetch, found.errno, found.words)
            else:
                self._note(fetch, found.whole)
                del self._known[fetch.node, fetch.first, fetch.last]
                for request in fetch.waiting:
                    answer(request)
            fetch.node.users -= 1
            release(fetch.node)

    def _settle_outlines(self, found: _Answer) -> None:
        gate = self.gate
        if found.number == HOLD:
            if gate is not None:
                gate.shut()
            with contextlib.suppress(OSError):
                self._connection.send(GO)
        elif gate is None:
            return
        elif found.errno:
            self._log(f"{FETCH_FAILED}the names in the layers: {found.words}")
            gate.fail()
        else:
            self.gate = None

    def _mark(self, node: Node) -> Mark | None:
        assert isinstance(node.at, LazyPlace)
        return node.at.mark(node.at_name)

    def _note(self, fetch: _Fetch, whole: bool) -> None:
        node = fetch.node
        if whole:
            node.whole = True
            self._marks.pop(node, None)
            return
        mark = self._mark(node)
        if mark is None:
            node.whole = True
        else:
            # Kept while the file is read: it says which pieces the next reads will find.
            self._marks[node] = mark
            if len(self._marks) > _MOST_ASKED:
                del self._marks[next(iter(self._marks))]

    def _ask(self, fetch: _Fetch) -> None:
        number = self._next
        self._next += 1
        self._asked[number] = fetch
        self._send(fetch, number)

    def _ask_again(self) -> None:
        """Ask for what was asked for and did not come."""
        for number, fetch in list(self._asked.items()):
            self._send(fetch, number)

    def _send(self, fetch: _Fetch, number: int) -> None:
        node = fetch.node
        assert node.at is not None
        try:
            file = os.open(node.at_name, _WRITABLE, dir_fd=node.at.open())
            try:
                layer = self._layers.lazy[node.at.layer]
                message = ASKED.pack(number, layer, fetch.first, fetch.last)
                # Not socket.send_fds(), which imports a module: from where the server is there are none.
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, _DESCRIPTOR.pack(file))
                self._connection.sendmsg((message,), (rights,))
            finally:
                os.close(file)
        except OSError as error:
            self.finished.append(_Answer(number, error.errno or errno.EIO, False, str(error)))
            self._wake()

    def _fail(self, fetch: _Fetch, number: int, words: str) -> None:
        del self._known[fetch.node, fetch.first, fetch.last]
        node = fetch.node
        if node.at is not None:
            path = printable(b"/" + node.at.path() + b"/" + node.at_name).replace("//", "/")
            self._log(f"{FETCH_FAILED}{path}: {words}")
        for request in fetch.waiting:
            self._refuse(request.unique, number)

    def _end(self) -> None:
        for fetch in list(self._known.values()):
            self._fail(fetch, errno.EIO, _GONE)
            fetch.node.users -= 1
        self._asked.clear()
        self._later.clear()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while message := self._connection.recv(LONGEST_ANSWER):
                number, error, whole = ANSWERED.unpack_from(message)
                words = message[ANSWERED.size :].decode(errors="replace")
                self.finished.append(_Answer(number, error, bool(whole), words))
                self._wake()
        self.finished.append(_Answer(0, errno.EIO, False, _GONE))
        self._wake()
