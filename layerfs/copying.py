"""Copies files and directories between the host and a container's tree, by `docker cp -a`'s rules.

A path inside a tree is resolved with the tree's root as ``/``; below the two ends of a copy no symlink
is followed at all. So a process that swaps a directory for a link at the wrong moment leads nowhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from layerfs import files, linux
from layerfs.errors import InvalidError, NotFoundError, printable
from layerfs.runtime.scope import Place, find_place
from layerfs.tree.attributes import set_times, write_xattrs
from layerfs.tree.change import Change, ChangeKind
from layerfs.tree.diff import changes_between
from layerfs.tree.entry import Entry, Kind
from layerfs.tree.read_entry import kind_of, read_entry

_BENEATH: Final = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_NO_MAGICLINKS
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TYPES: Final = {Kind.CHARACTER: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK, Kind.FIFO: stat.S_IFIFO}
_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


def copy_path(
    source_root: int, source: bytes, target_root: int, target: bytes, *, warn: Callable[[str], None]
) -> None:
    """Copy a file or a whole directory from one tree into another, with all its attributes.

    - A symlink at the end of `source` is copied, not followed, unless a ``/`` or ``/.`` comes behind it.
    - Into an existing directory the copy gets its source's name; from ``DIR/.`` only what is in it is
      copied. What is there already is merged into, or replaced, unless one is a directory and the other not.
    - Where nothing is, the copy gets the target's name; the directory that holds it must exist.
    - Owners, modes, times, xattrs, hard links within the copy and holes are kept; sockets are left out.

    Args:
        source_root: an open directory: the host's ``/``, or a container's root.
        target_root: likewise.
        source: an absolute path, or one relative to the root, as the user wrote it.
        target: likewise.
        warn: told what was left out.

    Raises:
        NotFoundError: there is no such source, or no directory to hold the copy.
        InvalidError: a directory would replace a file, or the reverse.
    """
    with contextlib.ExitStack() as stack:
        origin = _find_source(source_root, source)
        stack.callback(os.close, origin.place.directory)
        goal = _find_target(target_root, target, origin)
        stack.callback(os.close, goal.directory)
        copier = _Copier(warn)
        if not origin.is_directory:
            entry = read_entry(origin.place.directory, origin.place.name, origin.status, origin.name)
            change = Change(ChangeKind.ADDED, entry, origin.place.directory, origin.place.name)
            copier.put(change, goal.directory, goal.name)
            return
        tree = os.open(origin.place.name, _DIRECTORY, dir_fd=origin.place.directory)
        stack.callback(os.close, tree)
        if goal.name == b".":
            copier.put_tree(tree, goal.directory, attributes=False)
            return
        _make_directory(goal.directory, goal.name)
        with _opened(goal.directory, goal.name) as made:
            copier.put_tree(tree, made, attributes=True)


class _Origin(NamedTuple):
    """What is copied; `name` is what the copy is called in an existing directory."""

    place: Place
    status: os.stat_result
    name: bytes
    contents: bool

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)


class _Goal(NamedTuple):
    """Where the copy goes: a name in an open directory, ``.`` for the directory itself."""

    directory: int
    name: bytes


def _asserts_directory(path: bytes) -> bool:
    return path.endswith((b"/", b"/.", b"/..")) or path in (b"", b".", b"..")


def _find_source(root: int, path: bytes) -> _Origin:
    follow = _asserts_directory(path)
    try:
        place = find_place(root, path, follow=follow)
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        raise NotFoundError(f"there is no {printable(path)!r} to copy") from error
    if place.status is None or (follow and not stat.S_ISDIR(place.status.st_mode)):
        os.close(place.directory)
        kind = "" if place.status is None else " directory"
        raise NotFoundError(f"there is no{kind} {printable(path)!r} to copy")
    last = path.rstrip(b"/").rpartition(b"/")[2]
    if last in (b"", b".", b".."):
        last = place.path.rpartition(b"/")[2]
    # The whole tree has no name, so it is copied as DIR/. is.
    contents = path.endswith(b"/.") or path == b"." or not last
    return _Origin(place, place.status, last, contents)


def _find_target(root: int, path: bytes, origin: _Origin) -> _Goal:
    try:
        place = find_place(root, path)
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        raise NotFoundError(f"there is no directory to hold {printable(path)!r}") from error
    keep = False
    try:
        if place.status is not None and stat.S_ISDIR(place.status.st_mode):
            directory = os.open(place.name, _DIRECTORY, dir_fd=place.directory)
            return _Goal(directory, b"." if origin.is_directory and origin.contents else origin.name)
        if place.status is not None:
            if origin.is_directory:
                raise _no_directory(path)
            if _asserts_directory(path):
                raise NotFoundError(f"{printable(path)!r} is not a directory")
        elif _asserts_directory(path) and not origin.is_directory:
            raise NotFoundError(f"there is no directory {printable(path)!r}")
        keep = True
        return _Goal(place.directory, place.name)
    finally:
        if not keep:
            os.close(place.directory)


class _Copier:
    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._reflink = True

    def put_tree(self, source: int, top: int, *, attributes: bool) -> None:
        """Copy what is below `source` into the open directory `top`, and its `attributes` if wanted."""
        times: list[tuple[bytes, int]] = []
        for change in changes_between(None, source):
            entry = change.entry
            if not entry.path:
                if attributes:
                    self._set_attributes(top, entry)
                    times.append((b".", entry.mtime_ns))
                continue
            parent, _, last = entry.path.rpartition(b"/")
            with _opened(top, parent or b".") as into:
                if entry.kind is Kind.HARDLINK:
                    self._link(top, entry.target, into, last)
                else:
                    self.put(change, into, last)
            if entry.kind is Kind.DIRECTORY:
                times.append((entry.path, entry.mtime_ns))
        for path, mtime_ns in reversed(times):
            with _opened(top, path) as made:
                set_times(made, mtime_ns, path, self._warn)

    def put(self, change: Change, directory: int, name: bytes) -> None:
        """Copy one file, or make one directory, whose times come last."""
        entry = change.entry
        if entry.kind is Kind.DIRECTORY:
            _make_directory(directory, name)
            with _opened(directory, name) as made:
                self._set_attributes(made, entry)
        elif entry.kind is Kind.SOCKET:
            self._warn(f"socket {printable(entry.path)!r} left out")
        elif entry.kind is Kind.FILE:
            _make_room(directory, name)
            self._put_file(change, directory, name)
        elif entry.kind is Kind.SYMLINK:
            _make_room(directory, name)
            os.symlink(entry.target, name, dir_fd=directory)
            os.chown(name, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)
            path = files.through_descriptor(directory, name)
            write_xattrs(path, entry.xattrs, entry.path, self._warn)
            set_times(name, entry.mtime_ns, entry.path, self._warn, directory=directory)
        else:
            _make_room(directory, name)
            self._put_node(entry, directory, name)

    def _put_file(self, change: Change, directory: int, name: bytes) -> None:
        flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        # By now the name may be that of a device.
        source = files.open_regular(change.directory, change.name)
        try:
            target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags, 0o600, dir_fd=directory)
            try:
                size = os.fstat(source).st_size
                self._reflink = files.copy_data(source, target, size=size, reflink=self._reflink)
                self._set_attributes(target, change.entry)
                set_times(target, change.entry.mtime_ns, change.entry.path, self._warn)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _put_node(self, entry: Entry, directory: int, name: bytes) -> None:
        os.mknod(name, _TYPES[entry.kind] | 0o600, os.makedev(*entry.device), dir_fd=directory)
        # By descriptor from here on: the name may be a symlink to anywhere a moment later.
        node = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            if kind_of(os.fstat(node)) is not entry.kind:
                raise InvalidError(f"{printable(entry.path)!r} was replaced while it was copied")
            path = b"/proc/self/fd/%d" % node
            os.chown(path, entry.uid, entry.gid)
            os.chmod(path, entry.mode)
            for xattr, value in entry.xattrs.items():
                os.setxattr(path, xattr, value)
            os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(node)

    def _set_attributes(self, target: int, entry: Entry) -> None:
        os.fchown(target, entry.uid, entry.gid)
        os.fchmod(target, entry.mode)
        write_xattrs(target, entry.xattrs, entry.path, self._warn)

    def _link(self, top: int, first: bytes, directory: int, name: bytes) -> None:
        parent, _, last = first.rpartition(b"/")
        with _opened(top, parent or b".") as holder:
            _make_room(directory, name)
            os.link(last, name, src_dir_fd=holder, dst_dir_fd=directory, follow_symlinks=False)


@contextlib.contextmanager
def _opened(directory: int, path: bytes) -> Iterator[int]:
    """Open a directory beneath another one, no symlink followed."""
    opened = linux.openat2(directory, path, os.O_RDONLY | os.O_DIRECTORY, resolve=_BENEATH)
    try:
        yield opened
    finally:
        os.close(opened)


def _make_directory(directory: int, name: bytes) -> None:
    try:
        os.mkdir(name, 0o700, dir_fd=directory)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            raise _no_directory(name) from None


def _no_directory(path: bytes) -> InvalidError:
    return InvalidError(f"{printable(path)!r} is no directory, so a directory cannot be copied to it")


def _make_room(directory: int, name: bytes) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        raise InvalidError(f"{printable(name)!r} is a directory, so a file cannot be copied to it") from None
