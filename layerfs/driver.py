"""What a storage driver is: five methods over opaque layer ids, and optional capabilities.

A driver owns bytes and has no memory. Names, parents and states live in the store's database, so
every call names the whole stack: `below` holds the ids of the committed layers under `layer`,
bottom first, and is empty for a base layer. Ids are 1 to 64 characters of ``[a-z0-9]``, chosen by
the caller. The store never calls two methods for one layer at once, and may call methods for different
layers from several threads and processes at once.

The life of a layer as the driver sees it::

    create(x, below) --> [apply(x, below, unpack)] --> mount(x, below, read_only=False) ...
        --> [changes(x, below)] --> [seal(x)] --> x serves in other layers' `below` --> remove(x)

What a driver can do beyond the five methods it says by having the methods of a capability protocol
(`Applies`, `Drafts`, `Copies`, `Diffs`, `Seals`, `Measures`, `Quotas`, `FallsBack`, `Sweeps`, `Configures`,
`Lazy`, `Logs`); what it leaves out is done through its mount, or not at all.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, runtime_checkable

from layerfs.mount import Mount
from layerfs.tree.change import Change
from layerfs.tree.unpack import Unpack

if TYPE_CHECKING:
    from socket import socket

__all__ = [
    "Applies", "Bodies", "Change", "Configures", "Copies", "Diffs", "Drafts", "Driver", "FallsBack", "Lazy",
    "Logs", "Measures", "Quotas", "Seals", "Sweeps", "Unfinished", "Unpack",
    "Usage",
]  # fmt: skip


class Driver(abc.ABC):
    """Keeps layers below one directory of its own; the directory exists and is private (0700)."""

    name: ClassVar[str]

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    @abc.abstractmethod
    def check(cls, root: Path) -> None:
        """Try whether this host, and the file system that holds `root`, can carry the driver.

        Probes by doing, never by comparing versions, and leaves nothing behind.

        Raises:
            UnsupportedError: says which probe failed, with its errno, and what would make it work.
        """

    @abc.abstractmethod
    def create(self, layer: str, below: Sequence[str]) -> None:
        """Make a new, empty, writable layer on the stack; a base layer's root is 0755 0:0.

        The root directory of a layer on a stack has the owner, mode, xattrs and times of the stack's root.

        Raises:
            ExistsError: the driver holds `layer` already.
            NotFoundError: it does not hold one of `below`.
        """

    @abc.abstractmethod
    def mount(self, layer: str, below: Sequence[str], *, read_only: bool) -> Mount:
        """Say how the layer's tree is made visible; nothing is mounted yet.

        With `read_only` the layer itself is part of what is seen and nothing of it can change.
        The caller mounts a layer writable at most once at a time.

        Raises:
            NotFoundError: the driver does not hold `layer` or one of `below`.
            UnsupportedError: the stack is deeper than the driver can mount.
        """

    @abc.abstractmethod
    def remove(self, layer: str) -> None:
        """Delete the layer; removing what is not there does nothing.

        Works through directory descriptors and never descends into a mount.

        Raises:
            InUseError: something is mounted beneath the layer's directory.
        """

    @abc.abstractmethod
    def layers(self) -> Iterable[str]:
        """List the ids that the driver holds, half-removed and half-made ones left out."""


@runtime_checkable
class Applies(Protocol):
    """Can unpack a layer straight into its own format."""

    def apply(self, layer: str, below: Sequence[str], unpack: Unpack) -> None:
        """Fill a layer that `create` has just made; on any error the caller removes the layer."""


class Usage(NamedTuple):
    """What a layer occupies by itself: bytes allocated on disk, and inodes."""

    bytes: int
    inodes: int


@runtime_checkable
class Measures(Protocol):
    """Can say what one layer occupies without what lies below it."""

    def usage(self, layer: str, below: Sequence[str]) -> Usage:
        """Count the layer's own allocated bytes and inodes."""


@runtime_checkable
class Drafts(Protocol):
    """Can make a layer more cheaply when nobody but `Applies.apply` ever writes to it."""

    def draft(self, layer: str, below: Sequence[str]) -> None:
        """Make a layer as `create` does, to be filled once by `apply` and never mounted writable.

        It may share its files with the layers below, since unpacking replaces files and writes to none.

        Raises as `create` does.
        """


@runtime_checkable
class Copies(Protocol):
    """Can copy a writable layer in its own format, which takes less than to pack and unpack its changes."""

    def copy(self, layer: str, source: str, below: Sequence[str], *, warn: Callable[[str], None]) -> bool:
        """Make a layer that shows on `below` what the writable layer `source` does, but for its sockets.

        Of these `warn` is told, each in a sentence.

        The source is not being written, and can be written afterwards; the copy never is. Its data begins
        to be written to disk at once.

        Returns:
            False if this source has to be unpacked to be copied; nothing is left then.

        Raises as `create` does, NotFoundError for the source too.
        """


@runtime_checkable
class Independent(Applies, Measures, Protocol):
    """Can unpack a layer while those below it still are, in another process maybe.

    Such a layer is made by `create` as if nothing was below. `apply` touches what is below through
    `lower` alone, which waits until that is whole; `usage` does not touch it.
    """

    def inherit(self, layer: str, below: Sequence[str]) -> None:
        """Give a layer's root what `create` would have given it, now that the layers below are whole.

        Only called for a layer that said nothing of its root.
        """


@runtime_checkable
class Diffs(Protocol):
    """Can list a layer's changes without walking the trees below it."""

    def changes(self, layer: str, below: Sequence[str]) -> Iterator[Change]:
        """Yield what the layer changes, in the order of `tree.diff`; the layer is not being written."""


@runtime_checkable
class Seals(Protocol):
    """Can make a layer immutable when it is committed."""

    def seal(self, layer: str) -> None:
        """Make the layer read-only from now on; idempotent."""


@runtime_checkable
class Quotas(Protocol):
    """Can bound what a writable layer may occupy."""

    def limit(self, layer: str, *, size: int | None, inodes: int | None) -> None:
        """Set the limits in bytes and inodes; None means unlimited."""


@runtime_checkable
class FallsBack(Protocol):
    """Works in a second, lesser way where the first is not to be had; ranks lower there."""

    @classmethod
    def fallback(cls, root: Path) -> str | None:
        """Say in one clause what serves below `root` in the first way's stead, and why; None if nothing does.

        What `Driver.check` finds wrong is not asked here.

        Raises:
            UnsupportedError: it cannot be tried below `root`.
        """


@runtime_checkable
class Sweeps(Protocol):
    """Can delete what a stopped process left half made or half removed."""

    def sweep(self) -> int:
        """Delete it, leave alone what living processes are at, and give how many things went."""


@runtime_checkable
class Configures(Protocol):
    """Can be told how its mounts behave, beyond what holds for any file system (mount(8), -o)."""

    mount_options: ClassVar[Mapping[str, str]]
    """The options by name (``squash_to_root``, ``timeout=SECONDS``), each with a few words about it."""

    def configured(
        self, layer: str, below: Sequence[str], *, read_only: bool, options: Sequence[str]
    ) -> Mount:
        """Do what `mount` does, with options, which may be none; raises as `mount` does.

        The mount is one that the options, and `mounting.attach_outside`, can work on.

        Raises:
            OptionError: options are unknown, or their values make no sense.
        """


class Bodies(Protocol):
    """Gets the data that files of some layers lack."""

    @property
    def layers(self) -> Mapping[str, int]:
        """The layers whose files may lack data, by the driver's ids, with the numbers that requests have."""

    @property
    def unfinished(self) -> bool:
        """Whether the outlines of some of them are still to be made, by `serve`."""

    def serve(self, connection: socket) -> None:
        """Answer requests until the other end of the connection is closed; see `Lazy`."""


class Unfinished(Protocol):
    """A layer that shows its topmost names only; the rest of its outline is made beside them, then moved.

    A kill at any moment leaves a layer whose outline is begun anew, or, once it `is_moving`, shown.
    """

    kept: Path
    """What the outline is made of: a file whose presence makes a layer an unfinished one."""

    found: Path
    """Where to keep what becomes known of the layer meanwhile."""

    @property
    def is_whole(self) -> bool:
        """Whether the layer has all of its outline, as others have from the beginning."""

    @property
    def is_moving(self) -> bool:
        """Whether the outline is made, and has to be shown."""

    def begin(self) -> None:
        """Begin with an empty outline, which is what every method of the driver is about in this process."""

    def note_whole(self) -> None:
        """Note, durably, that it is made and on disk."""

    def show(self) -> None:
        """Show it, where nobody looks meanwhile; goes on where a killed process has stopped."""

    def end(self) -> None:
        """Note that it shows, and that this is on disk."""


@runtime_checkable
class Lazy(Independent, Protocol):
    """Can show layers whose files get their data when somebody reads it (`tree.absent`).

    Such a layer is filled by `apply` with an outline of itself. `fetching` gives, for layers of
    one mount, what gets the data; the driver has it `serve` in a process of its own, which has the files and
    the network of whoever mounts. A request comes with a file open for writing, and is answered when that has
    the data, safely on disk, or with the reason why it has not; the process keeps the data of other
    files, or of nobody's, from being written twice.

    A layer may be `unfinished`. Of the mount of one the driver shows the root and the attributes of what
    stands in it, and has all other requests wait until `Bodies.serve` has made the outlines of all layers.
    That sends an answer before it shows them, waits for a message of one byte, and sends another one then.
    """

    name: ClassVar[str]
    fetching: Callable[[Sequence[str]], Bodies] | None
    """Set by the store before the first mount."""

    def create(self, layer: str, below: Sequence[str]) -> None:
        """See `Driver.create`."""

    def bodies_list(self, layer: str) -> Path:
        """Name the file that describes the bodies of a layer; one that has it is shown as lacking them."""

    def lacks(self, layer: str, path: bytes) -> bool:
        """Say whether the data of a layer's own file is not here, or not all of it."""

    def absent_mark(self) -> bytes:
        """Give the name of the attribute that marks a file whose data is not here."""

    def get_ready(self) -> None:
        """Do what every mount needs done once in a process, while there is time."""

    def unfinished(self, layer: str) -> Unfinished:
        """Give what is known of a layer's outline that is not all there; also of one that is."""


@runtime_checkable
class Logs(Protocol):
    """Writes down what goes wrong in processes of its own, which have nobody to tell."""

    def logs(self) -> Iterable[Path]:
        """List the files that are there: text, the last lines the newest.

        One that is about one layer has the layer's id in its path, as a whole part.
        """
