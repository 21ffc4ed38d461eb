"""Owners that have no id in this user namespace (user_namespaces(7)): root owns their files here.

Two things come from elsewhere: layers, whose entries name owners by number, and files of the host, for whose
owners the kernel shows the overflow id (proc(5), /proc/sys/kernel/overflowuid) where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from layerfs.errors import printable
from layerfs.subids import Mapping, mapped, maps_all
from layerfs.tree.change import Change
from layerfs.tree.entry import Entry

_OVERFLOW: Final = 65534


class Owners:
    """The ids of a user namespace, users' and groups'.

    `strangers` counts the entries that `adopt` gave to root, and `first` is one of them as it was.
    """

    def __init__(self, users: list[Mapping], groups: list[Mapping]) -> None:
        self._users = [range(each.start, each.start + each.size) for each in users]
        self._groups = [range(each.start, each.start + each.size) for each in groups]
        self._is_hosts = maps_all(users) and maps_all(groups)
        self.strangers = 0
        self.first: Entry | None = None

    @classmethod
    def here(cls) -> Owners:
        """Read those of this process's user namespace."""
        return cls(mapped(), mapped("/proc/self/gid_map"))

    def adopt(self, entry: Entry) -> Entry:
        """Give an entry of a layer to root where its user or group has no id here, the one or the other."""
        uid = entry.uid if any(entry.uid in each for each in self._users) else 0
        gid = entry.gid if any(entry.gid in each for each in self._groups) else 0
        if uid == entry.uid and gid == entry.gid:
            return entry
        self.strangers += 1
        self.first = self.first or entry
        return entry._replace(uid=uid, gid=gid)

    def tell(self, warn: Callable[[str], None]) -> None:
        """Warn of what was adopted until now, if anything was."""
        if self.first is not None:
            warn(
                f"{self.strangers} files whose owners have no id here belong to root now, such as"
                f" '/{printable(self.first.path.strip(b'./'))}' of user {self.first.uid} and group"
                f" {self.first.gid}"
            )

    def settle(self, entry: Entry) -> Entry:
        """Give an entry that was read from a file of the host to root where the kernel had no id to show.

        In a namespace that maps the overflow id, too, its files cannot be told from such ones.
        """
        if self._is_hosts or _OVERFLOW not in (entry.uid, entry.gid):
            return entry
        uid, gid = (0 if number == _OVERFLOW else number for number in (entry.uid, entry.gid))
        return entry._replace(uid=uid, gid=gid)

    def settled(self, changes: Iterable[Change]) -> Iterator[Change]:
        """Do what `settle` does with each of a walk's files."""
        if self._is_hosts:
            yield from changes
            return
        for change in changes:
            yield change._replace(entry=self.settle(change.entry))
