"""The messages of the kernel's FUSE protocol, as far as a union needs them (linux/fuse.h, fuse(4))."""

from __future__ import annotations

import enum
import os
from struct import Struct
from typing import Final

MAJOR: Final = 7
MINOR: Final = 41
"""The newest minor version whose structures stand here; the kernel speaks the older of both."""

MAX_WRITE: Final = 1 << 20
MAX_PAGES: Final = MAX_WRITE // 4096
BUFFER: Final = MAX_WRITE + 4096


class Op(enum.IntEnum):
    """What a request asks for."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    IOCTL = 39
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SYNCFS = 50
    TMPFILE = 51


class Init(enum.IntFlag):
    """What kernel and server agree upon (FUSE_INIT)."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    PASSTHROUGH = 1 << 37


WANTED: Final = (
    Init.ASYNC_READ
    | Init.ATOMIC_O_TRUNC
    | Init.BIG_WRITES
    | Init.DONT_MASK
    | Init.DO_READDIRPLUS
    | Init.ASYNC_DIO
    | Init.NO_OPEN_SUPPORT
    | Init.PARALLEL_DIROPS
    | Init.POSIX_ACL
    | Init.MAX_PAGES
    | Init.CACHE_SYMLINKS
    | Init.NO_OPENDIR_SUPPORT
    | Init.HANDLE_KILLPRIV_V2
    | Init.SETXATTR_EXT
    | Init.INIT_EXT
    | Init.PASSTHROUGH
)


class Attribute(enum.IntFlag):
    """Which fields of a SETATTR request count (FATTR_)."""

    MODE = 1
    UID = 2
    GID = 4
    SIZE = 8
    ATIME = 16
    MTIME = 32
    HANDLE = 64
    ATIME_NOW = 128
    MTIME_NOW = 256
    KILL_SUIDGID = 2048


OPENED_DIRECT: Final = 1 << 0
OPENED_KEEP_CACHE: Final = 1 << 1
OPENED_CACHE_DIRECTORY: Final = 1 << 3
OPENED_PASSTHROUGH: Final = 1 << 7
OPEN_KILL_SUIDGID: Final = 1
WRITE_CACHE: Final = 1
WRITE_KILL_SUIDGID: Final = 4
SETXATTR_KILL_SGID: Final = 1

NOTIFY_INVAL_INODE: Final = 2
NOTIFY_PRUNE: Final = 9
"""The kernel is to let go of inodes that nobody uses (Linux 6.18)."""

FOREVER: Final = 1 << 31
"""Seconds that the kernel may keep what it was told: nobody but the server changes the files."""

# Opcode, unique, node, uid, gid, thread; what the kernel says besides (lengths) is not needed.
REQUEST: Final = Struct("=4xIQQIII4x")
REPLY: Final = Struct("=IiQ")
INIT_IN: Final = Struct("=IIIII")
INIT_OUT: Final = Struct("=IIIIHHIIHHIIH22x")
FORGET_IN: Final = Struct("=Q")
BATCH_FORGET_IN: Final = Struct("=II")
BATCH_FORGET_ONE: Final = Struct("=QQ")
SETATTR_IN: Final = Struct("=II3Q3q8I")
MKNOD_IN: Final = Struct("=IIII")
MKDIR_IN: Final = Struct("=II")
RENAME_IN: Final = Struct("=Q")
RENAME2_IN: Final = Struct("=QII")
LINK_IN: Final = Struct("=Q")
OPEN_IN: Final = Struct("=II")
CREATE_IN: Final = Struct("=IIII")
READ_IN: Final = Struct("=QQIIQII")
WRITE_IN: Final = Struct("=QQIIQII")
RELEASE_IN: Final = Struct("=QIIQ")
FSYNC_IN: Final = Struct("=QII")
SETXATTR_IN: Final = Struct("=II")
SETXATTR_EXT_IN: Final = Struct("=IIII")
GETXATTR_IN: Final = Struct("=II")
IOCTL_IN: Final = Struct("=QIIQII")
INTERRUPT_IN: Final = Struct("=Q")
LSEEK_IN: Final = Struct("=QqII")
FALLOCATE_IN: Final = Struct("=QQQII")
COPY_FILE_RANGE_IN: Final = Struct("=QQQQQQQ")

_ATTRIBUTES: Final = "3Q3q10I"
ENTRY_OUT: Final = Struct("=4Q2I" + _ATTRIBUTES)
ENTRY_ATTRIBUTES: Final = 40
"""Where the attributes begin in a struct fuse_entry_out."""
ATTR_OUT: Final = Struct("=QII" + _ATTRIBUTES)
ATTR_ATTRIBUTES: Final = 16
"""Where the attributes begin in a struct fuse_attr_out."""
OPEN_OUT: Final = Struct("=QIi")
SIZE_OUT: Final = Struct("=II")
IOCTL_OUT: Final = Struct("=iIII")
OFFSET_OUT: Final = Struct("=q")
PRUNE_OUT: Final = Struct("=IIQ")
INVAL_INODE_OUT: Final = Struct("=Qqq")
STATFS_OUT: Final = Struct("=5Q4I24x")
DIRENT: Final = Struct("=QQII")

OPENED_TO_READ: Final = OPEN_OUT.pack(0, OPENED_KEEP_CACHE, 0)
"""A file is open without a handle of its own, and the kernel may keep what it has read of it."""

_PLUS: Final = Struct("=4Q2I" + _ATTRIBUTES + "QQII")
PLUS_ROOM: Final = _PLUS.size + 7
"""Bytes that `plus` needs at most, besides those of the name."""

NEGATIVE: Final = ENTRY_OUT.pack(0, 0, FOREVER, *([0] * 19))
"""There is no such name, and the kernel may remember that."""

_NANO: Final = 1_000_000_000


def entry(identity: int, valid: int, number: int, links: int, found: os.stat_result) -> bytes:
    """Pack a struct fuse_entry_out; the attributes hold for `valid` seconds.

    The inode number and the count of links are not those of `found`.
    """
    mode, _, _, _, uid, gid, size, atime, mtime, ctime = found
    return ENTRY_OUT.pack(
        identity, 0, FOREVER, valid, 0, 0,
        number, size, found.st_blocks, atime, mtime, ctime,
        found.st_atime_ns % _NANO, found.st_mtime_ns % _NANO, found.st_ctime_ns % _NANO,
        mode, links, uid, gid, found.st_rdev & 0xFFFFFFFF, found.st_blksize, 0,
    )  # fmt: skip


def attributes(valid: int, number: int, links: int, found: os.stat_result) -> bytes:
    """Pack a struct fuse_attr_out."""
    mode, _, _, _, uid, gid, size, atime, mtime, ctime = found
    return ATTR_OUT.pack(
        valid, 0, 0,
        number, size, found.st_blocks, atime, mtime, ctime,
        found.st_atime_ns % _NANO, found.st_mtime_ns % _NANO, found.st_ctime_ns % _NANO,
        mode, links, uid, gid, found.st_rdev & 0xFFFFFFFF, found.st_blksize, 0,
    )  # fmt: skip


def plus(
    buffer: memoryview, at: int, identity: int, valid: int, number: int, links: int, found: os.stat_result,
    offset: int, name: bytes,
) -> int:  # fmt: skip
    """Put a struct fuse_direntplus into a buffer, and give the place after it."""
    mode, _, _, _, uid, gid, size, atime, mtime, ctime = found
    length = len(name)
    _PLUS.pack_into(
        buffer, at, identity, 0, FOREVER, valid, 0, 0,
        number, size, found.st_blocks, atime, mtime, ctime,
        found.st_atime_ns % _NANO, found.st_mtime_ns % _NANO, found.st_ctime_ns % _NANO,
        mode, links, uid, gid, found.st_rdev & 0xFFFFFFFF, found.st_blksize, 0,
        number, offset, length, mode >> 12,
    )  # fmt: skip
    at += _PLUS.size
    end = at + length
    buffer[at:end] = name
    return end + 7 & ~7


def plus_name(buffer: memoryview, at: int, number: int, offset: int, name: bytes) -> int:
    """Put a struct fuse_direntplus of a directory into a buffer that says nothing but its name."""
    _PLUS.pack_into(buffer, at, *([0] * 22), number, offset, len(name), 4)
    at += _PLUS.size
    end = at + len(name)
    buffer[at:end] = name
    return end + 7 & ~7


def dirent(number: int, offset: int, name: bytes, kind: int) -> bytes:
    """Pack a struct fuse_dirent, padded to eight bytes."""
    return DIRENT.pack(number, offset, len(name), kind) + name + bytes(-len(name) % 8)
