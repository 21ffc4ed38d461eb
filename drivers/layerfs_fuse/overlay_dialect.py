"""The format of the kernel's overlayfs (documentation, filesystems/overlayfs.rst).

Character devices 0:0 or marked empty files hide a name, the xattr ``opaque`` hides a whole directory,
``redirect`` names the one to merge with.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final

from layerfs import linux
from layerfs.files import remove_tree
from layerfs.tree.whiteouts import is_overlay_whiteout
from layerfs.value import frozen
from layerfs_fuse.dialect import Build, Dialect, Workspace, make_shared
from layerfs_fuse.places import NO_PLACES, OPEN_DIRECTORY, Found, Place

_NO_XATTR: Final = (errno.ENODATA, errno.ENOTSUP)
_DEFAULT_LIST: Final = "system.posix_acl_default"
_RENAME_WHITEOUT: Final = 4
_LONGEST_REDIRECT: Final = 256
_NO_NAMES: Final = (b"", b".", b"..")
# What overlayfs puts after its prefix to escape an attribute of its own name space.
_ESCAPE: Final = b"overlay."


@frozen
class OverlayDialect(Dialect):
    """Overlayfs's format, with attributes in ``trusted.`` or, in user namespaces, ``user.``."""

    user_xattrs: bool = False

    @functools.cached_property
    def _prefix(self) -> bytes:
        return b"user.overlay." if self.user_xattrs else b"trusted.overlay."

    # Reading.

    def merge(self, parents: Sequence[Place], name: bytes) -> Found | None:
        for index, parent in enumerate(parents):
            found = parent.stat(name)
            if found is None:
                continue
            if stat.S_ISDIR(found.st_mode):
                place = parent.below(name)
                return Found(found, parent, [place, *self._merged_with(place, parents[index + 1 :], name)])
            if self._is_whiteout(parent, name, found):
                return None
            return Found(found, parent, NO_PLACES)
        return None

    def names(self, places: Sequence[Place]) -> dict[bytes, int]:
        found: dict[bytes, int] = {}
        for first in reversed(range(len(places))):
            # By the descriptor, which leaves the access time of a lower directory alone.
            listed = map(os.fsencode, os.listdir(places[first].rewound()))
            found.update(dict.fromkeys(listed, first))
        return found

    def entries(self, places: Sequence[Place]) -> Iterator[tuple[bytes, int, int]]:
        merged = len(places) > 1
        seen: set[bytes] = set()
        for place in places:
            with os.scandir(place.rewound()) as entries:
                for entry in entries:
                    name = os.fsencode(entry.name)
                    if merged:
                        if name in seen:
                            continue
                        seen.add(name)
                    kind = self._type(place, name, entry)
                    if kind:
                        yield name, entry.inode(), kind

    def _type(self, place: Place, name: bytes, entry: os.DirEntry[str]) -> int:
        """Give the type of an entry as in dirent(3), 0 for a whiteout."""
        if entry.is_dir(follow_symlinks=False):
            return stat.S_IFDIR >> 12
        if entry.is_symlink():
            return stat.S_IFLNK >> 12
        if entry.is_file(follow_symlinks=False) and place.marked is False:
            return stat.S_IFREG >> 12
        status = entry.stat(follow_symlinks=False)
        return 0 if self._is_whiteout(place, name, status) else stat.S_IFMT(status.st_mode) >> 12

    def _is_whiteout(self, place: Place, name: bytes, found: os.stat_result) -> bool:
        """Say whether a name hides what the layers below have under it."""
        if not stat.S_ISREG(found.st_mode):
            return is_overlay_whiteout(found)
        if found.st_size:
            return False
        if place.marked is None:
            place.marked = self._xattr(place.open(), b"opaque") == b"x"
        return place.marked and self._xattr(place.path_of(name), b"whiteout") is not None

    def _xattr(self, target: int | bytes, key: bytes) -> bytes | None:
        """Read one of overlayfs's attributes of an open file or a path."""
        try:
            return os.getxattr(target, self._prefix + key, follow_symlinks=isinstance(target, int))
        except OSError as error:
            if error.errno in _NO_XATTR:
                return None
            raise

    def _merged_with(self, top: Place, parents: Sequence[Place], name: bytes) -> Iterator[Place]:
        """Give the lower directories that one is merged with."""
        place = top
        while place.layer + 1 < len(place.layers.roots):
            if self._xattr(place.open(), b"opaque") == b"y":
                return
            redirect = self._redirect_of(place)
            if redirect is not None and redirect.startswith(b"/"):
                lower = place.layers.roots[place.layer + 1 :]
                yield from self._redirected(lower, redirect[1:].split(b"/"))
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

    def _redirect_of(self, place: Place) -> bytes | None:
        """Read where the directory lies that one is merged with: a name, or a path from the layers' roots.

        Raises:
            OSError: EINVAL, as overlayfs answers: it is neither, and might lead out of the layers.
        """
        return self._redirect(place.open())

    def _redirect(self, target: int | bytes) -> bytes | None:
        redirect = self._xattr(target, b"redirect")
        if redirect is not None:
            names = redirect[1:].split(b"/") if redirect.startswith(b"/") else [redirect]
            if any(name in _NO_NAMES or b"/" in name or b"\0" in name for name in names):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return redirect

    def _redirected(self, roots: Sequence[Place], names: list[bytes]) -> Iterator[Place]:
        """Walk a path from the root of each layer; redirects on the way lead on below."""
        for root in roots:
            place, following, last = root, list(names), False
            for index, name in enumerate(names):
                found = place.stat(name)
                if found is None:
                    break
                if not stat.S_ISDIR(found.st_mode):
                    return
                place = place.below(name)
                if self._xattr(place.open(), b"opaque") == b"y":
                    last = True
                redirect = self._redirect_of(place)
                if redirect is not None and redirect.startswith(b"/"):
                    following = redirect[1:].split(b"/") + names[index + 1 :]
                elif redirect is not None:
                    following = [*names[:index], redirect, *names[index + 1 :]]
            else:
                yield place
            if last:
                return
            names = following

    def data(self, place: Place, name: bytes, file: int) -> tuple[Place, bytes] | None:
        # Metadata-only copies (metacopy=on): the data is in the next layer that has the name.
        if self._xattr(file, b"metacopy") is None:
            return None
        while self._xattr(place.path_of(name), b"metacopy") is not None:
            redirect = self._redirect(place.path_of(name)) or name
            found = self._below(place, redirect)
            # A fifo would stop the server, a device lend its rights to the layer.
            if found is None or not stat.S_ISREG(found.status.st_mode):
                raise OSError(errno.EIO, "the data of a metadata-only copy is missing")
            place, name = found.parent, redirect.rpartition(b"/")[2]
        return place, name

    def _below(self, place: Place, target: bytes) -> Found | None:
        """Look a path up in the layers below a directory's: from their root, or beside the directory."""
        absolute = target.startswith(b"/")
        first = place.layer + 1 if absolute else place.layer
        merged = place.layers.roots[first:]
        *above, last = (target if absolute else place.path() + b"/" + target).strip(b"/").split(b"/")
        for name in above:
            found = self.merge(merged, name)
            merged = found.places if found is not None else []
        return self.merge([each for each in merged if each.layer > place.layer], last)

    def complete(self, file: int) -> None:
        for key in (b"metacopy", b"redirect"):
            with contextlib.suppress(OSError):
                os.removexattr(file, self._prefix + key)

    def mark(self, key: bytes) -> bytes | None:
        return self._prefix + key

    def note_copies(self, place: Place) -> None:
        # Without this hint overlayfs lists the copies under inode numbers that stat(2) does not give.
        if not place.copies:
            with contextlib.suppress(OSError):
                os.setxattr(place.open(), self._prefix + b"impure", b"y")
            place.copies = True

    def redirected(self, place: Place) -> bytes | None:
        return self._xattr(place.open(), b"redirect")

    def stored(self, name: bytes) -> bytes:
        prefix = self._prefix
        if name == prefix:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return prefix + _ESCAPE + name[len(prefix) :] if name.startswith(prefix) else name

    def shown(self, name: bytes) -> bytes | None:
        prefix = self._prefix
        if not name.startswith(prefix):
            return name
        escaped = prefix + _ESCAPE
        return prefix + name[len(escaped) :] if name.startswith(escaped) else None

    # Writing.

    def is_free(self, place: Place, name: bytes) -> bool:
        return True  # whatever hides the name has it

    def add(self, at: Workspace, place: Place, name: bytes, build: Build, *, directory: bool) -> None:
        above = place.open()
        if place.stat(name) is None:
            try:
                build(above, name)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    remove_tree(above, name)
                raise
            return

        def prepare(temporary: bytes) -> None:
            build(at.work, temporary)
            if directory:
                self.make_opaque(place.layers.through(at.work, temporary))

        with _default_list(above, at.work):
            temporary = at.made(prepare)
        with _removed(at, temporary):
            linux.renameat2(at.work, temporary, above, name, linux.RENAME_EXCHANGE)

    def remove(self, at: Workspace, place: Place, name: bytes, *, below: bool, directory: bool) -> None:
        above = place.open()
        if below and place.stat(name) is None:
            self._hide(at, above, name)
        elif not directory:
            if below:
                temporary = self._whiteout(at)
                try:
                    os.rename(temporary, name, src_dir_fd=at.work, dst_dir_fd=above)
                except BaseException:
                    remove_tree(at.work, temporary)
                    raise
            else:
                os.unlink(name, dir_fd=above)
        elif below:
            temporary = self._whiteout(at)
            with _removed(at, temporary):
                linux.renameat2(at.work, temporary, above, name, linux.RENAME_EXCHANGE)
        else:
            temporary = at.temporary()
            with _removed(at, temporary):
                os.rename(name, temporary, src_dir_fd=above, dst_dir_fd=at.work)

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
        standing = destination.stat(new_name)
        if standing is not None and self._is_whiteout(destination, new_name, standing):
            linux.renameat2(old, old_name, new, new_name, linux.RENAME_EXCHANGE)
            if not below:
                os.unlink(old_name, dir_fd=old)
        else:
            if directory and standing is not None:
                self._clear(destination, new_name)
            linux.renameat2(old, old_name, new, new_name, _RENAME_WHITEOUT if below else 0)

    def _clear(self, place: Place, name: bytes) -> None:
        """Take out of a directory that shows nothing what hides names, so that it can be replaced.

        It stands with its attributes until that is done: a kill before the rename loses nothing.
        """
        directory = os.open(name, OPEN_DIRECTORY, dir_fd=place.open())
        try:
            hiding = os.listdir(directory)
            if hiding:
                self.make_opaque(place.layers.through(directory))
            for each in hiding:
                os.unlink(each, dir_fd=directory)
        finally:
            os.close(directory)

    def make_opaque(self, path: bytes) -> None:
        os.setxattr(path, self._prefix + b"opaque", b"y")

    def redirect(self, path: bytes, target: bytes) -> bool:
        # Overlayfs follows no redirects that a user could have made.
        if self.user_xattrs or len(target) > _LONGEST_REDIRECT:
            return False
        os.setxattr(path, self._prefix + b"redirect", target)
        return True

    def _whiteout(self, at: Workspace) -> bytes:
        """Make a whiteout in the work directory and give its name."""
        return at.made(lambda name: self._hide(at, at.work, name))

    def _hide(self, at: Workspace, directory: int, name: bytes) -> None:
        make_shared(at.work, directory, name, _make_whiteout)


def _make_whiteout(directory: int, name: bytes) -> None:
    os.mknod(name, stat.S_IFCHR, 0, dir_fd=directory)


@contextlib.contextmanager
def _removed(at: Workspace, name: bytes) -> Iterator[None]:
    """Remove what is in the work directory after a block, whether that fails or not.

    What cannot be removed is no reason to fail after the change was made; the next mount clears it.
    """
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            remove_tree(at.work, name)


@contextlib.contextmanager
def _default_list(directory: int, work: int) -> Iterator[None]:
    """Let what is made in the work directory get the ACL that `directory` gives to new files (acl(5))."""
    try:
        default = os.getxattr(directory, _DEFAULT_LIST)
    except OSError as error:
        if error.errno not in _NO_XATTR:
            raise
        yield
        return
    os.setxattr(work, _DEFAULT_LIST, default)
    try:
        yield
    finally:
        os.removexattr(work, _DEFAULT_LIST)
