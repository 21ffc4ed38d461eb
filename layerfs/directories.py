"""What drivers with one directory per layer share: making, finding, removing and sweeping those directories.

A directory under construction, or on its way out, has a name that begins with a dot, so that it is
never taken for a layer; one rename makes it a layer, and one rename ends it. Its maker holds a lock
on it (flock(2)), which tells what a stopped process has left behind from what is being made right now.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from layerfs import failpoints, files, forking, mounting
from layerfs.errors import ExistsError, InUseError, InvalidError, NotFoundError, UnsupportedError

_LONGEST_ID: Final = 64
_MANY: Final = 32
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class LayerDirectories:
    """The directories of the layers below one root; holds nothing open between calls."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, layer: str) -> Path:
        """Give the directory of a layer, whether it exists or not.

        Raises:
            InvalidError: that is no id of a layer.
        """
        return self.root / _checked(layer)

    def require(self, *layers: str) -> None:
        """Check that these layers exist.

        Raises:
            NotFoundError: one of them does not.
        """
        # Stacks have hundreds of layers, and one list of all is had sooner than so many answers.
        if len(layers) > _MANY and "".join(layers).isalnum():
            layers = tuple(set(layers).difference(os.listdir(self.root)))
        with opened(self.root) as root:
            for layer in layers:
                try:
                    found = os.stat(_checked(layer), dir_fd=root)
                except FileNotFoundError:
                    found = None
                if found is None or not stat.S_ISDIR(found.st_mode):
                    raise NotFoundError(f"{self.root} holds no layer {layer}")

    def ids(self) -> list[str]:
        """List the layers, in no order."""
        return [name for name in os.listdir(self.root) if not name.startswith(".")]

    @contextlib.contextmanager
    def making(self, layer: str) -> Iterator[Path]:
        """Give a private (0700) directory to fill for the length of a block, which then becomes the layer's.

        Nothing is left when the block fails.

        Raises:
            ExistsError: the layer exists, or came to be meanwhile.
        """
        final = self.path(layer)
        if final.is_dir():
            raise ExistsError(f"{self.root} holds a layer {layer} already")
        temporary, lock = _temporary(self.root, f".new-{layer}")
        try:
            try:
                failpoints.reach("directory.made")
                yield temporary
                failpoints.reach("directory.rename")
                os.rename(temporary, final)
            except BaseException as error:
                self._discard(temporary.name)
                if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    raise ExistsError(f"{self.root} holds a layer {layer} already") from error
                raise
        finally:
            _unlock(lock)

    def remove(self, layer: str) -> None:
        """Delete a layer's directory; a missing one is no error.

        Raises:
            InUseError: something is mounted beneath it. Nothing is deleted then.
        """
        directory = self.path(layer)
        if not directory.is_dir():
            return
        if mounts := mounting.mounts_below(directory):
            raise InUseError(
                f"layer {layer} has {os.fsdecode(mounts[-1].target)} mounted beneath it",
                hint=f"umount {os.fsdecode(mounts[-1].target)}",
            )
        gone = f".gone-{layer}-{os.urandom(4).hex()}"
        try:
            lock = os.open(directory, _OPEN)
        except FileNotFoundError:
            return
        try:
            # Held to the end, so that no sweep takes part in the removal.
            _lock(lock)
            failpoints.reach("directory.remove")
            os.rename(directory, self.root / gone)
            failpoints.reach("directory.removing")
            self._discard(gone)
        except FileNotFoundError:
            return
        finally:
            _unlock(lock)

    def sweep(self) -> int:
        """Delete what stopped processes left half made or half removed; give how many directories went."""
        swept = 0
        for name in os.listdir(self.root):
            if name.startswith(".") and self._sweep_one(name):
                swept += 1
        return swept

    def _sweep_one(self, name: str) -> bool:
        """Delete one directory, unless it is being made or removed elsewhere."""
        try:
            lock = os.open(self.root / name, _OPEN)
        except FileNotFoundError:
            return False
        except NotADirectoryError:
            self._discard(name)
            return True
        try:
            _lock(lock, fcntl.LOCK_NB)
            if not (self.root / name).is_dir():
                return False
            self._discard(name)
        except BlockingIOError:
            return False
        finally:
            _unlock(lock)
        return True

    def _discard(self, name: str) -> None:
        root = os.open(self.root, _OPEN)
        try:
            files.remove_tree(root, name)
        finally:
            os.close(root)


def _checked(layer: str) -> str:
    if not (layer.isascii() and layer.isalnum() and len(layer) <= _LONGEST_ID):
        raise InvalidError(f"{layer!r} is no layer id: 1 to 64 characters of [a-z0-9]")
    return layer


@contextlib.contextmanager
def probing(root: Path) -> Iterator[Path]:
    """Give a directory below `root` to try things in, which is gone after the block (`Driver.check`).

    Raises:
        UnsupportedError: no directory can be made there.
    """
    try:
        scratch, lock = _temporary(root, ".check")
    except OSError as error:
        raise UnsupportedError(
            f"no directory can be made in {root}: {error.strerror}",
            errno=error.errno,
            hint="choose another place for the store (--root)",
        ) from error
    try:
        yield scratch
    finally:
        with opened(root) as directory:
            files.remove_tree(directory, scratch.name)
        _unlock(lock)


def _temporary(root: Path, prefix: str) -> tuple[Path, int]:
    """Make a directory and lock it; a sweep may take it in between, then another one is made."""
    while True:
        temporary = root / f"{prefix}-{os.urandom(4).hex()}"
        temporary.mkdir(0o700)
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(temporary, _OPEN)
            _lock(lock)
            if temporary.is_dir():
                return temporary, lock
            _unlock(lock)


def _lock(descriptor: int, flags: int = 0) -> None:
    fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
    forking.hold(descriptor)


def _unlock(descriptor: int) -> None:
    forking.let_go(descriptor)
    os.close(descriptor)


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[int]:
    """Open a directory for the length of a block and give its descriptor."""
    descriptor = os.open(directory, _OPEN)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def occupied(roots: Iterable[Path], *, own: bool = False) -> tuple[int, int]:
    """Count the bytes allocated and the inodes of trees, a file with several names once.

    Somebody may be changing them: what goes meanwhile is counted or not. With `own` files that have names
    elsewhere, too, are left out.
    """
    from layerfs.tree.ladder import Ladder

    size = inodes = 0
    # Of files with several names: how many were met, how many there are, and bytes.
    linked: dict[tuple[int, int], tuple[int, int, int]] = {}
    for root in roots:
        with opened(root) as descriptor, contextlib.closing(Ladder(descriptor)) as ladder:
            todo: list[list[str]] = []
            while True:
                size += os.fstat(ladder.top).st_blocks * 512
                inodes += 1
                below = []
                with os.scandir(ladder.top) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            below.append(entry.name)
                            continue
                        try:
                            found = entry.stat(follow_symlinks=False)
                        except FileNotFoundError:
                            continue
                        if found.st_nlink > 1:
                            identity = (found.st_dev, found.st_ino)
                            met = linked[identity][0] if identity in linked else 0
                            linked[identity] = met + 1, found.st_nlink, found.st_blocks * 512
                            continue
                        size += found.st_blocks * 512
                        inodes += 1
                todo.append(below)
                while todo:
                    if not todo[-1]:
                        todo.pop()
                        if todo:
                            ladder.pop()
                        continue
                    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                        ladder.push(os.open(todo[-1].pop(), _OPEN, dir_fd=ladder.top))
                        break
                if not todo:
                    break
    for met, names, count in linked.values():
        if met == names or not own:
            size += count
            inodes += 1
    return size, inodes
