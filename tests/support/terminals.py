"""Terminals of programs: what they show is read, and what they ask is answered."""

from __future__ import annotations

import os
import pty
import select
import time
from collections.abc import Mapping, Sequence


def on_terminal(
    words: Sequence[str],
    answers: Sequence[tuple[str, str]],
    environment: Mapping[str, str],
    *,
    seconds: float = 30,
) -> str:
    """Run a program, write each answer when its question has come, and give all that was shown."""
    child, terminal = pty.fork()
    if child == 0:
        try:
            os.execvpe(words[0], list(words), dict(environment))
        finally:
            os._exit(127)
    shown, searched = "", 0
    waiting = list(answers)
    while True:
        assert select.select([terminal], [], [], seconds)[0], f"nothing comes after {shown!r}"
        try:
            data = os.read(terminal, 1 << 16)
        except OSError:
            break
        if not data:
            break
        shown += data.decode(errors="replace")
        if waiting and waiting[0][0] in shown[searched:]:
            searched = len(shown)
            os.write(terminal, waiting.pop(0)[1].encode())
    os.close(terminal)
    os.waitpid(child, 0)
    assert not waiting, f"{waiting[0][0]!r} was not asked: {shown!r}"
    return shown


def read_until(terminal: int, text: bytes, seconds: float = 60.0) -> bytes:
    """Read what is shown until `text` was."""
    found = b""
    end = time.monotonic() + seconds
    while text not in found and time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                found += os.read(terminal, 1 << 16)
            except OSError:
                break
    assert text in found, found.decode(errors="replace")
    return found
