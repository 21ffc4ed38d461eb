"""The content store: blobs by digest, verified before they are visible.

    ROOT/blobs/ALGORITHM/HEX     0600, complete and verified
    ROOT/tmp/ingest-...          partial; locked (flock) while it is being written
    ROOT/trash/...               on its way out

Which blobs are needed, and by what, is known to the database alone. Some blobs are not kept whole, but can be
put together when they are asked for (see `assembly`); the store tells this module who does that.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from layerfs import failpoints, files, forking
from layerfs.digest import Digest
from layerfs.errors import BudgetError, InvalidError, NotFoundError, VerificationError

if TYPE_CHECKING:
    from layerfs.database import Durability

CHUNK = 1 << 20


_PARTIAL = "ingest-"


class Partial(NamedTuple):
    """A partial blob: a file of ROOT/tmp, the bytes that it occupies, when it was last touched, in seconds.

    It is `busy` while somebody writes it.
    """

    name: str
    bytes: int
    touched: float
    busy: bool


class Content(Protocol):
    """An open blob, read from its beginning; a context manager that closes it."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes; none only at the end."""
        ...

    def close(self) -> None:
        """Let go; idempotent."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class Assembles(Protocol):
    """Whoever gives blobs that are not kept whole; see `assembly.Assembly`."""

    def size(self, digest: Digest) -> int | None:
        """Give a blob's length in bytes, None when it cannot be given."""
        ...

    def open(self, digest: Digest) -> Content | None:
        """Open a blob, None when it cannot be given; what is read is verified by its end."""
        ...


class Blobs:
    """Blobs below a store's root; several threads and processes may use the same root at once."""

    def __init__(self, root: Path, *, durability: Durability = "commit") -> None:
        self.root = root
        self.durability = durability
        self.assembles: Assembles | None = None
        self._blobs = f"{root}/blobs"
        self._temporary = f"{root}/tmp"
        self._trash = f"{root}/trash"

    def path(self, digest: Digest) -> Path:
        """Say where a blob is, or would be."""
        return Path(self._path(digest))

    def has(self, digest: Digest) -> bool:
        """Say whether the blob is here, whole or in parts."""
        return self.is_whole(digest) or (
            self.assembles is not None and self.assembles.size(digest) is not None
        )

    def is_whole(self, digest: Digest) -> bool:
        """Say whether the blob is here as one file."""
        try:
            return stat.S_ISREG(os.lstat(self._path(digest)).st_mode)
        except OSError:
            return False

    def size(self, digest: Digest) -> int:
        """Give a blob's length in bytes.

        Raises:
            NotFoundError: it is not here.
        """
        try:
            return _look_at(self._path(digest)).st_size
        except FileNotFoundError:
            size = None if self.assembles is None else self.assembles.size(digest)
            if size is None:
                raise _missing(digest) from None
            return size

    def open(self, digest: Digest) -> Content:
        """Open a blob for reading, unbuffered; the caller closes it.

        Raises:
            NotFoundError: it is not here.
        """
        try:
            return open(_open(self._path(digest)), "rb", buffering=0)
        except FileNotFoundError:
            content = None if self.assembles is None else self.assembles.open(digest)
            if content is None:
                raise _missing(digest) from None
            return content

    def read(self, digest: Digest, *, limit: int) -> bytes:
        """Read a small blob whole and verify it once more.

        Raises:
            BudgetError: it has more than `limit` bytes.
            NotFoundError: it is not here.
            VerificationError: it has been damaged on disk.
        """
        with self.open(digest) as file:
            size = self.size(digest)
            if size > limit:
                raise BudgetError(f"blob {digest} has {size} bytes, at most {limit} are read")
            parts = []
            while data := file.read(limit):
                parts.append(data)
            data = b"".join(parts)
        if Digest.of(data, digest.algorithm) != digest:
            raise VerificationError(
                f"blob {digest} is damaged on disk",
                hint="layerfs check --repair removes it; then pull it again",
            )
        return data

    def put(self, data: bytes, algorithm: str = "sha256") -> Digest:
        """Store bytes and give their digest; idempotent."""
        digest = Digest.of(data, algorithm)
        if not self.is_whole(digest):
            with self.ingest(digest, len(data)) as ingest:
                ingest.restart()
                ingest.write(data)
                ingest.commit()
        return digest

    def ingest(self, digest: Digest | None = None, size: int | None = None) -> Ingest:
        """Begin to store a blob, or go on where a broken attempt ended (see `Ingest.offset`).

        Without a digest the blob gets its SHA-256 digest at the end, and cannot be resumed.
        `size` in bytes is verified too, as early as it is passed.
        """
        return Ingest(self, digest, size)

    def delete(self, digest: Digest) -> int:
        """Remove a blob and give the bytes that it had; what is not here is removed already.

        The caller has made sure that nothing needs it.
        """
        path = self._path(digest)
        try:
            size = os.stat(path).st_size
            os.unlink(path)
        except FileNotFoundError:
            return 0
        return size

    def list(self) -> Iterator[Digest]:
        """Give the digest of every blob that is kept whole, in no order; what else lies there is left out."""
        for algorithm in _names(self._blobs):
            with contextlib.suppress(NotADirectoryError), os.scandir(f"{self._blobs}/{algorithm}") as found:
                for entry in found:
                    if entry.is_file(follow_symlinks=False):
                        with contextlib.suppress(InvalidError):
                            yield Digest.parse(f"{algorithm}:{entry.name}")

    def verify(self, digest: Digest) -> None:
        """Read a blob that is kept whole, and compare its digest.

        Raises:
            NotFoundError: it is not here.
            VerificationError: it has been damaged on disk.
        """
        hasher = digest.hasher()
        buffer = memoryview(bytearray(CHUNK))
        try:
            file = _open(self._path(digest))
        except FileNotFoundError:
            raise _missing(digest) from None
        try:
            while count := os.readv(file, [buffer]):
                hasher.update(buffer[:count])
        finally:
            os.close(file)
        if hasher.hexdigest() != digest.hex:
            raise VerificationError(f"blob {digest} is damaged on disk: it hashes to {hasher.hexdigest()}")

    def sync_names(self, algorithm: str = "sha256") -> None:
        """Bring the names of an algorithm's blobs to disk, if the store's durability asks for it."""
        if self.durability != "none":
            files.sync_directory(f"{self._blobs}/{algorithm}")

    def sweep(self, *, older_than: float) -> int:
        """Remove partial blobs that nobody writes, last touched before `older_than` (seconds since 1970).

        Gives the bytes that were freed.
        """
        return sum(self.drop(partial, older_than=older_than) for partial in self.partials())

    def partials(self) -> Iterator[Partial]:
        """Give the partial blobs, which a later attempt may go on with."""
        for name in _names(self._temporary):
            if name.startswith(_PARTIAL) and (found := self._partial(name)) is not None:
                yield found

    def _partial(self, name: str) -> Partial | None:
        try:
            descriptor = os.open(f"{self._temporary}/{name}", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            found = os.fstat(descriptor)
            return Partial(name, found.st_blocks * 512, found.st_mtime, not _lock(descriptor))
        finally:
            os.close(descriptor)

    def drop(self, partial: Partial, *, older_than: float) -> int:
        """Remove a partial blob as `sweep` does; give the bytes that were freed."""
        path = f"{self._temporary}/{partial.name}"
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                found = os.fstat(descriptor)
                if found.st_mtime < older_than and _lock(descriptor) and _is_named(descriptor, path):
                    failpoints.reach("blob.sweep")
                    os.unlink(path)
                    return found.st_blocks * 512
            finally:
                os.close(descriptor)
        return 0

    def _path(self, digest: Digest) -> str:
        return f"{self._blobs}/{digest.algorithm}/{digest.hex}"


class Ingest:
    """One blob on its way in; a context manager whose end without `commit` leaves nothing visible.

    When the digest is known the partial file stays for a later attempt, unless it is proven wrong.
    Two writers of the same blob do not meet: the second one writes a partial file of its own.
    """

    def __init__(self, blobs: Blobs, digest: Digest | None, size: int | None) -> None:
        self._blobs = blobs
        self._digest = digest
        self._size = size
        self._hasher = (digest or Digest("sha256", "")).hasher()
        self._path = ""
        self._descriptor = -1
        self._resumable = False
        self._behind: files.WriteBehind | None = None
        self._found: Digest | None = None
        self.offset = 0

    def __enter__(self) -> Ingest:
        """Open the partial file; `offset` then counts the bytes that are there already, hashed."""
        if self._digest is not None:
            name = f"ingest-{self._digest.algorithm}-{self._digest.hex}"
            self._resumable = self._open(f"{self._blobs._temporary}/{name}")
        if not self._resumable:
            # A sweep may take the file before it is locked; nobody else knows its name.
            while not self._open(f"{self._blobs._temporary}/ingest-{os.urandom(12).hex()}"):
                pass
        else:
            self._hash_what_is_there()
        self._begin()
        failpoints.reach("blob.begin")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._descriptor >= 0:
            if not self._resumable or self.offset == 0:
                self.discard()
            else:
                self._close()

    def restart(self) -> None:
        """Forget what is there, for a source that cannot begin in the middle."""
        if self.offset:
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            self._hasher = (self._digest or Digest("sha256", "")).hasher()
            self.offset = 0
            self._begin()

    def pass_by(self) -> None:
        """Leave it to the kernel when this is written to disk: it will most likely be discarded."""
        self._behind = None

    def _begin(self) -> None:
        if self._blobs.durability != "none":
            self._behind = files.WriteBehind(self._descriptor, self.offset)

    def write(self, data: bytes | memoryview) -> int:
        """Append; gives the number of bytes, all of them.

        Raises:
            VerificationError: more bytes than the promised size.
        """
        self.offset += len(data)
        self._check_length()
        self._hasher.update(data)
        files.write_all(self._descriptor, data)
        failpoints.reach("blob.write")
        if self._behind is not None:
            self._behind.reach(self.offset)
        return len(data)

    def read_back(self, size: int, offset: int) -> bytes:
        """Read up to `size` bytes of what is there already, from `offset` on."""
        return os.pread(self._descriptor, size, offset)

    def fileno(self) -> int:
        """Give the partial file's descriptor."""
        return self._descriptor

    def catch_up(self, digest: Digest | None) -> None:
        """Note that a forked process has written here, and found this digest; None if it came to no end."""
        self.offset = os.fstat(self._descriptor).st_size
        self._found = digest
        if digest is None and not _is_named(self._descriptor, self._path):
            # It was proven wrong there.
            self._close()

    @property
    def digest(self) -> Digest:
        """The digest of what was written so far."""
        return self._found or Digest(
            self._digest.algorithm if self._digest else "sha256", self._hasher.hexdigest()
        )

    def commit(self, *, synced: bool = False) -> Digest:
        """Verify, sync, and make the blob visible by one rename; the same blob from elsewhere is as good.

        `synced` says that the caller has brought the content to disk already, and will do so with the name
        (`Blobs.sync_names`): for several blobs at once.

        Raises:
            VerificationError: the digest or the size is not the promised one; the bytes are gone then.
        """
        found = self.verify()
        if self._blobs.is_whole(found):
            self.discard()
            return found
        if self._blobs.durability != "none" and not synced:
            failpoints.reach("blob.sync")
            os.fdatasync(self._descriptor)
        target = self._blobs._path(found)
        failpoints.reach("blob.rename")
        try:
            os.rename(self._path, target)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
            os.rename(self._path, target)
        failpoints.reach("blob.renamed")
        if not synced:
            self._blobs.sync_names(found.algorithm)
        self._close()
        return found

    def verify(self) -> Digest:
        """Compare what was written with what was promised, and give its digest.

        Raises:
            VerificationError: the digest or the size is another; wrong bytes are gone then.
        """
        failpoints.reach("blob.verify")
        self._check_length()
        found = self.digest
        if self._size is not None and self.offset != self._size:
            # A stream that ended early may be resumed; it is not proven wrong.
            raise VerificationError(f"{self._name()} ended after {self.offset} of {self._size} bytes")
        if self._digest is not None and found != self._digest:
            self.discard()
            raise VerificationError(f"{self._digest} was promised, the content has {found}")
        return found

    def _check_length(self) -> None:
        if self._size is not None and self.offset > self._size:
            self.discard()
            raise VerificationError(f"{self._name()} is longer than the promised {self._size} bytes")

    def _open(self, path: str) -> bool:
        """Open and lock a partial file, made where it is missing; False when another writer has it."""
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if not _lock(descriptor):
                os.close(descriptor)
                return False
            if _is_named(descriptor, path):
                forking.hold(descriptor)
                self._descriptor = descriptor
                self._path = path
                return True
            # It was renamed or removed between open and lock: that file is another's by now.
            os.close(descriptor)

    def _hash_what_is_there(self) -> None:
        if self._size is not None and os.fstat(self._descriptor).st_size > self._size:
            os.ftruncate(self._descriptor, 0)
        while data := os.read(self._descriptor, CHUNK):
            self._hasher.update(data)
            self.offset += len(data)

    def discard(self) -> None:
        """Remove what was written; idempotent."""
        if self._descriptor < 0:
            return
        failpoints.reach("blob.discard")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        self._close()

    def _close(self) -> None:
        forking.let_go(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1

    def _name(self) -> str:
        return str(self._digest) if self._digest else "the content"


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            return False
        raise
    return True


def _look_at(path: str) -> os.stat_result:
    """Look at a blob's file; anything else in its place, a link or a fifo, is no blob: FileNotFoundError."""
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode):
        raise FileNotFoundError(errno.ENOENT, "not a regular file", path)
    return found


def _open(path: str) -> int:
    _look_at(path)
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _is_named(descriptor: int, path: str) -> bool:
    """Say whether the path still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _missing(digest: Digest) -> NotFoundError:
    return NotFoundError(
        f"blob {digest} is not in the store",
        hint="pull or load the image again, or layerfs check --repair --from-registry",
    )
