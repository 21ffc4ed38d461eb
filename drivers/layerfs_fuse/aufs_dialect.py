"""The format of aufs (aufs(5), "Whiteout", "Opaque directory"; image-spec layer.md, "Whiteouts").

An empty file ``.wh.NAME`` hides NAME in its own layer and in those below, ``.wh..wh..opq`` hides all that
the layers below have in a directory. Other names that begin with ``.wh..wh.`` are aufs's own (pseudo links,
orphans): they are never shown, and nobody may make or ask for a name that begins with ``.wh.``.

Since a hidden name can stand beside what hides it, new things are built under their own name and appear
when the whiteout goes; a killed server leaves a pair, of which nothing shows.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final

from layerfs import linux
from layerfs.files import remove_tree
from layerfs.tree.whiteouts import OPAQUE, PREFIX, AufsWhiteouts, aufs_marker
from layerfs.value import frozen
from layerfs_fuse.dialect import Build, Dialect, Workspace, make_shared
from layerfs_fuse.places import NO_PLACES, Found, Place

_WHITEOUTS: Final = AufsWhiteouts()
_PREFIX_TEXT: Final = os.fsdecode(PREFIX)
_NEW: Final = os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC


@frozen
class AufsDialect(Dialect):
    """Aufs's format; needs neither privilege nor xattrs, and knows no redirects."""

    # Reading.

    def merge(self, parents: Sequence[Place], name: bytes) -> Found | None:
        if name.startswith(PREFIX):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        for index, parent in enumerate(parents):
            if name in _hidden(parent):
                return None
            found = parent.stat(name)
            if found is None:
                continue
            if not stat.S_ISDIR(found.st_mode):
                return Found(found, parent, NO_PLACES)
            return Found(found, parent, [*_merged(parents[index:], name)])
        return None

    def entries(self, places: Sequence[Place]) -> Iterator[tuple[bytes, int, int]]:
        seen: set[bytes] = set()
        for place in places:
            shown: dict[bytes, os.DirEntry[str]] = {}
            markers = []
            with os.scandir(place.rewound()) as entries:
                for entry in entries:
                    name = os.fsencode(entry.name)
                    if name.startswith(PREFIX):
                        markers.append(name)
                    elif name not in seen:
                        shown[name] = entry
            if place.hidden is None:
                place.hidden = _read(place, markers)
            for name in place.hidden:
                shown.pop(name, None)
            for name, entry in shown.items():
                yield name, entry.inode(), _type(entry)
            seen.update(shown, place.hidden)

    def stored(self, name: bytes) -> bytes:
        return name

    def shown(self, name: bytes) -> bytes | None:
        return name

    # Writing.

    def is_free(self, place: Place, name: bytes) -> bool:
        return not name.startswith(PREFIX) and name not in _hidden(place)

    def add(self, at: Workspace, place: Place, name: bytes, build: Build, *, directory: bool) -> None:
        above = place.open()
        hidden = name in _hidden(place)
        if hidden:
            _discard(above, name)
        try:
            build(above, name)
            if hidden and directory:
                self.make_opaque(place.path_of(name))
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                remove_tree(above, name)
            raise
        if hidden:
            _unhide(place, name)

    def remove(self, at: Workspace, place: Place, name: bytes, *, below: bool, directory: bool) -> None:
        with contextlib.ExitStack() as undo:
            if below:
                _hide(at, place, name)
                undo.callback(_unhide, place, name)
            if not directory:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=place.open())
            elif place.stat(name) is not None:
                temporary = at.temporary()
                os.rename(name, temporary, src_dir_fd=place.open(), dst_dir_fd=at.work)
                # What cannot be removed is cleared by the next mount.
                with contextlib.suppress(OSError):
                    remove_tree(at.work, temporary)
            undo.pop_all()

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
        old, new = source.open(), destination.open()
        hidden = new_name in _hidden(destination)
        standing = not hidden and destination.stat(new_name) is not None
        if not (below or hidden or (standing and directory)):
            os.rename(old_name, new_name, src_dir_fd=old, dst_dir_fd=new)
            return
        # In no moment must the file be only where it is hidden, or a lower one show in its stead: it gets its
        # new name first, and an empty directory its old one.
        with contextlib.ExitStack() as undo:
            if hidden:
                _discard(new, new_name)
            if directory:
                if not standing:
                    os.mkdir(new_name, 0o700, dir_fd=new)
                    undo.callback(_discard, new, new_name)
                self.make_opaque(destination.path_of(new_name))
            elif hidden:
                _link(old, old_name, new, new_name)
                undo.callback(_discard, new, new_name)
            if hidden:
                _unhide(destination, new_name)
                undo.callback(_hide, at, destination, new_name)
            if directory:
                linux.renameat2(old, old_name, new, new_name, linux.RENAME_EXCHANGE)
                undo.callback(linux.renameat2, old, old_name, new, new_name, linux.RENAME_EXCHANGE)
            elif not hidden:
                temporary = at.made(lambda name: _link(old, old_name, at.work, name))
                undo.callback(_discard, at.work, temporary)
                os.rename(temporary, new_name, src_dir_fd=at.work, dst_dir_fd=new)
                if not standing:
                    undo.callback(_discard, new, new_name)
            self.remove(at, source, old_name, below=below, directory=directory)
            undo.pop_all()

    def make_opaque(self, path: bytes) -> None:
        before = os.stat(path)
        os.close(os.open(path + b"/" + OPAQUE, _NEW, 0o600))
        # Nobody sees the marker, and so no change of the directory.
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def redirect(self, path: bytes, target: bytes) -> bool:
        return False


def _hidden(place: Place) -> set[bytes]:
    """Give the names that the whiteouts of a directory hide; the directory is read once."""
    if place.hidden is None:
        names = os.listdir(place.rewound())
        place.hidden = _read(place, [os.fsencode(name) for name in names if name.startswith(_PREFIX_TEXT)])
    return place.hidden


def _read(place: Place, markers: list[bytes]) -> set[bytes]:
    found = (_WHITEOUTS.hidden(place.open(), marker) for marker in markers)
    return {name for name in found if name is not None}


def _merged(parents: Sequence[Place], name: bytes) -> Iterator[Place]:
    """Give the directories of a name, top first; the first one is there."""
    last = len(parents) - 1
    for index, parent in enumerate(parents):
        if index:
            if name in _hidden(parent):
                return
            found = parent.stat(name)
            if found is None:
                continue
            if not stat.S_ISDIR(found.st_mode):
                return
        yield parent.below(name)
        if index < last and parent.stat(name + b"/" + OPAQUE) is not None:
            return


def _type(entry: os.DirEntry[str]) -> int:
    """Give the type of an entry as in dirent(3)."""
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR >> 12
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG >> 12
    if entry.is_symlink():
        return stat.S_IFLNK >> 12
    return stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode) >> 12


def _hide(at: Workspace, place: Place, name: bytes) -> None:
    marker = aufs_marker(name)
    if marker == PREFIX + name:
        make_shared(at.work, place.open(), marker, _make_whiteout)
    else:  # it holds the name, which was too long for a prefix
        _WHITEOUTS.hide(place.open(), name)
    _hidden(place).add(name)


def _make_whiteout(directory: int, marker: bytes) -> None:
    os.close(os.open(marker, _NEW, 0o600, dir_fd=directory))


def _unhide(place: Place, name: bytes) -> None:
    _WHITEOUTS.unhide(place.open(), name)
    _hidden(place).discard(name)


def _link(source: int, old_name: bytes, destination: int, new_name: bytes) -> None:
    os.link(old_name, new_name, src_dir_fd=source, dst_dir_fd=destination, follow_symlinks=False)


def _discard(directory: int, name: bytes) -> None:
    """Remove what does not show, if there is anything."""
    with contextlib.suppress(FileNotFoundError):
        remove_tree(directory, name)
