"""A union as a mount: data first, and how it is made real, with a server process that is left behind.

Three ways to mount, each taken when the one before it is not to be had: the new mount API (fsopen(2)),
mount(2), and fusermount3(1) for users who may do neither.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from layerfs import fusermount, linux, mounting
from layerfs.driver import Bodies
from layerfs.errors import MountError, UnsupportedError
from layerfs.mount import Mount
from layerfs.value import frozen, replace
from layerfs_fuse import process
from layerfs_fuse.dialect import Dialect
from layerfs_fuse.kernel_device import opened_device
from layerfs_fuse.lowers import reached
from layerfs_fuse.options import Options, map_of_namespace
from layerfs_fuse.overlay_dialect import OverlayDialect

if TYPE_CHECKING:
    from layerfs.outside import Outside

Front = Literal["kernel", "fusepy"]

# What says that there is no fsopen(2) for us: an old kernel, a filter of system calls, no privilege.
_NO_FSOPEN: Final = (errno.ENOSYS, errno.EPERM)


# KiB; as much as `protocol.MAX_WRITE`.
_READ_AHEAD: Final = 1024


@frozen
class FuseMount(Mount):
    """Layers merged by a server of our own; the first fields are those of `layerfs.mount.Overlay`.

    `front` says which of the two ways the server speaks with the kernel: the protocol itself, or libfuse 2.
    The other fields are for the first way: `log` is where the server writes down errors of its own, `bodies`
    gets what files of lower layers lack of their data.
    """

    lower: tuple[Path, ...]
    upper: Path | None
    work: Path | None
    dialect: Dialect = OverlayDialect()
    front: Front = "kernel"
    options: Options = Options()
    log: Path | None = None
    bodies: Bodies | None = None


@mounting.attach.register(FuseMount)
def _attach(mount: FuseMount, target: Path | int) -> None:
    if mount.front == "fusepy":
        from layerfs_fuse import libfuse

        if isinstance(target, Path):
            libfuse.directory(target)
        with _explained(mount), _Parts(mount) as parts:
            libfuse.attach(target, parts.roots, parts.work, source=mount.source, dialect=mount.dialect)
        return
    try:
        tree = _detached(mount)
    except UnsupportedError:
        _attach_at_once(mount, target)
        return
    mounting.attach_tree(tree, target)


@mounting.open_mount.register(FuseMount)
def _open(mount: FuseMount) -> int:
    if mount.front == "fusepy":
        from layerfs_fuse import libfuse

        with _explained(mount), _Parts(mount) as parts:
            return libfuse.open_mount(parts.roots, parts.work, source=mount.source, dialect=mount.dialect)
    try:
        return mounting.readable(_detached(mount))
    except UnsupportedError:
        import tempfile

        with tempfile.TemporaryDirectory(prefix="layerfs-") as directory:
            _attach_at_once(mount, Path(directory))
            try:
                return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            finally:
                mounting.detach(Path(directory), lazy=True)


@mounting.detached.register(FuseMount)
def _detached(mount: FuseMount) -> int:
    """Make the mount with the new API, and start its server.

    Raises:
        UnsupportedError: that cannot be had here.
    """
    if mount.front == "fusepy":
        raise UnsupportedError("libfuse attaches what it mounts")
    with _explained(mount), opened_device() as device, _Parts(mount) as parts:
        try:
            context = linux.fsopen("fuse")
        except OSError as error:
            if error.errno in _NO_FSOPEN:
                raise UnsupportedError("no fsopen(2)", errno=error.errno) from error
            raise
        try:
            options = ("ro", *_options(device)) if mount.upper is None else _options(device)
            mounting.set_options(context, (f"source={mount.source}", "subtype=layerfs", *options))
            linux.fsconfig_create(context)
            tree = linux.fsmount(context, linux.MOUNT_ATTR_RDONLY if mount.upper is None else 0)
        finally:
            os.close(context)
        try:
            parts.serve(device)
        except BaseException:
            os.close(tree)
            raise
    # Not before the device is closed here too: with it open, what asks a server that died waits for ever.
    _read_ahead(tree)
    return tree


def _attach_at_once(mount: FuseMount, target: Path | int) -> None:
    """Mount with mount(2), or as an ordinary user does."""
    place = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else str(target)
    flags = linux.MS_RDONLY if mount.upper is None else 0
    with _explained(mount):
        try:
            with opened_device() as device, _Parts(mount) as parts:
                linux.mount(mount.source, place, "fuse.layerfs", flags, ",".join(_options(device)))
                with _undone(place):
                    parts.serve(device, attached=True)
                    linux.mount("none", place, None, linux.MS_PRIVATE)
        except OSError as error:
            # In a user namespace fusermount3 would not be setuid.
            if error.errno != errno.EPERM or os.geteuid() == 0:
                raise
        else:
            return
    with _explained(mount):
        device = fusermount.mount(place, _words(mount, ()))
        try:
            with _undone(place):
                serve(device, mount)
        finally:
            os.close(device)


def _read_ahead(tree: int) -> None:
    """Let the kernel read as much ahead as one answer may hold, where there is the privilege to say so."""
    with contextlib.suppress(OSError):
        number = os.fstat(tree).st_dev
        place = Path(f"/sys/class/bdi/{os.major(number)}:{os.minor(number)}/read_ahead_kb")
        place.write_text(f"{_READ_AHEAD}\n")


@mounting.attach_outside.register(FuseMount)
def _attach_outside(mount: FuseMount, target: Path, outside: Outside, options: Sequence[str]) -> None:
    """Mount as an ordinary user does, for whom ids are others than in here."""
    chosen = mount.options
    if chosen.uids is None:
        chosen = replace(chosen, uids=map_of_namespace("/proc/self/uid_map"))
    if chosen.gids is None:
        chosen = replace(chosen, gids=map_of_namespace("/proc/self/gid_map"))
    mount = replace(mount, options=chosen)
    with _explained(mount):
        outside.mount(str(target), _words(mount, options), serve, mount)


def serve(device: int, mount: FuseMount) -> None:
    """Start the server of a mount that is made; it has what it needs when this returns.

    Raises:
        OSError: it could not start, or a layer is missing.
    """
    with _Parts(mount) as parts:
        parts.serve(device, attached=True)


def _words(mount: FuseMount, options: Sequence[str]) -> list[str]:
    """Give the options for fusermount3(1)."""
    words = [f"fsname={mount.source}", "subtype=layerfs", "default_permissions"]
    words += [word for word in options if word not in ("defaults", "ro")]
    words += ["ro"] if mount.upper is None else []
    return [*words, "allow_other"] if mount.options.allow_other else words


@contextlib.contextmanager
def _undone(target: str) -> Iterator[None]:
    """Take the mount at `target` away again when the block fails."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(MountError):
            mounting.detach(Path(target), lazy=True)
        raise


def _options(device: int) -> tuple[str, ...]:
    return (
        f"fd={device}", "rootmode=40000", f"user_id={os.geteuid()}", f"group_id={os.getegid()}",
        "allow_other", "default_permissions",
    )  # fmt: skip


class _Parts:
    """What the server of a mount needs, open for the length of a `with`."""

    def __init__(self, mount: FuseMount) -> None:
        self._mount = mount
        self._opened = contextlib.ExitStack()
        self.roots: list[int] = []
        self.work: int | None = None
        self._log: int | None = None
        self._lazy: dict[int, int] = {}

    def __enter__(self) -> _Parts:
        mount = self._mount
        with contextlib.ExitStack() as opened, reached(mount.lower) as lowers:
            opened.enter_context(_room_for(1 + len(mount.lower)))
            if mount.upper is not None:
                self.roots.append(_open_directory(mount.upper, opened))
            numbers = {} if mount.bodies is None else mount.bodies.layers
            for directory in mount.lower:
                number = numbers.get(directory.parent.name)
                if number is None:
                    self.roots.append(lowers.open(directory))
                    opened.callback(os.close, self.roots[-1])
                else:
                    self._lazy[len(self.roots)] = number
                    # Their files are written when the data comes.
                    self.roots.append(_open_directory(directory, opened))
            if mount.work is not None:
                # Copies are made in a directory of the work directory's, as overlayfs does.
                with contextlib.suppress(FileExistsError):
                    os.mkdir(mount.work / "work", 0o700)
                self.work = _open_directory(mount.work / "work", opened)
            if mount.log is not None:
                self._log = _open_directory(mount.log.parent, opened)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def serve(self, device: int, *, attached: bool = False) -> None:
        """Start the server; it has what it needs when this returns. The mount may be `attached` already."""
        mount = self._mount
        log = None if self._log is None or mount.log is None else process.Log(self._log, mount.log.name)
        process.start(
            device, self.roots, self.work, dialect=mount.dialect, options=mount.options, log=log,
            bodies=mount.bodies, lazy=self._lazy, attached=attached,
        )  # fmt: skip


def _open_directory(directory: Path, opened: contextlib.ExitStack) -> int:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    opened.callback(os.close, descriptor)
    return descriptor


@contextlib.contextmanager
def _room_for(descriptors: int) -> Iterator[None]:
    """Let this process have as many files open as it ever may, while it opens those of many layers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def _explained(mount: FuseMount) -> Iterator[None]:
    """Turn what the system refuses into a MountError with advice."""
    try:
        yield
    except MountError:
        raise
    except OSError as error:
        hint = {
            errno.ENODEV: "the kernel has no FUSE: try `modprobe fuse`",
            errno.EPERM: "mounting needs root, or CAP_SYS_ADMIN in a user and mount namespace of one's own",
            errno.EMFILE: "there are more layers than files that a process may have open: see `ulimit -Hn`",
            errno.ENOSPC: "the mount namespace is full: see /proc/sys/fs/mount-max",
        }.get(error.errno or 0)
        raise MountError(f"cannot mount {mount.source!r}: {error}", errno=error.errno, hint=hint) from error
