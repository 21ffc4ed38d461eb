"""The open directories from a tree's root down to where a walk stands, however deep that is.

A walk by descriptors needs one descriptor a level, and a tree may be deeper than a process may
have open files. A ladder keeps the lowest levels open and reopens a higher one through ``..``
when the walk comes back up, which is checked by device and inode: the tree belongs to the walker.
"""

from __future__ import annotations

import errno
import os
from typing import Final

OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT: Final = 64


class Ladder:
    """A stack of directory descriptors; owns all but the first, which stays the caller's."""

    def __init__(self, root: int) -> None:
        self._rungs: list[int] = [root]
        self._identities: dict[int, tuple[int, int]] = {}

    @property
    def top(self) -> int:
        """The descriptor of the directory where the walk stands."""
        return self._rungs[-1]

    def push(self, directory: int) -> None:
        """Step down into a directory that the caller has opened."""
        self._rungs.append(directory)
        far = len(self._rungs) - 1 - _KEPT
        if far > 0:
            found = os.fstat(self._rungs[far])
            self._identities[far] = (found.st_dev, found.st_ino)
            os.close(self._rungs[far])

    def pop(self) -> None:
        """Step back up, and close the directory left.

        Raises:
            OSError: ESTALE, it was moved meanwhile, to where the walk does not belong.
        """
        above = len(self._rungs) - 2
        identity = self._identities.pop(above, None)
        if identity is not None:
            self._rungs[above] = os.open("..", OPEN_DIRECTORY, dir_fd=self._rungs[-1])
            found = os.fstat(self._rungs[above])
            if (found.st_dev, found.st_ino) != identity:
                raise OSError(errno.ESTALE, "a directory was moved while its tree was walked")
        os.close(self._rungs.pop())

    def close(self) -> None:
        """Close every descriptor that the ladder still holds; idempotent."""
        for level in range(len(self._rungs) - 1, 0, -1):
            if level not in self._identities:
                os.close(self._rungs[level])
        del self._rungs[1:]
        self._identities.clear()

    def __len__(self) -> int:
        return len(self._rungs)
