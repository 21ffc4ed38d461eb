"""Output files that appear when they are whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` when the block ends well, and vanishes when it does not.

    What is no regular file (a fifo, /dev/null) is written as it is.
    """
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        file = half.open("xb")
    except OSError as error:
        # The temporary name says nothing to the user.
        error.filename = str(path)
        raise
    try:
        with file:
            yield file
        half.replace(path)
    except BaseException:
        half.unlink(missing_ok=True)
        raise
