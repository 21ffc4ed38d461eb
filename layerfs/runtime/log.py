"""What the processes of a container in the background wrote: one record a line, in the form of CRI's logs.

``2016-10-06T00:17:09.669794202Z stdout F the line``: when, by which stream, F for a whole line and P for one
that goes on in the next record, and what was written (Kubernetes, kubelet-cri-logging.md; podman's k8s-file).
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final, NoReturn

from layerfs import linux
from layerfs.files import write_all
from layerfs.value import frozen

# A pipe holds as much, and a line that is longer comes in parts.
_CHUNK: Final = 65536
_STREAMS: Final = ("stdout", "stderr")
_PAUSE: Final = 0.1
_PATIENCE: Final = 5.0


@frozen
class Written:
    """One record: a line, its newline included, or a part of one. `time` is as in the file, in UTC."""

    time: str
    stream: str
    data: bytes


def record(path: Path) -> tuple[int, int, int]:
    """Fork a process that keeps what is written into two pipes, which become standard output and error.

    Returns:
        The process's number, and the pipes' ends to write to. It ends when nobody has those open any more.
    """
    path.parent.mkdir(0o700, exist_ok=True)
    log = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    # Readers see by it that the last lines are still on their way.
    fcntl.flock(log, fcntl.LOCK_SH)
    readers, writers = zip(os.pipe(), os.pipe(), strict=True)
    pid = os.fork()
    if pid == 0:
        _live(log, readers)
    for descriptor in (log, *readers):
        os.close(descriptor)
    return pid, *writers


def _live(log: int, readers: tuple[int, ...]) -> NoReturn:
    status = 1
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        # First out of each other's way.
        aside = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 3) for descriptor in (*readers, log)]
        for place, descriptor in enumerate(aside):
            os.dup2(descriptor, place)
        linux.close_range(3, (1 << 32) - 1)
        _copy({0: _STREAMS[0], 1: _STREAMS[1]}, 2)
        status = 0
    finally:
        os._exit(status)


def _copy(streams: dict[int, str], log: int) -> None:
    """Write records until all streams have ended."""
    begun = dict.fromkeys(streams, b"")
    torn = _is_torn(log)
    while streams:
        poller = select.poll()
        for descriptor in streams:
            poller.register(descriptor, select.POLLIN)
        for descriptor, _ in poller.poll():
            data = os.read(descriptor, _CHUNK)
            *lines, rest = (begun[descriptor] + data).split(b"\n")
            records = [_record(streams[descriptor], "F", line) for line in lines]
            if rest and (not data or len(rest) >= _CHUNK):
                records.append(_record(streams[descriptor], "P", rest))
                rest = b""
            begun[descriptor] = rest
            # On a full disk the container goes on, and lines are missing.
            try:
                write_all(log, b"\n" * torn + b"".join(records))
                torn = False
            except OSError:
                torn = True
            if not data:
                del streams[descriptor]


def _is_torn(log: int) -> bool:
    """Say whether the last record is a part of one, as a full disk or a kill leaves it."""
    size = os.fstat(log).st_size
    return size > 0 and os.pread(log, 1, size - 1) != b"\n"


def _record(stream: str, tag: str, text: bytes) -> bytes:
    seconds, rest = divmod(time.time_ns(), 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{moment}.{rest:09d}Z {stream} {tag} ".encode() + text + b"\n"


def read(
    path: Path, running: Callable[[], bool], *, last: int | None = None, follow: bool = False
) -> Iterator[Written]:
    """Give the records of a container's log, none when there is no log; what is no record is left out.

    Args:
        running: tells whether the container's process runs.
        last: only so many from the end of what is there.
        follow: go on with what is added, until the process has ended.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    with open(descriptor, "rb") as log:
        goes_on = running()
        if not goes_on:
            _wait_for_writer(log.fileno())
        found: Iterable[Written] = _records(log)
        yield from found if last is None else deque(found, maxlen=last)
        while follow and goes_on:
            time.sleep(_PAUSE)
            goes_on = running()
            if not goes_on:
                _wait_for_writer(log.fileno())
            yield from _records(log)


def _wait_for_writer(log: int) -> None:
    """Wait for whoever writes to have written it all: he lives a moment longer than the container."""
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_PAUSE / 10)
        else:
            fcntl.flock(log, fcntl.LOCK_UN)
            return


def _records(log: BinaryIO) -> Iterator[Written]:
    while line := log.readline():
        if not line.endswith(b"\n"):
            log.seek(-len(line), os.SEEK_CUR)  # half written
            return
        # After a power failure zeros may stand where nothing was written.
        moment, stream, tag, text = (*line.lstrip(b"\0").split(b" ", 3), b"", b"", b"")[:4]
        if stream.decode("latin-1") not in _STREAMS or tag not in (b"F", b"P"):
            continue
        yield Written(moment.decode(), stream.decode(), text if tag == b"F" else text[:-1])
