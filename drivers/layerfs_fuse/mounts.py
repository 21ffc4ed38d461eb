"""A union as a mount: data first, and how it is made real, with a server process that is left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from layerfs import linux, mounting
from layerfs.errors import MountError
from layerfs.mount import Mount
from layerfs_fuse import libfuse, process
from layerfs_fuse.dialect import Dialect
from layerfs_fuse.overlay_dialect import OverlayDialect

Front = Literal["kernel", "fusepy"]


# KiB; as much as `protocol.MAX_WRITE`.
_READ_AHEAD: Final = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class FuseMount(Mount):
    """Layers merged by a server of our own; the other fields are those of `layerfs.mount.Overlay`.

    `front` says which of the two ways the server speaks with the kernel: the protocol itself, or libfuse 2.
    """

    lower: tuple[Path, ...]
    upper: Path | None
    work: Path | None
    dialect: Dialect = OverlayDialect()  # noqa: RUF009  a frozen value
    front: Front = "kernel"


@mounting.attach.register
def _attach(mount: FuseMount, target: Path | int) -> None:
    if mount.front == "fusepy":
        place = libfuse.directory(target)
        with _explaining(mount), _opened(mount) as (roots, work):
            libfuse.attach(place, roots, work, source=mount.source, dialect=mount.dialect)
        return
    mounting.attach_tree(_served(mount), target)


@mounting.open_mount.register
def _open(mount: FuseMount) -> int:
    if mount.front == "fusepy":
        with _explaining(mount), _opened(mount) as (roots, work):
            return libfuse.open_mount(roots, work, source=mount.source, dialect=mount.dialect)
    return mounting.readable(_served(mount))


@contextlib.contextmanager
def _explaining(mount: FuseMount) -> Iterator[None]:
    """Turn what the kernel refuses into an error that says what would help."""
    try:
        yield
    except OSError as error:
        if isinstance(error, MountError):
            raise
        hint = {
            errno.ENOENT: "there is no /dev/fuse, or a layer is missing: try `modprobe fuse`",
            errno.ENODEV: "the kernel has no FUSE: try `modprobe fuse`",
            errno.EPERM: "mounting needs root, or CAP_SYS_ADMIN in a user and mount namespace of one's own",
            errno.EACCES: "/dev/fuse may not be opened",
        }.get(error.errno or 0)
        raise MountError(f"cannot mount {mount.source!r}: {error}", errno=error.errno, hint=hint) from error


@contextlib.contextmanager
def _opened(mount: FuseMount) -> Iterator[tuple[list[int], int | None]]:
    """Open the layers' directories, top first, and the work directory if there is one."""
    with contextlib.ExitStack() as opened:
        roots = []
        for directory in mount.lower if mount.upper is None else (mount.upper, *mount.lower):
            roots.append(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            opened.callback(os.close, roots[-1])
        work = None
        if mount.work is not None:
            work = _open_work(mount.work)
            opened.callback(os.close, work)
        yield roots, work


def _served(mount: FuseMount) -> int:
    """Make a detached mount, start its server, and give the mount's descriptor."""
    with _explaining(mount), _opened(mount) as (roots, work):
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        try:
            tree = _new_mount(mount, device)
            try:
                process.start(device, roots, work, dialect=mount.dialect)
            except BaseException:
                os.close(tree)
                raise
            _read_ahead(tree)
            return tree
        finally:
            os.close(device)


def _read_ahead(tree: int) -> None:
    """Let the kernel read as much ahead as one answer may hold, where there is the privilege to say so."""
    with contextlib.suppress(OSError):
        number = os.fstat(tree).st_dev
        place = Path(f"/sys/class/bdi/{os.major(number)}:{os.minor(number)}/read_ahead_kb")
        place.write_text(f"{_READ_AHEAD}\n")


def _open_work(directory: Path) -> int:
    """Open the directory in which copies are made, which lies in the work directory as overlayfs's does."""
    place = directory / "work"
    with contextlib.suppress(FileExistsError):
        os.mkdir(place, 0o700)
    return os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _new_mount(mount: FuseMount, device: int) -> int:
    context = linux.fsopen("fuse")
    try:
        options = (
            f"source={mount.source}", "subtype=layerfs", f"fd={device}", "rootmode=40000",
            f"user_id={os.geteuid()}", f"group_id={os.getegid()}", "allow_other", "default_permissions",
        )  # fmt: skip
        mounting.set_options(context, options if mount.upper is not None else ("ro", *options))
        linux.fsconfig_create(context)
        return linux.fsmount(context, linux.MOUNT_ATTR_RDONLY if mount.upper is None else 0)
    finally:
        os.close(context)
