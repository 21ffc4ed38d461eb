"""Directories of single layers, opened when needed, and what overlayfs's format says in them.

The format is the kernel's (documentation, filesystems/overlayfs.rst): character devices 0:0 or marked empty
files hide a name, the xattr ``opaque`` hides a whole directory, ``redirect`` names the one to merge with.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Final

from layerfs.tree.whiteouts import is_overlay_whiteout

OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_XATTR: Final = (errno.ENODATA, errno.ENOTSUP)


class Place:
    """One directory of one layer; layer 0 is the upper one where there is one."""

    __slots__ = ("descriptor", "layer", "layers", "marked", "name", "parent")

    def __init__(self, layers: Layers, layer: int, parent: Place | None, name: bytes) -> None:
        self.layers = layers
        self.layer = layer
        self.parent = parent
        self.name = name
        self.descriptor = -1
        # Whether empty files with an xattr may stand for whiteouts here (opaque = "x"); None: not read yet.
        self.marked: bool | None = None

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
            place.descriptor = os.open(place.name, OPEN_DIRECTORY, dir_fd=place.parent.descriptor)
            self.layers.opened[place] = None
        return self.descriptor

    def close(self) -> None:
        """Close the descriptor, if there is one."""
        if self.descriptor >= 0:
            self.layers.opened.pop(self, None)
            os.close(self.descriptor)
            self.descriptor = -1

    def below(self, name: bytes) -> Place:
        """Name a subdirectory."""
        return Place(self.layers, self.layer, self, name)

    def stat(self, name: bytes) -> os.stat_result | None:
        """Look at one name; None when it is not there."""
        try:
            return os.stat(name, dir_fd=self.open(), follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def path(self) -> bytes:
        """Give the path from the layer's root, "" for that."""
        names: list[bytes] = []
        place = self
        while place.parent is not None:
            names.append(place.name)
            place = place.parent
        return b"/".join(reversed(names))


class Layers:
    """The layers of one mount, top first, and every directory of theirs that is open."""

    def __init__(self, roots: list[int], *, user_xattrs: bool, most_open: int) -> None:
        self.prefix = b"user.overlay." if user_xattrs else b"trusted.overlay."
        self.user_xattrs = user_xattrs
        self.opened: dict[Place, None] = {}
        self.most_open = most_open
        # Where the process's descriptors can be found by name: proc_pid_fd(5).
        self.descriptors = b"/proc/self/fd/"
        self._devices: dict[int, int] = {}
        self.roots = []
        for number, root in enumerate(roots):
            place = Place(self, number, None, b"")
            place.descriptor = root
            self.roots.append(place)

    def trim(self) -> None:
        """Close the directories opened longest ago, when there are too many; between requests only."""
        while len(self.opened) > self.most_open:
            next(iter(self.opened)).close()

    def through(self, descriptor: int, name: bytes = b"") -> bytes:
        """Name an entry of an open directory, or what is open itself, for calls that want a path."""
        if name:
            return b"%s%d/%s" % (self.descriptors, descriptor, name)
        return b"%s%d" % (self.descriptors, descriptor)

    def names(self, place: Place) -> list[bytes]:
        """List a directory of one layer; whiteouts are listed under the names that they hide."""
        return os.listdir(self.through(place.open()))

    def xattr(self, place: Place, key: bytes) -> bytes | None:
        """Read one of overlayfs's attributes of a directory."""
        return self.xattr_of(place.open(), key)

    def xattr_of(self, target: int | bytes, key: bytes) -> bytes | None:
        """Read one of overlayfs's attributes of an open file or a path."""
        try:
            return os.getxattr(target, self.prefix + key, follow_symlinks=isinstance(target, int))
        except OSError as error:
            if error.errno in _NO_XATTR:
                return None
            raise

    def is_whiteout(self, place: Place, name: bytes, found: os.stat_result) -> bool:
        """Say whether a name hides what the layers below have under it."""
        if is_overlay_whiteout(found):
            return True
        if not stat.S_ISREG(found.st_mode) or found.st_size:
            return False
        if place.marked is None:
            place.marked = self.xattr(place, b"opaque") == b"x"
        return place.marked and self.xattr_of(self.through(place.open(), name), b"whiteout") is not None

    def number(self, found: os.stat_result) -> int:
        """Give an inode number that is unique over the file systems that hold the layers."""
        index = self._devices.setdefault(found.st_dev, len(self._devices))
        return found.st_ino | index << 56 if index else found.st_ino

    def merge(self, parents: list[Place], name: bytes) -> Found | None:
        """Look a name up through directories that are merged, top first."""
        for index, parent in enumerate(parents):
            found = parent.stat(name)
            if found is None:
                continue
            if self.is_whiteout(parent, name, found):
                return None
            if not stat.S_ISDIR(found.st_mode):
                return Found(found, parent, [])
            place = parent.below(name)
            return Found(found, parent, [place, *self._merged_with(place, parents[index + 1 :], name)])
        return None

    def _merged_with(self, top: Place, parents: list[Place], name: bytes) -> Iterator[Place]:
        """Give the lower directories that one is merged with."""
        place = top
        while place.layer + 1 < len(self.roots):
            if self.xattr(place, b"opaque") == b"y":
                return
            redirect = self.xattr(place, b"redirect")
            if redirect is not None and redirect.startswith(b"/"):
                yield from self._redirected(place.layer + 1, redirect.strip(b"/").split(b"/"))
                return
            name = redirect or name
            while parents:
                parent, *parents = parents
                found = parent.stat(name)
                if found is not None:
                    break
            else:
                return
            if not stat.S_ISDIR(found.st_mode):
                return
            place = parent.below(name)
            yield place

    def _redirected(self, layer: int, names: list[bytes]) -> Iterator[Place]:
        """Walk a path from the root of each layer from `layer` on; redirects on the way lead on below."""
        for root in self.roots[layer:]:
            place, following, last = root, list(names), False
            for index, name in enumerate(names):
                found = place.stat(name)
                if found is None:
                    break
                if not stat.S_ISDIR(found.st_mode):
                    return
                place = place.below(name)
                if self.xattr(place, b"opaque") == b"y":
                    last = True
                redirect = self.xattr(place, b"redirect")
                if redirect is not None and redirect.startswith(b"/"):
                    following = redirect.strip(b"/").split(b"/") + names[index + 1 :]
                elif redirect is not None:
                    following = [*names[:index], redirect, *names[index + 1 :]]
            else:
                yield place
            if last:
                return
            names = following


class Found:
    """What a name stands for: `places` are the merged directories, empty for any other file."""

    __slots__ = ("parent", "places", "status")

    def __init__(self, status: os.stat_result, parent: Place, places: list[Place]) -> None:
        self.status = status
        self.parent = parent
        self.places = places
