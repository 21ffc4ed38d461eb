"""What a reader of figures wants to know of the machine, and how quiet it was."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from layerfs import __version__

# Each prints its version; the first line of it is kept.
_VERSIONS: Final = {
    "docker": ["docker", "--version"],
    "podman": ["podman", "--version"],
    "containerd": ["containerd", "--version"],
    "umoci": ["umoci", "--version"],
    "skopeo": ["skopeo", "--version"],
    "crun": ["crun", "--version"],
    "runc": ["runc", "--version"],
    "fuse-overlayfs": ["fuse-overlayfs", "--version"],
    "unionfs-fuse": ["unionfs", "--version"],
    "tar": ["tar", "--version"],
    "cp": ["cp", "--version"],
}


def facts() -> dict[str, Any]:
    """Give what stays the same for a run; memory in bytes."""
    return {
        "layerfs": __version__,
        "python": sys.version.split()[0],
        "kernel": platform.release(),
        "machine": platform.machine(),
        "processor": _processor(),
        "processors": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "versions": {name: text for name, command in _VERSIONS.items() if (text := _version(command))},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor()


def _version(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return next((line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()), "")


class Noise:
    """What else the machine did since this was made: other processes, and other machines on its host."""

    def __init__(self) -> None:
        self._before = _processor_times()

    def measure(self) -> dict[str, float]:
        """Give the part of processor time that was stolen, and the load average of the last minute."""
        now = _processor_times()
        passed = [after - before for after, before in zip(now, self._before, strict=True)]
        return {"stolen": passed[7] / (sum(passed) or 1), "load": os.getloadavg()[0]}


def _processor_times() -> list[int]:
    """Read the first line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal."""
    with open("/proc/stat") as file:
        return [int(word) for word in file.readline().split()[1:9]]
