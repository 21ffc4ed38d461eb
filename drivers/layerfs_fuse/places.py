"""Directories of single layers, opened when needed; what stands in them is a dialect's business."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from layerfs.tree.absent import KEY, Mark, read_mark

if TYPE_CHECKING:
    from layerfs_fuse.dialect import Dialect

# Descriptors that files opened by clients leave free: for directories on the way to others.
_LEAST_RESERVE: Final = 96
_NONE: Final[Mapping[int, int]] = {}
OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Place:
    """One directory of one layer; layer 0 is the upper one where there is one."""

    __slots__ = ("copies", "descriptor", "hidden", "layer", "layers", "marked", "name", "parent")

    def __init__(self, layers: Layers, layer: int, parent: Place | None, name: bytes) -> None:
        self.layers = layers
        self.layer = layer
        self.parent = parent
        self.name = name
        self.descriptor = -1
        # What dialects remember of a directory, None before they have read it. Overlayfs's: whether empty
        # files with an xattr may stand for whiteouts here (opaque = "x"). Aufs's: the names hidden here.
        self.marked: bool | None = None
        self.hidden: set[bytes] | None = None
        # Whether it is noted that copies of lower files stand here, which have the numbers of those.
        self.copies = False

    def open(self) -> int:
        """Give a descriptor, valid until the end of the request at hand."""
        if self.descriptor >= 0:
            return self.descriptor
        closed = [self]
        above = self.parent
        while above is not None and above.descriptor < 0:
            closed.append(above)
            above = above.parent
        for place in reversed(closed):
            if place.parent is None:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            flags = self.layers.flags[self.layer]
            place.descriptor = os.open(place.name, flags, dir_fd=place.parent.descriptor)
            self.layers.opened[place] = None
        return self.descriptor

    def close(self) -> None:
        """Close the descriptor, if there is one."""
        if self.descriptor >= 0:
            self.layers.opened.pop(self, None)
            os.close(self.descriptor)
            self.descriptor = -1

    def rewound(self) -> int:
        """Give the descriptor at its beginning, from where btrfs shows what has been made until then."""
        descriptor = self.open()
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor

    def below(self, name: bytes) -> Place:
        """Name a subdirectory."""
        return Place(self.layers, self.layer, self, name)

    def stat(self, name: bytes) -> os.stat_result | None:
        """Look at one name; None when it is not there."""
        try:
            return os.stat(name, dir_fd=self.open(), follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def lacks(self, found: os.stat_result) -> bool:
        """Say whether a file here may be without its data."""
        return False

    def path_of(self, name: bytes) -> bytes:
        """Name an entry for calls that want a path, until the end of the request at hand."""
        return self.layers.through(self.open(), name)

    def path(self) -> bytes:
        """Give the path from the layer's root, "" for that."""
        names: list[bytes] = []
        place = self
        while place.parent is not None:
            names.append(place.name)
            place = place.parent
        return b"/".join(reversed(names))


class LazyPlace(Place):
    """A directory of a layer whose files may be without their data (`layerfs.tree.absent`)."""

    __slots__ = ()

    def below(self, name: bytes) -> Place:
        return LazyPlace(self.layers, self.layer, self, name)

    def stat(self, name: bytes) -> os.stat_result | None:
        found = super().stat(name)
        while found is not None and self.lacks(found):
            made = self.layers.made[self.layer]
            if found.st_mtime_ns < made and found.st_mtime_ns != found.st_ctime_ns:
                return _shown(found, found.st_mtime_ns)
            # Its time may be that of the writing of its data, which is under way, or ended too soon.
            mark = self.mark(name)
            if mark is not None:
                return _shown(found, mark.mtime_ns)
            again = super().stat(name)
            if again is None or again.st_ctime_ns == found.st_ctime_ns:
                return again
            found = again
        return found

    def lacks(self, found: os.stat_result) -> bool:
        return found.st_size > 0 and stat.S_ISREG(found.st_mode)

    def mark(self, name: bytes) -> Mark | None:
        """Read what is known of a file's absent body; None when it is here."""
        key = self.layers.dialect.mark(KEY)
        return None if key is None else read_mark(self.path_of(name), key)


def _shown(found: os.stat_result, mtime_ns: int) -> os.stat_result:
    """Show a file as it will be with its data: with no holes, and its own time."""
    blocks = max(found.st_blocks, (found.st_size + 511) // 512)
    seconds = mtime_ns // 1_000_000_000
    more = {name: getattr(found, name) for name in _FURTHER}
    more |= {"st_blocks": blocks, "st_mtime": mtime_ns / 1e9, "st_mtime_ns": mtime_ns}
    return os.stat_result((*found[:8], seconds, found[9]), more)


_FURTHER: Final = ("st_atime", "st_ctime", "st_atime_ns", "st_ctime_ns", "st_blksize", "st_rdev")


class Layers:
    """The layers of one mount, top first, and every directory of theirs that is open."""

    def __init__(
        self,
        roots: list[int],
        *,
        dialect: Dialect,
        most_open: int,
        limit: int = sys.maxsize,
        lazy: Mapping[int, int] = _NONE,
    ) -> None:
        """Merge layers.

        Args:
            limit: the number that no descriptor of this process reaches.
            lazy: which of `roots` have files that may be without their data, each with its number elsewhere.
        """
        self.dialect = dialect
        self.lazy = lazy
        # When those were finished, in nanoseconds.
        self.made = {number: os.fstat(roots[number]).st_ctime_ns for number in lazy}
        # A new descriptor has the lowest number that is free (open(2)): so many clients can have taken.
        reserve = min(limit // 4, max(_LEAST_RESERVE, 2 * len(roots)))
        self._most_taken = limit - reserve
        self._most_kept = limit - reserve // 2
        # What else is open only to be at hand is closed by these; they say whether anything was.
        self.relieving: list[Callable[[], bool]] = []
        self.merge = dialect.merge
        self.opened: dict[Place, None] = {}
        self.most_open = most_open
        # Where the process's descriptors can be found by name: proc_pid_fd(5).
        self.descriptors = b"/proc/self/fd/"
        self._devices: dict[int, int] = {}
        self.roots: list[Place] = []
        # With which flags to open the directories of each layer.
        self.flags: list[int] = []
        for number, root in enumerate(roots):
            place = (LazyPlace if number in lazy else Place)(self, number, None, b"")
            place.descriptor = root
            self.roots.append(place)
            self.flags.append(OPEN_DIRECTORY | (_stop_atime(root) if number else 0))
            self.number(os.fstat(root))  # so that each file system has the same index in every mount

    def trim(self) -> None:
        """Close the directories opened longest ago, when there are too many; between requests only."""
        while len(self.opened) > self.most_open:
            next(iter(self.opened)).close()

    def require_room(self) -> None:
        """Refuse to open a file for a client where that would leave too few descriptors for everybody else.

        Raises:
            OSError: EMFILE.
        """
        probe = os.dup(self.roots[0].descriptor)
        os.close(probe)
        if probe >= self._most_taken:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def kept(self, descriptor: int) -> int:
        """Give a descriptor that is to hold a file without a name, or refuse it as `require_room` does."""
        if descriptor >= self._most_kept:
            os.close(descriptor)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return descriptor

    def relieve(self) -> bool:
        """Close all that is open only to be at hand, between requests; say whether there was anything."""
        relieved = bool(self.opened)
        for place in list(self.opened):
            place.close()
        for close in self.relieving:
            relieved |= close()
        return relieved

    def through(self, descriptor: int, name: bytes = b"") -> bytes:
        """Name an entry of an open directory, or what is open itself, for calls that want a path."""
        if name:
            return b"%s%d/%s" % (self.descriptors, descriptor, name)
        return b"%s%d" % (self.descriptors, descriptor)

    def number(self, found: os.stat_result) -> int:
        """Give an inode number that is unique over the file systems that hold the layers."""
        index = self._devices.setdefault(found.st_dev, len(self._devices))
        return found.st_ino | index << 56 if index else found.st_ino


NO_PLACES: Final[list[Place]] = []
"""What is no directory has none; one list for all of them, since they are many."""


def _stop_atime(root: int) -> int:
    """Let reading a directory leave its times alone, and give the flag that does; who owns it not, gets 0."""
    try:
        fcntl.fcntl(root, fcntl.F_SETFL, fcntl.fcntl(root, fcntl.F_GETFL) | os.O_NOATIME)
    except PermissionError:
        return 0
    return os.O_NOATIME


class Found:
    """What a name stands for: `places` are the merged directories, empty for any other file."""

    __slots__ = ("parent", "places", "status")

    def __init__(self, status: os.stat_result, parent: Place, places: list[Place]) -> None:
        self.status = status
        self.parent = parent
        self.places = places
