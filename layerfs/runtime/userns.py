"""Gives an ordinary user the privileges to mount and run, inside a user namespace (user_namespaces(7))."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import shutil
from typing import Final, NamedTuple

from layerfs import linux
from layerfs.errors import UnsupportedError

_FILE_MAXIMUM: Final = 1 << 20


class IdRange(NamedTuple):
    """`size` ids of the host from `start` on that a user may map (subuid(5))."""

    start: int
    size: int


def enter() -> bool:
    """Make this process root of a new user namespace, with a mount namespace of its own.

    Id 0 is the caller; the ids from 1 on are those that /etc/subuid and /etc/subgid give to him, as far as
    newuidmap(1) and newgidmap(1) are installed. For processes with one thread, before anything is open
    that counts on the host's ids.

    Returns:
        True when more than the one id is mapped: only then files of several owners can be made.

    Raises:
        UnsupportedError: the kernel allows no user namespaces here, or the process has several threads.
    """
    uid, gid = os.geteuid(), os.getegid()
    users, groups = _ranges("/etc/subuid", uid), _ranges("/etc/subgid", uid)
    tools = shutil.which("newuidmap"), shutil.which("newgidmap")
    helper = None
    if users and groups and tools[0] and tools[1]:
        target = os.getpid()
        helper = _Helper(
            [
                [tools[0], str(target), *_mapping(uid, users)],
                [tools[1], str(target), *_mapping(gid, groups)],
            ]
        )
    try:
        linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
    except OSError as error:
        if helper is not None:
            helper.finish(go=False)
        raise _refused(error) from error
    mapped = helper is not None and helper.finish(go=True)
    if not mapped:
        # A process may always map itself, and nobody else (user_namespaces(7)).
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"0 {uid} 1")
        _write("/proc/self/gid_map", f"0 {gid} 1")
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    if mapped:
        os.setgroups([])
    # What the host mounts later shall appear here, nothing of ours there.
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_SLAVE)
    return mapped


class _Helper:
    """A child that stays outside of the namespace, where the setuid tools have their power."""

    def __init__(self, commands: list[list[str]]) -> None:
        read, self._write = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                os.close(self._write)
                if os.read(read, 1):
                    codes = [os.spawnv(os.P_WAIT, command[0], command) for command in commands]
                    status = int(any(codes))
            finally:
                os._exit(status)
        os.close(read)

    def finish(self, *, go: bool) -> bool:
        """Let it do its work, or not; say whether it succeeded."""
        if go:
            os.write(self._write, b"g")
        os.close(self._write)
        return os.waitpid(self._pid, 0)[1] == 0


def _mapping(own: int, ranges: list[IdRange]) -> list[str]:
    words = ["0", str(own), "1"]
    inside = 1
    for given in ranges:
        words += [str(inside), str(given.start), str(given.size)]
        inside += given.size
    return words


def _ranges(path: str, uid: int) -> list[IdRange]:
    """Read what a file of subuid(5) gives to a user; lines that make no sense are passed over."""
    names = {str(uid)}
    with contextlib.suppress(KeyError):  # a user without a name
        names.add(pwd.getpwuid(uid).pw_name)
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read(_FILE_MAXIMUM).splitlines()
    except (FileNotFoundError, PermissionError):
        return []
    found = []
    for line in lines:
        name, _, rest = line.partition(":")
        start, _, count = rest.partition(":")
        if name in names and start.isdigit() and count.strip().isdigit() and int(count):
            found.append(IdRange(int(start), int(count)))
    return found


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _refused(error: OSError) -> UnsupportedError:
    hint = {
        errno.EPERM: "see sysctl kernel.apparmor_restrict_unprivileged_userns, or the container around us",
        errno.ENOSPC: "sysctl user.max_user_namespaces is reached, or 0",
        errno.EINVAL: "the process has more than one thread",
    }.get(error.errno or 0)
    return UnsupportedError(f"cannot make a user namespace: {error.strerror}", errno=error.errno, hint=hint)
