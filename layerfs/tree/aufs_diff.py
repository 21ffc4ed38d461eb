"""What an upper directory in aufs's format changes, looking below only at the names that stand in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from layerfs.tree.change import Change
from layerfs.tree.upper_diff import UpperWalk
from layerfs.tree.whiteouts import PREFIX, AufsWhiteouts


def aufs_changes(upper: int, *, open_lower: Callable[[], int] | None) -> Iterator[Change]:
    """Read the changes out of a writable branch of aufs (aufs(5)) that is not mounted writable.

    Names that begin with ``.wh.`` are no changes of their own, aufs's pseudo links and orphans included.
    Every file with several names in the branch is yielded.

    Args:
        upper: descriptor of the branch's directory.
        open_lower: opens the merged tree below it; None when there is none. Called once; its descriptor
            is closed here.
    """
    return _Upper(upper, open_lower).walk()


class _Upper(UpperWalk):
    """The walk of a branch."""

    def __init__(self, upper: int, open_lower: Callable[[], int] | None) -> None:
        super().__init__(upper, open_lower)
        self._whiteouts = AufsWhiteouts()

    def standing(self, directory: int) -> set[bytes]:
        names, hidden = set(), set()
        for text in os.listdir(directory):
            name = os.fsencode(text)
            if not name.startswith(PREFIX):
                names.add(name)
            elif (behind := self._whiteouts.hidden(directory, name)) is not None:
                hidden.add(behind)
        self.levels[-1].hidden = hidden
        return names | hidden

    def is_opaque(self, directory: int) -> bool:
        return self._whiteouts.is_opaque(directory)

    def is_hidden(self, name: bytes, new: os.stat_result) -> bool:
        # A pair of a name and its whiteout is what a kill left of a deletion or of a new file.
        return name in self.levels[-1].hidden
