"""Options of a mount as users write them after -o: for any file system, and a driver's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from layerfs import linux
from layerfs.errors import OptionError
from layerfs.value import frozen

# mount(8), FILESYSTEM-INDEPENDENT MOUNT OPTIONS: what is set and what is taken back (mount_setattr(2)).
_ATTRIBUTES: Final[dict[str, tuple[int, int]]] = {
    "defaults": (0, 0),
    "rw": (0, 0),
    "ro": (0, 0),
    "suid": (0, linux.MOUNT_ATTR_NOSUID),
    "nosuid": (linux.MOUNT_ATTR_NOSUID, 0),
    "dev": (0, linux.MOUNT_ATTR_NODEV),
    "nodev": (linux.MOUNT_ATTR_NODEV, 0),
    "exec": (0, linux.MOUNT_ATTR_NOEXEC),
    "noexec": (linux.MOUNT_ATTR_NOEXEC, 0),
    "atime": (0, linux.MOUNT_ATTR_ATIME),
    "noatime": (linux.MOUNT_ATTR_NOATIME, linux.MOUNT_ATTR_ATIME),
    "relatime": (0, linux.MOUNT_ATTR_ATIME),
    "strictatime": (linux.MOUNT_ATTR_STRICTATIME, linux.MOUNT_ATTR_ATIME),
    "diratime": (0, linux.MOUNT_ATTR_NODIRATIME),
    "nodiratime": (linux.MOUNT_ATTR_NODIRATIME, 0),
    "symfollow": (0, linux.MOUNT_ATTR_NOSYMFOLLOW),
    "nosymfollow": (linux.MOUNT_ATTR_NOSYMFOLLOW, 0),
}
GENERAL: Final = tuple(_ATTRIBUTES)


@frozen
class MountOptions:
    """Options in the order in which they were given; of two that exclude each other the later one holds.

    `general` are words of `GENERAL`, `own` is everything else: words that the driver must know.
    """

    general: tuple[str, ...] = ()
    own: tuple[str, ...] = ()

    @classmethod
    def parse(cls, given: Iterable[str]) -> MountOptions:
        """Sort options, each a word or several with commas between them.

        Raises:
            OptionError: an option is given a value that it does not take.
        """
        words = [word for text in given for word in text.split(",") if word]
        wrong = [word for word in words if "=" in word and word.partition("=")[0] in _ATTRIBUTES]
        if wrong:
            raise OptionError(
                f"of the mount options given, {', '.join(map(repr, wrong))} must not have a value",
                hint=f"without a value there are {', '.join(GENERAL)}",
            )
        general = tuple(word for word in words if word in _ATTRIBUTES)
        return cls(general, tuple(word for word in words if word not in _ATTRIBUTES))

    @property
    def read_only(self) -> bool:
        """Whether writes shall be refused."""
        return next((word == "ro" for word in reversed(self.general) if word in ("ro", "rw")), False)

    @property
    def attributes(self) -> tuple[int, int]:
        """Give the attributes to set on the mount, and those to clear first, as for mount_setattr(2)."""
        added = cleared = 0
        for word in self.general:
            plus, minus = _ATTRIBUTES[word]
            added = added & ~minus | plus
            cleared |= minus
        return added, cleared
