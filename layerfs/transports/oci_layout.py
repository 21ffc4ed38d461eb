"""OCI layouts in a directory: read, and written so that readers never see half an image."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from layerfs import files, linux
from layerfs.digest import Digest
from layerfs.errors import ArchiveError, TransportError
from layerfs.oci import document, media_types
from layerfs.oci.descriptor import Descriptor
from layerfs.oci.index import Index
from layerfs.progress import Counted
from layerfs.streams import Stops
from layerfs.transports.endpoint import verified
from layerfs.transports.file_set import DirectoryFiles, open_beneath, read_file
from layerfs.transports.lanes import Lanes, Stopped
from layerfs.transports.layout_names import REF_NAME, named
from layerfs.transports.layout_source import (
    INDEX_FILE,
    LAYOUT,
    LAYOUT_FILE,
    LayoutSource,
    blob_name,
    check_version,
)

if TYPE_CHECKING:
    from layerfs.compression import Readable

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY
_LEFT: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PARTIAL: Final = ".layerfs-"
# Seconds after which a partial file that nobody holds is one that was left.
_STALE: Final = 600
# Blobs at once: where they come from a registry, one connection seldom gives all that there is.
_AT_ONCE: Final = 4


def open_source(path: Path) -> LayoutSource:
    """Open an OCI layout for reading.

    Raises:
        ArchiveError, UnsupportedError, DocumentError: it is none, or malformed.
        OSError: it cannot be opened.
    """
    return LayoutSource(DirectoryFiles(path))


class LayoutSink:
    """Writes images into an OCI layout, made where there is none; a Sink that `Overlaps` and `Nests`.

    Several processes may write to one layout at once: blobs appear by rename, and the index is
    replaced under a lock (flock on the directory). Only what is already a layout, or empty, is written to.

    Raises:
        TransportError: the directory holds something else.
        ArchiveError, UnsupportedError, DocumentError: the layout there is malformed.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        """Args: `durable` brings everything to disk in `commit`."""
        self._durable = durable
        self._images: list[Descriptor] = []
        # Partial files lie beside `blobs`, not in it: there, every name is a digest.
        self._partial = f"{_PARTIAL}{os.urandom(8).hex()}"
        self._lanes: Lanes[None] = Lanes(_AT_ONCE)
        self._later: list[Callable[[], object]] = []
        # Those that are not read to their ends.
        self._streams: dict[Digest, Readable] = {}
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._files = DirectoryFiles(path)
        self._title = str(path)
        try:
            with self._locked():
                self._begin()
                self._sweep()
        except BaseException:
            self._files.close()
            raise

    @property
    def _root(self) -> int:
        return self._files.descriptor

    def has(self, descriptor: Descriptor) -> bool:
        """Say whether the blob is there, with the right size."""
        if self._lanes.has(descriptor.digest):
            self._lanes.wait(descriptor.digest)
        file = self._files.open(blob_name(descriptor.digest))
        if file is None:
            return False
        file.close()
        return file.size == descriptor.size

    def put_blob(self, descriptor: Descriptor, stream: Readable) -> None:
        """Write a blob beside, verify it, and rename it to its place."""
        partial = f"{self._partial}-{descriptor.digest.hex[:32]}"
        with self._written(partial) as temporary:
            behind, size = files.WriteBehind(temporary), 0
            for data in verified(stream, descriptor):
                if self._lanes.stopped:
                    raise Stopped
                with files.naming(self._title):
                    files.write_all(temporary, data)
                    size += len(data)
                    if self._durable:
                        behind.reach(size)
            with self._blobs(descriptor.digest.algorithm) as directory:
                os.rename(partial, descriptor.digest.hex, src_dir_fd=self._root, dst_dir_fd=directory)

    def begin_blob(
        self,
        descriptor: Descriptor,
        stream: Readable,
        *,
        advance: Callable[[int], object],
        done: Callable[[], object],
    ) -> None:
        """Write a blob in a thread of its own; see `Overlaps`."""
        ending = _Once(done)
        self._later.append(ending)
        self._streams[descriptor.digest] = stream

        def write() -> None:
            self.put_blob(descriptor, Counted(stream.read, advance))
            self._streams.pop(descriptor.digest, None)
            ending()

        self._lanes.begin(descriptor.digest, write)

    def put_member(self, raw: bytes, media_type: str, *, algorithm: str = "sha256") -> Descriptor:
        """Write a manifest that is not listed; see `Nests`."""
        # Not before what it names.
        self._lanes.finish()
        descriptor = Descriptor.to(raw, media_type, algorithm)
        self.put_blob(descriptor, _Bytes(raw))
        return descriptor

    def put_manifest(self, raw: bytes, media_type: str, *, names: Sequence[str] = ()) -> Descriptor:
        """Write a manifest, to be listed under these names; see `Sink.put_manifest`."""
        descriptor = self.put_member(raw, media_type)
        self._images = [image for image in self._images if image.annotations.get(REF_NAME) not in names]
        self._images += [named(descriptor, name) for name in names] or [descriptor]
        return descriptor

    def commit(self) -> None:
        """Put the images into ``index.json``, by one rename; an image that had one of the names loses it."""
        self._lanes.finish()
        if self._durable:
            linux.syncfs(self._root)
        with self._locked():
            raw = read_file(self._files, INDEX_FILE, limit=document.MAXIMUM_BYTES)
            self._replace(INDEX_FILE, add_to_index(raw, self._images))
            if self._durable:
                os.fsync(self._root)
        self._images = []

    def close(self) -> None:
        """Close the directory; what was put since the last `commit` stays unlisted."""
        for stream in list(self._streams.values()):
            if isinstance(stream, Stops):
                stream.stop()
        self._lanes.close()
        for done in self._later:
            done()
        self._later.clear()
        self._files.close()

    def _begin(self) -> None:
        """Make sure that this is a layout, or makes a good one."""
        if read_file(self._files, LAYOUT_FILE, limit=document.MAXIMUM_BYTES) is not None:
            check_version(self._files)
            return
        if any(not name.startswith(_PARTIAL) for name in os.listdir(self._root)):
            raise TransportError(
                f"{self._title} is neither empty nor an OCI layout", hint="name a directory that is new"
            )
        # First of all: a layout that was begun and left can be gone on with.
        self._replace(LAYOUT_FILE, LAYOUT)

    def _sweep(self) -> None:
        """Remove the partial files of writers that were killed; those that live hold a lock on theirs."""
        for name in os.listdir(self._root):
            if not name.startswith(_PARTIAL):
                continue
            with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
                file = os.open(name, _LEFT, dir_fd=self._root)
                opened.callback(os.close, file)
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # A new one is not locked at once.
                if time.time() - os.fstat(file).st_mtime > _STALE:
                    os.unlink(name, dir_fd=self._root)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._root, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._root, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def _blobs(self, algorithm: str) -> Iterator[int]:
        name = f"blobs/{algorithm}"
        directory = open_beneath(self._root, name, _DIRECTORY, title=self._title)
        if directory is None:
            self._make("blobs")
            self._make(name)
            directory = open_beneath(self._root, name, _DIRECTORY, title=self._title)
        if directory is None:
            raise ArchiveError(f"{self._title}: {name} is not a directory")
        try:
            yield directory
        finally:
            os.close(directory)

    def _make(self, name: str) -> None:
        parent = self._root
        above, _, last = name.rpartition("/")
        if above:
            opened = open_beneath(self._root, above, _DIRECTORY, title=self._title)
            if opened is None:
                raise ArchiveError(f"{self._title}: {above} is not a directory")
            parent = opened
        try:
            os.mkdir(last, 0o755, dir_fd=parent)
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise
        finally:
            if above:
                os.close(parent)

    def _replace(self, name: str, data: bytes) -> None:
        with self._written(self._partial) as temporary:
            files.write_all(temporary, data)
            if self._durable:
                os.fsync(temporary)
            os.rename(self._partial, name, src_dir_fd=self._root, dst_dir_fd=self._root)

    @contextlib.contextmanager
    def _written(self, partial: str) -> Iterator[int]:
        """Open a new file, which is removed when the body fails; the body renames it."""
        temporary = os.open(
            partial,
            os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o644,
            dir_fd=self._root,
        )
        try:
            fcntl.flock(temporary, fcntl.LOCK_EX)
            yield temporary
        except BaseException:
            os.unlink(partial, dir_fd=self._root)
            raise
        finally:
            os.close(temporary)


class _Once:
    """A call that is made once, however often it is asked for."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action: Callable[[], object] | None = action

    def __call__(self) -> None:
        action, self._action = self._action, None
        if action is not None:
            action()


class _Bytes:
    """Bytes as a stream, all in one piece."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, size: int, /) -> bytes:
        data, self._data = self._data[:size], self._data[size:]
        return data


def add_to_index(raw: bytes | None, images: Sequence[Descriptor]) -> bytes:
    """Write an ``index.json`` with these images added; what else it holds, known here or not, stays.

    An entry with the name of an added image goes, and so does a nameless entry for the same content.

    Raises:
        DocumentError: `raw` is not an index.
    """
    if raw is None:
        members: dict[str, Any] = {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": []}
    else:
        Index.parse(raw)
        members = dict(document.load(raw, what=INDEX_FILE).value)
    names = {image.annotations[REF_NAME] for image in images if REF_NAME in image.annotations}
    digests = {str(image.digest) for image in images}
    kept = []
    for item in members.get("manifests") or ():
        name = (item.get("annotations") or {}).get(REF_NAME)
        if name in names or (name is None and item["digest"] in digests):
            continue
        kept.append(item)
    listed = {Digest.parse(item["digest"]) for item in kept}
    # An image that has a name need not be listed without one too.
    added = [
        image.members() for image in images if REF_NAME in image.annotations or image.digest not in listed
    ]
    members["manifests"] = kept + added
    return document.dump(members)
