"""Gives an ordinary user the privileges to mount and run, inside a user namespace (user_namespaces(7))."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from layerfs import linux, subids
from layerfs.errors import UnsupportedError
from layerfs.subids import IdRange

_SYSCTLS: Final = Path("/proc/sys")
_WORDS_MAXIMUM: Final = 4096


def enter(*, warn: Callable[[str], None] | None = None) -> bool:
    """Make this process root of a new user namespace, with a mount namespace of its own.

    Id 0 is the caller; the ids from 1 on are those that /etc/subuid and /etc/subgid give to him, as far as
    newuidmap(1) and newgidmap(1) are installed. For processes with one thread, before anything is open
    that counts on the host's ids.

    Args:
        warn: told why the caller's ids could not be mapped, when he has some.

    Returns:
        True when more than the one id is mapped: only then files of several owners can be made.

    Raises:
        UnsupportedError: the kernel allows no user namespaces here, or the process has several threads.
    """
    uid, gid = os.geteuid(), os.getegid()
    users, groups = subids.ranges("/etc/subuid", uid), subids.ranges("/etc/subgid", uid)
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
        raise refused(error) from error
    problem = None if helper is None else helper.finish(go=True)
    if problem is not None and warn is not None:
        warn(f"only this user's own id can be used: {problem}")
    mapped = helper is not None and problem is None
    try:
        _become_root(uid, gid, mapped=mapped)
    except OSError as error:
        raise refused(error) from error
    return mapped


def join(process: int) -> None:
    """Make this process root of the user namespace of another process, with a mount namespace of its own.

    Conditions as for `enter`.

    Args:
        process: of pidfd_open(2); the same user's, in a namespace that `enter` made.

    Raises:
        UnsupportedError: the kernel refuses.
        ProcessLookupError: the process has ended.
    """
    try:
        linux.setns(process, linux.CLONE_NEWUSER)
        linux.unshare(linux.CLONE_NEWNS)
        _take_root()
        # Where a user has no more ids than one, nobody may.
        with contextlib.suppress(PermissionError):
            os.setgroups([])
    except ProcessLookupError:
        raise
    except OSError as error:
        raise UnsupportedError(
            f"cannot enter the user namespace of the process: {error.strerror}",
            errno=error.errno,
            hint="whoever started it may",
        ) from error


def _become_root(uid: int, gid: int, *, mapped: bool) -> None:
    if not mapped:
        # A process may always map itself, and nobody else (user_namespaces(7)). One of the tools may have
        # worked.
        if not subids.mapped():
            _write("/proc/self/uid_map", f"0 {uid} 1")
        if not subids.mapped("/proc/self/gid_map"):
            _write("/proc/self/setgroups", "deny")
            _write("/proc/self/gid_map", f"0 {gid} 1")
    _take_root()
    if mapped:
        os.setgroups([])


def _take_root() -> None:
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    # What the host mounts later shall appear here, nothing of ours there.
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_SLAVE)


class _Helper:
    """A child that stays outside of the namespace, where the setuid tools have their power."""

    def __init__(self, commands: list[list[str]]) -> None:
        read, self._go = os.pipe()
        self._words, write = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                os.close(self._go)
                os.dup2(write, 2)
                if os.read(read, 1):
                    codes = [os.spawnv(os.P_WAIT, command[0], command) for command in commands]
                    status = int(any(codes))
            finally:
                os._exit(status)
        os.close(read)
        os.close(write)

    def finish(self, *, go: bool) -> str | None:
        """Let it do its work, or not; None when it succeeded, else why it did not."""
        if go:
            os.write(self._go, b"g")
        os.close(self._go)
        with open(self._words, encoding="utf-8", errors="replace") as stream:
            words = stream.read(_WORDS_MAXIMUM)
        if os.waitpid(self._pid, 0)[1] == 0:
            return None
        said = words.strip().partition("\n")[0] or "newuidmap failed without a word"
        cause = subids.powerless("newuidmap") or subids.powerless("newgidmap")
        return said if cause is None else f"{said} ({cause})"


def _mapping(own: int, ranges: list[IdRange]) -> list[str]:
    words = ["0", str(own), "1"]
    inside = 1
    for given in ranges:
        words += [str(inside), str(given.start), str(given.size)]
        inside += given.size
    return words


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def refused(error: OSError, *, sysctls: Path = _SYSCTLS) -> UnsupportedError:
    """Make the error for a user namespace that the kernel does not allow, with what would make it work.

    Args:
        sysctls: where the kernel's settings are read.
    """
    return UnsupportedError(
        f"cannot make a user namespace: {error.strerror}", errno=error.errno, hint=_remedy(error, sysctls)
    )


def _remedy(error: OSError, sysctls: Path) -> str | None:
    if error.errno == errno.EINVAL:
        return "the process has more than one thread"
    if error.errno == errno.ENOSPC:
        if _sysctl(sysctls, "user/max_user_namespaces") == 0:
            return (
                "user.max_user_namespaces is 0: `sysctl user.max_user_namespaces=15000` as root allows some"
            )
        return "user.max_user_namespaces are in use, or 32 are nested: end some, or have root raise it"
    if error.errno not in (errno.EPERM, errno.EACCES):
        return None
    if _sysctl(sysctls, "kernel/unprivileged_userns_clone") == 0:
        return "`sysctl kernel.unprivileged_userns_clone=1` as root allows them to ordinary users"
    if _sysctl(sysctls, "kernel/apparmor_restrict_unprivileged_userns") == 1:
        return (
            "AppArmor allows them to programs that have a profile: `sysctl"
            " kernel.apparmor_restrict_unprivileged_userns=0` as root allows them to all"
        )
    return "the container or sandbox around us forbids them, as docker's seccomp profile does"


def _sysctl(sysctls: Path, name: str) -> int | None:
    try:
        return int((sysctls / name).read_text())
    except (OSError, ValueError):
        return None
