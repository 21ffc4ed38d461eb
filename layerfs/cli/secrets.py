"""Hides what was given on the command line and nobody else is to read there."""

from __future__ import annotations

import os


def cover(secret: str) -> None:
    """Overwrite an argument in what ps(1) shows of this process and of those that it will fork.

    A server of a mount lasts for days, with the command line of whoever began it. Nothing happens where the
    argument is not found (proc_pid_stat(5), ``arg_start``).
    """
    import ctypes

    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        start, end = int(fields[45]), int(fields[46])
    except (OSError, ValueError, IndexError):
        return
    wanted = os.fsencode(secret)
    if not wanted or not 0 < start < end:
        return
    place = start
    for word in ctypes.string_at(start, end - start).split(b"\0"):
        before = word.removesuffix(wanted)
        if before != word and (
            before in (b"", b"-p") or (before.startswith(b"--") and before.endswith(b"="))
        ):
            ctypes.memset(place + len(before), ord("x"), len(wanted))
        place += len(word) + 1
