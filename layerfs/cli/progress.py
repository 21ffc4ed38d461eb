"""Shows long work on stderr: as docker does on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import collections
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from layerfs.cli.output import size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rich.live import Live

    from layerfs.progress import Progress

# Seconds without a line after which one says how far it is.
HEARTBEAT = 10.0
_BAR = 30
# The rate is that of the last seconds.
_WINDOW = 5.0


class Words:
    """What a command calls the states of a part: while bytes pass, at their end, and when all is done."""

    def __init__(self, doing: str, finishing: str, done: str) -> None:
        self.doing = doing
        self.finishing = finishing
        self.done = done


PULL = Words("Downloading", "Unpacking", "Pull complete")
LOAD = Words("Loading", "Unpacking", "Loaded")
PUSH = Words("Pushing", "Pushing", "Pushed")
COPY = Words("Copying", "Writing", "Copied")
READ = Words("Reading", "Finishing", "Done")


class Lines:
    """One line when a task ends, with its amount and rate, and what takes long gives a sign of life."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._silent_since = time.monotonic()
        self._meter = Meter()
        self._told: set[str] = set()

    def expect(self, parts: Mapping[str, int]) -> None:
        """Hear of parts; see `progress.Parts`."""
        with self._lock:
            self._meter.expect(parts)

    def exists(self, part: str) -> None:
        """Say of a part that it is there already."""
        with self._lock:
            self._meter.exists(part)
            if part not in self._told:
                self._told.add(part)
                self._say(f"{part}: already exists")

    @contextlib.contextmanager
    def task(self, label: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Count the task's bytes, and say at its end how many and how fast."""
        done = 0
        started: float | None = None

        def advance(count: int) -> None:
            nonlocal done, started
            now = time.monotonic()
            with self._lock:
                started = started or now
                done += count
                self._meter.advance(label, count, now)
                if now - self._silent_since >= HEARTBEAT:
                    rate = done / max(now - started, 1e-9)
                    whole = "" if total is None else f" of {size(total)}"
                    self._say(f"{label}: {size(done)}{whole}, {size(rate)}/s{self._meter.left(now)}")

        began = time.monotonic()
        yield advance
        if total is not None and done < total:
            return  # given up
        seconds = max(time.monotonic() - (started or began), 1e-9)
        with self._lock:
            self._told.add(label)
            self._say(f"{label}: {size(done)} in {seconds:.1f} s, {size(done / seconds)}/s")

    def _say(self, text: str) -> None:
        self._silent_since = time.monotonic()
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


class Meter:
    """Counts the bytes of expected parts, and says how fast they come and how long it will take."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._recent: collections.deque[tuple[float, int]] = collections.deque()
        self.total = 0
        self.done = 0

    def expect(self, parts: Mapping[str, int]) -> None:
        """Add parts that are not known yet, with their sizes in bytes."""
        for part, length in parts.items():
            if part not in self._sizes:
                self._sizes[part] = length
                self.total += length

    def exists(self, part: str) -> None:
        """Take a part out that need not come."""
        self.total -= self._sizes.get(part, 0) - self._done.get(part, 0)
        self._sizes[part] = self._done.get(part, 0)

    def advance(self, part: str, count: int, now: float) -> None:
        """Count bytes of a part; those of what was not expected are not of the whole."""
        if part not in self._sizes:
            return
        self._done[part] = self._done.get(part, 0) + count
        self.done += count
        recent = self._recent
        if recent and now - recent[-1][0] < _WINDOW / 50:
            recent[-1] = (recent[-1][0], recent[-1][1] + count)
        else:
            recent.append((now, count))
        while now - recent[0][0] > _WINDOW:
            recent.popleft()

    def rate(self, now: float) -> float:
        """Give the bytes of a second, of late."""
        if not self._recent:
            return 0.0
        passed = now - self._recent[0][0]
        # A second at least: the first bytes come in one go.
        return sum(count for at, count in self._recent if now - at <= _WINDOW) / max(passed, 1.0)

    def left(self, now: float) -> str:
        """Say how long what is missing will take; nothing when that cannot be said."""
        rate = self.rate(now)
        missing = self.total - self.done
        return f", {duration(missing / rate)} left" if rate and missing > 0 else ""


class _Row:
    """One part as it is shown."""

    def __init__(self, total: int | None, state: str) -> None:
        self.total = total
        self.done = 0
        self.state = state


class Rows:
    """A row for each part with its state, and one for the whole with rate and time left: docker's picture.

    `lines` draws it; `Terminal` shows it. Parts that were there or are finished make room for others when
    the terminal is low.
    """

    def __init__(self, words: Words) -> None:
        self._words = words
        self._rows: dict[str, _Row] = {}
        self._meter = Meter()
        self._lock = threading.Lock()

    def expect(self, parts: Mapping[str, int]) -> None:
        """Hear of parts; see `progress.Parts`."""
        with self._lock:
            self._meter.expect(parts)
            for part, total in parts.items():
                self._rows.setdefault(part, _Row(total, "Waiting"))

    def exists(self, part: str) -> None:
        """Hear that a part is there already."""
        with self._lock:
            self._meter.exists(part)
            row = self._rows.setdefault(part, _Row(None, ""))
            if row.state in ("", "Waiting"):
                row.state = "Already exists"

    def begin(self, label: str, total: int | None) -> None:
        """Hear that a task begins."""
        with self._lock:
            row = self._rows.setdefault(label, _Row(total, ""))
            row.state = self._words.doing if label.startswith("blob ") else ""

    def advance(self, label: str, count: int) -> None:
        """Hear of bytes of a task."""
        with self._lock:
            row = self._rows[label]
            row.done += count
            if row.done == row.total and row.state:
                row.state = self._words.finishing
            self._meter.advance(label, count, time.monotonic())

    def end(self, label: str) -> None:
        """Hear that a task ended, well or not."""
        with self._lock:
            row = self._rows[label]
            if row.total is None or row.done >= row.total:
                row.state = self._words.done if label.startswith("blob ") else "Done"

    @property
    def whole(self) -> bool:
        """Whether parts of a whole were told of, of which more may come between two tasks."""
        return self._meter.total > 0

    def lines(self, width: int, height: int) -> list[str]:
        """Draw it in so many columns and lines."""
        now = time.monotonic()
        with self._lock:
            shown = list(self._rows.items())
            room = max(height - 2, 1)
            for finished in (("Already exists", self._words.done, "Done"), ("Waiting",)):
                spare = len(shown) - room
                if spare > 0:
                    going = [item for item in shown if item[1].state in finished][:spare]
                    shown = [item for item in shown if item not in going]
            lines = [self._line(label, row) for label, row in shown[:room]]
            if self._meter.total:
                lines.append(
                    f"Total: {size(self._meter.done)}/{size(self._meter.total)}"
                    f"  {size(self._meter.rate(now))}/s{self._meter.left(now)}"
                )
        return [line[: width - 1] for line in lines]

    def _line(self, label: str, row: _Row) -> str:
        name = label.removeprefix("blob ")
        text = f"{name}: {row.state}" if row.state else name
        if row.state not in (self._words.doing, self._words.finishing, ""):
            return text
        if not row.total:
            return f"{text}  {size(row.done)}"
        filled = min(row.done * _BAR // row.total, _BAR)
        head = ">" if filled < _BAR else "="
        bar = f"[{('=' * filled + head)[:_BAR]:<{_BAR}}]"
        return f"{text} {bar} {size(row.done)}/{size(row.total)}"


class Terminal:
    """Draws `Rows` on a terminal while tasks are under way; rich is loaded when the first begins."""

    def __init__(self, words: Words) -> None:
        self._words = words
        self._rows = Rows(words)
        self._live: Live | None = None
        self._active = 0

    def expect(self, parts: Mapping[str, int]) -> None:
        """Hear of parts; see `progress.Parts`."""
        self._start()
        self._rows.expect(parts)

    def exists(self, part: str) -> None:
        """Hear that a part is there already."""
        self._rows.exists(part)

    @contextlib.contextmanager
    def task(self, label: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Draw the task's row, until `close` where there are others to come."""
        self._start()
        self._active += 1
        self._rows.begin(label, total)
        try:
            yield lambda count: self._rows.advance(label, count)
        finally:
            self._active -= 1
            self._rows.end(label)
            if self._active == 0 and not self._rows.whole:
                self.close()
                self._rows = Rows(self._words)

    def close(self) -> None:
        """Draw it for the last time and give the terminal back; idempotent."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def _start(self) -> None:
        if self._live is not None:
            return
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        console = Console(stderr=True)

        def draw() -> Text:
            return Text("\n".join(self._rows.lines(console.width, console.height)), no_wrap=True)

        # Warnings go above the rows; what goes to standard output is no business of the terminal.
        self._live = Live(get_renderable=draw, console=console, refresh_per_second=8, redirect_stdout=False)
        self._live.start()


def duration(seconds: float) -> str:
    """Write a length of time in a few letters.

    >>> duration(0.2), duration(61), duration(7322)
    ('1 s', '1 min 1 s', '2 h 2 min')
    """
    whole = max(int(seconds + 0.5), 1)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def choose(*, quiet: bool, words: Words = READ) -> Progress:
    """Pick how this run shows its progress."""
    if quiet:
        from layerfs.progress import Silent

        return Silent()
    if sys.stderr.isatty():
        return Terminal(words)
    return Lines()


@contextlib.contextmanager
def showing(words: Words, *, quiet: bool) -> Iterator[Progress]:
    """Show the progress of the block's work; at its end, also a bad one, the terminal is as before."""
    progress = choose(quiet=quiet, words=words)
    try:
        yield progress
    finally:
        if isinstance(progress, Terminal):
            progress.close()
