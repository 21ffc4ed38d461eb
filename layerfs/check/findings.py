"""What a check finds: problems, and the harmless remains of stopped processes."""

from __future__ import annotations

from typing import NamedTuple

from layerfs.leftovers import Leftover
from layerfs.value import frozen

REPAIR: str = "layerfs check --repair"


class Problem(NamedTuple):
    """One thing that is wrong: where, what, whether it was repaired, and what to do ("" if nothing).

    `how` says what it was repaired from, or where it lies now.
    """

    kind: str
    subject: str
    what: str
    repaired: bool
    hint: str
    how: str = ""


@frozen
class Findings:
    """What a check found, and how much it looked at.

    `leftovers` are harmless: garbage collection removes them when they are old enough. `notes` tell of what
    once went wrong elsewhere and damaged nothing here, such as data that a registry did not give.
    """

    problems: tuple[Problem, ...]
    blobs: int
    layers: int
    files: int = 0
    leftovers: tuple[Leftover, ...] = ()
    notes: tuple[Problem, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong, or nothing any more."""
        return all(problem.repaired for problem in self.problems)


class Telling:
    """Collects problems, in the order in which they are found."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.notes: list[Problem] = []

    def found(self, kind: str, subject: str, what: str, *, hint: str = REPAIR) -> None:
        """Note what was not repaired."""
        self.problems.append(Problem(kind, subject, what, False, hint))

    def noted(self, kind: str, subject: str, what: str, *, hint: str) -> None:
        """Note what is no damage."""
        self.notes.append(Problem(kind, subject, what, False, hint))

    def repaired(self, kind: str, subject: str, what: str, *, how: str) -> None:
        """Note what was."""
        self.problems.append(Problem(kind, subject, what, True, "", how))
