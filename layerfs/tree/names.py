"""Names inside layers: the parts of a path as an archive writes it, kept inside the root."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from layerfs.errors import LayerError, printable

LONGEST_PART: Final = 255
_WHITEOUT: Final = b".wh."


def split(raw: bytes, *, strict: bool, warn: Callable[[str], None]) -> list[bytes]:
    """Give the parts of a path below the root of the tree; the root itself is the empty list.

    ``.`` and empty parts mean nothing. A leading slash is the root, and ``..`` at the root stays there, as
    in chroot(2); both are told to `warn`.

    Raises:
        LayerError: the name is empty, a part is longer than 255 bytes, or `strict` is set and the
            name is absolute or has ``..``.
    """
    if b"/." in raw or b"//" in raw or raw[:1] in (b".", b"/", b""):
        parts = _split_odd(raw, strict, warn)
    else:
        parts = raw.split(b"/")
        if not parts[-1]:
            parts.pop()
    if len(raw) > LONGEST_PART and any(
        # A whiteout's name is never a file's, and the name that it hides may be as long as any.
        len(part) > LONGEST_PART + (len(_WHITEOUT) if part.startswith(_WHITEOUT) else 0)
        for part in parts
    ):
        raise LayerError("a name of more than 255 bytes", entry=raw)
    return parts


def _split_odd(raw: bytes, strict: bool, warn: Callable[[str], None]) -> list[bytes]:
    if not raw:
        raise LayerError("an empty name", entry=raw)
    if raw[:1] == b"/":
        if strict:
            raise LayerError("an absolute name", entry=raw)
        warn(f"absolute name {printable(raw)!r} taken from the root of the tree")
    parts: list[bytes] = []
    for part in raw.split(b"/"):
        if part == b"..":
            if strict:
                raise LayerError("a name with '..'", entry=raw)
            warn(f"name {printable(raw)!r} with '..' kept inside the tree")
            if parts:
                parts.pop()
        elif part and part != b".":
            parts.append(part)
    return parts
