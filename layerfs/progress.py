"""How long work tells what it has done: a contract, the one that says nothing, and what is told of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from layerfs.digest import Digest


class Progress(Protocol):
    """Whoever shows progress; several tasks may be under way at once, in several threads."""

    def task(self, label: str, total: int | None) -> AbstractContextManager[Callable[[int], None]]:
        """Begin a task; the callable that `with` gives advances it by so many bytes or entries.

        Args:
            label: what is being done, in a few words.
            total: how many bytes or entries there will be, None when that is not known.
        """
        ...


@runtime_checkable
class Parts(Protocol):
    """Progress that shows the parts of a whole, and the whole: each part is a task of the same label."""

    def expect(self, parts: Mapping[str, int]) -> None:
        """Hear which parts are next, by label, and their sizes in bytes; what was heard before stays."""
        ...

    def exists(self, part: str) -> None:
        """Hear that a part is there already."""
        ...


class Silent:
    """Progress that nobody sees."""

    def task(self, label: str, total: int | None) -> AbstractContextManager[Callable[[int], None]]:
        """Begin a task that shows nothing."""
        return contextlib.nullcontext(_ignore)


def _ignore(count: int) -> None:
    pass


class Counted:
    """A stream that tells how much of it was read; `proven` is what `transports.endpoint.Proven` has."""

    __slots__ = ("_advance", "_read", "proven")

    def __init__(
        self,
        read: Callable[[int], bytes],
        advance: Callable[[int], object],
        *,
        proven: Digest | None = None,
    ) -> None:
        self._read = read
        self._advance = advance
        self.proven = proven

    def read(self, size: int, /) -> bytes:
        """Read on, and tell."""
        data = self._read(size)
        self._advance(len(data))
        return data
