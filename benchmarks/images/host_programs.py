"""This machine's shell and small programs with their libraries, for images made without packages."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from benchmarks.images.layer import LayerWriter

_PROGRAMS: Final = ("sh", "true", "cat", "cp", "head", "ls", "mkdir", "rm")


def find() -> dict[str, Path]:
    """Give the files of this machine by the names that they get in an image."""
    found: dict[str, Path] = {}
    for program in _PROGRAMS:
        path = shutil.which(program)
        if path is None:
            continue
        found[f"usr/bin/{program}"] = Path(path).resolve()
        done = subprocess.run(["ldd", path], capture_output=True, text=True, check=False)
        for library in re.findall(r"(/\S+) \(0x", done.stdout):
            found[_merged(library)] = Path(library).resolve()
    return found


def _merged(library: str) -> str:
    return library.lstrip("/") if library.startswith("/usr/") else f"usr{library}"


def describe(found: Mapping[str, Path]) -> str:
    """Tell one set of files from another."""
    digest = hashlib.sha256()
    for name, path in sorted(found.items()):
        digest.update(name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def add(writer: LayerWriter, found: Mapping[str, Path]) -> None:
    """Put the files into a layer."""
    for name, path in sorted(found.items()):
        writer.file(name, path.read_bytes(), mode=0o755)
