"""Finds the FUSE servers that layerfs has left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path


def servers(directory: Path) -> set[int]:
    """Give the servers that have something below a directory open, or name it in their command line."""
    found = set()
    for process in filter(str.isdigit, os.listdir("/proc")):
        about = Path(f"/proc/{process}")
        with contextlib.suppress(OSError):
            if (about / "comm").read_text() == "layerfs-fuse\n":
                names = [os.readlink(about / "fd" / each) for each in os.listdir(about / "fd")]
                names += (about / "cmdline").read_text().split("\0")
                if any(name.startswith(f"{directory}/") for name in names):
                    found.add(int(process))
    return found


def ends(process: int) -> bool:
    """Say whether a process ends soon."""
    for _ in range(500):
        with contextlib.suppress(OSError):
            # A zombie, whose parent does not wait for it, has ended.
            if Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z":
                time.sleep(0.01)
                continue
        return True
    return False


def kill_servers(directory: Path) -> None:
    """Kill them without a warning, and wait for their end."""
    found = servers(directory)
    assert found
    for process in found:
        os.kill(process, signal.SIGKILL)
        assert ends(process)
