"""A fresh file system for every run: what was measured before, or lies on the disk already, must not tell."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

# mkfs of each kind: quiet, and nothing left to be initialised in the background while we measure.
_MAKE: Final = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}
KINDS: Final = (*_MAKE, "none")


@contextlib.contextmanager
def fresh(kind: str, *, size: int, where: Path | None = None) -> Iterator[Path]:
    """Give an empty directory on a new file system of `size` bytes, gone at the end of the block.

    Args:
        kind: of `KINDS`; "none" gives a plain directory on the file system that holds `where`.
        size: of the image file, which is sparse, in bytes.
        where: the directory for the image file; the system's temporary directory by default.
    """
    with tempfile.TemporaryDirectory(prefix="layerfs-benchmark-", dir=where) as place:
        # PostgreSQL runs as a user of its own, and has to get through.
        os.chmod(place, 0o711)
        target = Path(place, "mounted")
        target.mkdir(0o711)
        try:
            if kind != "none":
                _mount(kind, Path(place, "image"), target, size)
            yield target
        finally:
            _unmount(target)


def _mount(kind: str, image: Path, target: Path, size: int) -> None:
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run([*_MAKE[kind], image], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["mount", "-o", "loop", image, target], check=True)


def _unmount(target: Path) -> None:
    """Unmount what is at a directory and below it, the youngest first."""
    for mounted in _mounts_below(target):
        for _ in range(20):
            if subprocess.run(["umount", mounted], check=False, stderr=subprocess.DEVNULL).returncode == 0:
                break
            # A process that came by may hold it for a moment.
            time.sleep(0.1)
        else:
            subprocess.run(["umount", "--lazy", mounted], check=True)


def _mounts_below(target: Path) -> list[Path]:
    """Read proc_pid_mountinfo(5), where the fifth field is the mount point."""
    with open("/proc/self/mountinfo", "rb") as file:
        lines = [line.split()[4].decode("unicode_escape") for line in file]
    return [Path(line) for line in reversed(lines) if Path(line).is_relative_to(target)]
