"""A terminal's other end."""

from __future__ import annotations

import os
import select
import time


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
