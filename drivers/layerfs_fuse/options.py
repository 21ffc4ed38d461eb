"""What -o can say about a mount: data, read from the words that fuse-overlayfs(1) uses where it has them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, cast, get_args

from layerfs.errors import OptionError
from layerfs.value import frozen

Passed = Literal["all", "upper", "none"]
"""Whose data the kernel may read and write itself: see `layerfs_fuse.passthrough`."""

_OVERFLOW: Final = 65534
_DIRECTORIES: Final = ("lowerdir", "upperdir", "workdir")
_LARGEST: Final = (1 << 32) - 2


@frozen
class IdMap:
    """Which owner is shown for which stored one: ranges of (first stored, first shown, how many)."""

    ranges: tuple[tuple[int, int, int], ...]

    def shown(self, stored: int) -> int:
        """Give the id to show; nobody's where none is mapped (user_namespaces(7))."""
        for first, outside, size in self.ranges:
            if first <= stored < first + size:
                return outside + stored - first
        return _OVERFLOW

    def stored(self, shown: int) -> int | None:
        """Give the id to store; None where none is mapped."""
        for first, outside, size in self.ranges:
            if outside <= shown < outside + size:
                return first + shown - outside
        return None


@frozen
class Options:
    """What is different from a plain mount; ids None: as they are, `timeout` in seconds, None: for ever."""

    uids: IdMap | None = None
    gids: IdMap | None = None
    squash_uid: int | None = None
    squash_gid: int | None = None
    timeout: float | None = None
    static_nlink: bool = False
    no_acl: bool = False
    volatile: bool = False
    allow_other: bool = False
    passthrough: Passed = "all"

    @classmethod
    def parse(cls, words: Sequence[str]) -> Options:
        """Read options, each ``name`` or ``name=value``.

        Raises:
            OptionError: some are unknown, or their values make no sense.
        """
        found: dict[str, Any] = {}
        unknown, senseless = [], []
        squash_to_root = False
        for word in words:
            name, equals, value = word.partition("=")
            if name == "squash_to_root" and not equals:
                squash_to_root = True
            elif name in _FLAGS and not equals:
                found[_FLAGS[name]] = True
            elif name in _VALUES:
                field, read = _VALUES[name]
                try:
                    found[field] = read(value)
                except ValueError:
                    senseless.append(word)
            elif name in _VOID_NUMBERS and equals:
                try:
                    _id(value)
                except ValueError:
                    senseless.append(word)
            elif word not in _VOID:
                unknown.append(word)
        if unknown or senseless:
            raise _refused(unknown, senseless)
        if squash_to_root:
            found = {"squash_uid": 0, "squash_gid": 0, **found}
        return cls(**found)


def _refused(unknown: list[str], senseless: list[str]) -> OptionError:
    """Name the options that are wrong, and what there is."""
    problems, hints = [], []
    if unknown:
        problems.append(f"there is no mount option {', '.join(map(repr, unknown))}")
        hint = f"the FUSE union takes {', '.join(KNOWN)}, and what holds for any file system"
        if any(word.partition("=")[0] in _DIRECTORIES for word in unknown):
            hint = f"the directories are those of the container's layers; {hint}"
        hints.append(hint)
    if senseless:
        problems.append(f"{', '.join(map(repr, senseless))} makes no sense")
        names = {word.partition("=")[0] for word in senseless}
        hints.append("write " + ", ".join(each for each in KNOWN if each.partition("=")[0] in names))
    return OptionError("; ".join(problems), hint="; ".join(hints))


def _id(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= _LARGEST):
        raise ValueError(text)
    return int(text)


def _map(text: str) -> IdMap:
    numbers = [_id(part) for part in text.split(":")]
    if len(numbers) % 3:
        raise ValueError(text)
    return IdMap(tuple((a, b, c) for a, b, c in zip(*[iter(numbers)] * 3, strict=True)))


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1 << 31:
        raise ValueError(text)
    return value


def _unsynced(text: str) -> bool:
    return {"0": True, "1": False}[text] if text in ("0", "1") else bool(_id(""))


def _passed(text: str) -> Passed:
    for known in get_args(Passed):
        if text == known:
            return cast(Passed, known)
    raise ValueError(text)


_FLAGS: Final = {
    "static_nlink": "static_nlink",
    "noacl": "no_acl",
    "volatile": "volatile",
    "allow_other": "allow_other",
}
_VALUES: Final[Mapping[str, tuple[str, Callable[[str], object]]]] = {
    "uidmapping": ("uids", _map),
    "gidmapping": ("gids", _map),
    "squash_to_uid": ("squash_uid", _id),
    "squash_to_gid": ("squash_gid", _id),
    "timeout": ("timeout", _seconds),
    "fsync": ("volatile", _unsynced),
    "passthrough": ("passthrough", _passed),
}
# Taken, since scripts write them, and without effect.
_VOID: Final = frozenset(
    {"xino=off", "xino=auto", "xino=on", "threaded=0", "threaded=1", "clone_fd", "debug"}
)
_VOID_NUMBERS: Final = frozenset({"max_idle_threads"})
KNOWN: Final = {
    "squash_to_root": "show everything as root's",
    "squash_to_uid=UID": "show everything as this user's",
    "squash_to_gid=GID": "show everything as this group's",
    "uidmapping=STORED:SHOWN:COUNT[:...]": "show these users of the layers as others",
    "gidmapping=STORED:SHOWN:COUNT[:...]": "show these groups of the layers as others",
    "timeout=SECONDS": "let the kernel ask again after that time, where it need never ask",
    "static_nlink": "show one link for every directory",
    "noacl": "know no access control lists",
    "volatile": "bring nothing to disk on fsync(2)",
    "fsync=0": "the same",
    "allow_other": "let other users in, which root's mounts do anyway",
    "passthrough=all|upper|none": "let the kernel read and write the upper layer's files and large ones"
    " of lower layers itself (all, as if nothing was said), the upper layer's only, or none",
    "xino=off|auto|on": "no effect: inode numbers are always distinct",
    "threaded=0|1": "no effect",
    "clone_fd": "no effect",
    "max_idle_threads=N": "no effect",
    "debug": "no effect",
}
"""Each option as it is written, and what it is for."""


def map_of_namespace(path: str) -> IdMap:
    """Read a /proc/PID/uid_map or gid_map (user_namespaces(7)): ids here, ids in the namespace around us."""
    with open(path, "rb", buffering=0) as file:
        lines = file.read(os.sysconf("SC_PAGESIZE")).splitlines()
    return IdMap(tuple((a, b, c) for a, b, c in (map(int, line.split()) for line in lines)))
