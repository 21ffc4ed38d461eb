"""Compares the files of one layer with its table of contents.

The layer's own changes are walked in one go, as its driver knows them. What the walk did not show, or showed
to be another, is looked at once more in the layer's tree, as its users see it; what the table does not have
is foreign (but in lazy layers, which are not walked). Nothing is touched that a forked process would share
with its parent.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from layerfs.contents import digest_of_data
from layerfs.directories import probing
from layerfs.driver import Lazy
from layerfs.errors import UnsupportedError, printable
from layerfs.tree.attributes import belongs_in_layers
from layerfs.tree.change import Change, ChangeKind
from layerfs.tree.entry import Entry, Kind
from layerfs.tree.read_entry import read_directory_entry, read_entry
from layerfs.tree.toc import read_toc
from layerfs.tree.whiteouts import OPAQUE, PREFIX

if TYPE_CHECKING:
    from layerfs.layers import Layers

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# Words about a file whose data, at least, is somebody's, and is kept before the layer is made anew.
FOREIGN: Final = "it does not belong there"
ALTERED: Final = "its content is another"
TIME: Final = "its modification time is another"
# How many paths are named in one line.
_NAMED: Final = 3


class Difference(NamedTuple):
    """One path of a layer, and what is wrong with it; `keep` if the data found there is not the layer's."""

    path: bytes
    what: str
    keep: bool = False


class Compared(NamedTuple):
    """What is wrong with a layer, in no order, and how many entries were looked at."""

    wrong: tuple[Difference, ...]
    entries: int

    @property
    def what(self) -> str | None:
        """What matters most of it in one line; None if nothing is wrong."""
        if not self.wrong:
            return None
        # A directory's time is another when something in it came or went.
        first = sorted(self.wrong, key=lambda each: (each.what == TIME, each.path))
        named = "; ".join(f"/{printable(path)}: {what}" for path, what, _ in first[:_NAMED])
        return named + (f"; and {len(first) - _NAMED} more" if len(first) > _NAMED else "")


class LayerFiles:
    """One layer to be compared.

    Args:
        layers: of its driver.
        driver_id: the driver's name of it, and of those `below`.
        toc: the file of its table of contents.
        contents: read the data of every file, too.
    """

    def __init__(
        self, layers: Layers, driver_id: str, below: Sequence[str], toc: Path, *, contents: bool
    ) -> None:
        self._layers = layers
        self._driver_id = driver_id
        self._below = below
        self._contents = contents
        driver = layers.driver
        self._lazy = driver if isinstance(driver, Lazy) and driver.bodies_list(driver_id).exists() else None
        self._expected: dict[bytes, tuple[Entry, str | None]] = {}
        # Directories that entries lie in; names that are hidden; directories below which all is hidden.
        self._parents: set[bytes] = {b""}
        self._hidden: set[bytes] = set()
        self._opaque: set[bytes] = set()
        self._entries = 0
        # Files and links that came in the place of directories, by path: in which line the last one did.
        self._replacing: dict[bytes, int] = {}
        with open(toc, "rb", buffering=0) as file:
            for entry, digest in read_toc(file):
                self._expect(entry, digest)
        if self._replacing:
            self._forget_replaced(toc)
        self._accepted: dict[tuple[Kind, bytes], bool] = {}

    def _expect(self, entry: Entry, digest: str | None) -> None:
        path = entry.path
        self._entries += 1
        parent, _, name = path.rpartition(b"/")
        if parent not in self._parents:
            self._add_parents(parent)
        if name.startswith(PREFIX):
            if name == OPAQUE:
                self._opaque.add(parent)
            else:
                self._hidden.add(path[: len(path) - len(name)] + name[len(PREFIX) :])
            return
        # Of two lines of one path the later holds; what it replaced is gone with all below.
        if entry.kind is not Kind.DIRECTORY and path in self._parents:
            self._replacing[path] = self._entries
        self._expected[path] = entry, digest

    def _forget_replaced(self, toc: Path) -> None:
        """Expect nothing that lay in a directory which a later line replaced."""
        lines: dict[bytes, int] = {}
        with open(toc, "rb", buffering=0) as file:
            for line, (entry, _) in enumerate(read_toc(file), start=1):
                lines[entry.path] = line
        for path in list(self._expected):
            above = path.rpartition(b"/")[0]
            while above:
                if self._replacing.get(above, 0) > lines[path]:
                    del self._expected[path]
                    break
                above = above.rpartition(b"/")[0]

    def _add_parents(self, path: bytes) -> None:
        while path not in self._parents:
            self._parents.add(path)
            path = path.rpartition(b"/")[0]

    def compare(self) -> Compared:
        """Look at every entry.

        Raises:
            LayerfsError, OSError: the layer cannot be read.
        """
        wrong: list[Difference] = []
        doubtful: dict[bytes, tuple[Entry, str | None]] = {}
        left = dict(self._expected)
        for change in self._changes():
            path = change.entry.path
            known = left.pop(path, None)
            if known is not None:
                if self._differs(change, *known):
                    doubtful[path] = known
            elif not self._may_be(change):
                wrong.append(Difference(path, FOREIGN, change.entry.kind is Kind.FILE))
        doubtful |= left
        if doubtful:
            mount = self._layers.driver.mount(self._driver_id, self._below, read_only=True)
            root = self._layers.open_root(mount)
            try:
                for path, (entry, digest) in doubtful.items():
                    what = self._look(root, entry, digest)
                    if what is not None:
                        wrong.append(Difference(path, what, what == ALTERED or "bytes, not" in what))
            finally:
                os.close(root)
        return Compared(tuple(wrong), self._entries)

    def _changes(self) -> Iterator[Change]:
        """Walk the layer; one whose data is partly elsewhere is looked at through its mount alone."""
        if self._lazy is not None:
            return iter(())
        return self._layers.changes_of(self._driver_id, self._below)

    def _differs(self, change: Change, entry: Entry, digest: str | None) -> bool:
        if change.kind is ChangeKind.DELETED or self._difference(entry, change.entry) is not None:
            return True
        return self._reads(entry, digest) and not _has_content(change.directory, change.name, entry, digest)

    def _may_be(self, change: Change) -> bool:
        """Say whether a change without an entry follows from those that have one."""
        path = change.entry.path
        if change.kind is not ChangeKind.DELETED:
            return change.entry.kind is Kind.DIRECTORY and path in self._parents
        # Deleted is what is hidden itself, or lies below what is or was replaced.
        while path not in self._hidden:
            if not path:
                return b"" in self._opaque
            path = path.rpartition(b"/")[0]
            known = self._expected.get(path)
            if path in self._opaque or (known is not None and known[0].kind is not Kind.DIRECTORY):
                return True
        return True

    def _reads(self, entry: Entry, digest: str | None) -> bool:
        """Say whether the data of a file is to be compared; what is not here is verified when it comes."""
        if not self._contents or entry.kind is not Kind.FILE or entry.size == 0 or digest is None:
            return False
        return self._lazy is None or not self._lazy.lacks(self._driver_id, entry.path)

    def _look(self, root: int, entry: Entry, digest: str | None) -> str | None:
        with _parent(root, entry.path) as directory:
            if directory is None:
                return "it is missing"
            name = entry.path.rpartition(b"/")[2]
            if not name:
                return self._difference(entry, read_directory_entry(directory, b""))
            try:
                found = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                return "it is missing"
            if entry.kind is Kind.HARDLINK:
                return _compare_link(root, entry, found)
            what = self._difference(entry, read_entry(directory, name, found, entry.path))
            reads = what is None and self._reads(entry, digest)
            return ALTERED if reads and not _has_content(directory, name, entry, digest) else what

    def _difference(self, expected: Entry, found: Entry) -> str | None:
        if found.kind is not expected.kind:
            return f"it is a {found.kind.name.lower()}, not a {expected.kind.name.lower()}"
        if expected.kind is not Kind.SYMLINK and found.mode != expected.mode:
            return f"its mode is {found.mode:o}, not {expected.mode:o}"
        # Without privilege everything belongs to whoever unpacked it.
        if os.geteuid() == 0 and (found.uid, found.gid) != (expected.uid, expected.gid):
            return f"its owner is {found.uid}:{found.gid}, not {expected.uid}:{expected.gid}"
        if expected.kind is Kind.FILE and found.size != expected.size:
            return f"it has {found.size} bytes, not {expected.size}"
        if found.target != expected.target:
            return "its target is another"
        if found.device != expected.device:
            return "its device number is another"
        if found.mtime_ns != expected.mtime_ns and 0 <= expected.mtime_ns < 1 << 61:
            return TIME
        if found.xattrs != expected.xattrs:
            return self._xattr_difference(expected, found)
        return None

    def _xattr_difference(self, expected: Entry, found: Entry) -> str | None:
        for name, value in found.xattrs.items():
            if expected.xattrs.get(name) != value:
                return f"its xattr {printable(name)} is another"
        for name, value in expected.xattrs.items():
            # One that the file system refused is missing, and that was told when it was unpacked.
            if name not in found.xattrs and belongs_in_layers(name) and self._accepts(expected, name, value):
                return f"its xattr {printable(name)} is missing"
        return None

    def _accepts(self, entry: Entry, name: bytes, value: bytes) -> bool:
        """Try whether a file like this one can have an attribute here."""
        if entry.kind not in (Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK):
            return False
        known = self._accepted.get((entry.kind, name))
        if known is None:
            try:
                with probing(self._layers.driver.root) as scratch:
                    known = _try_xattr(scratch, entry.kind, name, value)
            except UnsupportedError:
                known = False
            self._accepted[entry.kind, name] = known
        return known


def _try_xattr(scratch: Path, kind: Kind, name: bytes, value: bytes) -> bool:
    place = scratch / "probe"
    if kind is Kind.FILE:
        place.touch()
    elif kind is Kind.DIRECTORY:
        place.mkdir()
    else:
        place.symlink_to("nothing")
    try:
        os.setxattr(place, name, value, follow_symlinks=False)
    except OSError:
        return False
    return name in map(os.fsencode, os.listxattr(place, follow_symlinks=False))


def _has_content(directory: int, name: bytes, entry: Entry, digest: str | None) -> bool:
    file = os.open(name, _FILE, dir_fd=directory)
    try:
        return digest_of_data(file, entry.size, entry.segments) == digest
    finally:
        os.close(file)


def _compare_link(root: int, entry: Entry, found: os.stat_result) -> str | None:
    with _parent(root, entry.target) as directory, contextlib.suppress(FileNotFoundError):
        if directory is not None:
            name = entry.target.rpartition(b"/")[2]
            first = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if (first.st_dev, first.st_ino) == (found.st_dev, found.st_ino):
                return None
    return f"it is no hard link to /{printable(entry.target)}"


@contextlib.contextmanager
def _parent(root: int, path: bytes) -> Iterator[int | None]:
    """Open the directory that holds a path, by single names, following no link; None when it is missing."""
    directory = os.dup(root)
    try:
        for name in path.split(b"/")[:-1]:
            try:
                below = os.open(name, _DIRECTORY, dir_fd=directory)
            except (FileNotFoundError, NotADirectoryError):
                yield None
                return
            os.close(directory)
            directory = below
        yield directory
    finally:
        os.close(directory)


@contextlib.contextmanager
def found_at(root: int, path: bytes) -> Iterator[tuple[int, bytes] | None]:
    """Give the open directory that holds a path, and its name there; None when it is missing."""
    with _parent(root, path) as directory:
        yield None if directory is None else (directory, path.rpartition(b"/")[2])
