"""What the kernel has open: files, which follow a copy-up, and listings of directories."""

import bisect
import os
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from layerfs_fuse.nodes import Node
from layerfs_fuse.union import Union

_MOST_LISTINGS: Final = 256
_MOST_NAMES: Final = 1 << 15
# Who has not come to the end of a listing loses his place with it.
_MOST_BEGUN: Final = 4096
_MOST_NAMES_BEGUN: Final = 1 << 20
_DOTS: Final = (b".", b"..")
_MOST_READ: Final = 64
# Bytes from which on a read is one of many.
_MUCH: Final = 1 << 17
# Bytes to fetch from the disk before they are asked for.
_AHEAD: Final = 1 << 22
KEPT: Final = os.O_ACCMODE | os.O_SYNC | os.O_DSYNC | os.O_NOATIME
"""The flags of open(2) that matter to a server."""


class Backing:
    """A file below that the kernel was given for an inode; `lower` says that it is not the upper layer's."""

    __slots__ = ("identity", "inode", "lower", "users")

    def __init__(self, inode: int, identity: int, *, lower: bool) -> None:
        self.inode = inode
        self.identity = identity
        self.lower = lower
        self.users = 0


class OpenFile:
    """An open regular file; `descriptor` is the file's topmost copy if that is open already."""

    __slots__ = ("_upper", "backing", "descriptor", "flags", "node")

    def __init__(self, union: Union, node: Node, flags: int, descriptor: int = -1) -> None:
        self.node = node
        # Appending is the kernel's business: it sends offsets.
        self.flags = flags & KEPT
        self.backing: Backing | None = None
        self._upper = node.upper
        self.descriptor = _open(union, node, self.flags) if descriptor < 0 else descriptor
        node.users += 1

    def current(self, union: Union) -> int:
        """Give the descriptor of the topmost copy."""
        if self.node.upper is not self._upper:
            descriptor = _open(union, self.node, self.flags)
            os.close(self.descriptor)
            self.descriptor, self._upper = descriptor, True
        return self.descriptor

    def close(self) -> None:
        """Close it; the caller releases the node."""
        self.node.users -= 1
        os.close(self.descriptor)


class _Reader:
    """A file that is being read: `end` is where the last read ended."""

    __slots__ = ("descriptor", "end", "upper")

    def __init__(self, descriptor: int, *, upper: bool) -> None:
        self.descriptor = descriptor
        self.upper = upper
        self.end = 0


class Readers:
    """Files that are open for reading without a handle: one descriptor for all readers of a file.

    They are opened when something is read, which is seldom, since the kernel keeps what it has read.
    """

    def __init__(self, union: Union) -> None:
        self._union = union
        self._opened: dict[Node, _Reader] = {}
        union.layers.relieving.append(self._close_all)

    def descriptor(self, node: Node) -> int:
        """Give a descriptor of the topmost copy, valid until the end of the request at hand."""
        return self._reader(node).descriptor

    def read(self, node: Node, room: memoryview, offset: int) -> int:
        """Read from the topmost copy (preadv(2)); what is read in a row is fetched from the disk in time."""
        reader = self._reader(node)
        length = len(room)
        if length >= _MUCH:
            if offset == reader.end:
                os.posix_fadvise(reader.descriptor, offset + length, _AHEAD, os.POSIX_FADV_WILLNEED)
            reader.end = offset + length
        return os.preadv(reader.descriptor, (room,), offset)

    def _reader(self, node: Node) -> _Reader:
        found = self._opened.get(node)
        if found is not None:
            if found.upper is node.upper:
                return found
            self.close(node)
        # As overlayfs does: reading changes nothing in a layer that others share.
        flags = os.O_RDONLY | (0 if node.upper else os.O_NOATIME)
        descriptor = _open(self._union, node, flags, partly=True)
        found = self._opened[node] = _Reader(descriptor, upper=node.upper)
        if len(self._opened) > _MOST_READ:
            self.close(next(iter(self._opened)))
        return found

    def close(self, node: Node) -> None:
        """Close a file, if it is open."""
        found = self._opened.pop(node, None)
        if found is not None:
            os.close(found.descriptor)

    def _close_all(self) -> bool:
        opened = list(self._opened)
        for node in opened:
            self.close(node)
        return bool(opened)


def _open(union: Union, node: Node, flags: int, *, partly: bool = False) -> int:
    if not node.upper:
        flags |= os.O_NOATIME  # nothing changes in lower layers
    try:
        return union.open(node, flags, partly=partly)
    except PermissionError:
        if not flags & os.O_NOATIME:
            raise
        return union.open(node, flags & ~os.O_NOATIME, partly=partly)


class Listings:
    """What directories hold, as far as they are being read.

    A name keeps its offset as long as it stays, whatever else comes or goes, so that several readers
    can share a listing, and none needs to be told apart from the others. Names that hide something are
    listed too: whoever looks at each name finds that there is nothing to see.
    """

    def __init__(self, union: Union) -> None:
        self._union = union
        self._begun = _Shelf(_MOST_BEGUN, _MOST_NAMES_BEGUN)
        self._ended = _Shelf(_MOST_LISTINGS, _MOST_NAMES)
        self._age = 0

    def outdate(self) -> None:
        """Take note that the union changes: where a name lies must be found out anew."""
        self._age += 1

    def after(self, node: Node, offset: int) -> Iterator[tuple[int, bytes, int | None]]:
        """Give the names after an offset with their own; a reader that begins sees the directory as it is.

        The third value counts the merged directories that need not be looked at to find the name; it is
        None for ``.`` and ``..``.
        """
        found = self._take(node) if offset else None
        if found is None:
            found = self._read(node)
        self._begun.put(node.id, found)
        names, offsets, firsts, fresh = found.names, found.offsets, found.firsts, found.age == self._age
        start = bisect.bisect_right(offsets, offset) if offset else 0
        for index in range(start, len(names)):
            name = names[index]
            if name in _DOTS:
                yield offsets[index], name, None
            else:
                yield offsets[index], name, firsts[index] if fresh else 0
        self._begun.take(node.id)
        self._ended.put(node.id, found)

    def _take(self, node: Node) -> "_Listing | None":
        return self._begun.take(node.id) or self._ended.take(node.id)

    def _read(self, node: Node) -> "_Listing":
        listed = {**dict.fromkeys(_DOTS, 0), **self._union.names(node)}
        names = list(listed)
        offsets: Sequence[int] = range(1, len(names) + 1)
        before = self._take(node)
        if before is not None and before.names != names:
            names, offsets = _ordered(names, before)
        return _Listing(names, offsets, [listed[name] for name in names], self._age)


class _Listing(NamedTuple):
    """The names of one directory, in the order of their offsets."""

    names: list[bytes]
    offsets: Sequence[int]
    firsts: list[int]
    age: int


class _Shelf:
    """Listings by the ids of their directories, so many as there is room for: the last two at least."""

    def __init__(self, most: int, most_names: int) -> None:
        self._most = most
        self._most_names = most_names
        self._listings: dict[int, _Listing] = {}
        self._names = 0

    def put(self, identity: int, listing: _Listing) -> None:
        """Keep a listing of which there is none here; those used longest ago make room."""
        self._listings[identity] = listing
        self._names += len(listing.names)
        while len(self._listings) > 2 and (
            len(self._listings) > self._most or self._names > self._most_names
        ):
            self.take(next(iter(self._listings)))

    def take(self, identity: int) -> _Listing | None:
        """Give a listing, and keep it no longer."""
        listing = self._listings.pop(identity, None)
        if listing is not None:
            self._names -= len(listing.names)
        return listing


def _ordered(names: list[bytes], before: _Listing) -> tuple[list[bytes], list[int]]:
    """Give the names that were there before their old offsets, and the others later ones."""
    known = dict(zip(before.names, before.offsets, strict=True))
    unused = before.offsets[-1] + 1
    offsets = {}
    for name in names:
        offset = known.get(name)
        if offset is None:
            offset, unused = unused, unused + 1
        offsets[name] = offset
    ordered = sorted(names, key=offsets.__getitem__)
    return ordered, [offsets[name] for name in ordered]
