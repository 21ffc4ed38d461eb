"""How long work tells what it has done: a contract, and the one that says nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol


class Progress(Protocol):
    """Whoever shows progress; several tasks may be under way at once, in several threads."""

    def task(self, label: str, total: int | None) -> AbstractContextManager[Callable[[int], None]]:
        """Begin a task; the callable that `with` gives advances it by so many bytes or entries.

        Args:
            label: what is being done, in a few words.
            total: how many bytes or entries there will be, None when that is not known.
        """
        ...


class Silent:
    """Progress that nobody sees."""

    def task(self, label: str, total: int | None) -> AbstractContextManager[Callable[[int], None]]:
        """Begin a task that shows nothing."""
        return contextlib.nullcontext(_ignore)


def _ignore(count: int) -> None:
    pass
