"""A layer that shows its topmost names only, while the rest of its outline is made beside them.

In the layer's directory: ``outline`` is what the rest is made of, as long as it is not; ``outlined`` is the
tree in the making; ``moving`` says that this one is whole, and what stands in its directories is on its way
into those of the same names in ``diff``, which stay the files that they are.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from layerfs.directories import opened
from layerfs.files import remove_tree

_KEPT: Final = "outline"
_FOUND: Final = "found"
_JOURNAL: Final = "moving"
TREE: Final = "outlined"
_LIST: Final = "outlined-bodies"


class UnfinishedLayer:
    """One such layer (`driver.Unfinished`).

    Args:
        directory: of the layer.
        bodies: the name of its list of bodies there.
        mark: the attribute of files whose data is absent.
        begun: told when the tree in the making is there.
    """

    def __init__(self, directory: Path, *, bodies: str, mark: bytes, begun: Callable[[], object]) -> None:
        self._directory = directory
        self._bodies = bodies
        self._mark = mark
        self._begun = begun
        self.kept = directory / _KEPT
        self.found = directory / _FOUND

    @property
    def is_whole(self) -> bool:
        """Whether the layer shows all of its outline."""
        return not (self.is_moving or self.kept.exists())

    @property
    def is_moving(self) -> bool:
        """Whether the outline is there, and only has to be shown."""
        return (self._directory / _JOURNAL).exists()

    @property
    def bodies_list(self) -> Path:
        """The list of bodies of the outline in the making."""
        return self._directory / _LIST

    def begin(self) -> None:
        """Begin with an empty tree; what a killed process has left of one goes."""
        with opened(self._directory) as directory:
            self._clear(directory)
            os.mkdir(TREE, 0o700, dir_fd=directory)
            with _below(directory, TREE) as tree:
                os.fchmod(tree, 0o755)
                os.utime(tree, (0, 0))
        self._begun()

    def note_whole(self) -> None:
        """Note, durably, that the tree is whole and on disk."""
        times = {}
        with opened(self._directory) as directory, opened(self._directory / "diff") as shown:
            for name in os.listdir(shown):
                found = os.stat(name, dir_fd=shown, follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    times[name] = found.st_atime_ns, found.st_mtime_ns
            part = f"{_JOURNAL}.part"
            with open(self._directory / part, "w", encoding="ascii") as file:
                json.dump(times, file)
                file.flush()
                os.fsync(file.fileno())
            os.rename(part, _JOURNAL, src_dir_fd=directory, dst_dir_fd=directory)
            os.fsync(directory)
            os.unlink(_KEPT, dir_fd=directory)

    def show(self) -> None:
        """Move what the tree has into the directories that show; goes on where a killed process stopped."""
        with opened(self._directory) as directory, opened(self._directory / "diff") as shown:
            times = json.loads((self._directory / _JOURNAL).read_text("ascii"))
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_KEPT, dir_fd=directory)
            with contextlib.suppress(FileNotFoundError):
                os.rename(_LIST, self._bodies, src_dir_fd=directory, dst_dir_fd=directory)
            with opened(self._directory / TREE) as tree:
                for name in os.listdir(tree):
                    if name in times:
                        with _below(tree, name) as source, _below(shown, name) as target:
                            for each in os.listdir(source):
                                os.rename(each, each, src_dir_fd=source, dst_dir_fd=target)
                    else:
                        self._mark_as(tree, shown, name)
            for name, (atime, mtime) in times.items():
                os.utime(name, ns=(atime, mtime), dir_fd=shown, follow_symlinks=False)

    def end(self) -> None:
        """Note that all of it shows, and that this is on disk."""
        with opened(self._directory) as directory:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_JOURNAL, dir_fd=directory)
            self._clear(directory)

    def _clear(self, directory: int) -> None:
        remove_tree(directory, TREE)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_LIST, dir_fd=directory)

    def _mark_as(self, tree: int, shown: int, name: str) -> None:
        """Give a file that shows the mark of the same one in the tree."""
        if not stat.S_ISREG(os.stat(name, dir_fd=tree, follow_symlinks=False).st_mode):
            return
        source, target = (os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=each) for each in (tree, shown))
        try:
            if self._mark.decode() in os.listxattr(source):
                os.setxattr(target, self._mark, os.getxattr(source, self._mark))
        finally:
            os.close(source)
            os.close(target)


@contextlib.contextmanager
def _below(directory: int, name: str) -> Iterator[int]:
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
