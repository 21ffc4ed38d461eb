"""Unions mounted by libfuse 2, through fusepy: the front end where the kernel's protocol is not Linux's.

Neither of the two is imported before something is mounted.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from layerfs import linux, mounting
from layerfs.errors import MountError, UnsupportedError
from layerfs_fuse import process
from layerfs_fuse.changes import Maker
from layerfs_fuse.dialect import Dialect
from layerfs_fuse.kernel_device import opened_device
from layerfs_fuse.paths import ENCODING, PathOperations

_FOREVER: Final = 1_000_000_000
_CAP_DONT_MASK: Final = 1 << 6
_READY: Final = b"\0"


class _Connection(ctypes.Structure):
    """The beginning of libfuse's struct fuse_conn_info."""

    _fields_ = (
        ("proto_major", ctypes.c_uint),
        ("proto_minor", ctypes.c_uint),
        ("async_read", ctypes.c_uint),
        ("max_write", ctypes.c_uint),
        ("max_readahead", ctypes.c_uint),
        ("capable", ctypes.c_uint),
        ("want", ctypes.c_uint),
    )


def load() -> ModuleType:
    """Import fusepy, which loads libfuse.

    Raises:
        UnsupportedError: one of them is not installed.
    """
    try:
        module = importlib.import_module("fuse")
    except ModuleNotFoundError as error:
        raise UnsupportedError("fusepy is not installed", hint="`pip install fusepy`") from error
    except OSError as error:
        raise UnsupportedError(
            f"libfuse 2 cannot be loaded: {error}",
            hint="`apt install libfuse2`, or what your system calls the package; macOS has it from macFUSE",
        ) from error
    if not hasattr(module, "FUSE"):
        raise UnsupportedError(
            f"{module.__file__} is not fusepy",
            hint="`pip install fusepy` in a virtual environment of layerfs's own",
        )
    return module


def directory(target: Path | int) -> Path:
    """Name an existing directory that is given as a path or an open descriptor.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such directory.
    """
    place = Path(os.readlink(f"/proc/self/fd/{target}")) if isinstance(target, int) else target
    os.close(os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    return place


def attach(target: Path | int, roots: list[int], work: int | None, *, source: str, dialect: Dialect) -> None:
    """Mount at a directory, privately; the other arguments are those of `serve`.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such directory.
    """
    if os.geteuid() == 0 and isinstance(target, int):
        # No path may lead to what is open: libfuse mounts elsewhere, and the mount is moved.
        with tempfile.TemporaryDirectory(prefix="layerfs-") as scratch:
            serve(Path(scratch), roots, work, source=source, dialect=dialect)
            try:
                flags = linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC
                tree = linux.open_tree(linux.AT_FDCWD, scratch, flags)
            finally:
                _detach(scratch)
        mounting.attach_tree(tree, target)
        return
    place = directory(target)
    serve(place, roots, work, source=source, dialect=dialect)
    if os.geteuid() == 0:
        linux.mount("none", place, None, linux.MS_PRIVATE)


def open_mount(roots: list[int], work: int | None, *, source: str, dialect: Dialect) -> int:
    """Open the root of a mount that is attached nowhere; the arguments are those of `serve`."""
    with tempfile.TemporaryDirectory(prefix="layerfs-") as directory:
        serve(Path(directory), roots, work, source=source, dialect=dialect)
        try:
            return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        finally:
            _detach(directory)


def _detach(directory: str) -> None:
    try:
        linux.umount(directory, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)
    except PermissionError:
        # Who is not root mounts and unmounts by libfuse's helper.
        helper = shutil.which("fusermount")
        if helper is None:
            raise
        subprocess.run([helper, "-u", "-z", "-q", directory], check=True)


def serve(place: Path, roots: list[int], work: int | None, *, source: str, dialect: Dialect) -> None:
    """Mount at `place` and leave a process behind that serves the mount.

    Args:
        place: an existing directory.
        roots: the layers' directories, top first; the first one is written if there is a `work`.
        work: the work directory.
        source: what the mount table is to call the mount.
        dialect: the format of these layers.

    Raises:
        UnsupportedError: fusepy or libfuse is missing.
        MountError: libfuse could not mount (the message has its own words), or /dev/fuse cannot be opened.
    """
    fuse = load()
    if sys.platform == "linux":
        with opened_device():
            pass
    # libfuse's main program wants a path without symlinks.
    target = os.fsencode(os.path.realpath(place)).decode(ENCODING)
    options = _options(source, writable=work is not None)
    answer, words = os.pipe()

    def run() -> None:
        (pipe,) = process.above_standard([words])
        layers = process.above_standard(roots)
        copies = process.above_standard(() if work is None else (work,))
        process.be_alone({pipe, *layers, *copies})
        # libfuse says what went wrong on standard error.
        os.dup2(pipe, 2)
        os.close(pipe)
        try:
            union = process.opened_union(layers, *copies, dialect=dialect)
        except OSError as error:
            os.write(2, str(error).encode())
            return
        operations = PathOperations(union, maker=_maker_of(fuse), started=_started)
        _front(fuse)(
            operations, target, raw_fi=True, encoding=ENCODING, foreground=True, nothreads=True, **options
        )

    try:
        process.leave_behind(run)
    finally:
        os.close(words)
    with open(answer, "rb") as stream:
        said = stream.read()
    if not said.endswith(_READY):
        reason = said.decode("utf-8", "backslashreplace").strip() or "its server ended"
        raise MountError(f"cannot mount {source!r} at {place}: {reason}")


def _started() -> None:
    """Tell who mounts that the tree is usable, and be heard and seen no more."""
    os.write(2, _READY)
    os.dup2(1, 2)
    process.leave_mounts()


def _options(source: str, *, writable: bool) -> dict[str, str | int | bool]:
    """Give libfuse's options (`mount.fuse`(8)).

    Names change through the mount alone, so they last. Attributes would, too, did libfuse 2 not make an
    inode of every name of a file: what is done under one of them the kernel has to ask for under the other.
    """
    options: dict[str, str | int | bool] = {
        "fsname": source.replace("\\", "\\\\").replace(",", "\\,"),
        "default_permissions": True,
        "use_ino": True,
        "entry_timeout": _FOREVER,
        "negative_timeout": _FOREVER,
        "attr_timeout": 0 if writable else _FOREVER,
        "atomic_o_trunc": True,
        "ro": not writable,
        "subtype": "layerfs",
    }
    if sys.platform == "linux":
        options |= {"big_writes": True, "nonempty": True}
    if os.geteuid() == 0:
        options |= {"allow_other": True, "suid": True, "dev": True}
    return options


def _maker_of(fuse: Any) -> Any:
    """Give what finds out who asks; fusepy's own function leaves the umask out."""
    context: Any = type("Context", (fuse.fuse_context,), {"_fields_": [("umask", fuse.c_mode_t)]})
    pointer: Any = ctypes.POINTER(context)

    def maker() -> Maker:
        found = ctypes.cast(fuse._libfuse.fuse_get_context(), pointer).contents
        return Maker(found.uid, found.gid, found.umask)

    return maker


def _front(fuse: Any) -> Any:
    """Give fusepy's class with a hand in what the kernel and libfuse agree on."""

    def init(self: Any, connection: int) -> Any:
        agreed = _Connection.from_address(connection)
        # Default ACLs stand in the umask's place, and only the file system below knows of them.
        agreed.want |= agreed.capable & _CAP_DONT_MASK
        return fuse.FUSE.init(self, connection)

    return type("Front", (fuse.FUSE,), {"init": init})
