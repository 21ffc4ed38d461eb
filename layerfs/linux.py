"""Every Linux system call that the standard library lacks: one short function each, raising OSError.

No policy lives here. Names of paths in errors come from the caller's `what`, since most calls take
descriptors. Numbers of system calls are those of the table that all architectures share since
Linux 5.x (include/uapi/asm-generic/unistd.h); older calls go through libc.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import sys
from collections.abc import Iterable
from typing import Final

AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000
AT_SYMLINK_NOFOLLOW: Final = 0x100

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_MOVE: Final = 8192
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_STRICTATIME: Final = 1 << 24
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8

OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
FSOPEN_CLOEXEC: Final = 1
FSMOUNT_CLOEXEC: Final = 1
FSCONFIG_SET_FLAG: Final = 0
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_SET_FD: Final = 5
FSCONFIG_CMD_CREATE: Final = 6
MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8
MOUNT_ATTR_ATIME: Final = 0x70
"""All the bits that say when access times change; none of them set stands for relatime."""
MOUNT_ATTR_NOATIME: Final = 0x10
MOUNT_ATTR_STRICTATIME: Final = 0x20
MOUNT_ATTR_NODIRATIME: Final = 0x80
MOUNT_ATTR_NOSYMFOLLOW: Final = 0x200000

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2

RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_NAME: Final = 15
PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

FICLONE: Final = 0x40049409
FS_IOC_GETFLAGS: Final = 0x80086601
FS_IOC_SETFLAGS: Final = 0x40086602
FS_IOC_FSGETXATTR: Final = 0x801C581F
_FS_IOC_GETFSUUID: Final = 0x80111500
_MAX_HANDLE_SZ: Final = 128

CLOSE_RANGE_CLOEXEC: Final = 4
SIGNALFD_SIZE: Final = 128
_AF_UNIX: Final = 1
_AF_INET: Final = 2
_SOCK_DGRAM: Final = 2
_SOCK_SEQPACKET: Final = 5
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
_KEYCTL_JOIN_SESSION_KEYRING: Final = 1
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3

_SYS: Final = {
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "close_range": 436,
    "openat2": 437,
    "mount_setattr": 442,
    # These are older than the shared table, so their numbers differ.
    "pivot_root": {"x86_64": 155, "aarch64": 41, "riscv64": 41}.get(os.uname().machine, 217),
    "keyctl": {"x86_64": 250, "aarch64": 219, "riscv64": 219}.get(os.uname().machine, 219),
    "capget": {"x86_64": 125, "aarch64": 90, "riscv64": 90}.get(os.uname().machine, 90),
    "capset": {"x86_64": 126, "aarch64": 91, "riscv64": 91}.get(os.uname().machine, 185),
}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _check(result: int, what: object = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        if what is None:
            raise OSError(number, os.strerror(number))
        raise OSError(number, os.strerror(number), what)
    return result


# Mounting a deep stack makes hundreds of these calls, for which converting by declared types is faster.
_fsconfig = ctypes.CDLL(None, use_errno=True).syscall
_fsconfig.restype = ctypes.c_long
_fsconfig.argtypes = [
    ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_long,
]  # fmt: skip


def _path(path: str | bytes | os.PathLike[str]) -> bytes:
    name = os.fsencode(path)
    if b"\0" in name:
        raise ValueError("embedded null byte")
    return name


def _syscall(name: str, *arguments: object, what: object = None) -> int:
    # Every integer goes as a long: variadic calls would else leave the upper half undefined.
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _check(_libc.syscall(ctypes.c_long(_SYS[name]), *wide), what)


def mount(
    source: str | bytes | os.PathLike[str],
    target: str | bytes | os.PathLike[str],
    fstype: str | None,
    flags: int,
    data: str | bytes | None = None,
) -> None:
    """mount(2)."""
    _check(
        _libc.mount(
            _path(source),
            _path(target),
            None if fstype is None else fstype.encode(),
            ctypes.c_ulong(flags),
            None if data is None else os.fsencode(data),
        ),
        os.fsdecode(target),
    )


def umount(target: str | bytes | os.PathLike[str], flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(_path(target), ctypes.c_int(flags)), os.fsdecode(target))


def open_tree(directory: int, path: str | bytes | os.PathLike[str], flags: int) -> int:
    """open_tree(2): a descriptor of a mount, detached and private when OPEN_TREE_CLONE is set."""
    return _syscall("open_tree", directory, _path(path), flags, what=os.fsdecode(path))


def move_mount(
    from_directory: int,
    from_path: str | bytes | os.PathLike[str],
    to_directory: int,
    to_path: str | bytes | os.PathLike[str],
    flags: int,
) -> None:
    """move_mount(2)."""
    _syscall(
        "move_mount", from_directory, _path(from_path), to_directory, _path(to_path), flags,
        what=os.fsdecode(to_path),
    )  # fmt: skip


def fsopen(fstype: str) -> int:
    """fsopen(2), close-on-exec."""
    return _syscall("fsopen", fstype.encode(), FSOPEN_CLOEXEC, what=fstype)


def fsconfig_set_string(context: int, key: str, value: str | bytes | os.PathLike[str]) -> None:
    """fsconfig(2) FSCONFIG_SET_STRING; the kernel takes at most 255 bytes of value."""
    _check(_fsconfig(_SYS["fsconfig"], context, FSCONFIG_SET_STRING, key.encode(), _path(value), 0), key)


def fsconfig_set_flag(context: int, key: str) -> None:
    """fsconfig(2) FSCONFIG_SET_FLAG."""
    _syscall("fsconfig", context, FSCONFIG_SET_FLAG, key.encode(), None, 0, what=key)


def fsconfig_set_fd(context: int, key: str, value: int) -> None:
    """fsconfig(2) FSCONFIG_SET_FD."""
    _syscall("fsconfig", context, FSCONFIG_SET_FD, key.encode(), None, value, what=key)


def fsconfig_create(context: int) -> None:
    """fsconfig(2) FSCONFIG_CMD_CREATE."""
    _syscall("fsconfig", context, FSCONFIG_CMD_CREATE, None, None, 0)


def fsmount(context: int, attributes: int = 0) -> int:
    """fsmount(2), close-on-exec: a detached mount that also serves as the descriptor of its root."""
    return _syscall("fsmount", context, FSMOUNT_CLOEXEC, attributes)


def mount_setattr(
    directory: int,
    path: str | bytes | os.PathLike[str],
    flags: int,
    *,
    set_attributes: int = 0,
    clear_attributes: int = 0,
    propagation: int = 0,
) -> None:
    """mount_setattr(2)."""
    attributes = struct.pack("=QQQQ", set_attributes, clear_attributes, propagation, 0)
    _syscall(
        "mount_setattr", directory, _path(path), flags, attributes, len(attributes),
        what=os.fsdecode(path),
    )  # fmt: skip


def openat2(
    directory: int, path: str | bytes | os.PathLike[str], flags: int, *, mode: int = 0, resolve: int
) -> int:
    """openat2(2), close-on-exec; `resolve` are RESOLVE_ flags."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    return _syscall("openat2", directory, _path(path), how, len(how), what=os.fsdecode(path))


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    _syscall("pivot_root", _path(new_root), _path(put_old), what=new_root)


def unshare(flags: int) -> None:
    """unshare(2), which the standard library has from Python 3.12 only."""
    _check(_libc.unshare(ctypes.c_int(flags)))


def setns(namespace: int, kind: int) -> None:
    """setns(2), which the standard library has from Python 3.12 only."""
    _check(_libc.setns(ctypes.c_int(namespace), ctypes.c_int(kind)))


def sethostname(name: str) -> None:
    """sethostname(2) without the audit hook of the standard library's."""
    encoded = name.encode()
    _check(_libc.sethostname(encoded, ctypes.c_size_t(len(encoded))), name)


def prctl(option: int, argument: int = 0, third: int = 0) -> int:
    """prctl(2)."""
    wide = [ctypes.c_ulong(a) for a in (argument, third, 0, 0)]
    return _check(_libc.prctl(ctypes.c_int(option), *wide))


def set_process_name(name: bytes) -> None:
    """prctl(2) PR_SET_NAME: what ps(1) shows of the calling thread; the kernel takes 15 bytes of it."""
    _check(_libc.prctl(ctypes.c_int(PR_SET_NAME), ctypes.c_char_p(name)))


def capget() -> tuple[int, int, int]:
    """capget(2) version 3 of the calling thread: effective, permitted, inheritable, as bit sets."""
    data = ctypes.create_string_buffer(24)
    _syscall("capget", struct.pack("=Ii", 0x20080522, 0), data)
    low = struct.unpack_from("=III", data, 0)
    high = struct.unpack_from("=III", data, 12)
    return low[0] | high[0] << 32, low[1] | high[1] << 32, low[2] | high[2] << 32


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) version 3 for the calling thread; each argument is a bit set of capabilities."""
    header = struct.pack("=Ii", 0x20080522, 0)
    low, high = 0xFFFFFFFF, 32
    data = struct.pack(
        "=IIIIII",
        effective & low, permitted & low, inheritable & low,
        effective >> high, permitted >> high, inheritable >> high,
    )  # fmt: skip
    _syscall("capset", header, data)


def join_session_keyring() -> None:
    """keyctl(2) KEYCTL_JOIN_SESSION_KEYRING: a new, empty session keyring."""
    _syscall("keyctl", _KEYCTL_JOIN_SESSION_KEYRING, None)


def close_range(first: int, last: int, flags: int = 0) -> None:
    """close_range(2); with CLOSE_RANGE_CLOEXEC they close at the next execve(2) only."""
    _syscall("close_range", first, last, flags)


def signalfd(signals: Iterable[int]) -> int:
    """signalfd(2), close-on-exec and non-blocking: each read gives SIGNALFD_SIZE bytes, the number first."""
    # glibc's sigset_t has 1024 bits, signal 1 first.
    mask = sum(1 << (number - 1) for number in set(signals)).to_bytes(128, "little")
    return _check(_libc.signalfd(ctypes.c_int(-1), mask, ctypes.c_int(os.O_CLOEXEC | os.O_NONBLOCK)))


def raise_loopback() -> None:
    """Bring the interface `lo` of the current network namespace up (netdevice(7), SIOCSIFFLAGS)."""
    # The module `socket` would take longer to import than a container takes to start.
    descriptor = _check(_libc.socket(_AF_INET, _SOCK_DGRAM | os.O_CLOEXEC, 0))
    try:
        fcntl.ioctl(descriptor, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP))
    finally:
        os.close(descriptor)


def socketpair() -> tuple[int, int]:
    """socketpair(2): two ends of a connection that keeps messages apart (AF_UNIX), close-on-exec."""
    # Not of the module `socket`, for the reason above.
    ends = (ctypes.c_int * 2)()
    _check(_libc.socketpair(_AF_UNIX, _SOCK_SEQPACKET | os.O_CLOEXEC, 0, ends))
    return ends[0], ends[1]


def syncfs(descriptor: int) -> None:
    """syncfs(2): every dirty page and inode of the file system that holds the descriptor."""
    _check(_libc.syncfs(ctypes.c_int(descriptor)))


def keep_freed_memory(size: int) -> None:
    """mallopt(3): give back to the kernel only what is freed beyond `size` bytes; nothing without glibc."""
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        mallopt(ctypes.c_int(_M_TRIM_THRESHOLD), ctypes.c_int(size))
        mallopt(ctypes.c_int(_M_MMAP_THRESHOLD), ctypes.c_int(size))


def start_writing_back(descriptor: int, offset: int, length: int) -> None:
    """sync_file_range(2) SYNC_FILE_RANGE_WRITE: begin to write a part of a file to disk, wait for nothing."""
    result = _libc.sync_file_range(
        ctypes.c_int(descriptor), ctypes.c_int64(offset), ctypes.c_int64(length), ctypes.c_uint(2)
    )
    _check(result)


def renameat2(from_directory: int, from_name: bytes, to_directory: int, to_name: bytes, flags: int) -> None:
    """renameat2(2)."""
    result = _libc.renameat2(
        ctypes.c_int(from_directory),
        _path(from_name),
        ctypes.c_int(to_directory),
        _path(to_name),
        ctypes.c_uint(flags),
    )
    _check(result, os.fsdecode(to_name))


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) with all its modes: the standard library's posix_fallocate has none."""
    wide = [ctypes.c_long(a) for a in (offset, length)]
    _check(_libc.fallocate(ctypes.c_int(descriptor), ctypes.c_int(mode), *wide))


def clone_file(source: int, target: int) -> None:
    """ioctl(2) FICLONE: share all of the source's extents, where the file system can (reflink)."""
    fcntl.ioctl(target, FICLONE, source)


def name_to_handle_at(directory: int, name: bytes) -> tuple[int, bytes]:
    """name_to_handle_at(2): type and bytes of the handle of a file; a symlink is not followed."""
    handle = ctypes.create_string_buffer(struct.pack("=Ii", _MAX_HANDLE_SZ, 0), 8 + _MAX_HANDLE_SZ)
    mount = ctypes.c_int()
    _check(
        _libc.name_to_handle_at(ctypes.c_int(directory), name, handle, ctypes.byref(mount), ctypes.c_int(0))
    )
    size, kind = struct.unpack_from("=Ii", handle)
    return kind, handle.raw[8 : 8 + size]


def open_by_handle_at(mount: int, kind: int, handle: bytes, flags: int) -> int:
    """open_by_handle_at(2): open a file of the file system that holds `mount`."""
    whole = struct.pack("=Ii", len(handle), kind) + handle
    return _check(_libc.open_by_handle_at(ctypes.c_int(mount), whole, ctypes.c_int(flags)))


def file_flags(descriptor: int) -> int:
    """ioctl(2) FS_IOC_GETFLAGS: the flags of an open file or directory that chattr(1) sets."""
    return int.from_bytes(fcntl.ioctl(descriptor, FS_IOC_GETFLAGS, bytes(8))[:4], sys.byteorder)


def file_attributes(descriptor: int) -> bytes:
    """ioctl(2) FS_IOC_FSGETXATTR: the struct fsxattr of an open file or directory."""
    return fcntl.ioctl(descriptor, FS_IOC_FSGETXATTR, bytes(28))


def set_file_flags(descriptor: int, flags: int) -> None:
    """ioctl(2) FS_IOC_SETFLAGS."""
    fcntl.ioctl(descriptor, FS_IOC_SETFLAGS, flags.to_bytes(4, sys.byteorder) + bytes(4))


def file_system_uuid(descriptor: int) -> bytes:
    """ioctl(2) FS_IOC_GETFSUUID: the 16 bytes that name the file system of an open file (Linux 6.9)."""
    answer = fcntl.ioctl(descriptor, _FS_IOC_GETFSUUID, bytes(17))
    return answer[1 : 1 + answer[0]].ljust(16, b"\0")
