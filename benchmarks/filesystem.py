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
        if kind == "none":
            yield Path(place)
            return
        image, target = Path(place, "image"), Path(place, "mounted")
        target.mkdir()
        with image.open("wb") as file:
            file.truncate(size)
        subprocess.run([*_MAKE[kind], image], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["mount", "-o", "loop", image, target], check=True)
        try:
            yield target
        finally:
            _unmount(target)


def _unmount(target: Path) -> None:
    """Unmount; a process that came by may hold it for a moment."""
    for _ in range(20):
        if subprocess.run(["umount", target], check=False, stderr=subprocess.DEVNULL).returncode == 0:
            return
        time.sleep(0.1)
    subprocess.run(["umount", target], check=True)
