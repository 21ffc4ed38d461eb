"""Makes mounts described as data real, and takes them away: the only place that attaches and detaches.

A driver with mounts of another sort registers them: ``attach.register`` and ``open_mount.register``
take a function of the driver's own `Mount` class (functools.singledispatch), `flushes` one that is called
before an unmount.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from layerfs import failpoints, linux
from layerfs.errors import InUseError, MountError, UnsupportedError
from layerfs.mount import Bind, Mount, Overlay, Restricted
from layerfs.value import frozen

if TYPE_CHECKING:
    from layerfs.outside import Outside

# fsconfig(2): a string value holds at most 255 bytes; longer paths go by descriptor.
_STRING_MAXIMUM: Final = 255
# mount(2) takes one page for all options, its final NUL included.
_PAGE: Final = 4096
_TABLE_AT_ONCE: Final = 1 << 18
# How long to wait, in seconds, each time that a mount to be taken away is in use.
_PATIENCE: Final = (0.01, 0.04, 0.15, 0.3)


# What a file system of a type wants done before it is unmounted; a driver with such mounts adds it here.
flushes: Final[dict[str, Callable[[Path], None]]] = {}


@functools.singledispatch
def attach(mount: Mount, target: Path | int) -> None:
    """Mount at `target`, an existing directory given as a path or an open descriptor.

    The mount is private: what is mounted below it later does not propagate.

    Raises:
        MountError: the kernel refused; the message carries the kernel's own words where it gives any.
        FileNotFoundError, NotADirectoryError: there is no such directory.
    """
    raise TypeError(f"no way to attach a {type(mount).__name__} is registered")


@functools.singledispatch
def open_mount(mount: Mount) -> int:
    """Open the root directory of a private mount that is attached nowhere; closing the descriptor ends it.

    The descriptor is open for reading (listing, extended attributes, openat(2)). Without the privilege to
    mount, a `Bind` is opened as a plain directory: nothing then enforces `read_only` but the caller.

    Raises:
        MountError: the kernel refused.
    """
    raise TypeError(f"no way to open a {type(mount).__name__} is registered")


@functools.singledispatch
def detached(mount: Mount) -> int:
    """Give the O_PATH descriptor of a mount that is attached nowhere, for `attach_tree`.

    Raises:
        UnsupportedError: a mount of this class, or on this kernel, can only be attached at once.
        MountError: the kernel refused.
    """
    raise UnsupportedError(f"a {type(mount).__name__} cannot be made before it is attached")


@functools.singledispatch
def attach_outside(mount: Mount, target: Path, outside: Outside, options: Sequence[str]) -> None:
    """Mount at `target` outside of our user namespace, where this user sees it; `options` as after -o.

    Raises:
        UnsupportedError: a mount of this class cannot be made there.
        MountError: it was refused.
    """
    raise UnsupportedError(
        "what an ordinary user mounts with this driver is seen only inside the process that mounted it",
        hint="use --driver fuse (`layerfs convert --to fuse` moves a container), or mount it in a shell of"
        " `layerfs unshare`, or with --foreground, which"
        " tells how to enter, or `layerfs run`",
    )


@attach.register(Restricted)
def _attach_restricted(mount: Restricted, target: Path | int) -> None:
    """Change the attributes before anybody can see the mount, where its class allows that."""
    try:
        tree = detached(mount.mount)
    except UnsupportedError:
        attach(mount.mount, target)
        with _topmost(target) as place:
            _restrict(place, mount)
        return
    try:
        _restrict(tree, mount)
    except BaseException:
        os.close(tree)
        raise
    attach_tree(tree, target)


def _restrict(tree: int, mount: Restricted) -> None:
    try:
        linux.mount_setattr(
            tree, b"", linux.AT_EMPTY_PATH, set_attributes=mount.added, clear_attributes=mount.cleared
        )
    except OSError as error:
        raise _refused(f"cannot set the options of {mount.source!r}", error) from error


@contextlib.contextmanager
def _topmost(target: Path | int) -> Iterator[int]:
    """Open what is mounted at a place now; a descriptor from before would lead beneath it."""
    path = _shown(target)
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@attach.register(Bind)
def _attach_bind(mount: Bind, target: Path | int) -> None:
    attach_tree(_detached_bind(mount), target)


@detached.register(Bind)
def _detached_bind(mount: Bind) -> int:
    try:
        return _clone_bind(mount)
    except OSError as error:
        raise _refused(f"cannot bind {mount.directory}", error) from error


@open_mount.register(Bind)
def _open_bind(mount: Bind) -> int:
    try:
        tree = _clone_bind(mount)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOSYS):
            return os.open(mount.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        raise _refused(f"cannot bind {mount.directory}", error) from error
    return readable(tree)


@detached.register(Overlay)
def _detached_overlay(mount: Overlay) -> int:
    return _new_overlay(mount)


@attach.register(Overlay)
def _attach_overlay(mount: Overlay, target: Path | int) -> None:
    try:
        tree = _new_overlay(mount)
    except UnsupportedError:
        _classic_overlay(mount, target)
        return
    attach_tree(tree, target)


@open_mount.register(Overlay)
def _open_overlay(mount: Overlay) -> int:
    try:
        return readable(_new_overlay(mount))
    except UnsupportedError:
        import tempfile

        with tempfile.TemporaryDirectory(prefix="layerfs-") as directory:
            _classic_overlay(mount, Path(directory))
            try:
                return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            finally:
                linux.umount(directory, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)


def _clone_bind(mount: Bind) -> int:
    """Give the descriptor of a detached mount of the directory, without what is mounted below it."""
    tree = linux.open_tree(
        linux.AT_FDCWD,
        mount.directory,
        linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | linux.AT_SYMLINK_NOFOLLOW,
    )
    if mount.read_only:
        try:
            linux.mount_setattr(tree, b"", linux.AT_EMPTY_PATH, set_attributes=linux.MOUNT_ATTR_RDONLY)
        except OSError:
            os.close(tree)
            raise
    return tree


def readable(tree: int) -> int:
    """Turn the O_PATH descriptor of a detached mount into one open for reading.

    Closing the first takes the mount out of reach; the second keeps it alive until it is closed.
    """
    try:
        return os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree)
    finally:
        os.close(tree)


def attach_tree(tree: int, target: Path | int) -> None:
    """Attach a detached mount, and close its descriptor."""
    try:
        failpoints.reach("mount.made")
        with _target(target) as directory:
            try:
                linux.move_mount(
                    tree,
                    b"",
                    directory,
                    b"",
                    linux.MOVE_MOUNT_F_EMPTY_PATH | linux.MOVE_MOUNT_T_EMPTY_PATH,
                )
            except OSError as error:
                raise _refused(f"cannot attach a mount at {_shown(target)}", error) from error
        try:
            failpoints.reach("mount.attached")
            # Attaching below a shared mount has made this one shared too.
            linux.mount_setattr(tree, b"", linux.AT_EMPTY_PATH, propagation=linux.MS_PRIVATE)
        except BaseException:
            # Nobody takes away what he was told has failed.
            linux.umount(f"/proc/self/fd/{tree}", linux.MNT_DETACH)
            raise
    finally:
        os.close(tree)


@contextlib.contextmanager
def _target(target: Path | int) -> Iterator[int]:
    if isinstance(target, int):
        yield target
        return
    descriptor = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _shown(target: Path | int) -> str:
    return os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else str(target)


def _new_overlay(mount: Overlay) -> int:
    """Make a detached overlay with the new mount API and give its descriptor.

    Raises:
        UnsupportedError: the kernel lacks the API, or the parameter ``lowerdir+`` (Linux 6.7).
        MountError: any other refusal.
    """
    try:
        context = linux.fsopen("overlay")
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            raise UnsupportedError("no fsopen(2)", errno=error.errno) from error
        raise _refused("cannot open the overlay file system", error) from error
    try:
        linux.fsconfig_set_string(context, "source", mount.source)
        for number, lower in enumerate(mount.lower):
            try:
                _set_directory(context, "lowerdir+", lower)
            except OSError as error:
                if number == 0 and error.errno == errno.EINVAL and "Unknown" in _kernel_words(context):
                    raise UnsupportedError("overlay has no lowerdir+", errno=error.errno) from error
                raise
        if mount.upper is not None and mount.work is not None:
            _set_directory(context, "upperdir", mount.upper)
            _set_directory(context, "workdir", mount.work)
        set_options(context, mount.options)
        linux.fsconfig_create(context)
        tree = linux.fsmount(context, linux.MOUNT_ATTR_RDONLY if mount.upper is None else 0)
        if mount.upper is not None and os.fstatvfs(tree).f_flag & os.ST_RDONLY:
            os.close(tree)
            # Where overlayfs cannot make its work directory it goes on without a word, and without writing.
            raise MountError(
                f"cannot mount overlay {mount.source!r} writable",
                errno=errno.EROFS,
                hint="the file system of the store is full, or read-only",
            )
        return tree
    except MountError:
        raise
    except OSError as error:
        raise _refused(f"cannot mount overlay {mount.source!r}", error, _kernel_words(context)) from error
    finally:
        os.close(context)


def set_options(context: int, options: Iterable[str]) -> None:
    """Give options, each ``name=value`` or a flag's name, to a file system context (fsopen(2))."""
    for option in options:
        key, equals, value = option.partition("=")
        if equals:
            linux.fsconfig_set_string(context, key, value)
        else:
            linux.fsconfig_set_flag(context, key)


def _set_directory(context: int, key: str, directory: Path | str) -> None:
    name = os.fsencode(directory)
    # Some of the parameters resolve backslashes, others do not.
    if len(name) <= _STRING_MAXIMUM and b"\\" not in name:
        linux.fsconfig_set_string(context, key, name)
        return
    descriptor = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        linux.fsconfig_set_fd(context, key, descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # Before Linux 6.13 overlay takes no descriptors.
        linux.fsconfig_set_string(context, key, f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _kernel_words(context: int) -> str:
    """Read the messages that the kernel left on a file-system context (fsopen(2)), "" when there are none."""
    words: list[str] = []
    while True:
        try:
            message = os.read(context, _PAGE)
        except OSError:  # ENODATA: no more
            return "; ".join(words)
        words.append(message.decode("utf-8", "backslashreplace").removeprefix("e ").strip())


def _classic_overlay(mount: Overlay, target: Path | int) -> None:
    """Mount with mount(2), for kernels without the new API.

    All options must fit into one page, so paths go as descriptors (/proc/self/fd/N) when they are too
    many or hold characters that the option string gives a meaning.
    """
    with contextlib.ExitStack() as opened:
        directories = [*mount.lower, *(d for d in (mount.upper, mount.work) if d is not None)]
        names = [os.fsencode(directory) for directory in directories]
        if sum(map(len, names)) > _PAGE // 2 or any(c in name for name in names for c in b":,\\="):
            names = []
            for directory in directories:
                descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                opened.callback(os.close, descriptor)
                names.append(b"/proc/self/fd/%d" % descriptor)
        options = [b"lowerdir=" + b":".join(names[: len(mount.lower)])]
        if mount.upper is not None and mount.work is not None:
            options += [b"upperdir=" + names[-2], b"workdir=" + names[-1]]
        options += map(os.fsencode, mount.options)
        data = b",".join(options)
        if len(data) >= _PAGE:
            raise MountError(
                f"cannot mount overlay {mount.source!r}: {len(mount.lower)} layers do not fit "
                "into the options of mount(2)",
                errno=errno.E2BIG,
                hint="Linux 6.7 and later have no such limit",
            )
        at = f"/proc/self/fd/{opened.enter_context(_target(target))}"
        try:
            linux.mount(mount.source, at, "overlay", linux.MS_RDONLY if mount.upper is None else 0, data)
        except OSError as error:
            raise _refused(f"cannot mount overlay {mount.source!r} at {_shown(target)}", error) from error
    if isinstance(target, Path):
        linux.mount("none", target, None, linux.MS_PRIVATE)


def _refused(what: str, error: OSError, words: str = "") -> MountError:
    hint = {
        errno.EPERM: "mounting needs root, or CAP_SYS_ADMIN in a user and mount namespace of one's own",
        errno.ENODEV: "the kernel has no overlayfs: try `modprobe overlay`",
        errno.ENOSPC: "the mount namespace is full: see /proc/sys/fs/mount-max",
    }.get(error.errno or 0)
    return MountError(f"{what}: {words or error.strerror}", errno=error.errno, hint=hint)


def _umount(target: Path, flags: int) -> None:
    """Unmount, with a little patience: what a process has just closed may be in use for a moment longer."""
    for wait in _PATIENCE:
        try:
            linux.umount(target, flags)
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        time.sleep(wait)
    linux.umount(target, flags)


def detach(target: Path, *, lazy: bool = False) -> None:
    """Unmount what is mounted topmost at `target`, which is not followed if it is a symlink.

    With `lazy` (MNT_DETACH) the mount leaves the tree at once and ends with its last user.

    Raises:
        InUseError: a process still uses the mount.
        MountError: nothing is mounted there (errno EINVAL), or the kernel refused.
    """
    if flushes and not lazy and (found := mounted(target)) and (flush := flushes.get(found.fstype)):
        flush(target)
    try:
        _umount(target, linux.UMOUNT_NOFOLLOW | (linux.MNT_DETACH if lazy else 0))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise InUseError(
                f"{target} is in use", hint=f"`fuser -vm {target}` shows by which processes"
            ) from error
        if error.errno == errno.EINVAL:
            raise MountError(f"{target} is not a mount", errno=error.errno) from error
        if error.errno == errno.EPERM and os.geteuid() != 0:
            from layerfs import fusermount

            fusermount.unmount(str(target), lazy=lazy)
            return
        raise _refused(f"cannot unmount {target}", error) from error


@frozen
class MountInfo:
    """One line of /proc/self/mountinfo (proc_pid_mountinfo(5)); paths are raw bytes, escapes resolved."""

    id: int
    parent: int
    root: bytes
    target: bytes
    options: tuple[str, ...]
    fstype: str
    source: str
    super_options: tuple[str, ...]


def mount_table(pid: int | str = "self") -> list[MountInfo]:
    """Read the mounts of a process's mount namespace, our own by default, in the order of attaching."""
    table = os.open(f"/proc/{pid}/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return parse_table(table)
    finally:
        os.close(table)


def parse_table(table: int) -> list[MountInfo]:
    """Read an open /proc/PID/mountinfo from its beginning; its namespace is that of when it was opened."""
    return [_parse_line(line) for line in _lines(table)]


def _mounts_with(path: bytes) -> list[MountInfo]:
    """Read the mounts of our mount namespace in whose lines a path stands: most lines need not be parsed."""
    # Not every kernel escapes "#".
    text = b" " + _escape(path.partition(b"#")[0])
    table = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return [_parse_line(line) for line in _lines(table) if text in line]
    finally:
        os.close(table)


def _lines(table: int) -> list[bytes]:
    os.lseek(table, 0, os.SEEK_SET)
    text = b""
    while part := os.read(table, _TABLE_AT_ONCE):
        text += part
    return text.splitlines()


def _parse_line(line: bytes) -> MountInfo:
    # "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue"
    front, _, back = line.partition(b" - ")
    identity, parent, _, root, target, options, *_ = front.split(b" ")
    fstype, source, super_options = back.split(b" ", 2)
    return MountInfo(
        int(identity),
        int(parent),
        _unescape(root),
        _unescape(target),
        tuple(os.fsdecode(options).split(",")),
        os.fsdecode(_unescape(fstype)),
        os.fsdecode(_unescape(source)),
        tuple(os.fsdecode(super_options).split(",")),
    )


def _escape(field: bytes) -> bytes:
    """Write a path as the table does."""
    for character in b"\\ \t\n":
        field = field.replace(b"%c" % character, b"\\%03o" % character)
    return field


def _unescape(field: bytes) -> bytes:
    """Resolve the octal escapes of blank, tab, newline, ``#`` and backslash."""
    if b"\\" not in field:
        return field
    first, *rest = field.split(b"\\")
    return first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)


def mounted(target: Path) -> MountInfo | None:
    """Find what is mounted topmost at a path; None when nothing is mounted right there."""
    place = os.fsencode(os.path.realpath(target))
    found = None
    for info in _mounts_with(place):
        if info.target == place:
            found = info
    return found


def is_dead(place: Path | bytes | int) -> bool:
    """Say whether the process that served a mounted file system is gone; waits for a living one's answer."""
    try:
        # The one question that no cache of the kernel answers.
        os.statvfs(place)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def mounts_below(path: Path) -> list[MountInfo]:
    """List the mounts at a path and beneath it, in the order in which they were attached."""
    place = os.fsencode(os.path.realpath(path))
    beneath = place.rstrip(b"/") + b"/"
    return [info for info in _mounts_with(place) if info.target == place or info.target.startswith(beneath)]


def file_system_of(path: Path) -> str:
    """Say on what a path lies: ``ext4 on /dev/sda1``."""
    place = os.fsencode(os.path.realpath(path))
    best = None
    for info in mount_table():
        beneath = info.target.rstrip(b"/") + b"/"
        # Of several at one place the last is on top.
        if (place + b"/").startswith(beneath) and (best is None or len(info.target) >= len(best.target)):
            best = info
    return "unknown" if best is None else f"{best.fstype} on {best.source}"
