"""A mount of the kernel's aufs: data first, and how it is made real (aufs(5), "Mount Options").

Aufs takes its branches in the option string, of which mount(2) passes one page; what does not fit is
appended by remounts. All of it happens at a scratch place, so that the target shows the whole tree at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from layerfs import linux, mounting
from layerfs.errors import MountError
from layerfs.mount import Mount
from layerfs.value import frozen

# AUFS_BRANCH_MAX as aufs is configured by default.
MOST_BRANCHES: Final = 127
# mount(2) takes one page for all options, its final NUL included.
_PAGE: Final = 4096
_LONGEST_NAME: Final = 1024
# Inode numbers are kept in a file that aufs unlinks at once; it cannot lie in a branch.
_NUMBERS: Final = b"/dev/shm"


@frozen
class AufsMount(Mount):
    """Branches merged by the kernel's aufs, top first; only the first one can be `writable`."""

    branches: tuple[Path, ...]
    writable: bool


def option_strings(
    branches: Sequence[bytes], *, writable: bool, numbers: bytes, page: int = _PAGE
) -> list[bytes]:
    """Give the option strings of a mount: the first for mount(2), the others for remounts in this order.

    Args:
        branches: the directories, top first; none holds a comma, a colon or an equals sign.
        writable: whether the first one is written.
        numbers: a path at which aufs can make the file of its inode numbers.
        page: how many bytes a string may have, its final NUL included; enough for each branch alone.
    """
    # Read-only branches can hold whiteouts (+wh); dirperm1: the topmost directory alone says who may enter.
    described = [branch + b"=ro+wh" for branch in branches]
    if writable:
        described[0] = branches[0] + b"=rw"
    tail = b",dio,dirperm1,xino=" + numbers
    first = b"br:" + described[0]
    todo = iter(described[1:])
    rest: list[bytes] = []
    for each in todo:
        if len(first) + 1 + len(each) + len(tail) >= page:
            rest = [each, *todo]
            break
        first += b":" + each
    strings = [first + tail]
    current = b""
    for each in rest:
        append = b"append:" + each
        if current and len(current) + 1 + len(append) >= page:
            strings.append(current)
            current = b""
        current += b"," + append if current else append
    return [*strings, current] if current else strings


@mounting.attach.register(AufsMount)
def _attach(mount: AufsMount, target: Path | int) -> None:
    mounting.attach_tree(_mounted(mount), target)


@mounting.open_mount.register(AufsMount)
def _open(mount: AufsMount) -> int:
    return mounting.readable(_mounted(mount))


def _mounted(mount: AufsMount) -> int:
    """Make a detached mount and give its descriptor."""
    try:
        with contextlib.ExitStack() as opened, _scratch() as place:
            names = [_name(branch, opened) for branch in mount.branches]
            numbers = b"%s/%s-%s.xino" % (_NUMBERS, mount.source.encode(), os.urandom(8).hex().encode())
            first, *rest = option_strings(names, writable=mount.writable, numbers=numbers)
            flags = 0 if mount.writable else linux.MS_RDONLY
            linux.mount(mount.source, place, "aufs", flags, first)
            try:
                for options in rest:
                    linux.mount(mount.source, place, "aufs", flags | linux.MS_REMOUNT, options)
                return linux.open_tree(linux.AT_FDCWD, place, linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC)
            finally:
                linux.umount(place, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)
    except OSError as error:
        if isinstance(error, MountError):
            raise
        hint = {
            errno.ENODEV: "the kernel has no aufs: try `modprobe aufs`",
            errno.EPERM: "mounting aufs needs root outside of user namespaces",
        }.get(error.errno or 0)
        raise MountError(
            f"cannot mount aufs {mount.source!r}: {error.strerror}", errno=error.errno, hint=hint
        ) from error


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """Give an empty directory for the length of a block."""
    with tempfile.TemporaryDirectory(prefix="layerfs-") as directory:
        yield Path(directory)


def _name(branch: Path, opened: contextlib.ExitStack) -> bytes:
    """Give a branch's path; one that the option string cannot hold is named by descriptor."""
    name = os.fsencode(branch)
    if len(name) <= _LONGEST_NAME and not any(c in name for c in b":,=\\"):
        return name
    descriptor = os.open(branch, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    opened.callback(os.close, descriptor)
    return b"/proc/self/fd/%d" % descriptor


def _flush(target: Path) -> None:
    """Make hard links of aufs's pseudo links, which end with the mount (auplink(8)).

    Without aufs's own tools the names of such a file are files apart at the next mount.
    """
    if program := shutil.which("auplink"):
        subprocess.run([program, target, "flush"], check=False, capture_output=True)


mounting.flushes["aufs"] = _flush
