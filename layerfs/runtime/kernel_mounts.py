"""A container's /proc, /sys and /dev, with docker's options, masks and devices (moby, oci/defaults.go)."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from layerfs import linux
from layerfs.errors import ProcessError
from layerfs.runtime import mounts
from layerfs.runtime.mounts import NODEV, NOEXEC, NOSUID, RDONLY

_MASKED: Final = (
    b"asound", b"acpi", b"interrupts", b"kcore", b"keys", b"latency_stats", b"timer_list", b"timer_stats",
    b"sched_debug", b"scsi",
)  # fmt: skip
_READ_ONLY: Final = (b"bus", b"fs", b"irq", b"sys", b"sysrq-trigger")
_MASKED_SYS: Final = (b"firmware", b"devices/virtual/powercap")

_DEVICES: Final = {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}  # minors of major 1
_TTY: Final = (5, 0)
_LINKS: Final = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}


def mount_proc(target: int) -> int:
    """Mount the /proc of our own PID namespace, dangerous parts hidden; give a descriptor of its root.

    Args:
        target: an open directory; the descriptor is not closed.

    Raises:
        ProcessError: the kernel refuses a new /proc, since ours is itself only partly visible.
    """
    try:
        proc = mounts.new("proc", attributes=NOSUID | NODEV | NOEXEC)
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        raise ProcessError(
            f"cannot mount /proc: {error.strerror}",
            hint="inside another container, that one needs an unmasked /proc",
        ) from error
    mounts.attach(proc, target)
    return proc


def protect_proc(proc: int, *, empty: int, null: int) -> None:
    """Hide and write-protect what docker hides: the whole machine's, not the container's.

    Args:
        empty: descriptor of an empty directory, `null`: one of the null device.
    """
    for name in _READ_ONLY:
        try:
            # A bind mount of the very thing upon itself, then read-only.
            tree = mounts.clone(proc, name, attributes=RDONLY | NOSUID | NODEV | NOEXEC)
        except OSError as error:
            if not mounts.is_missing(error):
                raise
            continue
        mounts.put(tree, proc, name)
    _mask(proc, _MASKED, empty=empty, null=null)


def _mask(directory: int, names: tuple[bytes, ...], *, empty: int, null: int) -> None:
    for name in names:
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            continue
        if stat.S_ISDIR(status.st_mode):
            cover = mounts.clone(empty, b"", attributes=RDONLY)
        else:
            cover = mounts.clone(null, b"")
        mounts.put(cover, directory, name)


def mount_sys(target: int, *, empty: int, null: int) -> None:
    """Mount /sys read-only: that of our network namespace where allowed, else the host's."""
    attributes = RDONLY | NOSUID | NODEV | NOEXEC
    try:
        tree = mounts.new("sysfs", attributes=attributes)
    except OSError as error:
        # A user namespace may mount sysfs only for a network namespace that it owns.
        if error.errno not in (errno.EPERM, errno.ENODEV):
            raise
        try:
            tree = mounts.clone(linux.AT_FDCWD, b"/sys", attributes=attributes, recursive=True)
        except FileNotFoundError:
            return
    try:
        mounts.attach(tree, target)
        _mask(tree, _MASKED_SYS, empty=empty, null=null)
    finally:
        os.close(tree)


def mount_dev(target: int) -> int:
    """Mount a new /dev with docker's devices, links and file systems; give a descriptor of its root.

    Only these devices can be opened: there is no device cgroup to keep the container from making others.

    Args:
        target: an open directory; the descriptor is not closed.
    """
    tree = mounts.new("tmpfs", ("mode=755", "size=65536k"), attributes=NOSUID)
    mounts.attach(tree, target)
    for name, minor in _DEVICES.items():
        _make_device(tree, name, os.makedev(1, minor))
    _make_device(tree, "tty", os.makedev(*_TTY))
    mounts.restrict(tree, NODEV)
    for name, link in _LINKS.items():
        os.symlink(link, name, dir_fd=tree)
    for name in ("pts", "shm", "mqueue"):
        os.mkdir(name, 0o755, dir_fd=tree)
    quiet = NOSUID | NOEXEC
    mounts.put(_new_devpts(quiet), tree, "pts")
    shm = mounts.new("tmpfs", ("mode=1777", "size=65536k"), source="shm", attributes=quiet | NODEV)
    mounts.put(shm, tree, "shm")
    try:
        queue = mounts.new("mqueue", attributes=quiet | NODEV)
    except OSError as error:
        if error.errno != errno.ENODEV:  # a kernel without POSIX message queues
            raise
    else:
        mounts.put(queue, tree, "mqueue")
    return tree


def _new_devpts(attributes: int) -> int:
    options = ("newinstance", "ptmxmode=0666", "mode=0620")
    try:
        return mounts.new("devpts", (*options, "gid=5"), attributes=attributes)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return mounts.new("devpts", options, attributes=attributes)  # group 5 is not mapped here


def _make_device(dev: int, name: str, device: int) -> None:
    """Make a device that works where no other does: a mount of its own, so that /dev itself can be nodev."""
    try:
        os.mknod(name, stat.S_IFCHR | 0o666, device, dir_fd=dev)
        os.chmod(name, 0o666, dir_fd=dev)
        node = mounts.clone(dev, name)
    except PermissionError:
        # In a user namespace nobody makes devices: the host's own appears instead.
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=dev))
        node = mounts.clone(linux.AT_FDCWD, f"/dev/{name}")
    mounts.put(node, dev, name)
