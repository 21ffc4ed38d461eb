"""Who the process runs as: ``user[:group]`` looked up in the container's own passwd and group files.

Follows what docker and runc do (moby/sys/user, GetExecUser), but numbers are never taken for names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from layerfs.errors import ProcessError
from layerfs.runtime.scope import read_file
from layerfs.value import frozen

# 2^32-1 means "leave it" to chown(2) and setresuid(2).
_ID_MAXIMUM: Final = (1 << 32) - 2
_FILE_MAXIMUM: Final = 4 << 20


@frozen
class User:
    """Numbers as the container sees them; `groups` are the supplementary ones."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


@frozen
class _Account:
    name: bytes
    uid: int
    gid: int
    home: bytes


def resolve_user(root: int, text: str) -> User:
    """Find the numbers for ``user``, ``user:group``, ``:group`` or nothing, which is root.

    A number need not be in passwd; its group is then 0. Supplementary groups come from the group
    file, unless a group is given. Lines of the files that make no sense are passed over.

    Args:
        root: an open directory, the container's root.

    Raises:
        ProcessError: a name that is not there, or a number past 2^32-2; status 125.
        BudgetError, InvalidError: a file that is too large, or not a regular file.
    """
    wanted, _, wanted_group = text.partition(":")
    account = _find_account(list(_accounts(root)), wanted or "0")
    groups: tuple[int, ...] = ()
    gid = account.gid
    if wanted_group:
        gid = _find_group(root, wanted_group)
        groups = (gid,)
    elif account.name:
        groups = tuple(dict.fromkeys(gid for _, gid, members in _groups(root) if account.name in members))
    return User(account.uid, gid, groups, account.home.decode("utf-8", "surrogateescape") or "/")


def _find_account(accounts: list[_Account], wanted: str) -> _Account:
    number = _number(wanted, "user")
    if number is not None:
        for account in accounts:
            if account.uid == number:
                return account
        return _Account(b"", number, 0, b"/")
    for account in accounts:
        if account.name == wanted.encode("utf-8", "surrogateescape"):
            return account
    raise ProcessError(
        f"no user {wanted!r} in the container's /etc/passwd", hint="give the number, or make the user first"
    )


def _find_group(root: int, wanted: str) -> int:
    number = _number(wanted, "group")
    if number is not None:
        return number
    for name, gid, _ in _groups(root):
        if name == wanted.encode("utf-8", "surrogateescape"):
            return gid
    raise ProcessError(
        f"no group {wanted!r} in the container's /etc/group", hint="give the number, or make the group first"
    )


def _number(text: str, what: str) -> int | None:
    if not (text.isascii() and text.isdigit()):
        return None
    # Ten digits hold every id; more are not worth converting.
    if len(text.lstrip("0")) > 10 or int(text) > _ID_MAXIMUM:
        raise ProcessError(f"the {what} {text[:40]} is past {_ID_MAXIMUM}")
    return int(text)


def _accounts(root: int) -> Iterator[_Account]:
    for fields in _lines(root, b"/etc/passwd"):
        if len(fields) >= 6 and (uid := _id(fields[2])) is not None and (gid := _id(fields[3])) is not None:
            yield _Account(fields[0], uid, gid, fields[5])


def _groups(root: int) -> Iterator[tuple[bytes, int, list[bytes]]]:
    for fields in _lines(root, b"/etc/group"):
        if len(fields) >= 3 and (gid := _id(fields[2])) is not None:
            yield fields[0], gid, fields[3].split(b",") if len(fields) > 3 else []


def _lines(root: int, path: bytes) -> Iterator[list[bytes]]:
    for line in (read_file(root, path, limit=_FILE_MAXIMUM) or b"").split(b"\n"):
        if line and not line.startswith(b"#"):
            yield line.strip().split(b":")


def _id(field: bytes) -> int | None:
    number = int(field) if field.isdigit() and len(field) <= 10 else None
    return number if number is not None and number <= _ID_MAXIMUM else None
