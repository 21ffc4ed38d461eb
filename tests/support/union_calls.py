"""File system calls as data: random ones from hypothesis, and a caller that makes them in one tree."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from hypothesis import strategies as st

from layerfs import linux

SLOTS: Final = range(4)
USERS: Final = (0, 0, 0, 1001, 1003)
GROUPS: Final = {1001: [1001, 1002], 1003: [1003]}

TMPFILE: Final = os.O_TMPFILE | os.O_RDWR
WHITEOUT: Final = 4
DEEP: Final = f"{'long' * 35}/{'longer' * 35}"
DIRECTORIES: Final = ("", "d", "d/e", "g", "l", "m", "o", "t", "w", "n1", "d/n2", DEEP)
FILES: Final = (
    "a", "b", "c", "cap", "d/b2", "d/e/g", "d/e/h", "d/f", "fifo", "g/f", "l/f", "m/1", "m/2", "o/n", "o/old",
    "q", "r", "s", "sd", "sg", "sparse", "su", "t/u1", "t/u3", "w/x", "w/y", "w/z", "x",
)  # fmt: skip
NEW: Final = ("n1", "n2", "n3")

name = st.one_of(
    st.sampled_from(FILES),
    st.sampled_from(DIRECTORIES[1:]),
    st.builds(os.path.join, st.sampled_from(DIRECTORIES), st.sampled_from(NEW)),
    st.builds(os.path.join, st.sampled_from(DIRECTORIES), st.sampled_from(("f", "x", "e"))),
)
slot = st.sampled_from(SLOTS)
mode = st.sampled_from(
    (0o644, 0o600, 0o666, 0o755, 0o700, 0o777, 0o4755, 0o2755, 0o2775, 0o1777, 0o6777, 0o0)
)
offset = st.sampled_from((0, 1, 100, 4096, 5000, 8192, 65536, 70000))
length = st.sampled_from((0, 1, 7, 4096, 5000, 20000))
owner = st.sampled_from((-1, 0, 1001, 1003))
group = st.sampled_from((-1, 0, 1001, 1002))
when = st.sampled_from((None, 1_000_000_001_123_456_789, 1_200_000_000_000_000_000))
whence = st.sampled_from((os.SEEK_SET, os.SEEK_CUR, os.SEEK_END, os.SEEK_DATA, os.SEEK_HOLE, 9))
open_flags = st.builds(
    lambda access, more: access | sum(set(more)),
    st.sampled_from((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR)),
    st.lists(
        st.sampled_from(
            (os.O_CREAT, os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_NOFOLLOW, os.O_DIRECTORY,
             os.O_NOATIME, os.O_SYNC, os.O_DSYNC)
        ), max_size=3,
    ),
)  # fmt: skip
CAPABILITY: Final = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


def access_list(*entries: tuple[int, int, int]) -> bytes:
    """Pack an access control list (posix_acl_xattr.h): tag, permissions, id."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY: Final = 0xFFFFFFFF
ACLS: Final = tuple(
    access_list((1, own, NOBODY), (2, 7, 1001), (4, 5, NOBODY), (0x10, mask, NOBODY), (0x20, 0, NOBODY))
    for own, mask in ((7, 7), (6, 4))
)
attribute = st.sampled_from(
    ("user.x", "user.n", "trusted.y", "security.z", "security.capability", "trusted.overlay.opaque",
     "trusted.overlay.redirect", "trusted.overlay.origin", "trusted.overlay.overlay.x",
     "trusted.overlay.metacopy", "user.overlay.opaque", "user.", "trusted.", "none.x",
     "system.none", "system.posix_acl_access", "system.posix_acl_default", "trusted.overlay.",
     "trusted.overlayx")
)  # fmt: skip
value = st.sampled_from((b"", b"v", b"y" * 300, CAPABILITY, *ACLS))

SHAPES: Final[dict[str, tuple[st.SearchStrategy[object], ...]]] = {
    "nothing": (),
    "open": (slot, name, open_flags, mode),
    "open_nameless": (slot, st.sampled_from(DIRECTORIES), mode),
    "name_nameless": (slot, name),
    "close": (slot,),
    "read": (slot, length),
    "pread": (slot, length, offset),
    "write": (slot, length),
    "pwrite": (slot, length, offset),
    "direct": (name, st.booleans(), offset),
    "seek": (slot, offset, whence),
    "ftruncate": (slot, offset),
    "truncate": (name, offset),
    "fallocate": (slot, st.sampled_from((0, 1, 3, 2, 16, 17, 0x40)), offset, length),
    "copy_range": (slot, slot, length, offset, offset),
    "clone": (slot, slot),
    "map_write": (slot, offset, st.booleans()),
    "map": (slot, st.booleans()),
    "peek": (slot, offset),
    "poke": (slot, offset),
    "unmap": (slot,),
    "fstat": (slot,),
    "fchmod": (slot, mode),
    "fchown": (slot, owner, group),
    "futime": (slot, when),
    "fsetxattr": (slot, attribute, value),
    "fsync": (slot, st.booleans()),
    "flock": (slot, st.sampled_from((fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN))),
    "lock_range": (slot, st.sampled_from((fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK)), offset, length),
    "poll": (slot,),
    "stat": (name,),
    "lstat": (name,),
    "access": (name, st.sampled_from((os.R_OK, os.W_OK, os.X_OK, os.W_OK | os.X_OK))),
    "rename": (name, name),
    "renameat2": (name, name, st.sampled_from((linux.RENAME_NOREPLACE, linux.RENAME_EXCHANGE, WHITEOUT, 3))),
    "rename_directory": (st.sampled_from(DIRECTORIES[1:]), name),
    "link": (name, name, st.booleans()),
    "symlink": (st.sampled_from(("a", "../a", "none", "d")), name),
    "mknod": (name, st.sampled_from((stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK, stat.S_IFREG, stat.S_IFDIR)),
              mode, st.sampled_from((0, os.makedev(1, 3)))),
    "mkdir": (name, mode),
    "rmdir": (name,),
    "unlink": (name,),
    "chmod": (name, mode),
    "chown": (name, owner, group),
    "lchown": (name, owner, group),
    "utime": (name, when),
    "setxattr": (name, attribute, value, st.sampled_from((0, 0, 0, os.XATTR_CREATE, os.XATTR_REPLACE))),
    "getxattr": (name, attribute),
    "listxattr": (name,),
    "removexattr": (name, attribute),
    "readlink": (name,),
    "list": (st.sampled_from(DIRECTORIES),),
    "remove_tree": (st.sampled_from(DIRECTORIES[1:]),),
    "fill": (name, length),
}  # fmt: skip
"""What the arguments of each call are drawn from."""

_OFTEN: Final = (
    "open", "open", "open", "write", "pwrite", "pread", "rename", "rename", "renameat2", "rename_directory",
    "link", "mkdir", "unlink", "unlink", "rmdir", "chmod", "setxattr", "fill", "remove_tree", "fstat",
)  # fmt: skip


class Call(NamedTuple):
    """One call of one user, 0 is root."""

    name: str
    arguments: tuple[object, ...]
    user: int = 0

    def __repr__(self) -> str:
        return f"Call({self.name!r}, {self.arguments!r}, {self.user})"

    @property
    def paths(self) -> list[str]:
        """Give the paths among the arguments."""
        shape = SHAPES[self.name]
        return [
            str(a) for a, s in zip(self.arguments, shape, strict=True) if isinstance(a, str) and s is name
        ]


def _call(which: str) -> st.SearchStrategy[Call]:
    return st.builds(Call, st.just(which), st.tuples(*SHAPES[which]), st.sampled_from(USERS))


call = st.sampled_from((*SHAPES, *_OFTEN)).flatmap(_call)

calls = st.lists(call, min_size=50, max_size=80)
few_calls = st.lists(call, max_size=15)


class Caller:
    """Makes calls below one directory, the current one, and holds what they open."""

    def __init__(self, root: int) -> None:
        self.root = root
        self._open: dict[int, int] = {}
        self._maps: dict[int, mmap.mmap] = {}
        self._written = 0

    def make(self, call: Call) -> object:
        """Make a call and give its result, the name of its errno if it failed."""
        self._written += 1
        os.fchdir(self.root)
        with _acting_as(call.user):
            try:
                return _METHODS[call.name](self, *call.arguments)
            except OSError as error:
                return errno.errorcode[error.errno or 0]

    def close_all(self) -> None:
        """Close what is open."""
        for each in self._maps.values():
            each.close()
        for descriptor in self._open.values():
            os.close(descriptor)
        self._maps.clear()
        self._open.clear()

    def opened(self) -> dict[int, os.stat_result]:
        """Give the attributes of the files that are open, by slot."""
        return {slot: os.fstat(descriptor) for slot, descriptor in self._open.items()}

    def _fd(self, slot: int) -> int:
        found = self._open.get(slot)
        if found is None:
            raise OSError(errno.EBADF, "")
        return found

    def _put(self, slot: int, descriptor: int) -> None:
        old = self._open.pop(slot, None)
        if old is not None:
            os.close(old)
        self._open[slot] = descriptor

    def _data(self, length: int) -> bytes:
        return bytes((self._written * 7 + i) & 0xFF for i in range(min(length, 251))) * (length // 251 + 1)

    def nothing(self) -> None:
        """Do what all other calls shrink to."""

    def open(self, slot: int, path: str, flags: int, mode: int) -> None:
        self._put(slot, os.open(path or ".", flags | os.O_NONBLOCK, mode))

    def open_nameless(self, slot: int, path: str, mode: int) -> None:
        self._put(slot, os.open(path or ".", TMPFILE, mode))

    def name_nameless(self, slot: int, path: str) -> None:
        os.link(f"/proc/{os.getpid()}/fd/{self._fd(slot)}", path, follow_symlinks=True)

    def close(self, slot: int) -> None:
        self._fd(slot)
        os.close(self._open.pop(slot))

    def read(self, slot: int, length: int) -> bytes:
        return os.read(self._fd(slot), length)

    def pread(self, slot: int, length: int, offset: int) -> bytes:
        return os.pread(self._fd(slot), length, offset)

    def write(self, slot: int, length: int) -> int:
        return os.write(self._fd(slot), self._data(length)[:length])

    def pwrite(self, slot: int, length: int, offset: int) -> int:
        return os.pwrite(self._fd(slot), self._data(length)[:length], offset)

    def direct(self, path: str, writing: bool, offset: int) -> object:
        flags = os.O_RDWR if writing else os.O_RDONLY
        descriptor = os.open(path or ".", flags | os.O_DIRECT | os.O_NONBLOCK)
        try:
            offset &= ~4095
            with mmap.mmap(-1, 4096) as buffer:
                if writing:
                    buffer[:] = self._data(4096)[:4096]
                    return os.pwritev(descriptor, [buffer], offset)
                done = os.preadv(descriptor, [buffer], offset)
                return buffer[:done]
        finally:
            os.close(descriptor)

    def seek(self, slot: int, offset: int, whence: int) -> int:
        return os.lseek(self._fd(slot), offset, whence)

    def ftruncate(self, slot: int, size: int) -> None:
        os.ftruncate(self._fd(slot), size)

    def truncate(self, path: str, size: int) -> None:
        os.truncate(path, size)

    def fallocate(self, slot: int, mode: int, offset: int, length: int) -> None:
        linux.fallocate(self._fd(slot), mode, offset, length)

    def copy_range(self, source: int, target: int, length: int, at: int, to: int) -> int:
        return os.copy_file_range(self._fd(source), self._fd(target), length, at, to)

    def clone(self, source: int, target: int) -> None:
        linux.clone_file(self._fd(source), self._fd(target))

    def map_write(self, slot: int, offset: int, shared: bool) -> bytes:
        descriptor = self._fd(slot)
        size = _mappable(descriptor)
        kind = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
        with mmap.mmap(descriptor, size, kind, mmap.PROT_READ | mmap.PROT_WRITE) as window:
            at = min(offset, size - 1)
            window[at] = self._written & 0xFF
            if shared:
                window.flush()
            return window[at : at + 10]

    def map(self, slot: int, writing: bool) -> None:
        descriptor = self._fd(slot)
        wanted = mmap.PROT_READ | (mmap.PROT_WRITE if writing else 0)
        window = mmap.mmap(descriptor, _mappable(descriptor), mmap.MAP_SHARED, wanted)
        self.unmap(slot)
        self._maps[slot] = window

    def peek(self, slot: int, offset: int) -> bytes | None:
        window = self._maps.get(slot)
        if window is None or offset + 10 > window.size() or offset + 10 > len(window):
            return None  # past the end there is SIGBUS
        return window[offset : offset + 10]

    def poke(self, slot: int, offset: int) -> None:
        window = self._maps.get(slot)
        if window is not None and offset < min(window.size(), len(window)):
            with contextlib.suppress(TypeError):  # read-only
                window[offset] = self._written & 0xFF

    def unmap(self, slot: int) -> None:
        old = self._maps.pop(slot, None)
        if old is not None:
            old.close()

    def fstat(self, slot: int) -> object:
        return shown(os.fstat(self._fd(slot)))

    def fchmod(self, slot: int, mode: int) -> None:
        os.fchmod(self._fd(slot), mode)

    def fchown(self, slot: int, uid: int, gid: int) -> None:
        os.fchown(self._fd(slot), uid, gid)

    def futime(self, slot: int, when: int | None) -> None:
        _utime(self._fd(slot), when)

    def fsetxattr(self, slot: int, key: str, value: bytes) -> None:
        os.setxattr(self._fd(slot), key, value)

    def fsync(self, slot: int, data_only: bool) -> None:
        (os.fdatasync if data_only else os.fsync)(self._fd(slot))

    def flock(self, slot: int, kind: int) -> None:
        fcntl.flock(self._fd(slot), kind | fcntl.LOCK_NB)

    def lock_range(self, slot: int, kind: int, start: int, length: int) -> None:
        # Locks of open files, since those of one process do not exclude one another: struct flock.
        lock = struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)
        fcntl.fcntl(self._fd(slot), _F_OFD_SETLK, lock)

    def poll(self, slot: int) -> object:
        import select

        poll = select.poll()
        poll.register(self._fd(slot), select.POLLIN | select.POLLOUT)
        return [event for _, event in poll.poll(0)]

    def stat(self, path: str) -> object:
        return shown(os.stat(path))

    def lstat(self, path: str) -> object:
        return shown(os.lstat(path))

    def access(self, path: str, wanted: int) -> bool:
        return os.access(path, wanted, effective_ids=True)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    rename_directory = rename

    def renameat2(self, old: str, new: str, flags: int) -> None:
        linux.renameat2(linux.AT_FDCWD, old.encode(), linux.AT_FDCWD, new.encode(), flags)

    def link(self, old: str, new: str, follow: bool) -> None:
        os.link(old, new, follow_symlinks=follow)

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, path)

    def mknod(self, path: str, kind: int, mode: int, device: int) -> None:
        os.mknod(path, kind | mode, device)

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(path, mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(path, mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        os.chown(path, uid, gid)

    def lchown(self, path: str, uid: int, gid: int) -> None:
        os.lchown(path, uid, gid)

    def utime(self, path: str, when: int | None) -> None:
        _utime(path, when)

    def setxattr(self, path: str, key: str, value: bytes, flags: int) -> None:
        os.setxattr(path, key, value, flags, follow_symlinks=False)

    def getxattr(self, path: str, key: str) -> bytes:
        return os.getxattr(path, key, follow_symlinks=False)

    def listxattr(self, path: str) -> list[str]:
        return sorted(os.listxattr(path, follow_symlinks=False))

    def removexattr(self, path: str, key: str) -> None:
        os.removexattr(path, key, follow_symlinks=False)

    def readlink(self, path: str) -> str:
        return os.readlink(path)

    def list(self, path: str) -> object:
        with os.scandir(path or ".") as entries:
            return sorted((e.name, e.is_dir(follow_symlinks=False), e.is_symlink()) for e in entries)

    def remove_tree(self, path: str) -> None:
        for above, directories, names in os.walk(path, topdown=False):
            for each in sorted(names):
                os.unlink(os.path.join(above, each))
            for each in sorted(directories):
                whole = os.path.join(above, each)
                (os.unlink if os.path.islink(whole) else os.rmdir)(whole)
        os.rmdir(path)

    def fill(self, path: str, length: int) -> int:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK, 0o640)
        try:
            return os.write(descriptor, self._data(length)[:length])
        finally:
            os.close(descriptor)


_METHODS: Final[dict[str, Callable[..., object]]] = {which: getattr(Caller, which) for which in SHAPES}
_F_OFD_SETLK: Final = 37


def shown(found: os.stat_result) -> dict[str, int]:
    """Give what two unions must say alike of a file; of directories nobody counts the links."""
    links = min(found.st_nlink, 1) if stat.S_ISDIR(found.st_mode) else found.st_nlink
    size = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
    device = found.st_rdev if stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode) else 0
    return {
        "mode": found.st_mode, "links": links, "uid": found.st_uid, "gid": found.st_gid,
        "size": size, "device": device,
    }  # fmt: skip


def _utime(target: int | str, when: int | None) -> None:
    if isinstance(target, int):
        os.utime(target, ns=None if when is None else (when, when + 1)) if when else os.utime(target)
    elif when is None:
        os.utime(target, follow_symlinks=False)
    else:
        os.utime(target, ns=(when, when + 1), follow_symlinks=False)


def _mappable(descriptor: int) -> int:
    size = os.fstat(descriptor).st_size
    if not stat.S_ISREG(os.fstat(descriptor).st_mode) or not size:
        raise OSError(errno.ENODEV, "")
    return size


@contextlib.contextmanager
def _acting_as(user: int) -> Iterator[None]:
    """Make system calls as an ordinary user for a while."""
    old = os.umask(0o022)
    groups = os.getgroups()
    try:
        if user:
            os.setgroups(GROUPS[user])
            os.setegid(user)
            os.seteuid(user)
        yield
    finally:
        if user:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(groups)
        os.umask(old)
