"""Opens and makes things below a directory that a stranger filled: symlinks lead nowhere but inside.

Everything goes through openat2(2) RESOLVE_IN_ROOT, so that it holds while processes of the container
swap directories for links. Paths are the container's: `/` is the open directory `root`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Final

from layerfs import linux
from layerfs.errors import BudgetError, InvalidError, printable
from layerfs.value import frozen

# Linux gives up after as many (path_resolution(7)).
_LINKS_MAXIMUM: Final = 40
_RENAMED_MAXIMUM: Final = 32


def open_inside(root: int, path: bytes, flags: int, *, symlinks: bool = True) -> int:
    """Open an existing path below `root`, close-on-exec; without `symlinks` any of them is ELOOP.

    Raises:
        OSError: as open(2).
    """
    resolve = linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_MAGICLINKS
    if not symlinks:
        resolve |= linux.RESOLVE_NO_SYMLINKS
    for _ in range(_RENAMED_MAXIMUM):
        try:
            return linux.openat2(root, path or b"/", flags, resolve=resolve)
        except BlockingIOError:
            # EAGAIN: something was renamed or mounted meanwhile, and the kernel cannot vouch for the "..".
            continue
    raise OSError(errno.EAGAIN, "the tree is being renamed all the time", printable(path))


@frozen
class Place:
    """Where a path ends: a name in an open directory (the caller closes it); `path` has no symlink in it.

    `name` is ``.`` for the root itself. `status` is None when nothing is there.
    """

    directory: int
    name: bytes
    path: bytes
    status: os.stat_result | None


def find_place(
    root: int, path: bytes, *, follow: bool = True, make: Callable[[int, bytes], None] | None = None
) -> Place:
    """Walk to the end of a path below `root`, the last name's symlink included when `follow`.

    `make(directory, name)` is called for each missing directory on the way.

    Raises:
        FileNotFoundError: a directory on the way is missing and there is no `make`.
        NotADirectoryError: something on the way is none.
        OSError: ELOOP, too many symlinks; and others.
    """
    waiting = [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]
    real: list[bytes] = []
    links = 0
    while waiting:
        name = waiting.pop()
        if name == b"..":
            del real[-1:]
            continue
        directory = open_inside(root, b"/" + b"/".join(real), os.O_PATH | os.O_DIRECTORY, symlinks=False)
        keep = False
        try:
            status = _status(directory, name)
            last = not waiting
            if status is not None and stat.S_ISLNK(status.st_mode) and (follow or not last):
                links += 1
                if links > _LINKS_MAXIMUM:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), printable(path))
                target = os.readlink(name, dir_fd=directory)
                if target.startswith(b"/"):
                    real = []
                waiting.extend(part for part in reversed(target.split(b"/")) if part not in (b"", b"."))
                continue
            if last:
                keep = True
                return Place(directory, name, b"/" + b"/".join([*real, name]), status)
            if status is None:
                if make is None:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), printable(path))
                make(directory, name)
            elif not stat.S_ISDIR(status.st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), printable(path))
            real.append(name)
        finally:
            if not keep:
                os.close(directory)
    # The path was the root, or ended in ".." or in a link to a directory.
    directory = open_inside(root, b"/" + b"/".join(real), os.O_PATH | os.O_DIRECTORY, symlinks=False)
    return Place(directory, b".", b"/" + b"/".join(real), os.fstat(directory))


def _status(directory: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def make_directory(root: int, path: bytes) -> int:
    """Open a directory below `root` (O_PATH), made with its parents (0755, ours) where it is missing.

    Raises:
        NotADirectoryError: something else is there.
    """
    try:
        return open_inside(root, path, os.O_PATH | os.O_DIRECTORY)
    except FileNotFoundError:
        place = find_place(root, path, make=_mkdir)
    try:
        if place.status is None:
            _mkdir(place.directory, place.name)
    finally:
        os.close(place.directory)
    return open_inside(root, place.path, os.O_PATH | os.O_DIRECTORY, symlinks=False)


def make_file(root: int, path: bytes) -> int:
    """Open whatever is at a path below `root` (O_PATH); an empty file is made where nothing is."""
    try:
        return open_inside(root, path, os.O_PATH)
    except FileNotFoundError:
        place = find_place(root, path, make=_mkdir)
    try:
        if place.status is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(place.name, flags, 0o755, dir_fd=place.directory))
    finally:
        os.close(place.directory)
    return open_inside(root, place.path, os.O_PATH, symlinks=False)


def _mkdir(directory: int, name: bytes) -> None:
    os.mkdir(name, 0o755, dir_fd=directory)


def read_file(root: int, path: bytes, *, limit: int) -> bytes | None:
    """Read a regular file below `root`, None when there is none; no device is opened, no fifo waited for.

    Raises:
        BudgetError: it has more than `limit` bytes.
        InvalidError: it is not a regular file.
    """
    try:
        found = open_inside(root, path, os.O_PATH)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise InvalidError(f"{printable(path)} of the container is not a regular file")
        opened = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    finally:
        os.close(found)
    try:
        data = b""
        while len(data) <= limit and (chunk := os.read(opened, limit + 1 - len(data))):
            data += chunk
    finally:
        os.close(opened)
    if len(data) > limit:
        raise BudgetError(f"{printable(path)} of the container has more than {limit} bytes")
    return data
