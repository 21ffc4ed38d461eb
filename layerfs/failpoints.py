"""Named places in the store's work where a test makes it die or fail; none is in use unless `arm` was called.

A failpoint is a line ``failpoints.reach("noun.step")`` between two steps. While nothing is armed that is a
call and a comparison. The command line arms what LAYERFS_FAILPOINTS says, see `arm`; CONTRIBUTING.md has an
example. `tests.reliability.crash` goes through all of them.
"""

from __future__ import annotations

import errno
import os
from typing import Final

NAMES: Final = {
    # Blobs on their way in, and out.
    "blob.begin": "the partial file is there, and locked",
    "blob.write": "some bytes were written",
    "blob.verify": "all bytes were written, and are about to be compared with their digest",
    "blob.sync": "a verified blob is about to be synced",
    "blob.rename": "a synced blob is about to become visible",
    "blob.renamed": "it is visible; its name is not synced",
    "blob.discard": "a partial file is about to be deleted",
    "blob.sweep": "an abandoned partial file is about to be deleted",
    "download.begin": "a registry is about to be asked for a blob",
    "download.read": "bytes came from a registry",
    # Layers of an image.
    "layer.drafted": "a draft has its row, and no files",
    "layer.ready": "the driver has made the draft's directory",
    "layer.worker": "a process was forked that unpacks the layer",
    "layer.unpack": "the layer is about to be unpacked",
    "layer.entry": "an entry of the layer was unpacked",
    "layer.unpacked": "all entries are there; the content is not verified",
    "layer.filled": "the layer is whole and verified",
    "layer.inherit": "its root is about to take after the one below",
    "layer.seal": "it is about to be sealed",
    "layer.sync": "everything is about to be synced",
    "layer.synced": "everything is synced, and no blob visible",
    "layer.commit": "all blobs are visible, and the layers about to be committed",
    "layer.committed": "the layers are committed; locks and leases are still held",
    "layer.undo": "layers that failed are about to be removed",
    "layer.replace": "a repaired layer is about to take the damaged one's place",
    "layer.replaced": "it has; the damaged files are about to go",
    # Writable layers and containers.
    "layer.added": "a writable layer has its row, and no files",
    "layer.created": "the driver has made its directory",
    "layer.activated": "it can be used",
    "container.prepared": "the layer is there, and the container about to be recorded",
    "container.recorded": "the container is recorded; its lease is still held",
    "freeze.described": "a layer has its table of contents, and is about to be sealed",
    "freeze.sealed": "it is about to be synced",
    "freeze.commit": "it is synced, and about to be committed",
    # Directories of the drivers.
    "directory.made": "a directory was made under its temporary name",
    "directory.rename": "it is filled, and about to get its name",
    "directory.remove": "a layer's directory is about to lose its name",
    "directory.removing": "it has lost it, and is about to be deleted",
    # Transactions of the database.
    "transaction.begin": "a transaction has begun",
    "transaction.commit": "it is about to be committed",
    "transaction.committed": "it is committed",
    "lease.end": "a lease is about to be ended",
    "lease.expire": "leases of dead processes are about to be ended",
    # Images.
    "image.layer": "a new image's layer is stored",
    "image.config": "its config is stored",
    "image.put": "its manifest is stored, and the image about to be added",
    "image.added": "the image is added, without further names",
    "image.tag": "an image is about to get a name",
    "image.tagged": "it has the name",
    "image.remove": "an image, or its name, is about to be removed",
    "image.removed": "it is removed; what only it needed is still there",
    "index.put": "an index is about to be added",
    # Commits of containers.
    "capture.drafted": "the copy of a container's layer has its row, and no files",
    "capture.copied": "the copy is made",
    "capture.written": "it was read, and its blob or skeleton written",
    "capture.sync": "everything is about to be synced",
    "capture.synced": "everything is synced, and no blob visible",
    "capture.commit": "all blobs are visible, and the layer about to be committed",
    "capture.committed": "the layer is committed, and no image has it",
    # Mounts.
    "mount.record": "a mount is about to be recorded",
    "mount.recorded": "it is recorded, and not made",
    "mount.directory": "the directory for a mount of the store's own is made",
    "mount.made": "it is made, and attached nowhere",
    "mount.attached": "it is attached",
    "unmount.begin": "a mount is about to be taken away",
    "unmount.detached": "it is gone; its record is still there",
    # Processes of containers.
    "run.begin": "a container's layer is reserved",
    "run.monitor": "the monitor is in its namespaces",
    "run.attached": "the monitor has attached the tree",
    "run.process": "the process is in the tree, and about to execute its program",
    "run.started": "the program runs, and is not recorded",
    "run.ended": "it has ended, and that is not recorded",
    # Removal.
    "layer.remove": "a layer is locked, and about to lose its name",
    "layer.marked": "it has lost it; its files are there",
    "layer.erased": "its files are gone; its row is still there",
    "layer.deleted": "its row is gone; its lock file is still there",
    "layers.mark": "the layers of an image are about to lose their names",
    "layers.marked": "they have lost them; their files are there",
    "layers.erased": "their files are gone; their rows are still there",
    # Garbage collection, repair and opening.
    "gc.begin": "leases are expired",
    "gc.images": "what a crash left is removed, and images are about to be looked at",
    "gc.layers": "images are done",
    "gc.blobs": "layers are done",
    "gc.trash": "a blob is in the trash, in a transaction that is not committed",
    "gc.free": "the transaction is committed; the blob is still in the trash",
    "gc.orphans": "a directory that no row knows is about to be removed",
    "gc.leftovers": "something in the trash or in tmp is about to be deleted",
    "gc.locks": "lock files are about to be deleted",
    "check.begin": "the database is checked",
    "check.layer": "a damaged layer is about to be unpacked again",
    "check.drop": "a layer is about to be relied on no more for its blob",
    "check.mount": "the record of a mount that is not there is about to go",
    "check.orphan": "a directory that no row knows is about to be looked after",
    "check.quarantine": "something damaged or unknown is about to be moved aside",
    "store.directories": "a new store has its directories",
    "store.database": "a new store has its database",
    "store.recover": "a crash has left something, which is about to be cleared away",
}
"""Every failpoint: what has happened, or is about to happen, where it stands."""

_SIGKILL: Final = 9

# What is to happen: the action, and how often the failpoint has still to be reached.
_armed: dict[str, list[tuple[str, int]]] | None = None


class Injected(RuntimeError):
    """What the action ``error`` raises: an exception that nothing expects."""


def reach(name: str) -> None:
    """Do here what was armed for this failpoint; nothing, as a rule."""
    if _armed is not None:
        _act(name)


def arm(text: str) -> None:
    """Say what is to happen in this process, and in those that it forks; "" disarms.

    Args:
        text: ``NAME=ACTION[@N]``, several with commas between them. ACTION is ``kill`` (SIGKILL to the
            process that is there), ``error`` (`Injected`), ``enospc`` or ``eio`` (an OSError); it happens
            once, when the failpoint is reached for the N-th time, the first when N is left out. Each
            process counts for itself, from where it was forked.

    Raises:
        InvalidError: there is no such failpoint or action.
    """
    global _armed
    armed: dict[str, list[tuple[str, int]]] = {}
    for word in filter(None, text.split(",")):
        name, _, what = word.partition("=")
        action, _, count = what.partition("@")
        if name not in NAMES or action not in _ACTIONS or not (count or "1").isdecimal():
            from layerfs.errors import InvalidError

            raise InvalidError(
                f"{word!r} is no failpoint", hint=f"NAME=ACTION[@N]; actions are {', '.join(_ACTIONS)}"
            )
        armed.setdefault(name, []).append((action, int(count or "1")))
    _armed = armed or None


def _act(name: str) -> None:
    assert _armed is not None
    waiting = [(action, count - 1) for action, count in _armed.get(name, ())]
    if waiting:
        _armed[name] = [(action, count) for action, count in waiting if count > 0]
    for action, count in waiting:
        if count == 0:
            _ACTIONS[action](name)


def _kill(name: str) -> None:
    os.kill(os.getpid(), _SIGKILL)


def _raise(name: str) -> None:
    raise Injected(f"failpoint {name}")


def _no_space(name: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"failpoint {name}")


def _input_output(name: str) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO), f"failpoint {name}")


_ACTIONS: Final = {"kill": _kill, "error": _raise, "enospc": _no_space, "eio": _input_output}
