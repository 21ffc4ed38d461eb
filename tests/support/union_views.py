"""What can be seen of a mounted tree after each call, and whether two trees show the same."""

from __future__ import annotations

import collections
import errno
import hashlib
import os
import stat
from collections.abc import Iterable
from typing import Final, NamedTuple

from tests.support.union_calls import shown

SET_BY_HAND: Final = 1_600_000_000_000_000_000
"""Times before this were given by somebody; later ones are the clock's."""


class Seen(NamedTuple):
    """One file: what stat(2) says of it, and more where it was looked at closely."""

    facts: dict[str, object]
    number: int
    mtime: int
    closely: dict[str, object] | None


View = dict[str, Seen]


def view(root: int, closely: Iterable[str] | None = None) -> View:
    """Look at a whole tree; at the paths of `closely`, by default all, with content and attributes."""
    os.fchdir(root)
    wanted = None if closely is None else set(closely)
    found: View = {}
    device = os.stat(".").st_dev
    todo = ["."]
    while todo:
        directory = todo.pop()
        with os.scandir(directory) as listing:
            entries = list(listing)
        names = [entry.name for entry in entries]
        assert len(names) == len(set(names)), f"{directory} lists a name twice: {sorted(names)}"
        for entry in entries:
            path = entry.name if directory == "." else f"{directory}/{entry.name}"
            status = os.lstat(path)
            assert status.st_dev == device, f"{path}: st_dev {status.st_dev} in a mount of {device}"
            assert entry.inode() == status.st_ino, f"{path}: d_ino {entry.inode()}, st_ino {status.st_ino}"
            kind = stat.S_IFMT(status.st_mode)
            assert entry.is_dir(follow_symlinks=False) == stat.S_ISDIR(kind), path
            if stat.S_ISDIR(kind):
                todo.append(path)
            found[path] = _seen(path, status, near=wanted is None or path in wanted)
    found["."] = _seen(".", os.stat("."), near=wanted is None or "" in wanted)
    return found


def _seen(path: str, status: os.stat_result, *, near: bool) -> Seen:
    facts: dict[str, object] = dict(shown(status))
    if stat.S_ISLNK(status.st_mode):
        facts["target"] = os.readlink(path)
    closely: dict[str, object] | None = None
    if near:
        names = sorted(os.listxattr(path, follow_symlinks=False))
        closely = {name: _value(path, name) for name in names}
        if stat.S_ISREG(status.st_mode):
            with open(path, "rb") as file:
                closely["content"] = hashlib.sha256(file.read()).hexdigest()[:16]
    return Seen(facts, status.st_ino, status.st_mtime_ns, closely)


def _value(path: str, name: str) -> bytes | str:
    """Read an attribute, or what the kernel says of one that it lists and does not show."""
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def unlike(one: View, other: View, *, links: bool = True, times: bool = True) -> list[str]:
    """Say what two views differ in; without `links`, how many names files have does not count."""
    lines = []
    names = collections.Counter(seen.number for seen in other.values())
    for path in sorted(one.keys() | other.keys()):
        here, there = one.get(path), other.get(path)
        if here is None or there is None:
            lines.append(f"{path}: only in the {'second' if here is None else 'first'}")
            continue
        if here.facts["links"] != there.facts["links"] == names.get(there.number):
            # Overlayfs counts names that lower layers have and hide.
            here = here._replace(facts=here.facts | {"links": there.facts["links"]})
        lines += [
            f"{path}: {field} {here.facts.get(field)!r} and {there.facts.get(field)!r}"
            for field in here.facts.keys() | there.facts.keys()
            if here.facts.get(field) != there.facts.get(field) and (links or field != "links")
        ]
        if here.closely is not None and there.closely is not None and here.closely != there.closely:
            fields = here.closely.keys() | there.closely.keys()
            lines += [
                f"{path}: {field} {here.closely.get(field)!r} and {there.closely.get(field)!r}"
                for field in sorted(fields)
                if here.closely.get(field) != there.closely.get(field)
            ]
        given = [each.mtime for each in (here, there) if each.mtime < SET_BY_HAND]
        if times and given and here.mtime != there.mtime:
            lines.append(f"{path}: mtime {here.mtime} and {there.mtime}")
    if links and _groups(one) != _groups(other):
        lines.append(f"names of one file: {_groups(one)} and {_groups(other)}")
    return lines


def _groups(view: View) -> set[frozenset[str]]:
    """Find the names that share an inode number."""
    found: dict[int, list[str]] = {}
    for path, seen in view.items():
        found.setdefault(seen.number, []).append(path)
    return {frozenset(paths) for paths in found.values() if len(paths) > 1}


def moved_on(before: View, after: View, *, what: str) -> set[str]:
    """Name the paths of which the "number" or the "mtime" is another than it was."""
    both = before.keys() & after.keys()
    return {path for path in both if getattr(before[path], what) != getattr(after[path], what)}
