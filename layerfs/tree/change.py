"""One change of a tree against the trees below it, as data that can still be opened."""

import enum
from typing import NamedTuple

from layerfs.tree.entry import Entry


class ChangeKind(enum.Enum):
    """The letters of ``docker diff``."""

    ADDED = "A"
    CHANGED = "C"
    DELETED = "D"


class Change(NamedTuple):
    """One path that differs.

    `entry` is the state after the change; for a deletion only its path and kind (that of what was
    deleted) mean something. A second name of a file that was yielded before in the same series is
    a `HARDLINK` to the first. `directory` is the descriptor of the directory in which `name` can be
    opened with O_NOFOLLOW; it is valid until the next change is asked for, and -1 for a deletion.

    A `minor` change belongs in a layer, but users do not call it one: a directory that is carried for what is
    in it, or of which only the time differs, and a name that is sent for its hard links' sake alone.
    """

    kind: ChangeKind
    entry: Entry
    directory: int = -1
    name: bytes = b""
    minor: bool = False
