"""A device whose messages are changed on their way: owners, time-outs and what else -o can ask for.

The union and the server below know nothing of it: ids in requests become those that the layers have, ids
in answers those that the kernel shall show.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from struct import Struct
from typing import Final

from layerfs_fuse import protocol as p
from layerfs_fuse.device import RUNG, Device
from layerfs_fuse.options import IdMap, Options
from layerfs_fuse.protocol import Attribute, Init, Op

_WORD: Final = Struct("=I")
_PAIR: Final = Struct("=II")
_TIMES: Final = Struct("=QQII")
_TIME: Final = Struct("=QI")
_MAKER: Final = 24  # offsets of uid and gid: in a request's header,
_CHOWN: Final = p.REQUEST.size + 76  # in a SETATTR request,
_MODE: Final = 60  # and in a struct fuse_attr that of the mode, with nlink, uid and gid behind it
_INIT_FLAGS: Final = p.REQUEST.size + 12
_ENTRY_TIMES: Final = 16
_ACL: Final = (b"system.posix_acl_access", b"system.posix_acl_default")
# A version, then entries of tag, permissions and id (linux/posix_acl_xattr.h).
_ACL_ENTRY: Final = Struct("=HHI")
_ACL_USER: Final = 2
_ACL_GROUP: Final = 8

_MAKERS: Final = frozenset({Op.MKNOD, Op.MKDIR, Op.SYMLINK, Op.CREATE, Op.TMPFILE})
_ENTRIES: Final = frozenset({Op.LOOKUP, Op.LINK, *_MAKERS})
_ATTRIBUTES: Final = frozenset({Op.GETATTR, Op.SETATTR})
_XATTRS: Final = frozenset({Op.SETXATTR, Op.GETXATTR, Op.REMOVEXATTR})
# Where requests that give a file its mode have that.
_MODES: Final = {
    Op.SETATTR: p.REQUEST.size + 68,
    Op.MKNOD: p.REQUEST.size,
    Op.CREATE: p.REQUEST.size + 4,
    Op.TMPFILE: p.REQUEST.size + 4,
}
_SET_IDS: Final = stat.S_ISUID | stat.S_ISGID
_SYNCS: Final = frozenset({Op.FSYNC, Op.FSYNCDIR, Op.SYNCFS})
_AGREED_FLAGS: Final = 12
# Where the name of an attribute begins in the body of a request.
_NAMES: Final = {Op.SETXATTR: p.SETXATTR_IN.size, Op.GETXATTR: p.GETXATTR_IN.size, Op.REMOVEXATTR: 0}


class AdjustedDevice(Device):
    """The device of a mount with options."""

    def __init__(self, descriptor: int, options: Options) -> None:
        super().__init__(descriptor)
        self._options = options
        # Requests whose answers are looked at.
        self._asked: dict[int, int] = {}
        self._until: tuple[int, int] | None = None
        if options.timeout is not None:
            self._until = (int(options.timeout), int(options.timeout % 1 * 1_000_000_000))
        self._names = dict(_NAMES)
        self._squashes = options.squash_uid is not None or options.squash_gid is not None

    def receive(self) -> int:
        """Read the next request that the server is to see; see `Device.receive`."""
        while length := super().receive():
            if length == RUNG:
                return length
            op, unique, *_ = p.REQUEST.unpack_from(self.buffer)
            refused = self._adjust_request(op, unique, length)
            if not refused:
                return length
            super().send(unique, b"", refused)
        return 0

    def send(self, unique: int, answer: bytes, number: int = 0) -> None:
        """Answer a request; see `Device.send`."""
        op = self._asked.pop(unique, 0)
        if op and answer and not number:
            answer = self._adjust_answer(op, bytearray(answer))
        super().send(unique, answer, number)

    def send_room(self, unique: int, length: int) -> None:
        """Answer a request; see `Device.send_room`."""
        if self._asked.pop(unique, 0) == Op.READDIRPLUS:
            self._adjust_listing(self.room[:length])
        super().send_room(unique, length)

    def _adjust_request(self, op: int, unique: int, length: int) -> int:
        """Change a request in the buffer; gives the errno to answer with at once, 0 for none."""
        if op in _ENTRIES or op in _ATTRIBUTES or op == Op.READDIRPLUS:
            self._asked[unique] = op
        if op in _MODES and self._squashes:
            self._clear_set_ids(_MODES[Op(op)])
        if op in _MAKERS:
            return self._adjust_owner(_MAKER, errno.EOVERFLOW)
        if op == Op.SETATTR:
            return self._adjust_chown()
        if op in _XATTRS:
            return self._adjust_xattr(Op(op), unique, length)
        if op in _SYNCS and self._options.volatile:
            return errno.ENOSYS  # the kernel asks no more then, and takes it for done
        if op == Op.INIT:
            self._asked[unique] = op
            (flags,) = _WORD.unpack_from(self.buffer, _INIT_FLAGS)
            if self._options.no_acl:
                _WORD.pack_into(self.buffer, _INIT_FLAGS, flags & ~Init.POSIX_ACL)
        return 0

    def _clear_set_ids(self, offset: int) -> None:
        """Nobody who is only shown as a file's owner may lend out the rights of its true one."""
        (mode,) = _WORD.unpack_from(self.buffer, offset)
        _WORD.pack_into(self.buffer, offset, mode & ~_SET_IDS)

    def _adjust_owner(self, offset: int, refusal: int) -> int:
        uid, gid = _PAIR.unpack_from(self.buffer, offset)
        stored_uid, stored_gid = _stored(self._options.uids, uid), _stored(self._options.gids, gid)
        if stored_uid is None or stored_gid is None:
            return refusal
        _PAIR.pack_into(self.buffer, offset, stored_uid, stored_gid)
        return 0

    def _adjust_chown(self) -> int:
        options, at = self._options, p.REQUEST.size
        (valid,) = _WORD.unpack_from(self.buffer, at)
        for bit, squashed, map, offset in (
            (Attribute.UID, options.squash_uid, options.uids, _CHOWN),
            (Attribute.GID, options.squash_gid, options.gids, _CHOWN + 4),
        ):
            if not valid & bit:
                continue
            if squashed is not None:
                # Nobody would see the change.
                valid &= ~bit
                continue
            stored = _stored(map, _WORD.unpack_from(self.buffer, offset)[0])
            if stored is None:
                return errno.EINVAL
            _WORD.pack_into(self.buffer, offset, stored)
        _WORD.pack_into(self.buffer, at, valid)
        return 0

    def _adjust_xattr(self, op: Op, unique: int, length: int) -> int:
        start = p.REQUEST.size + self._names[op]
        end = self.buffer.index(0, start, length)
        if bytes(self.buffer[start:end]) not in _ACL:
            return 0
        if self._options.no_acl:
            return errno.EOPNOTSUPP
        if op == Op.GETXATTR:
            self._asked[unique] = op
        elif op == Op.SETXATTR:
            with memoryview(self.buffer)[end + 1 : length] as value:
                return 0 if self._adjust_acl(value, _stored) else errno.EINVAL
        return 0

    def _adjust_acl(self, acl: memoryview, change: Callable[[IdMap | None, int], int | None]) -> bool:
        """Change the ids in an access control list; False where one has no counterpart."""
        for offset in range(_WORD.size, len(acl) - _ACL_ENTRY.size + 1, _ACL_ENTRY.size):
            tag, permissions, identity = _ACL_ENTRY.unpack_from(acl, offset)
            if tag in (_ACL_USER, _ACL_GROUP):
                changed = change(self._options.uids if tag == _ACL_USER else self._options.gids, identity)
                if changed is None:
                    return False
                _ACL_ENTRY.pack_into(acl, offset, tag, permissions, changed)
        return True

    def _adjust_answer(self, op: int, answer: bytearray) -> bytes:
        if op in _ATTRIBUTES:
            if self._until is not None:
                _TIME.pack_into(answer, 0, *min(self._until, _TIME.unpack_from(answer)))
            self._adjust_attributes(answer, p.ATTR_ATTRIBUTES)
        elif op == Op.INIT:
            (agreed,) = _WORD.unpack_from(answer, _AGREED_FLAGS)
            if agreed & Init.SETXATTR_EXT:
                self._names[Op.SETXATTR] = p.SETXATTR_EXT_IN.size
        elif op == Op.GETXATTR:
            if len(answer) != p.SIZE_OUT.size:
                with memoryview(answer) as value:
                    self._adjust_acl(value, _shown)
        else:
            self._adjust_entry(answer, 0)
        return bytes(answer)

    def _adjust_listing(self, answer: memoryview) -> None:
        offset = 0
        while offset < len(answer):
            self._adjust_entry(answer, offset)
            offset += p.ENTRY_OUT.size
            _, _, length, _ = p.DIRENT.unpack_from(answer, offset)
            offset += p.DIRENT.size + (length + 7) // 8 * 8

    def _adjust_entry(self, answer: bytearray | memoryview, offset: int) -> None:
        if self._until is not None:
            entry, attributes, entry_rest, rest = _TIMES.unpack_from(answer, offset + _ENTRY_TIMES)
            entry, entry_rest = min(self._until, (entry, entry_rest))
            attributes, rest = min(self._until, (attributes, rest))
            _TIMES.pack_into(answer, offset + _ENTRY_TIMES, entry, attributes, entry_rest, rest)
        if any(answer[offset : offset + 8]):  # a node: there is such a name
            self._adjust_attributes(answer, offset + p.ENTRY_ATTRIBUTES)

    def _adjust_attributes(self, answer: bytearray | memoryview, offset: int) -> None:
        options, at = self._options, offset + _MODE
        mode, links = _PAIR.unpack_from(answer, at)
        uid, gid = _PAIR.unpack_from(answer, at + 8)
        if options.static_nlink and mode & 0o170000 == 0o040000:
            links = 1
        uid = _shown(options.uids, uid) if options.squash_uid is None else options.squash_uid
        gid = _shown(options.gids, gid) if options.squash_gid is None else options.squash_gid
        _PAIR.pack_into(answer, at, mode, links)
        _PAIR.pack_into(answer, at + 8, uid, gid)


def _shown(map: IdMap | None, stored: int) -> int:
    return stored if map is None else map.shown(stored)


def _stored(map: IdMap | None, shown: int) -> int | None:
    return shown if map is None else map.stored(shown)
