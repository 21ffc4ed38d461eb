"""Writes results the way docker prints them: tables, sizes, ages, and JSON for programs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from typing import Final

# C0, DEL and C1 (ISO 6429).
_CONTROL: Final = dict.fromkeys((*range(32), *range(127, 160)), "?")


def line(text: str) -> None:
    """Write one line of data to stdout, any name in it byte for byte."""
    sys.stdout.write(text + "\n")


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write columns aligned with three blanks between, as docker's tabwriter does."""
    lines = [tuple(headers), *(tuple(row) for row in rows)]
    widths = [max(len(row[column]) for row in lines) for column in range(len(headers))]
    for row in lines:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write("   ".join(cells).rstrip() + "\n")


def document(value: object) -> None:
    """Write one JSON value, indented; names that are not UTF-8 come as lone surrogates (PEP 383)."""
    import json

    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def size(count: float) -> str:
    """Write a number of bytes with three figures in powers of 1000, as docker does: ``12.3MB``.

    >>> size(12_345_678), size(999), size(0)
    ('12.3MB', '999B', '0B')
    """
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        # 999.9 would be rounded to 1e+03 of the smaller unit.
        if count < 999.5:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g}EB"


def age(seconds: float) -> str:
    """Write a length of time in docker's words (go-units, HumanDuration): ``About an hour``.

    >>> age(0.4), age(61), age(7200)
    ('Less than a second', 'About a minute', '2 hours')
    """
    whole = int(seconds)
    minutes, hours = whole // 60, int(seconds / 3600 + 0.5)
    if whole < 1:
        return "Less than a second"
    if whole < 60:
        return "1 second" if whole == 1 else f"{whole} seconds"
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    if hours < 48:
        return "About an hour" if hours == 1 else f"{hours} hours"
    days = hours // 24
    if hours < 24 * 7 * 2:
        return f"{days} days"
    if hours < 24 * 30 * 2:
        return f"{days // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{days // 30} months"
    return f"{days // 365} years"


def ago(when: float | None) -> str:
    """Write how long ago `when` (seconds since 1970) was; ``N/A`` when it is not known."""
    return "N/A" if when is None else f"{age(max(0.0, time.time() - when))} ago"


def moment(when: float | None) -> str | None:
    """Write seconds since 1970 as RFC 3339 in UTC, None for None."""
    if when is None:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))


def short(identity: str, *, whole: bool = False) -> str:
    """Cut an id to the twelve digits that docker shows, the algorithm's name left out."""
    return identity if whole else identity.rpartition(":")[2][:12]


def plain(text: str) -> str:
    """Write a stranger's text on one line, so that it can neither move the cursor nor break a table."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def words(text: str) -> str:
    """Write a message: what a stranger says in it moves no cursor, and looks like no other message.

    Bytes of names that are not UTF-8 stay.
    """
    return text.translate(_CONTROL)


def shorten(text: str, width: int) -> str:
    """Cut a text to `width` characters, the last of them an ellipsis when something was lost."""
    return text if len(text) <= width else text[: width - 1] + "…"
