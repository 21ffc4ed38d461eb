"""What the union asks of a layer format; everything that depends on one stands behind `Dialect`.

Reading: which names a directory of a layer hides, and with which directories below it is merged. Writing:
how a name is added, removed and moved in the upper layer so that a kill at any moment loses nothing and
shows nothing half made. The union itself knows names, inodes and copies, and no format.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from layerfs_fuse.places import Found, Place

# In the work directory: the whiteout that others are further names of.
_SHARED: Final = b"whiteout"
_NOT_LINKED: Final = (errno.ENOENT, errno.EMLINK, errno.EPERM)

# Makes something in an open directory under a name.
Build = Callable[[int, bytes], None]


class Workspace(Protocol):
    """Room to prepare things in, on the file system of the upper layer."""

    # An open directory.
    work: int

    def temporary(self) -> bytes:
        """Give a name that nothing in the work directory has."""

    def made(self, make: Callable[[bytes], None]) -> bytes:
        """Make something in the work directory and give its name; nothing is left when that fails."""


class Dialect(abc.ABC):
    """One format, without state: what is remembered of a directory stands in its `Place`."""

    @abc.abstractmethod
    def merge(self, parents: Sequence[Place], name: bytes) -> Found | None:
        """Look a name up through directories that are merged, top first; None when none shows it.

        Raises:
            PermissionError: the name is one of the format's own, which nobody may have.
        """

    @abc.abstractmethod
    def entries(self, places: Sequence[Place]) -> Iterator[tuple[bytes, int, int]]:
        """Give the names that merged directories show, each once, with inode number and type.

        The type is that of dirent(3). ``.`` and ``..`` are left out.
        """

    def names(self, places: Sequence[Place]) -> dict[bytes, int]:
        """Give all names that merged directories show, and perhaps more, without a look at each.

        With each name comes how many of the directories, from the top on, have no part in what it shows.
        """
        return {name: 0 for name, _, _ in self.entries(places)}

    def data(self, place: Place, name: bytes, file: int) -> tuple[Place, bytes] | None:
        """Say where the data of a regular file lies, which is open; None: in the file itself."""
        return None

    def complete(self, file: int) -> None:
        """Note that an open file of the upper layer now has data of its own."""
        raise NotImplementedError

    def mark(self, key: bytes) -> bytes | None:
        """Name an attribute in which to keep something that never shows; None where that cannot be."""
        return None

    def note_copies(self, place: Place) -> None:
        """Note that a directory holds copies of lower files; a hint, lost without harm."""
        return

    @abc.abstractmethod
    def stored(self, name: bytes) -> bytes:
        """Give the name under which a layer keeps an extended attribute."""

    @abc.abstractmethod
    def shown(self, name: bytes) -> bytes | None:
        """Give the name under which a stored attribute shows, None for one of the format's own."""

    @abc.abstractmethod
    def is_free(self, place: Place, name: bytes) -> bool:
        """Say whether a file may be made in the upper directory as it is, unless that has the very name.

        The name does not show from below; `add` is for all other cases.
        """

    @abc.abstractmethod
    def add(self, at: Workspace, place: Place, name: bytes, build: Build, *, directory: bool) -> None:
        """Make something under a name that does not show, whatever the upper directory has there.

        A directory is opaque where it takes the place of a name that was hidden. `build` may be called
        for `place` or for the work directory.
        """

    @abc.abstractmethod
    def remove(self, at: Workspace, place: Place, name: bytes, *, below: bool, directory: bool) -> None:
        """Take a name that shows out of the upper directory, and hide it where it is `below` too.

        A directory shows nothing, but may hold what hides names.
        """

    @abc.abstractmethod
    def move(
        self,
        at: Workspace,
        source: Place,
        old_name: bytes,
        destination: Place,
        new_name: bytes,
        *,
        below: bool,
        directory: bool,
    ) -> None:
        """Rename within the upper layer, over what may be replaced; hide the old name where it is `below`."""

    @abc.abstractmethod
    def make_opaque(self, path: bytes) -> None:
        """Let a directory of the upper layer hide all that the layers below have in it."""

    @abc.abstractmethod
    def redirect(self, path: bytes, target: bytes) -> bool:
        """Let a directory merge with the one at `target`, from the root of the layers below.

        False where that cannot be said, so that the directory must be copied instead.
        """

    def redirected(self, place: Place) -> bytes | None:
        """Give the `target` of a redirected directory, or the name that it merges with in its parent."""
        return None


def make_shared(work: int, directory: int, name: bytes, make: Build) -> None:
    """Make an empty file as one more name of the last one, which costs less than an inode each."""
    try:
        os.link(_SHARED, name, src_dir_fd=work, dst_dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NOT_LINKED:
            raise
        make(directory, name)
        with contextlib.suppress(OSError):
            if error.errno == errno.EMLINK:
                os.unlink(_SHARED, dir_fd=work)
            os.link(name, _SHARED, src_dir_fd=directory, dst_dir_fd=work, follow_symlinks=False)
