"""What tests of lazy mounts share: images in layouts, and what the layers hold."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from layerfs import Store
from tests.support.tiny_images import TinyImage, layout_files, write_files

MARKS = ("trusted.overlay.layerfs.absent", "user.overlay.layerfs.absent")


def packed(*members: tuple[str, Any] | tuple[str, Any, dict[str, Any]]) -> bytes:
    """Pack members: bytes are a file's, None is a directory, a pair a link; then further attributes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content, *more in members:
            info = tarfile.TarInfo(name)
            info.mtime, info.mode = 1_500_000_000, 0o755 if content is None else 0o644
            for key, value in (more[0] if more else {}).items():
                setattr(info, key, value)
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, tuple):
                info.type, info.linkname = content
            elif info.isreg():
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return out.getvalue()


def layout(directory: Path, image: TinyImage, name: str = "1") -> str:
    """Write an image into an OCI layout, and give its place."""
    write_files(directory, layout_files([image.entry(name=name)], image.blobs))
    return f"oci:{directory}:{name}"


@contextmanager
def lazily(store: Store, what: str, target: Path, **options: Any) -> Iterator[Path]:
    """Mount an image lazily for the length of a block."""
    target.mkdir(exist_ok=True)
    store.mount(what, target, lazy=True, **options)
    try:
        yield target
    finally:
        store.unmount(target)


def absent(store: Store) -> set[str]:
    """Name the files in all layers whose data is not here, by the paths in their layers."""
    return {
        str(path.relative_to(diff))
        for diff in (store.root / "drivers" / "fuse").glob("*/diff")
        for path in files(diff)
        if any(mark in os.listxattr(path, follow_symlinks=False) for mark in MARKS)
    }


def files(directory: Path) -> Iterable[Path]:
    """Give the regular files below a directory."""
    return (path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())


def logged(store: Store) -> str:
    """Give what the servers of the store's mounts have logged."""
    logs = sorted((store.root / "drivers" / "fuse").glob("*/server.log"))
    return "".join(log.read_text() for log in logs)


def seen(root: Path) -> dict[str, object]:
    """Look at all of a tree, contents included."""
    found: dict[str, object] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        status = path.lstat()
        xattrs = {name: os.getxattr(path, name, follow_symlinks=False)
                  for name in os.listxattr(path, follow_symlinks=False)}  # fmt: skip
        content: object = None
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        links = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink
        found[str(path.relative_to(root))] = (
            status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_size, status.st_rdev,
            links, xattrs, content,
        )  # fmt: skip
    return found
