"""Changes that die, or fail, at any of their system calls: nothing half made shows, nothing is lost."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest
from layerfs_fuse.aufs_dialect import AufsDialect
from layerfs_fuse.changes import Changes, Maker
from layerfs_fuse.dialect import Dialect
from layerfs_fuse.nodes import Node
from layerfs_fuse.overlay_dialect import OverlayDialect
from layerfs_fuse.places import Layers

from layerfs import linux

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="whiteouts and trusted xattrs need root")

MAKER = Maker(0, 0, 0o022)
DONE, KILLED, FAILED, REACHED = 0, 97, 98, 99
# What needs room on a disk, and no more than a name to say so.
NEEDING_ROOM = frozenset({"link", "mkdir", "mknod", "rename", "setxattr", "symlink"})

# What a tree shows: the content of files, None for directories.
Tree = dict[str, str | None]


class Change(NamedTuple):
    """A change; whether it takes steps where no whiteout can be renamed, and whether names show it."""

    make: Callable[[Changes], object]
    in_steps: bool = False
    shows: bool = True


def at(union: Changes, path: str) -> Node:
    """Find what is there."""
    node = union.nodes.root
    for name in path.split("/") if path else ():
        found = union.lookup(node, name.encode())
        assert found is not None, path
        node = found
    return node


def moved(old: str, new: str, flags: int = 0, *, in_steps: bool = True) -> Change:
    def make(union: Changes) -> None:
        union.rename(union.nodes.root, old.encode(), union.nodes.root, new.encode(), flags)

    return Change(make, in_steps)


def in_root(method: str, name: str, *rest: Any) -> Change:
    return Change(lambda union: getattr(union, method)(union.nodes.root, name.encode(), *rest))


CHANGES = {
    "unlink a lower file": in_root("unlink", "lower"),
    "unlink a changed file": in_root("unlink", "both"),
    "unlink an upper file": in_root("unlink", "own"),
    "rmdir a lower directory": in_root("rmdir", "empty"),
    "rmdir a directory that was emptied": in_root("rmdir", "emptied"),
    "make a file where one was deleted": in_root("mknod", "gone", stat.S_IFREG | 0o644, 0, MAKER),
    "make a directory where one was deleted": in_root("mkdir", "gone directory", 0o755, MAKER),
    "make a symlink where a file was deleted": in_root("symlink", "gone", b"own", MAKER),
    "link where a file was deleted": Change(
        lambda union: union.link(at(union, "own"), union.nodes.root, b"gone")
    ),
    "copy a lower file up": Change(lambda union: union.chmod(at(union, "full/below"), 0o600), shows=False),
    "rename where a file was deleted": moved("own", "gone"),
    "rename a changed file where one was deleted": moved("both", "gone"),
    "rename a lower file over another": moved("lower", "other"),
    "rename a file to a new name": moved("both", "new"),
    "rename a directory where one was deleted": moved("own directory", "gone directory"),
    "rename a merged directory where one was deleted": moved("full", "gone directory"),
    "rename a merged directory over an emptied one": moved("full", "emptied"),
    "exchange files": moved("own", "lower", linux.RENAME_EXCHANGE, in_steps=False),
    "exchange directories": moved("own directory", "full", linux.RENAME_EXCHANGE, in_steps=False),
}


class Place:
    """An upper and a lower directory, the work directory, and the format of the layers."""

    def __init__(self, top: Path, dialect: Dialect) -> None:
        self.top = top
        self.dialect = dialect

    def make(self) -> None:
        """Fill the layers, with something deleted already."""
        for name in (
            "lower/full/sub",
            "lower/empty",
            "lower/emptied",
            "lower/gone directory",
            "upper",
            "work",
        ):
            (self.top / name).mkdir(parents=True)
        for name in ("lower", "both", "other", "gone", "full/below", "full/sub/deep", "emptied/f",
                     "gone directory/old"):  # fmt: skip
            (self.top / "lower" / name).write_text(f"lower {name}")
        (self.top / "upper" / "own").write_text("own")
        (self.top / "upper" / "own directory").mkdir()
        (self.top / "upper" / "own directory" / "in").write_text("in")
        union = self.union()
        root = union.nodes.root
        union.unlink(root, b"gone")
        union.unlink(at(union, "gone directory"), b"old")
        union.rmdir(root, b"gone directory")
        union.unlink(at(union, "emptied"), b"f")
        union.copy_up(at(union, "both"))
        (self.top / "upper" / "both").write_text("changed")

    def union(self) -> Changes:
        """Open the union; the process is over soon, so nothing is closed."""
        roots = [os.open(self.top / name, os.O_RDONLY | os.O_DIRECTORY) for name in ("upper", "lower")]
        work = os.open(self.top / "work", os.O_RDONLY | os.O_DIRECTORY)
        return Changes(Layers(roots, dialect=self.dialect, most_open=64), work)

    def tree(self) -> Tree:
        """Read what shows, as the next server would."""
        union = self.union()
        found: Tree = {}

        def walk(node: Node, path: str) -> None:
            for name, _, _ in union.entries(node):
                child = union.lookup(node, name)
                assert child is not None
                below = f"{path}/{name.decode()}" if path else name.decode()
                if child.is_directory:
                    found[below] = None
                    walk(child, below)
                elif stat.S_ISLNK(union.stat(child).st_mode):
                    found[below] = "-> " + union.readlink(child).decode()
                else:
                    descriptor = union.open(child, os.O_RDONLY)
                    found[below] = os.read(descriptor, 4096).decode()
                    os.close(descriptor)

        walk(union.nodes.root, "")
        for root in union.layers.roots:
            os.close(root.open())
        for place in list(union.layers.opened):
            place.close()
        os.close(union.work)
        return found

    def change(self, change: Change, calls: int, stop: Callable[[], None] | None = None) -> int:
        """Make a change in a process of its own that stops at its system call of that number.

        Gives DONE, KILLED, FAILED, or REACHED when a call failed and the change was made all the same.
        """
        child = os.fork()
        if child == 0:
            reached = False

            def stopped() -> None:
                nonlocal reached
                reached = True
                (stop or _die)()

            try:
                union = self.union()
                sys.setprofile(_at_call(calls, stopped, NEEDING_ROOM if stop else None))
                change.make(union)
                sys.setprofile(None)
                os._exit(REACHED if reached else DONE)
            except OSError as error:
                os._exit(FAILED if error.errno == errno.EDQUOT else 1)
            finally:
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (DONE, KILLED, FAILED, REACHED)
        return code


def _die() -> None:
    os._exit(KILLED)


def _fail() -> None:
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


def _at_call(
    calls: int, stop: Callable[[], None], names: frozenset[str] | None
) -> Callable[[FrameType, str, Any], None]:
    left = calls

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal left
        if event != "c_call" or argument.__module__ != "posix":
            return
        if names is None or argument.__name__ in names:
            left -= 1
            if left == -1:
                stop()

    return profile


@pytest.mark.parametrize("dialect", [OverlayDialect(), AufsDialect()], ids=["overlay", "aufs"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_made_or_not_made(tmp_path: Path, dialect: Dialect, name: str) -> None:
    change = CHANGES[name]
    first = Place(tmp_path / "first", dialect)
    first.top.mkdir()
    first.make()
    last = _copied(first, tmp_path / "last")
    assert last.change(change, 1 << 30) == DONE
    before, after = first.tree(), last.tree()
    kills = 0
    while True:
        place = _copied(first, tmp_path / f"killed{kills}")
        if place.change(change, kills) == DONE:
            break
        found = place.tree()
        if change.in_steps and isinstance(dialect, AufsDialect):
            _check_moved(before, after, found)
        else:
            assert found in (before, after), f"after {kills} system calls"
        kills += 1
    assert kills >= 3
    assert found == after or place.tree() == after


@pytest.mark.parametrize("dialect", [OverlayDialect(), AufsDialect()], ids=["overlay", "aufs"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_that_fails_changes_nothing(tmp_path: Path, dialect: Dialect, name: str) -> None:
    change = CHANGES[name]
    first = Place(tmp_path / "first", dialect)
    first.top.mkdir()
    first.make()
    before = first.tree()
    number = 0
    while True:
        place = _copied(first, tmp_path / f"failed{number}")
        outcome = place.change(change, number, _fail)
        if outcome == DONE:
            break
        assert (place.tree() == before) is (outcome == FAILED or not change.shows), f"{outcome} at {number}"
        number += 1


def _check_moved(before: Tree, after: Tree, found: Tree) -> None:
    """Every content is where it was or where it shall be, and each directory whole, or empty for a moment."""
    for path, content in found.items():
        assert content in [tree[path] for tree in (before, after) if path in tree], path
    for path in before.keys() | after.keys():
        assert found.get(path, ...) in (before.get(path, ...), after.get(path, ...), None), path
    assert {*before.values()} & {*after.values()} <= {*found.values()}


def _copied(place: Place, top: Path) -> Place:
    subprocess.run(["cp", "-a", place.top, top], check=True)
    return Place(top, place.dialect)
