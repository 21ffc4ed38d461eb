"""The ids that an ordinary user may map into a user namespace (subuid(5)), and what is missing for that."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from typing import Final, NamedTuple

_FILE_MAXIMUM: Final = 1 << 20
# Of one line of /proc/PID/uid_map (user_namespaces(7)).
_ALL: Final = (1 << 32) - 1
_RANGES: Final = (
    "`usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}` as root, with ranges that"
    " nobody else has"
)


class IdRange(NamedTuple):
    """`size` ids of the host from `start` on that a user may map (subuid(5))."""

    start: int
    size: int


class Mapping(NamedTuple):
    """`size` ids of this user namespace from `start` on are those from `outside` on outside of it."""

    start: int
    outside: int
    size: int


def ranges(path: str, uid: int) -> list[IdRange]:
    """Read what a file of subuid(5) gives to a user; lines that make no sense are passed over."""
    names = {str(uid), user_name(uid)}
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


def user_name(uid: int) -> str:
    """Give a user's name on the host, or the number where there is none."""
    import pwd

    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)


def mapped(path: str = "/proc/self/uid_map") -> list[Mapping]:
    """Read which ids a user namespace maps, users' or groups'."""
    with open(path, encoding="ascii") as file:
        return [Mapping(*map(int, line.split())) for line in file]


def outside(uid: int) -> int:
    """Give the id that a user of this namespace is outside of it; the same where none is mapped."""
    for each in mapped():
        if each.start <= uid < each.start + each.size:
            return each.outside + uid - each.start
    return uid


def maps_all(mappings: list[Mapping]) -> bool:
    """Say whether every id of a namespace has one outside, as in that of the host itself."""
    return sum(each.size for each in mappings) >= _ALL


def covers(mappings: list[Mapping], others: list[Mapping]) -> bool:
    """Say whether each id of `others` is there, too, and stands for the same one outside."""
    return all(
        any(
            each.start <= other.start
            and other.start + other.size <= each.start + each.size
            and each.outside - each.start == other.outside - other.start
            for each in mappings
        )
        for other in others
    )


def compare(noted: str | None) -> tuple[bool, str | None]:
    """Say whether all ids that a store was used with are what they were, and what it shall remember then.

    Args:
        noted: what it remembers by now; None: nothing, which suffices where all ids of the machine are.
    """
    now = [mapped(), mapped("/proc/self/gid_map")]
    if all(map(maps_all, now)):
        return True, noted
    before = [[Mapping(*each) for each in ids] for ids in json.loads(noted or "[[], []]")]
    return (True, json.dumps(now)) if all(map(covers, now, before)) else (False, noted)


def advice(uid: int, *, etc: str = "/etc") -> str:
    """Say what gives a user more ids than his own: what is missing for that, if anything is.

    Args:
        uid: the user, as the host knows him.
        etc: where subuid and subgid are.
    """
    import shutil

    missing = [name for name in ("subuid", "subgid") if not ranges(f"{etc}/{name}", uid)]
    if missing:
        files = " and ".join(f"{etc}/{name}" for name in missing)
        return f"{files} {'give' if missing[1:] else 'gives'} this user no ids: " + _RANGES.format(
            user=user_name(uid)
        )
    lacking = [tool for tool in ("newuidmap", "newgidmap") if shutil.which(tool) is None]
    if lacking:
        return (
            f"install {' and '.join(lacking)} (Debian's uidmap), for the ids of {etc}/subuid and {etc}/subgid"
        )
    for tool in ("newuidmap", "newgidmap"):
        if problem := powerless(tool):
            return problem
    return (
        "more ids of the host than /etc/subuid and /etc/subgid give this user are needed: "
        + _RANGES.format(user=user_name(uid))
    )


def powerless(tool: str) -> str | None:
    """Say why newuidmap(1) or newgidmap(1) can have no power; None when it looks right, or is not there."""
    import shutil

    path = shutil.which(tool)
    if path is None:
        return None
    # Whose it is cannot be seen in a user namespace.
    if not os.stat(path).st_mode & stat.S_ISUID and "security.capability" not in os.listxattr(path):
        return f"{path} has neither the setuid bit nor a capability: reinstall it (Debian's uidmap)"
    if os.statvfs(path).f_flag & os.ST_NOSUID:
        return f"{path} lies on a file system mounted nosuid, where it has no power"
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        if "NoNewPrivs:\t1\n" in status:
            return "no_new_privs is set here, as by NoNewPrivileges= of a service: newuidmap has no power"
    return None
