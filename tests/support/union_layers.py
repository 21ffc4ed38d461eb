"""Lower layers in overlayfs's format with one of everything in them."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from tests.support.union_calls import ACLS, CAPABILITY, DEEP

OLD = 1_000_000_000_000_000_000
"""When everything in the layers was last changed, nanoseconds."""


def make_layers(place: Path, *, linked: bool, deep: bool = False) -> list[Path]:
    """Make two layers, top first.

    With `linked` some of their files have several names; with `deep` there is a directory of which the
    path is longer than overlayfs would follow.
    """
    bottom, top = place / "bottom", place / "top"
    for each in (bottom, top):
        each.mkdir(mode=0o755)
    _fill_bottom(bottom, linked=linked)
    _fill_top(top, linked=linked)
    if deep:
        for number, layer in enumerate((bottom, top)):
            (layer / DEEP / "sub").mkdir(parents=True)
            _file(layer / DEEP / f"in {number}")
            _file(layer / DEEP / "sub" / f"in {number}")
    for each in (bottom, top):
        for above, directories, names in os.walk(each, topdown=False):
            for name in (*directories, *names):
                os.utime(os.path.join(above, name), ns=(OLD, OLD), follow_symlinks=False)
        os.utime(each, ns=(OLD, OLD))
    return [top, bottom]


def has_links(layer: Path) -> bool:
    """Say whether a file of a layer has several names, whiteouts left out."""
    for above, _, names in os.walk(layer):
        for name in names:
            found = os.lstat(os.path.join(above, name))
            if found.st_nlink > 1 and not (stat.S_ISCHR(found.st_mode) and not found.st_rdev):
                return True
    return False


def _file(path: Path, size: int = 9000, mode: int = 0o644, uid: int = 0, gid: int = 0) -> Path:
    path.write_bytes((path.name.encode() + b" was here. ") * (size // (len(path.name) + 11) + 1))
    os.truncate(path, size)
    os.chown(path, uid, gid)
    path.chmod(mode)
    return path


def _directory(path: Path, mode: int = 0o755, uid: int = 0, gid: int = 0) -> Path:
    path.mkdir()
    os.chown(path, uid, gid)
    path.chmod(mode)
    return path


def _fill_bottom(root: Path, *, linked: bool) -> None:
    _file(root / "a", mode=0o666)
    _file(root / "b", uid=1001, gid=1001)
    for name in ("d", "d/e", "o", "q2"):
        _directory(root / name)
    for name in ("d/f", "d/e/g", "o/old", "q"):
        _file(root / name, size=100)
    if linked:
        os.link(root / "b", root / "d" / "b2")
        os.link(root / "b", root / "q2" / "b3")
    os.symlink("a", root / "s")
    os.symlink("d", root / "sd")
    os.mkfifo(root / "fifo", 0o666)
    os.mknod(root / "c", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as end:
        previous = os.getcwd()
        os.chdir(root)
        try:
            end.bind("sock")
        finally:
            os.chdir(previous)
    with open(root / "sparse", "wb") as file:
        file.truncate(200_000)
        file.seek(65536)
        file.write(b"island")
    _file(root / "su", mode=0o4777, uid=1001)
    _file(root / "sg", mode=0o2777, gid=1002)
    os.setxattr(_file(root / "x", size=10), "user.x", b"lower")
    os.setxattr(root / "x", "trusted.y", b"y")
    os.setxattr(_file(root / "cap", mode=0o777), "security.capability", CAPABILITY)
    _directory(root / "r")
    _file(root / "r" / "hidden")
    _directory(root / "t", mode=0o1777)
    _file(root / "t" / "u1", uid=1001, gid=1001)
    _file(root / "t" / "u3", uid=1003, gid=1003)
    _directory(root / "g", mode=0o2775, gid=1002)
    _file(root / "g" / "f", mode=0o664, gid=1002)
    _directory(root / "l", mode=0o777)
    os.setxattr(root / "l", "system.posix_acl_default", ACLS[0])
    os.setxattr(_file(root / "l" / "f"), "system.posix_acl_access", ACLS[1])
    _directory(root / "l" / "x")
    _directory(root / "w", mode=0o777)
    for name in ("x", "y", "z"):
        _file(root / "w" / name, size=5000, mode=0o666)
    _directory(root / "m", mode=0o777)
    for name in ("1", "2", "3"):
        _file(root / "m" / name, size=50)
    if linked:
        os.link(root / "m" / "1", root / "m" / "4")


def _fill_top(root: Path, *, linked: bool) -> None:
    _directory(root / "d")
    _directory(root / "d" / "e", mode=0o777)
    _file(root / "d" / "e" / "h", size=20)
    _hide(root / "d" / "link")
    _directory(root / "o", mode=0o777)
    os.setxattr(root / "o", "trusted.overlay.opaque", b"y")
    _file(root / "o" / "n")
    _file(root / "r")  # over a directory
    _directory(root / "q", mode=0o777)  # over a file
    _file(root / "q" / "new")
    _directory(root / "w", mode=0o777)
    _hide(root / "w" / "x")
    _directory(root / "m", mode=0o777)
    os.setxattr(root / "m", "trusted.overlay.opaque", b"x")
    _file(root / "m" / "2", size=0)
    os.setxattr(root / "m" / "2", "trusted.overlay.whiteout", b"")
    _directory(root / "l", mode=0o777)
    os.setxattr(root / "l", "system.posix_acl_default", ACLS[1])
    if linked:
        _file(root / "d" / "e" / "i", size=7000)
        os.link(root / "d" / "e" / "i", root / "w" / "i")


def _hide(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR, 0)
