"""Gives away what docker's containers do not have: capabilities, and then the user id (capabilities(7))."""

from __future__ import annotations

import errno
import os
from typing import Final

from layerfs import linux
from layerfs.errors import ProcessError
from layerfs.runtime.users import User

# Docker's default set (oci/caps/defaults.go), as numbers of <linux/capability.h>.
DEFAULT_CAPABILITIES: Final = frozenset(
    {
        0,  # CAP_CHOWN
        1,  # CAP_DAC_OVERRIDE
        3,  # CAP_FOWNER
        4,  # CAP_FSETID
        5,  # CAP_KILL
        6,  # CAP_SETGID
        7,  # CAP_SETUID
        8,  # CAP_SETPCAP
        10,  # CAP_NET_BIND_SERVICE
        13,  # CAP_NET_RAW
        18,  # CAP_SYS_CHROOT
        27,  # CAP_MKNOD
        29,  # CAP_AUDIT_WRITE
        31,  # CAP_SETFCAP
    }
)


def _permitted() -> int:
    with open("/proc/self/status", "rb", buffering=0) as file:
        for line in file.read().split(b"\n"):
            if line.startswith(b"CapPrm:"):
                return int(line[7:], 16)
    return 0


def become(user: User, *, no_new_privileges: bool) -> None:
    """Turn this process into `user` with docker's default capabilities; there is no way back.

    Any user but root is left with none, and only the bounding set says what setuid programs can get.

    Raises:
        ProcessError: an id has no meaning in our user namespace.
        OSError: the kernel refused.
    """
    allowed = sum(1 << number for number in DEFAULT_CAPABILITIES) & _permitted()
    capability = 0
    while True:
        if capability not in DEFAULT_CAPABILITIES:
            try:
                linux.prctl(linux.PR_CAPBSET_DROP, capability)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                break  # the kernel knows no more
        capability += 1
    linux.prctl(linux.PR_CAP_AMBIENT, linux.PR_CAP_AMBIENT_CLEAR_ALL)
    _set_groups(user)
    try:
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise _unmapped(f"{user.uid}:{user.gid}") from error
        raise
    if user.uid == 0:
        linux.capset(allowed, allowed, 0)
    else:
        linux.capset(0, 0, 0)
    if no_new_privileges:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)


def _set_groups(user: User) -> None:
    try:
        os.setgroups(user.groups)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise _unmapped(",".join(map(str, user.groups))) from error
        # Who maps a single id for himself must leave his groups alone (user_namespaces(7)).
        if error.errno != errno.EPERM or _groups_may_change():
            raise


def _groups_may_change() -> bool:
    with open("/proc/self/setgroups", "rb", buffering=0) as file:
        return file.read(16).strip() != b"deny"


def _unmapped(ids: str) -> ProcessError:
    return ProcessError(
        f"the ids {ids} are not mapped into this user namespace",
        hint="give the user more ids in /etc/subuid and /etc/subgid, or run as root",
    )
