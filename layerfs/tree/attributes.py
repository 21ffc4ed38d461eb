"""Owner, mode, times and extended attributes of one file: read, and set in the order that keeps them.

The order matters (chown(2), capabilities(7), acl(5)): a change of owner clears setuid bits and
``security.capability``, and a change of mode rewrites the mask of an access control list. So:
owner, mode, extended attributes, times.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from typing import Final

from layerfs import subids
from layerfs.errors import UnsupportedError, printable
from layerfs.files import read_xattrs

DEFAULT_ACL: Final = b"system.posix_acl_default"
ACCESS_ACL: Final = b"system.posix_acl_access"

# Never part of a layer: labels belong to the host's policy, and overlayfs's own steer a mount.
_PRIVATE_PREFIXES: Final = (b"security.selinux", b"trusted.overlay.", b"user.overlay.")

# What a file system answers when it cannot hold an attribute, or we may not set it, and the kernel when the
# name or the value is longer than any attribute's.
_REFUSALS: Final = frozenset(
    {errno.ENOTSUP, errno.EPERM, errno.EINVAL, errno.EACCES, errno.ERANGE, errno.E2BIG}
)

# Seconds that every common file system holds; outside of it the result is read back.
_SAFE_NS: Final = range((1 << 31) * 1_000_000_000)
_FIRST_NS: Final = -(1 << 62)
_LAST_NS: Final = (1 << 62) - 1


def belongs_in_layers(xattr: bytes) -> bool:
    """Say whether an extended attribute is content, and not the host's or overlayfs's own."""
    return not xattr.startswith(_PRIVATE_PREFIXES)


def owner_refused(error: OSError, path: bytes, uid: int, gid: int) -> Exception:
    """Say whose file it is that could not be given to him.

    chown(2) answers EINVAL to an id that the user namespace does not map, and EPERM for a file system.
    """
    if error.errno == errno.EPERM:
        return UnsupportedError(
            f"{printable(b'/' + path)!r} cannot be given to user {uid} and group {gid}: {error.strerror}",
            errno=error.errno,
            hint="the store's file system may know no other owners, as one over the network (NFS):"
            " choose one on a local disk with --root",
        )
    if error.errno != errno.EINVAL:
        return error
    return UnsupportedError(
        f"{printable(b'/' + path)!r} belongs to user {uid} and group {gid}, and this user namespace does not"
        " have ids for both",
        errno=error.errno,
        hint=f"{subids.advice(subids.outside(os.geteuid()))}; or let such files be root's: --squash-owners",
    )


def read_layer_xattrs(target: int | bytes) -> dict[bytes, bytes]:
    """Read the extended attributes that belong in layers, of a descriptor or of a path without following."""
    found = read_xattrs(target)
    return {n: v for n, v in found.items() if belongs_in_layers(n)} if found else found


def write_xattrs(
    target: int | bytes, xattrs: Mapping[bytes, bytes], path: bytes, warn: Callable[[str], None]
) -> None:
    """Set extended attributes; what may not be set here, or is not content, is told to `warn`."""
    follow = isinstance(target, int)
    for name, value in xattrs.items():
        if not belongs_in_layers(name):
            if not name.startswith(b"security.selinux"):
                warn(f"xattr {printable(name)} of {printable(path)!r} dropped: it would steer overlayfs")
            continue
        try:
            os.setxattr(target, name, value, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in _REFUSALS:
                # A full disk, or more than the file system keeps with one file: ext4 tells neither apart.
                what = f"xattr {printable(name)} of {printable(path)!r}"
                raise OSError(error.errno, error.strerror, what) from error
            warn(f"xattr {printable(name)} of {printable(path)!r} refused: {os.strerror(error.errno)}")


def replace_xattrs(
    target: int, xattrs: Mapping[bytes, bytes], path: bytes, warn: Callable[[str], None]
) -> None:
    """Make a descriptor's extended attributes be these and no others that belong in layers."""
    for name in read_layer_xattrs(target):
        if name not in xattrs:
            os.removexattr(target, name)
    write_xattrs(target, xattrs, path, warn)


def set_times(
    target: int | bytes,
    mtime_ns: int,
    path: bytes,
    warn: Callable[[str], None],
    *,
    directory: int | None = None,
) -> None:
    """Set access and modification time; what the file system cannot hold is clamped with a warning."""
    if mtime_ns in _SAFE_NS:
        _utime(target, mtime_ns, directory)
        return
    _utime(target, min(max(mtime_ns, _FIRST_NS), _LAST_NS), directory)
    if isinstance(target, int):
        found = os.fstat(target)
    else:
        found = os.stat(target, dir_fd=directory, follow_symlinks=False)
    if found.st_mtime_ns != mtime_ns:
        warn(f"time of {printable(path)!r} is out of the file system's range and was clamped")


def _utime(target: int | bytes, mtime_ns: int, directory: int | None) -> None:
    if isinstance(target, int):
        os.utime(target, ns=(mtime_ns, mtime_ns))
    else:
        os.utime(target, ns=(mtime_ns, mtime_ns), dir_fd=directory, follow_symlinks=False)
