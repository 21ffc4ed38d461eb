"""Changes a tree at random, and knows after each system call what must be there."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Sequence
from pathlib import Path

# A file's path stands for its mode and content, a directory's for None.
Tree = dict[str, tuple[int, bytes] | None]


class Worker:
    """Changes a tree in random order, one system call at a time, and knows what must be there after each.

    `before` is the tree without the call at hand, `after` is the one with it: a file's path stands for
    its mode and content, a directory's for None.
    """

    def __init__(self, place: Path, tree: Tree, seed: int) -> None:
        self.place, self.before, self.after = place, tree, tree
        self.random = random.Random(seed)
        self.steps = 0

    def run(self) -> None:
        """Work until the server is gone."""
        with contextlib.suppress(OSError):
            while True:
                self.step()
                self.steps += 1
                self.before = self.after

    def step(self) -> None:
        files = [path for path, found in self.before.items() if found is not None]
        directories = [path for path, found in self.before.items() if found is None]
        file, directory = self.random.choice(files), self.random.choice(directories)
        new = f"{directory}/{self.random.randrange(1 << 40):x}"
        match self.random.randrange(8):
            case 0:
                mode = self.random.choice((0o600, 0o640, 0o755))
                self.expect({file: (mode, self.before[file][1])})  # type: ignore[index]
                os.chmod(self.place / file, mode)
            case 1:
                self.expect({new: (0o644, b"")})
                os.close(os.open(self.place / new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            case 2:
                mode, data = self.before[file]  # type: ignore[misc]
                with open(self.place / file, "r+b", buffering=0) as opened:
                    self.expect({file: (mode, b"changed!" + data[8:])})
                    opened.write(b"changed!")
            case 3:
                self.expect({new: self.before[file]}, gone=(file,))
                os.rename(self.place / file, self.place / new)
            case 4:
                other = self.random.choice(files)
                if other != file:
                    self.expect({other: self.before[file]}, gone=(file,))
                    os.rename(self.place / file, self.place / other)
            case 5:
                if len(files) > 20:
                    self.expect({}, gone=(file,))
                    os.unlink(self.place / file)
            case 6:
                self.expect({new: None})
                os.mkdir(self.place / new)
            case 7:
                moved = self.random.choice(directories)
                if moved != "." and not f"{directory}/".startswith(f"{moved}/"):
                    below = [path for path in self.before if path == moved or path.startswith(f"{moved}/")]
                    self.expect({new + path[len(moved) :]: self.before[path] for path in below}, gone=below)
                    os.rename(self.place / moved, self.place / new)

    def expect(self, new: Tree, gone: Sequence[str] = ()) -> None:
        self.after = {path: found for path, found in self.before.items() if path not in gone} | new


def as_modelled(place: Path) -> Tree:
    """Read a tree as `Worker` describes it."""
    found: Tree = {".": None}
    for above, directories, files in os.walk(place):
        start = "./" + os.path.relpath(above, place) + "/" if above != str(place) else "./"
        found.update({start + name: None for name in directories})
        for name in files:
            path = Path(above, name)
            found[start + name] = (path.stat().st_mode & 0o7777, path.read_bytes())
    return found
