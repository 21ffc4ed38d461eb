"""Signals to processes that are named so that reused numbers never mislead (`liveness.Owner`)."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterator
from typing import Final

from layerfs.errors import InvalidError
from layerfs.liveness import Owner, alive

TERM: Final = int(signal.SIGTERM)
KILL: Final = int(signal.SIGKILL)


def parse(text: str) -> int:
    """Read a signal as docker and kill(1) take it: ``SIGINT``, ``INT``, ``int``, ``2``, ``RTMIN+3``.

    Raises:
        InvalidError: there is none such.
    """
    word = text.strip().upper().removeprefix("SIG")
    name, sign, more = word.partition("+") if "+" in word else word.partition("-")
    number = -1
    if word.isdecimal():
        number = int(word)
    elif f"SIG{name}" in signal.Signals.__members__ and (not sign or more.isdecimal()):
        number = signal.Signals[f"SIG{name}"] + int(f"{sign}{more}" if sign else 0)
    if number not in signal.valid_signals():
        raise InvalidError(
            f"{text[:100]!r} is no signal", hint="write TERM, SIGTERM or 15; `kill -l` lists them"
        )
    return number


def kill(owner: Owner) -> None:
    """Kill that very process; nothing happens when it is gone.

    Raises:
        PermissionError: it is not ours to kill.
    """
    stop(owner, signal.SIGKILL, seconds=0)


def send(owner: Owner, number: int) -> bool:
    """Send that very process a signal; False when it is gone.

    Raises:
        PermissionError: it is not ours to signal.
    """
    with _opened(owner) as process:
        return process is not None and _send(process, number)


def stop(owner: Owner, number: int, *, seconds: float) -> None:
    """Send that very process a signal, and SIGKILL too if it has not ended in time.

    Raises:
        PermissionError: it is not ours to signal.
    """
    with _opened(owner) as process:
        if process is None or not _send(process, number) or number == signal.SIGKILL:
            return
        poll = select.poll()
        poll.register(process, select.POLLIN)
        if not poll.poll(seconds * 1000):
            _send(process, signal.SIGKILL)
            poll.poll()


def wait(owner: Owner) -> None:
    """Wait until that very process has ended."""
    with _opened(owner) as process:
        if process is not None:
            poll = select.poll()
            poll.register(process, select.POLLIN)
            poll.poll()


@contextlib.contextmanager
def _opened(owner: Owner) -> Iterator[int | None]:
    try:
        process = os.pidfd_open(owner.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        # Only now is it certain that the number cannot pass to another process in between.
        yield process if alive(owner) else None
    finally:
        os.close(process)


def _send(process: int, number: int) -> bool:
    try:
        signal.pidfd_send_signal(process, number)
    except ProcessLookupError:
        return False
    return True
