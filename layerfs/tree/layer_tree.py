"""A layer's own tree while it is being unpacked: where the unpacking stands, and what lies beneath.

Every step is taken from directory descriptor to directory descriptor without following links, so a path
cannot leave the tree; links are resolved here, against the layer and the layers below it, with
the tree as their root.

Two trees are looked at: the layer's own, which is written, and the merged tree of the layers below,
which is only read, and only opened when an archive leaves something out (a parent without an entry,
a hard link to an older file) or takes something away (a whiteout). A directory's time is that of
its entry, or was there before, so it is set when the directory is left: work below it is over then.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from layerfs.errors import LayerError
from layerfs.files import remove_tree
from layerfs.tree import attributes
from layerfs.tree.entry import NO_XATTRS, Entry, Kind
from layerfs.tree.ladder import OPEN_DIRECTORY, Ladder
from layerfs.tree.whiteouts import PREFIX, WhiteoutFormat

_LONGEST_LINK_CHAIN: Final = 40
_UNKNOWN: Final = -2
_NOTHING: Final = -1
_IMPLIED_MODE: Final = 0o755


class _Level:
    """One directory on the way down; `lower` is the descriptor of its counterpart below."""

    __slots__ = ("default_acl", "lower", "mtime_ns", "name")

    def __init__(self, name: bytes, mtime_ns: int, lower: int) -> None:
        self.name = name
        self.mtime_ns = mtime_ns
        self.lower = lower
        self.default_acl: bytes | None = None


class _Paths:
    """Paths of which those below another one are found without a look at the rest."""

    def __init__(self) -> None:
        self._here = False
        self._below: dict[bytes, _Paths] = {}

    def add(self, path: Sequence[bytes]) -> None:
        node = self
        for name in path:
            node = node._below.setdefault(name, _Paths())
        node._here = True

    def discard(self, path: Sequence[bytes]) -> None:
        way = [self]
        for name in path:
            below = way[-1]._below.get(name)
            if below is None:
                return
            way.append(below)
        way[-1]._here = False
        for above, name in zip(reversed(way[:-1]), reversed(path), strict=True):
            below = above._below[name]
            if below._here or below._below:
                return
            del above._below[name]

    def below(self, path: tuple[bytes, ...]) -> list[tuple[bytes, ...]]:
        """List those below a path, and the path itself, parents first."""
        node: _Paths | None = self
        for name in path:
            node = node._below.get(name) if node is not None else None
        found = []
        todo = [(path, node)] if node is not None else []
        while todo:
            where, each = todo.pop()
            if each._here:
                found.append(where)
            todo.extend(((*where, name), child) for name, child in each._below.items())
        return sorted(found)


class Place:
    """Where a path leads in the union, without anything made: `own` and `lower` are descriptors or -1.

    The layers below are opened when `lower` is asked for, and only then.
    """

    def __init__(self, own: int, open_lower: Callable[[], int]) -> None:
        self.real: list[bytes] = []
        self._open_lower = open_lower
        self._own = [own]
        self._lower = [_UNKNOWN]

    @property
    def own(self) -> int:
        return self._own[-1]

    @property
    def lower(self) -> int:
        known = len(self._lower)
        while known and self._lower[known - 1] == _UNKNOWN:
            known -= 1
        if not known:
            self._lower[0] = self._open_lower()
            known = 1
        for level in range(known, len(self._lower)):
            self._lower[level] = _open_child(self._lower[level - 1], self.real[level - 1])
        return self._lower[-1]

    def down(self, name: bytes, own: int, lower: int = _UNKNOWN) -> None:
        """Go on to a name; what is below has the same name, unless `lower` says otherwise."""
        self.real.append(name)
        self._own.append(own)
        self._lower.append(lower)

    def up(self) -> None:
        if self.real:
            self.real.pop()
            for descriptor in (self._own.pop(), self._lower.pop()):
                if descriptor >= 0:
                    os.close(descriptor)

    def close(self) -> None:
        while self.real:
            self.up()

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LayerTree:
    """The tree of one layer, written from a stream of changes; a context manager that sets the last times."""

    def __init__(
        self,
        root: int,
        *,
        open_lower: Callable[[], int] | None,
        whiteouts: WhiteoutFormat,
        warn: Callable[[str], None],
        record: Callable[[Entry], None],
        lose: Callable[[], None] = lambda: None,
        owner: tuple[int, int] = (0, 0),
    ) -> None:
        """Args: `lose` is told when a file or a tree of the layer's own is taken away again."""
        self._ladder = Ladder(root)
        self._levels = [_Level(b"", os.fstat(root).st_mtime_ns, _UNKNOWN)]
        self._root = root
        self._open_lower = open_lower
        self._lower_root = _UNKNOWN if open_lower else _NOTHING
        self._whiteouts = whiteouts
        self._warn = warn
        self._record = record
        self._lose = lose
        self._owner = owner
        self.here: list[bytes] = []
        # Names of the layer's own that replaced a whiteout, or were whited out after they came.
        self._buried: set[tuple[bytes, ...]] = set()
        # Directories that came without an entry and took their attributes from below.
        self._inherited = _Paths()
        self._root_is_hidden = False
        self._any_hidden = False
        self._any_opaque = False
        # A default ACL would be taken over by every new file, so directories get theirs when they are left.
        self._levels[0].default_acl = _take_default_acl(root)
        self._any_default_acl = self._levels[0].default_acl is not None

    def __enter__(self) -> LayerTree:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._climb(0)
                self._leave(self._levels[0])
        finally:
            self._ladder.close()
            for level in self._levels[1:]:
                if level.lower >= 0:
                    os.close(level.lower)
            if self._lower_root >= 0:
                os.close(self._lower_root)

    @property
    def directory(self) -> int:
        """Descriptor of the directory where the unpacking stands."""
        return self._ladder.top

    # -- moving -------------------------------------------------------------------------------

    def enter(self, parts: Sequence[bytes]) -> None:
        """Stand in a directory, making what is missing of it with the attributes it has below."""
        if not self._descend(parts):
            with self.resolve(parts) as place:
                real = list(place.real)
            self._make_path(real)

    def enter_own(self, parts: Sequence[bytes]) -> bool:
        """Stand in a directory that the layer itself has under exactly these names; says whether it has."""
        return self._descend(parts)

    def _descend(self, parts: Sequence[bytes]) -> bool:
        """Go down through the layer's own directories; says whether they led all the way."""
        here = self.here
        common = 0
        for mine, wanted in zip(here, parts, strict=False):
            if mine != wanted:
                break
            common += 1
        if common < len(here):
            self._climb(common)
        return all(self._step(name) for name in parts[common:])

    def _step(self, name: bytes) -> bool:
        try:
            directory = os.open(name, OPEN_DIRECTORY, dir_fd=self._ladder.top)
        except (FileNotFoundError, NotADirectoryError):
            return False
        self._push(name, directory, os.fstat(directory).st_mtime_ns)
        return True

    def _push(self, name: bytes, directory: int, mtime_ns: int) -> _Level:
        level = _Level(name, mtime_ns, _UNKNOWN)
        self._ladder.push(directory)
        self._levels.append(level)
        self.here.append(name)
        if self._any_opaque and self._whiteouts.is_opaque(directory):
            level.lower = _NOTHING
        if self._any_default_acl:
            level.default_acl = _take_default_acl(directory)
        return level

    def _climb(self, depth: int) -> None:
        while len(self.here) > depth:
            level = self._levels[-1]
            self._leave(level)
            if level.lower >= 0:
                os.close(level.lower)
            self._levels.pop()
            self._ladder.pop()
            self.here.pop()

    def _leave(self, level: _Level) -> None:
        directory = self._ladder.top
        path = b"/".join(self.here)
        if level.default_acl is not None:
            acl = {attributes.DEFAULT_ACL: level.default_acl}
            attributes.write_xattrs(directory, acl, path, self._warn)
        attributes.set_times(directory, level.mtime_ns, path, self._warn)

    # -- what lies below ----------------------------------------------------------------------

    def lower_here(self) -> int:
        """Descriptor of this directory's counterpart in the layers below; -1 when there is none to see."""
        depth = len(self._levels) - 1
        while depth > 0 and self._levels[depth].lower == _UNKNOWN:
            depth -= 1
        if depth == 0 and self._levels[0].lower == _UNKNOWN:
            self._levels[0].lower = self._lower_top()
        for level in range(depth + 1, len(self._levels)):
            above = self._levels[level - 1].lower
            self._levels[level].lower = _open_child(above, self._levels[level].name)
        return self._levels[-1].lower

    def _lower_top(self) -> int:
        if self._lower_root == _UNKNOWN:
            assert self._open_lower is not None
            self._lower_root = self._open_lower()
        return self._lower_root

    def resolve(self, parts: Sequence[bytes]) -> Place:
        """Follow a path through the layer and the layers below, with the tree's root as its root.

        The caller closes the place. Parts that are nowhere, and parts below something that is no
        directory, are taken as they are.

        Raises:
            LayerError: more than 40 links on the way, or one to a name that is reserved for whiteouts.
        """
        place = Place(self._root, self._lower_top)
        todo = list(reversed(parts))
        links = 0
        try:
            while todo:
                name = todo.pop()
                if name == b"..":
                    place.up()
                    continue
                if not name or name == b".":
                    continue
                link = self._look(place, name)
                if link is None:
                    continue
                links += 1
                if links > _LONGEST_LINK_CHAIN:
                    raise LayerError("too many levels of symbolic links", entry=b"/".join(parts))
                names = link.split(b"/")
                if any(part.startswith(PREFIX) for part in names):
                    raise LayerError("a symbolic link to a name that is reserved", entry=b"/".join(parts))
                if link.startswith(b"/"):
                    place.close()
                todo.extend(reversed(names))
        except BaseException:
            place.close()
            raise
        return place

    def _look(self, place: Place, name: bytes) -> bytes | None:
        """Go one part down; gives a link's text instead when that is what stands there."""
        own = place.own
        if own >= 0:
            found = lstat(own, name)
            if found is not None and stat.S_ISLNK(found.st_mode):
                return os.readlink(name, dir_fd=own)
            if found is not None and stat.S_ISDIR(found.st_mode):
                next_own = os.open(name, OPEN_DIRECTORY, dir_fd=own)
                opaque = self._any_opaque and self._whiteouts.is_opaque(next_own)
                place.down(name, next_own, _NOTHING if opaque else _UNKNOWN)
                return None
            if found is not None or (self._any_hidden and self._whiteouts.hides(own, name)):
                place.down(name, _NOTHING, _NOTHING)
                return None
        lower = place.lower
        found = lstat(lower, name) if lower >= 0 else None
        if found is not None and stat.S_ISLNK(found.st_mode):
            return os.readlink(name, dir_fd=lower)
        place.down(name, _NOTHING)
        return None

    # -- making and taking away ---------------------------------------------------------------

    def _make_path(self, real: Sequence[bytes]) -> None:
        while not self._descend(real):
            name = real[len(self.here)]
            opaque = self._make_room_for_directory(name)
            inherits = not opaque and lstat(self.directory, name) is None
            lower = _open_child(self.lower_here(), name) if inherits else _NOTHING
            level = self._new_directory(name, 0, opaque=opaque)
            path = b"/".join(self.here)
            if lower >= 0:
                level.lower = lower
                self._inherit(level, lower, path)
            else:
                self.set_directory(*self._owner, _IMPLIED_MODE, NO_XATTRS)
                self._record(Entry(path, Kind.DIRECTORY, _IMPLIED_MODE, *self._owner))

    def _inherit(self, level: _Level, lower: int, path: bytes) -> None:
        found = os.fstat(lower)
        xattrs = attributes.read_layer_xattrs(lower)
        self._inherited.add(tuple(self.here))
        self.set_directory(found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode), xattrs)
        level.mtime_ns = found.st_mtime_ns
        self._record(
            Entry(path, Kind.DIRECTORY, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid,
                  found.st_mtime_ns, xattrs=xattrs)
        )  # fmt: skip

    def _new_directory(self, name: bytes, mtime_ns: int, *, opaque: bool) -> _Level:
        os.mkdir(name, 0o700, dir_fd=self.directory)
        level = self._push(name, os.open(name, OPEN_DIRECTORY, dir_fd=self.directory), mtime_ns)
        level.default_acl = None
        level.mtime_ns = mtime_ns
        if opaque:
            self._hide_below(level)
        return level

    def _hide_below(self, level: _Level) -> None:
        self._any_opaque = True
        self._forget_whiteouts()
        self._whiteouts.make_opaque(self.directory)
        if level.lower >= 0 and level is not self._levels[0]:
            os.close(level.lower)
        level.lower = _NOTHING

    def _forget_whiteouts(self) -> None:
        """Take all whiteouts below us away: overlayfs lists them as files where nothing lies below."""
        ladder = Ladder(self.directory)
        todo = [self._unhide_all(ladder.top)]
        try:
            while todo:
                if todo[-1]:
                    ladder.push(os.open(todo[-1].pop(), OPEN_DIRECTORY, dir_fd=ladder.top))
                    todo.append(self._unhide_all(ladder.top))
                    continue
                todo.pop()
                if todo:
                    ladder.pop()
        finally:
            ladder.close()

    def _unhide_all(self, directory: int) -> list[bytes]:
        """Take a directory's whiteouts away, its times kept; gives the names of its directories."""
        before = os.fstat(directory)
        if self._whiteouts.is_opaque(directory):
            self._whiteouts.make_transparent(directory)
        below = []
        for name in _list_anew(directory):
            found = lstat(directory, name)
            if found is not None and stat.S_ISDIR(found.st_mode):
                below.append(name)
            else:
                hidden = self._whiteouts.hidden(directory, name)
                if hidden is not None:
                    self._whiteouts.unhide(directory, hidden)
        os.utime(directory, ns=(before.st_atime_ns, before.st_mtime_ns))
        return below

    def put_directory(self, name: bytes, mtime_ns: int) -> bool:
        """Stand in the directory `name` of this one, made if need be; says whether it was there already."""
        if self._step(name):
            self._levels[-1].mtime_ns = mtime_ns
            self._inherited.discard(tuple(self.here))
            return True
        self._new_directory(name, mtime_ns, opaque=self._make_room_for_directory(name))
        self._inherited.discard(tuple(self.here))
        return False

    def put_root(self, mtime_ns: int) -> None:
        """Stand in the root, and give it this time."""
        self._climb(0)
        self._levels[0].mtime_ns = mtime_ns

    def set_directory(self, uid: int, gid: int, mode: int, xattrs: Mapping[bytes, bytes]) -> None:
        """Give the directory where we stand its attributes; a default ACL takes effect when it is left."""
        directory = self.directory
        try:
            os.fchown(directory, uid, gid)
        except OSError as error:
            raise attributes.owner_refused(error, b"/".join(self.here), uid, gid) from error
        os.fchmod(directory, mode)
        if xattrs:
            rest = dict(xattrs)
            acl = rest.pop(attributes.DEFAULT_ACL, None)
            if acl is not None:
                self._any_default_acl = True
                self._levels[-1].default_acl = acl
            attributes.write_xattrs(directory, rest, b"/".join(self.here), self._warn)

    def forget_xattrs(self) -> None:
        """Drop what extended attributes the directory where we stand had."""
        self._levels[-1].default_acl = None
        attributes.replace_xattrs(self.directory, NO_XATTRS, b"/".join(self.here), self._warn)

    def _make_room_for_directory(self, name: bytes) -> bool:
        """Take away what is no directory; says whether what lies below must stay hidden."""
        directory = self.directory
        hidden = self._unhide(name)
        if not hidden:
            if lstat(directory, name) is None:
                return False
            self._lose()
            os.unlink(name, dir_fd=directory)
            hidden = (*self.here, name) in self._buried
        return hidden and self._has_directory_below(name)

    def _has_directory_below(self, name: bytes) -> bool:
        below = _open_child(self.lower_here(), name)
        if below >= 0:
            os.close(below)
        return below >= 0

    def unhide(self, name: bytes) -> None:
        """Take a whiteout away from where a new file comes; what lies below stays hidden by the file."""
        if self._unhide(name):
            self._buried.add((*self.here, name))

    def is_hidden(self, directory: int, name: bytes) -> bool:
        """Say whether a directory of the layer has a whiteout of `name`; none has when it is -1."""
        return directory >= 0 and self._any_hidden and self._whiteouts.hides(directory, name)

    def _unhide(self, name: bytes) -> bool:
        if self._any_hidden and self._whiteouts.hides(self.directory, name):
            self._whiteouts.unhide(self.directory, name)
            return True
        return False

    def make_room(self, name: bytes) -> bool:
        """Take away what stands at `name`; says whether that was an entry of this layer."""
        self.unhide(name)
        found = lstat(self.directory, name)
        if found is None:
            return False
        self._lose()
        if stat.S_ISDIR(found.st_mode):
            if self._any_opaque and self._is_opaque(name):
                # What lies below stays hidden, should a directory come in its place once more.
                self._buried.add((*self.here, name))
            remove_tree(self.directory, name)
        else:
            os.unlink(name, dir_fd=self.directory)
        return True

    def _is_opaque(self, name: bytes) -> bool:
        directory = os.open(name, OPEN_DIRECTORY, dir_fd=self.directory)
        try:
            return self._whiteouts.is_opaque(directory)
        finally:
            os.close(directory)

    def hide(self, parts: Sequence[bytes], name: bytes) -> bool:
        """Apply a whiteout: hide `name` of the layers below, keep the layer's own.

        Says whether there was anything to hide.
        """
        if not self._descend(parts):
            with self.resolve(parts) as place:
                gone = place.lower < 0 or lstat(place.lower, name) is None
                if place.own < 0 and gone:
                    return False
                real = list(place.real)
            self._make_path(real)
        own = lstat(self.directory, name)
        if self._any_hidden and self._whiteouts.hides(self.directory, name):
            return False
        lower = self.lower_here()
        if own is not None and not stat.S_ISDIR(own.st_mode):
            self._buried.add((*self.here, name))
            return False
        if own is not None:
            below = self._has_directory_below(name)
            self._step(name)
            if below and not (self._any_opaque and self._whiteouts.is_opaque(self.directory)):
                self._hide_below(self._levels[-1])
            path = tuple(self.here)
            self._climb(len(path) - 1)
            self._disinherit(path)
            return below
        if lower < 0 or lstat(lower, name) is None:
            return False
        self._whiteouts.hide(self.directory, name)
        self._any_hidden = True
        return True

    def hide_all(self, parts: Sequence[bytes]) -> bool:
        """Apply an opaque whiteout to a directory; says whether there was anything to hide."""
        if not self._descend(parts):
            with self.resolve(parts) as place:
                if place.own < 0 and place.lower < 0:
                    return False
                real = list(place.real)
            self._make_path(real)
        lower = self.lower_here()
        if lower < 0:
            return False
        if not self.here:
            # overlayfs merges roots whatever they are marked with, so each name is hidden by itself.
            if self._root_is_hidden:
                return False
            self._root_is_hidden = True
            for name in os.listdir(lower):
                if not name.startswith(".wh."):
                    self.hide((), os.fsencode(name))
            return True
        self._hide_below(self._levels[-1])
        path = tuple(self.here)
        self._disinherit(path, itself=False)
        return True

    def _disinherit(self, path: tuple[bytes, ...], *, itself: bool = True) -> None:
        """Undo attributes taken from directories that a later whiteout has hidden."""
        for inherited in self._inherited.below(path):
            if inherited == path and not itself:
                continue
            self._inherited.discard(inherited)
            keep = len(self.here)
            # It may be gone: another entry of the layer can have taken its place, or a parent's.
            if self._descend(inherited):
                self.forget_xattrs()
                self.set_directory(*self._owner, _IMPLIED_MODE, NO_XATTRS)
                self._levels[-1].mtime_ns = 0
                self._record(Entry(b"/".join(inherited), Kind.DIRECTORY, _IMPLIED_MODE, *self._owner))
            self._climb(keep)


def lstat(directory: int, name: bytes) -> os.stat_result | None:
    """lstat(2) below a directory; None when nothing stands there."""
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _list_anew(directory: int) -> list[bytes]:
    """List a directory through a new descriptor: btrfs does not show an old one what was made since."""
    listed = os.open(b".", OPEN_DIRECTORY, dir_fd=directory)
    try:
        return [os.fsencode(name) for name in os.listdir(listed)]
    finally:
        os.close(listed)


def _open_child(directory: int, name: bytes) -> int:
    if directory < 0:
        return _NOTHING
    try:
        return os.open(name, OPEN_DIRECTORY, dir_fd=directory)
    except (FileNotFoundError, NotADirectoryError):
        return _NOTHING


def _take_default_acl(directory: int) -> bytes | None:
    try:
        acl = os.getxattr(directory, attributes.DEFAULT_ACL)
    except OSError:
        return None
    os.removexattr(directory, attributes.DEFAULT_ACL)
    return acl
