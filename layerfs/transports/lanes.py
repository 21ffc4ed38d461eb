"""Work of a sink that goes on beside its caller: a few threads, results by key, the first failure raised."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

_Result = TypeVar("_Result")
# A thread that waits for a peer cannot be interrupted; whoever gives up does not wait for it for ever.
_PATIENCE: Final = 2.0


class Stopped(Exception):
    """What work raises when it saw `Lanes.stopped`; nobody hears of it."""


class Lanes(Generic[_Result]):
    """Runs jobs in at most `most` threads, which are started as they are needed.

    After a failure no further job begins; the failure is raised by whichever method is called next. All
    methods are for one thread; jobs look at `stopped` between two pieces of their work.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._changed = threading.Condition()
        self._waiting: collections.deque[tuple[object, Callable[[], _Result]]] = collections.deque()
        self._unfinished: set[object] = set()
        self._results: dict[object, _Result] = {}
        self._error: BaseException | None = None
        self._running = 0
        self.stopped = False

    def begin(self, key: object, job: Callable[[], _Result]) -> None:
        """Put a job at the end of the line; its result is had by `wait` with the same key."""
        with self._changed:
            self._raise()
            self._unfinished.add(key)
            self._waiting.append((key, job))
            if self._running < self._most:
                self._running += 1
                threading.Thread(target=self._work, name="layerfs-lane", daemon=True).start()

    def has(self, key: object) -> bool:
        """Say whether there is, or was, a job of this key."""
        return key in self._unfinished or key in self._results

    def wait(self, key: object) -> _Result:
        """Wait for a job, and give its result (KeyError when there was none)."""
        with self._changed:
            while key in self._unfinished and self._error is None:
                self._changed.wait()
            self._raise()
            return self._results[key]

    def finish(self) -> None:
        """Wait for all jobs."""
        with self._changed:
            while self._unfinished and self._error is None:
                self._changed.wait()
            self._raise()

    def close(self) -> None:
        """Begin nothing more, and wait a moment for what is under way; idempotent."""
        end = time.monotonic() + _PATIENCE
        with self._changed:
            self.stopped = True
            self._waiting.clear()
            while self._running and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._waiting or self.stopped or self._error is not None:
                    self._running -= 1
                    self._changed.notify_all()
                    return
                key, job = self._waiting.popleft()
            try:
                result = job()
            except BaseException as error:
                # Of whatever kind: it belongs to the caller, who raises it.
                with self._changed:
                    self._error = self._error or error
            else:
                with self._changed:
                    self._unfinished.discard(key)
                    self._results[key] = result
                    self._changed.notify_all()
