"""Finds the FUSE servers that layerfs has left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path


def open_files(process: int | str) -> dict[str, str]:
    """Give the names of what a process has open, by descriptor; it may close files beside this.

    A FUSE server does so: the release of a file comes after the close(2) that caused it has returned.
    """
    opened = {}
    for descriptor in os.listdir(f"/proc/{process}/fd"):
        with contextlib.suppress(FileNotFoundError):
            opened[descriptor] = os.readlink(f"/proc/{process}/fd/{descriptor}")
    return opened


def servers(directory: Path) -> set[int]:
    """Give the servers that have something below a directory open, or name it in their command line."""
    found = set()
    for process in filter(str.isdigit, os.listdir("/proc")):
        about = Path(f"/proc/{process}")
        with contextlib.suppress(OSError):
            if (about / "comm").read_text() == "layerfs-fuse\n":
                names = [*open_files(process).values(), *(about / "cmdline").read_text().split("\0")]
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
