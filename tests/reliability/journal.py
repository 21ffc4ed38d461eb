"""What a worker of a campaign says that it is about to do and has done: lines of JSON, each one write(2).

A worker is killed at any moment, so what it was about to do may have happened or not; all else is certain.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple


class Thing(NamedTuple):
    """An image or a container: every value that it may have, and whether it may also not be there."""

    values: tuple[str, ...]
    certain: bool


class Journal:
    """One worker's file, appended to; the worker that takes a killed one's place goes on in it."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def note(self, what: str, kind: str = "", name: str = "", value: str = "", **more: Any) -> None:
        """Write a line; `what` is begin (to make or change), have, leave (to remove), gone, or anything."""
        line = {"what": what, "kind": kind, "name": name, "value": value, **more}
        os.write(self._file, json.dumps(line).encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)


def lines(path: Path) -> list[dict[str, Any]]:
    """Read a journal; a last line that a kill cut is left out."""
    if not path.exists():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    return [json.loads(line) for line in whole.splitlines()]


def things(path: Path) -> dict[tuple[str, str], Thing]:
    """Say what there must be, or may be, by kind and name."""
    found: dict[tuple[str, str], Thing] = {}
    for line in lines(path):
        key, value = (line["kind"], line["name"]), line["value"]
        old = found.get(key)
        match line["what"]:
            case "begin":
                found[key] = (
                    Thing((value,), False) if old is None else Thing((*old.values, value), old.certain)
                )
            case "have":
                found[key] = Thing((value,), True)
            case "leave" if old is not None:
                found[key] = Thing(old.values, False)
            case "gone":
                found.pop(key, None)
    return found
