"""Mounts FUSE file systems for users who may not mount: fusermount3(1) does it, and hands the device over."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from typing import Final

from layerfs import forking
from layerfs.errors import InUseError, MountError

_PROGRAMS: Final = ("fusermount3", "fusermount")
# What fusermount3 says, and what can be done about it.
_HINTS: Final = {
    "user_allow_other": "write a line user_allow_other into /etc/fuse.conf, or leave allow_other out",
    "mount_max": "unmount something, or raise mount_max in /etc/fuse.conf",
    "open /dev/fuse": "`chmod 666 /dev/fuse`, as udev does where fuse3 is installed",
    "fuse device not found": "try `modprobe fuse`; a container must be given /dev/fuse",
    "determine username": "fusermount3 wants the user to stand in /etc/passwd",
    "write access": "the directory must be yours",
    "permitted": "fusermount3 must be setuid root, and is not in a user namespace",
}


def mount(target: str, options: Sequence[str]) -> int:
    """Mount at `target` and give the descriptor of the mount's /dev/fuse, open for a server.

    Raises:
        MountError: it was refused, or there is no fusermount3.
    """
    import socket

    ours, theirs = socket.socketpair()
    with ours, theirs:
        os.set_inheritable(theirs.fileno(), True)
        environment = {"_FUSE_COMMFD": str(theirs.fileno())}
        complaint = _run(["-o", ",".join(options), "--", target], environment)
        theirs.close()
        if complaint is None:
            _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
            if descriptors:
                os.set_inheritable(descriptors[0], False)
                return descriptors[0]
            complaint = "it gave no device"
    raise _refused(f"cannot mount at {target}", complaint)


def unmount(target: str, *, lazy: bool = False) -> None:
    """Unmount what this user has mounted topmost at `target`; see `mounting.detach`.

    Raises:
        InUseError: a process still uses the mount.
        MountError: nothing of this user is mounted there, or there is no fusermount3.
    """
    complaint = _run(["-u", *(["-z"] if lazy else []), "--", target], {})
    if complaint is None:
        return
    if os.strerror(errno.EBUSY) in complaint:
        raise InUseError(f"{target} is in use", hint=f"`fuser -vm {target}` shows by which processes")
    raise _refused(f"cannot unmount {target}", complaint)


def _run(arguments: list[str], environment: dict[str, str]) -> str | None:
    """Run fusermount3; None when it succeeded, else its words."""
    import shutil

    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if program is None:
        raise MountError(
            "there is no fusermount3, which mounts for ordinary users",
            errno=errno.ENOENT,
            hint="install fuse3",
        )
    with forking.alone:
        words, written = os.pipe()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, null, 1)]
            actions.append((os.POSIX_SPAWN_DUP2, written, 2))
            child = os.posix_spawn(program, [program, *arguments], environment, file_actions=actions)
        except BaseException:
            os.close(words)
            raise
        finally:
            os.close(null)
            os.close(written)
    try:
        text = b""
        while chunk := os.read(words, 4096):
            text += chunk
    finally:
        os.close(words)
    if os.waitpid(child, 0)[1] == 0:
        return None
    line = text.decode(errors="replace").strip().partition("\n")[0]
    return line.partition(": ")[2] or line or "it failed without a word"


def _refused(what: str, complaint: str) -> MountError:
    number = None
    with contextlib.suppress(StopIteration):
        known = (errno.EPERM, errno.EACCES, errno.ENOENT, errno.EINVAL, errno.EBUSY, errno.ENOTCONN)
        number = next(number for number in known if complaint.endswith(os.strerror(number)))
    hint = next((hint for words, hint in _HINTS.items() if words in complaint), None)
    return MountError(f"{what}: fusermount3: {complaint}", errno=number, hint=hint)
