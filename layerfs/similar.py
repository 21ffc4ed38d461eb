"""Guesses which name a user meant, for the hint of an error."""

from __future__ import annotations

from collections.abc import Iterable


def meant(called: str, known: Iterable[str]) -> str | None:
    """Ask for the known name which is most like what was called, whole or in part; None if none is.

    Args:
        called: a name that does not exist.
        known: names of containers, or of images in their short form.
    """
    # It takes longer to import than most commands run, and is for errors alone.
    import difflib

    whole: dict[str, str] = {}
    for name in known:
        repository, _, _ = name.rpartition(":")
        for part in (name, repository, name.rpartition("/")[2], repository.rpartition("/")[2]):
            if part:
                whole.setdefault(part, name)
    found = difflib.get_close_matches(called, whole, n=1)
    return f"did you mean {whole[found[0]]}?" if found else None
