"""An fsspec file system of the files in images: ``fsspec.open("layerfs://debian:12/etc/os-release")``.

Read only. Nothing is unpacked; files are read where `reading` reads them.

A URL is ``layerfs://IMAGE/PATH``, and names of images have slashes too: IMAGE is the longest beginning, up to
a slash or the end, under which the store finds an image. With the storage option `image` the URL is a path
alone, ``layerfs:///etc/os-release``, and the image may also be one outside of the store, such as
``docker://HOST/REPOSITORY:TAG``. Without it the top directory lists the store's images by name.

As the command is, this is an edge of layerfs: what is not said is taken from the environment, so that a URL
finds the store and the credentials that the command finds. All storage options are plain values, as fsspec's
configuration files have them:

    fsspec.open("layerfs://app:1/etc/os-release", root="/srv/store")
    fsspec.filesystem("layerfs", image="docker://registry.example.org/app:1", creds="user:password")

fsspec is no dependency of layerfs: whoever asks for this has it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile

from layerfs import similar
from layerfs.errors import LayerfsError
from layerfs.oci.platform import Platform
from layerfs.reading import OpenImage
from layerfs.registry.credentials import Credentials
from layerfs.registry.settings import Options
from layerfs.seekable.overlaying import Node
from layerfs.store import Store
from layerfs.tree.entry import Kind

_TYPES = {Kind.FILE: "file", Kind.DIRECTORY: "directory", Kind.SYMLINK: "link"}
_ATTRIBUTES = ("mode", "uid", "gid")
_OWN = ("root", "image", "driver", "platform", "tls_verify", "cert_dir", "authfile", "creds", "anonymous")
# Those of `AbstractFileSystem`, which every file system is given.
_FSSPECS = ("use_listings_cache", "listings_expiry_time", "max_paths", "asynchronous", "loop")


class LayerfsFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Files of images of one store.

    Args:
        root: the store's directory; when None that of LAYERFS_ROOT, else the user's own (see `Store.open`).
        image: the only image that is looked into, its name, or a place with its transport:
            ``docker://HOST/REPOSITORY:TAG``, ``oci:DIR:TAG``, ...
        driver: the store's storage driver; when None that of LAYERFS_DRIVER, else the store's own.
        platform: which image of several that a place has, ``linux/arm64``; this machine's when None.
        tls_verify: False takes any certificate of a registry and plain HTTP; see `registry.settings.Options`
            for this and the next two.
        cert_dir: certificates for registries.
        authfile: where credentials for registries are; when None where podman and docker keep them.
        creds: ``USER:PASSWORD``, in place of any that are kept.
        anonymous: use no credentials.

    Raises:
        TypeError: an option is none of these, nor one of fsspec's own.
        LayerfsError: the store cannot be opened, or an option has no sense.
    """

    protocol = "layerfs"
    root_marker = ""

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        image: str | None = None,
        driver: str | None = None,
        platform: str | None = None,
        tls_verify: bool | None = None,
        cert_dir: str | os.PathLike[str] | None = None,
        authfile: str | os.PathLike[str] | None = None,
        creds: str | None = None,
        anonymous: bool = False,
        **options: Any,
    ) -> None:
        for name in options:
            if name not in _FSSPECS:
                question = similar.meant(name, _OWN) or f"there is {', '.join(_OWN)}"
                raise TypeError(f"a layerfs file system has no option {name!r}: {question}")
        super().__init__(**options)
        self._image = image
        self._platform = None if platform is None else Platform.parse(platform)
        self._registry = Options(
            tls_verify=tls_verify,
            cert_dir=None if cert_dir is None else Path(cert_dir),
            authfile=None if authfile is None else Path(authfile),
            creds=None if creds is None else Credentials.parse(creds),
            anonymous=anonymous,
            environment=dict(os.environ),
        )
        self._store = Store.open(
            os.fspath(root) if root else _root(), driver=driver or os.environ.get("LAYERFS_DRIVER") or None
        )
        self._opened: dict[str, OpenImage] = {}
        self._finalizer = weakref.finalize(self, _close, self._store, self._opened)

    def close(self) -> None:
        """Close the store and what is open of it; idempotent. What is forgotten is closed, too."""
        self._finalizer()

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """Describe a file; a link at the end of the path is followed, as its ``islink`` says.

        ``size`` is in bytes, ``mtime`` in seconds since 1970; ``sha256`` is there where it is known.
        """
        name, inner = self._part(self._strip_protocol(path))
        if name is None:
            return {"name": "", "size": 0, "type": "directory"}
        node = self._find(name, inner, follow=False)
        found = _describe(_joined(self._shown(name), inner), node, self._open_image(name), inner)
        if found["type"] == "link" and self._find(name, inner).children is not None:
            found["type"] = "directory"
        return found

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        """List a directory, or give a file alone."""
        name, inner = self._part(self._strip_protocol(path))
        if name is None:
            return [
                {"name": each, "size": 0, "type": "directory"} if detail else each for each in self._names()
            ]
        image = self._open_image(name)
        node = self._find(name, inner)
        top = _joined(self._shown(name), inner)
        if node.children is None:
            found = [_describe(top, node, image, inner)]
        else:
            prefix = f"{top}/" if top else ""
            found = [
                _describe(prefix + os.fsdecode(each), child, image, os.path.join(inner, each))
                for each, child in sorted(node.children.items())
            ]
        return found if detail else [each["name"] for each in found]

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> LayerfsFile:
        if mode != "rb":
            self._refuse(path)
        name, inner = self._part(self._strip_protocol(path))
        if name is None:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        node = self._find(name, inner)
        if node.children is not None:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        return LayerfsFile(
            self, path, self._open_image(name), node, inner,
            block_size=block_size or "default", cache_options=cache_options, **options,
        )  # fmt: skip

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        """Read a file, or the part of it from byte `start` to before byte `end`; negative ones count back."""
        name, inner = self._part(self._strip_protocol(path))
        if name is None:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        node = self._find(name, inner)
        first, last, _ = slice(start, end).indices(node.entry.size)
        return b"".join(self._open_image(name).data(node, inner, first, max(last - first, 0)))

    def modified(self, path: str) -> Any:
        """Give the time of the last change, as a datetime in UTC."""
        import datetime

        return datetime.datetime.fromtimestamp(self.info(path)["mtime"], datetime.UTC)

    def _refuse(self, path: str, *_: Any, **options: Any) -> NoReturn:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    mkdir = makedirs = rmdir = rm_file = _rm = cp_file = mv = _refuse

    def _part(self, path: str) -> tuple[str | None, bytes]:
        """Part a path into image and path within."""
        if self._image is not None:
            return self._image, b"/" + os.fsencode(path)
        if not path:
            return None, b""
        cut = len(path)
        while cut > 0:
            if path[:cut] in self._opened or self._store.has_image(path[:cut]):
                return path[:cut], os.fsencode(path[cut:]) or b"/"
            cut = path.rfind("/", 0, cut)
        raise FileNotFoundError(errno.ENOENT, "No such image", path)

    def _shown(self, name: str) -> str:
        return "" if self._image is not None else name

    def _names(self) -> Iterator[str]:
        return iter(sorted({name for image in self._store.images.list() for name in image.names}))

    def _open_image(self, name: str) -> OpenImage:
        found = self._opened.get(name)
        if found is None:
            found = self._opened[name] = self._store.read_image(
                name, platform=self._platform, options=self._registry
            )
        return found

    def _find(self, name: str, inner: bytes, *, follow: bool = True) -> Node:
        return self._open_image(name).tree.find(inner, follow=follow)


class LayerfsFile(AbstractBufferedFile):  # type: ignore[misc]
    """A file of an image, open for reading at random."""

    def __init__(
        self,
        fs: LayerfsFileSystem,
        path: str,
        image: OpenImage,
        node: Node,
        inner: bytes,
        **options: Any,
    ) -> None:
        self._of_image = image
        self._node = node
        self._inner = inner
        super().__init__(fs, path, "rb", size=node.entry.size, **options)

    def _fetch_range(self, start: int, end: int) -> bytes:
        return b"".join(self._of_image.data(self._node, self._inner, start, end - start))


def _root() -> Path | None:
    """Say where the store is when no option does, as the command has it."""
    if named := os.environ.get("LAYERFS_ROOT"):
        return Path(named)
    data = os.environ.get("XDG_DATA_HOME")
    return Path(data) / "layerfs" if data and os.geteuid() != 0 else None


def _joined(name: str, inner: bytes) -> str:
    parts = [part for part in os.fsdecode(inner).split("/") if part]
    return "/".join([name, *parts] if name else parts)


def _describe(path: str, node: Node, image: OpenImage, inner: bytes) -> dict[str, Any]:
    """Describe a file; a link to a file is one, and a link to a directory is not gone down in a walk."""
    entry = node.entry
    found: dict[str, Any] = {"name": path}
    if entry.kind is Kind.SYMLINK:
        found |= {"islink": True, "destination": os.fsdecode(entry.target)}
        with contextlib.suppress(OSError):
            target = image.tree.find(inner)
            node = node if target.children is not None else target
    found |= {
        "size": node.entry.size,
        "type": _TYPES.get(node.entry.kind, "other"),
        "mtime": entry.mtime_ns / 1e9,
        **{attribute: getattr(entry, attribute) for attribute in _ATTRIBUTES},
    }
    if node.file.digest is not None:
        found["sha256"] = node.file.digest
    return found


def _close(store: Store, opened: dict[str, OpenImage]) -> None:
    for image in opened.values():
        try:
            image.close()
        except LayerfsError:
            continue
    store.close()
