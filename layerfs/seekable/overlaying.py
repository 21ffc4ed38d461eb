"""Applies one layer's entries to the merged tree of the layers below it, as data.

The result is that of unpacking (`tree.layer_tree`), entry by entry: parents are resolved through links in the
layer and below, whiteouts concern older layers alone wherever they stand, and a hard link's other name may
come later.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from layerfs.errors import BudgetError, LayerError
from layerfs.seekable.extent import Indexed
from layerfs.tree.entry import Entry, Kind
from layerfs.tree.whiteouts import OPAQUE, PREFIX

_IMPLIED: Final = 0o755
_MOST_LINKS: Final = 40


class Node:
    """A file of the tree, of whatever type; hard links are one node under several names.

    `file` is its entry as its layer, the one of number `layer`, has it; `links` counts its names; `children`
    are a directory's, by name.
    """

    __slots__ = ("children", "file", "layer", "links")

    def __init__(self, file: Indexed, layer: int) -> None:
        self.file = file
        self.layer = layer
        self.links = 1
        self.children: dict[bytes, Node] | None = {} if file.entry.kind is Kind.DIRECTORY else None

    @property
    def entry(self) -> Entry:
        """What it is."""
        return self.file.entry


class _Directory:
    """A directory of the layer: its entry, what is in it, and what it hides of the layers below."""

    __slots__ = ("children", "file", "hidden", "opaque")

    def __init__(self) -> None:
        self.file: Indexed | None = None
        self.children: dict[bytes, _Directory | Node] = {}
        self.hidden: set[bytes] = set()
        self.opaque = False


def implied(number: int) -> Node:
    """Make a directory that no layer has an entry for."""
    return Node(Indexed(Entry(b"", Kind.DIRECTORY, _IMPLIED), None, None), number)


def overlay(below: Node, files: Iterable[Indexed], number: int, *, depth: int) -> Node:
    """Give the tree that a layer makes of the one below it, whose nodes it takes over.

    Args:
        below: the root of the tree below.
        files: the layer's entries, names normalised.
        number: the layer's.
        depth: how many parts a path may have.

    Raises:
        LayerError: parents of an entry are links without an end, or a hard link leads to nothing.
        BudgetError: a path is deeper than allowed.
    """
    layer = _Layer(below, number)
    for file in files:
        if file.entry.path.count(b"/") >= depth:
            raise BudgetError(f"a path of more than {depth} parts")
        layer.place(file)
    layer.link_deferred()
    return _merged(layer.root, below, number)


class _Place:
    """Where a path leads: the names without links, and the directories of the layer and below."""

    __slots__ = ("_levels", "lower", "names", "own")

    def __init__(self, own: _Directory, lower: Node) -> None:
        self.names: list[bytes] = []
        self.own: _Directory | None = own
        self.lower: Node | None = lower
        self._levels: list[tuple[_Directory | None, Node | None]] = []

    def down(self, name: bytes, own: _Directory | None, lower: Node | None) -> None:
        self._levels.append((self.own, self.lower))
        self.names.append(name)
        self.own = own
        self.lower = lower if lower is not None and lower.children is not None else None

    def up(self) -> None:
        if self._levels:
            self.own, self.lower = self._levels.pop()
            self.names.pop()

    def top(self) -> None:
        while self._levels:
            self.up()


class _Layer:
    def __init__(self, below: Node, number: int) -> None:
        self.root = _Directory()
        self._below = below
        self._number = number
        # Hard links whose other name did not come yet, by the names that lead to them.
        self._deferred: dict[tuple[bytes, ...], Entry] = {}
        # Most entries have the parent of the one before: its path, and where that led.
        self._parent: bytes | None = None
        self._names: tuple[bytes, ...] = ()
        self._directory = self.root

    def place(self, file: Indexed) -> None:
        entry = file.entry
        if not entry.path:
            self.root.file = file
            return
        parent, _, name = entry.path.rpartition(b"/")
        if name.startswith(PREFIX):
            self._parent = None
            self._hide(parent.split(b"/") if parent else [], name)
            return
        if parent != self._parent:
            place = self._resolve(parent.split(b"/") if parent else [])
            self._names, self._directory = tuple(place.names), self._make(place.names)
            self._parent = parent
        if entry.kind is not Kind.FILE:
            self._parent = None
        directory = self._directory
        own = (*self._names, name)
        if entry.kind is Kind.HARDLINK:
            self._link(directory, own, entry)
            return
        self._deferred.pop(own, None)
        old = directory.children.get(name)
        if entry.kind is not Kind.DIRECTORY:
            if isinstance(old, _Directory) and old.opaque:
                # What lies below stays hidden, should a directory come in its place once more.
                directory.hidden.add(name)
            directory.children[name] = Node(file, self._number)
            return
        if not isinstance(old, _Directory):
            old = directory.children[name] = _Directory()
        old.file = file

    def _hide(self, parents: Sequence[bytes], name: bytes) -> None:
        place = self._resolve(parents)
        if place.own is None and place.lower is None:
            return
        directory = self._make(place.names)
        if name == OPAQUE:
            directory.opaque = True
        else:
            directory.hidden.add(name[len(PREFIX) :])

    def _resolve(self, parts: Sequence[bytes]) -> _Place:
        """Follow a path; parts that are nowhere, or below what is no directory, are taken as they are."""
        place = _Place(self.root, self._below)
        todo = list(reversed(parts))
        links = 0
        while todo:
            name = todo.pop()
            if name == b"..":
                place.up()
            elif name and name != b".":
                link = self._look(place, name)
                if link is None:
                    continue
                links += 1
                if links > _MOST_LINKS:
                    raise LayerError("too many levels of symbolic links", entry=b"/".join(parts))
                if link.startswith(b"/"):
                    place.top()
                todo += reversed(link.split(b"/"))
        return place

    def _look(self, place: _Place, name: bytes) -> bytes | None:
        """Go one part down; gives a link's text instead when that is what stands there."""
        own, lower = place.own, place.lower
        below = lower.children.get(name) if lower is not None and lower.children is not None else None
        if own is not None:
            if own.opaque or name in own.hidden:
                below = None
            found = own.children.get(name)
            if isinstance(found, _Directory):
                place.down(name, found, below)
                return None
            if found is not None:
                if found.entry.kind is Kind.SYMLINK:
                    return found.entry.target
                below = None
        if below is not None and below.entry.kind is Kind.SYMLINK:
            return below.entry.target
        place.down(name, None, below)
        return None

    def _make(self, names: Sequence[bytes]) -> _Directory:
        directory = self.root
        for name in names:
            found = directory.children.get(name)
            if not isinstance(found, _Directory):
                found = directory.children[name] = _Directory()
            directory = found
        return directory

    def _link(self, directory: _Directory, own: tuple[bytes, ...], entry: Entry) -> None:
        *parents, last = entry.target.split(b"/")
        place = self._resolve(parents)
        real = (*place.names, last)
        if real == own:
            return
        found = place.own.children.get(last) if place.own is not None else None
        if isinstance(found, Node) and real not in self._deferred:
            self._deferred.pop(own, None)
            directory.children[own[-1]] = found
            return
        # It keeps the place, so that what later takes it away takes the link away.
        directory.children[own[-1]] = Node(Indexed(entry, None, None), self._number)
        self._deferred[own] = entry

    def link_deferred(self) -> None:
        """Make the links whose other name came later, or lies below.

        Raises:
            LayerError: there is no such name.
        """
        for own in list(self._deferred):
            # From a link to the link that it is a link to, and so on; then back.
            chain: dict[tuple[bytes, ...], None] = {own: None}
            while chain:
                last = next(reversed(chain))
                entry = self._deferred.get(last)
                waits = None if entry is None else self._link_late(last, entry)
                if waits is None:
                    del chain[last]
                elif waits in chain:
                    raise LayerError("a hard link to nothing", entry=self._deferred[own].path)
                else:
                    chain[waits] = None

    def _link_late(self, own: tuple[bytes, ...], entry: Entry) -> tuple[bytes, ...] | None:
        """Make a link that waited; gives the link that has to be made first, if there is one."""
        directory: _Directory | Node | None = self.root
        for name in own[:-1]:
            directory = directory.children.get(name) if isinstance(directory, _Directory) else None
        stands = directory.children.get(own[-1]) if isinstance(directory, _Directory) else None
        if not isinstance(stands, Node) or stands.file.entry is not entry:
            # A later entry has taken the place, or that of a parent.
            del self._deferred[own]
            return None
        assert isinstance(directory, _Directory)
        *parents, last = entry.target.split(b"/")
        place = self._resolve(parents)
        real = (*place.names, last)
        if real in self._deferred and real != own:
            return real
        del self._deferred[own]
        found = place.own.children.get(last) if place.own is not None else None
        hidden = place.own is not None and (place.own.opaque or last in place.own.hidden)
        if found is None and not hidden and place.lower is not None and place.lower.children is not None:
            found = place.lower.children.get(last)
        if not isinstance(found, Node) or found.children is not None or found is stands:
            raise LayerError("a hard link to nothing", entry=entry.path)
        directory.children[own[-1]] = found
        return None


def _merged(top: _Directory, below: Node, number: int) -> Node:
    """Put a layer's tree over the one below, without recursion: trees are as deep as strangers like."""
    root = _directory(top, below, number)
    todo = [(top, below, root)]
    while todo:
        own, lower, node = todo.pop()
        children: dict[bytes, Node] = {}
        if lower.children is not None and not own.opaque:
            children = {name: child for name, child in lower.children.items() if name not in own.hidden}
        for name, child in own.children.items():
            if isinstance(child, Node):
                children[name] = child
                continue
            old = children.get(name)
            if old is None or old.children is None:
                old = implied(number)
            children[name] = _directory(child, old, number)
            todo.append((child, old, children[name]))
        node.children = children
    return root


def _directory(own: _Directory, below: Node, number: int) -> Node:
    return Node(below.file, below.layer) if own.file is None else Node(own.file, number)
