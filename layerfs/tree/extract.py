"""Unpack one layer: a tar stream of changes becomes a directory in a driver's format.

Follows image-spec layer.md ("Applying Changesets") wherever it speaks, and one defined result where it is
silent, the same for every driver. The stream is read once and never kept: memory
does not grow with a layer's files, only with its hard links to files of older layers.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

from layerfs import failpoints
from layerfs.compression import Readable
from layerfs.errors import LayerError, printable
from layerfs.files import copy_data, remove_tree, through_descriptor
from layerfs.hashing import Hash, Hasher
from layerfs.tree import attributes
from layerfs.tree.budget import DEFAULT_BUDGET, Budget, exceeded
from layerfs.tree.entry import Entry, Kind
from layerfs.tree.layer_tree import LayerTree, lstat
from layerfs.tree.names import split
from layerfs.tree.skeleton import SkeletonWriter
from layerfs.tree.tar_reader import TarReader
from layerfs.tree.whiteouts import AUFS_PREFIX, OPAQUE, PREFIX, WhiteoutFormat, is_overlay_whiteout

Record = Callable[[Entry, Hash | str | None], None]

_PLINKS: Final = b".wh..wh.plnk"
_LONGEST_TARGET: Final = 4095  # PATH_MAX of <linux/limits.h>, and its NUL
_EMPTY: Final = hashlib.sha256().hexdigest()
# From so many bytes on the way to another thread is shorter than the hashing.
_HASHED_APART: Final = 1 << 16
_NEW_FILE: Final = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_NODE_TYPES: Final = {
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.SOCKET: stat.S_IFSOCK,
}


def extract(
    stream: Readable,
    directory: int,
    *,
    lower: Callable[[], int] | None,
    whiteouts: WhiteoutFormat,
    budget: Budget = DEFAULT_BUDGET,
    warn: Callable[[str], None],
    record: Record | None = None,
    skeleton: SkeletonWriter | None = None,
    hasher: Hasher | None = None,
    strict: bool = False,
    squash: bool = False,
    unmasked: bool = False,
) -> None:
    """Unpack an uncompressed layer into an empty directory.

    Args:
        stream: the tar stream; read to its end, so that a digest taken of it covers all bytes.
        directory: descriptor of the directory; stays the caller's.
        lower: opens the merged tree of the layers below; see `driver.Unpack`.
        whiteouts: the format in which names are hidden.
        budget: what the layer may ask for.
        warn: told, one sentence each, what was odd but has a defined result.
        record: told each entry that the layer now has, with normalised path, and the SHA-256
            (hex) of a file's data, holes left out; of two entries of one path the later holds. Whiteouts are
            recorded under their OCI names.
        hasher: hashes large files; their digest is told as a `Hash` then.
        skeleton: told which bytes of the stream are in which file; it is the stream then.
        strict: refuse what would only be warned of.
        squash: give everything to the caller's own user and group instead of the recorded owner.
        unmasked: the process's umask(2) is 0, and stays so.

    Raises:
        LayerError: the stream breaks the tar format or the specification.
        BudgetError: it asks for more than `budget`.
        OSError: the file system refused; its tree is incomplete then.
    """
    extraction = _Extraction(budget, warn, record or (lambda entry, digest: None), strict, squash, unmasked)
    extraction.skeleton, extraction.hasher = skeleton, hasher
    extraction.run(
        TarReader(stream, budget=budget, warn=extraction.odd), directory, lower=lower, whiteouts=whiteouts
    )


def outline(
    listed: Iterable[tuple[Entry, str | None]],
    directory: int,
    *,
    leave_out: Callable[[int], None],
    lower: Callable[[], int] | None,
    whiteouts: WhiteoutFormat,
    budget: Budget = DEFAULT_BUDGET,
    warn: Callable[[str], None],
    record: Record | None = None,
    squash: bool = False,
) -> None:
    """Make the tree of a layer out of a list of its entries, without the data of its files.

    Every file has its size, and is a hole from the beginning to the end. The other arguments are those
    of `extract`.

    Args:
        listed: the entries in the layer's order, with the SHA-256 (hex) of a file's data, if that is known.
        leave_out: called for each file that has a size, open for writing and finished otherwise, before the
            next entry is taken.

    Raises as `extract` does; the sizes of files count as bytes of data.
    """
    extraction = _Extraction(budget, warn, record or (lambda entry, digest: None), False, squash, False)
    extraction.leave_out = leave_out
    extraction.run(_Listed(listed), directory, lower=lower, whiteouts=whiteouts)


class _Reader(Protocol):
    """Where the entries of a layer come from, and the data of the current one."""

    @property
    def offset(self) -> int: ...

    def __iter__(self) -> Iterator[Entry]: ...

    def whole(self) -> bytes | None: ...

    def chunks(self) -> Iterator[tuple[int, bytes]]: ...

    def drain(self) -> None: ...


class _Listed:
    """Entries without data; `offset` counts them, and `digest` is the current one's."""

    def __init__(self, listed: Iterable[tuple[Entry, str | None]]) -> None:
        self._listed = listed
        self.offset = 0
        self.digest: str | None = None

    def __iter__(self) -> Iterator[Entry]:
        for entry, digest in self._listed:
            self.digest = digest
            # As archives write the root's name: without one an entry is none.
            yield entry if entry.path else entry._replace(path=b"./")
            self.offset += 1

    def whole(self) -> bytes | None:
        return b""

    def chunks(self) -> Iterator[tuple[int, bytes]]:
        return iter(())

    def drain(self) -> None:
        """There is nothing more."""


class _Extraction:
    def __init__(
        self,
        budget: Budget,
        warn: Callable[[str], None],
        record: Record,
        strict: bool,
        squash: bool,
        unmasked: bool,
    ) -> None:
        self._budget = budget
        self._warn = warn
        self._record = record
        self.skeleton: SkeletonWriter | None = None
        self.hasher: Hasher | None = None
        # Told each file whose data is not to come now.
        self.leave_out: Callable[[int], None] | None = None
        self._strict = strict
        self._owner = (os.geteuid(), os.getegid()) if squash else None
        self._unmasked = unmasked
        self._bytes_left = budget.bytes
        # Hard links whose other name had not come yet, by the parts of their own path.
        self._deferred: dict[tuple[bytes, ...], Entry] = {}
        # What aufs kept under .wh..wh.plnk: the entry, its digest, and the first name linked to it.
        self._plinks: dict[bytes, tuple[Entry, Hash | str | None, bytes | None]] = {}
        self._parent: bytes | None = None
        self._prefix = b""
        self._self = (os.geteuid(), os.getegid())
        # Who owns a new file in the directory where we stand, as far as that is known.
        self._given: tuple[int, int] | None = None
        # Whether a new file is its maker's at all.
        self._honest: bool | None = None

    def run(
        self,
        reader: _Reader,
        directory: int,
        *,
        lower: Callable[[], int] | None,
        whiteouts: WhiteoutFormat,
    ) -> None:
        entries = self._budget.entries
        with LayerTree(
            directory,
            open_lower=lower,
            whiteouts=whiteouts,
            warn=self._warn,
            record=lambda entry: self._record(entry, None),
            lose=(lambda: None) if self.skeleton is None else self.skeleton.lose,
            owner=self._owner or (0, 0),
        ) as tree:
            for entry in reader:
                entries -= 1
                if entries < 0:
                    raise exceeded(f"the layer has more than {self._budget.entries} entries", "entries")
                try:
                    self._place(tree, entry, reader)
                except LayerError as error:
                    if error.offset is None:
                        place = error.entry if error.entry is not None else entry.path
                        raise LayerError(_bare(error), entry=place, offset=reader.offset) from error
                    raise
                failpoints.reach("layer.entry")
            self._link_deferred(tree)
            if self._plinks:
                tree.enter(())
                remove_tree(tree.directory, _PLINKS)
        reader.drain()

    def odd(self, message: str) -> None:
        if self._strict:
            raise LayerError(message)
        self._warn(message)

    # -- one entry ----------------------------------------------------------------------------

    def _place(self, tree: LayerTree, entry: Entry, reader: _Reader) -> None:
        path = entry.path
        if b".wh." in path and self._place_marker(tree, entry, reader):
            return
        slash = path.rfind(b"/")
        if slash in (0, len(path) - 1) or path[slash + 1 : slash + 2] == b".":
            parts = split(path, strict=self._strict, warn=self._warn)
            if not parts:
                self._place_root(tree, entry)
                return
            name = parts.pop()
            self._enter(tree, parts)
        else:
            parent, name = path[: max(slash, 0)], path[slash + 1 :]
            if len(name) > 255:
                raise LayerError("a name of more than 255 bytes", entry=path)
            if parent != self._parent:
                parts = split(parent, strict=self._strict, warn=self._warn) if parent else []
                self._enter(tree, parts)
                self._parent = parent
        self._put(tree, name, entry, reader)

    def _enter(self, tree: LayerTree, parts: list[bytes]) -> None:
        if len(parts) >= self._budget.depth:
            raise exceeded(f"a path of more than {self._budget.depth} parts", "depth")
        self._parent = self._given = None
        tree.enter(parts)
        self._prefix = b"/".join(tree.here) + b"/" if tree.here else b""

    def _put(self, tree: LayerTree, name: bytes, entry: Entry, reader: _Reader) -> None:
        kind = entry.kind
        if self._deferred and kind is not Kind.HARDLINK:
            self._deferred.pop((*tree.here, name), None)
        if kind is Kind.FILE:
            self._put_file(tree, name, entry, reader)
        elif kind is Kind.DIRECTORY:
            self._put_directory(tree, name, entry)
        elif kind is Kind.HARDLINK:
            self._put_link(tree, name, entry)
        else:
            self._put_node(tree, name, entry)

    def _place_root(self, tree: LayerTree, entry: Entry) -> None:
        if entry.kind is not Kind.DIRECTORY:
            raise LayerError("the root of a layer must be a directory", entry=entry.path)
        self._parent = None
        tree.put_root(entry.mtime_ns)
        self._prefix = b""
        tree.forget_xattrs()
        tree.set_directory(*(self._owner or (entry.uid, entry.gid)), entry.mode, entry.xattrs)
        self._tell(b"", entry)

    def _put_directory(self, tree: LayerTree, name: bytes, entry: Entry) -> None:
        if tree.put_directory(name, entry.mtime_ns):
            tree.forget_xattrs()
        tree.set_directory(*(self._owner or (entry.uid, entry.gid)), entry.mode, entry.xattrs)
        self._tell(self._prefix + name, entry)
        self._parent = None

    def _make(self, tree: LayerTree, name: bytes, make: Callable[[], object]) -> None:
        tree.unhide(name)
        try:
            make()
        except FileExistsError:
            if tree.make_room(name):
                self.odd(f"a second entry for {printable(self._prefix + name)!r} replaces the first")
            make()

    def _put_file(self, tree: LayerTree, name: bytes, entry: Entry, reader: _Reader) -> None:
        directory = tree.directory
        mode = entry.mode
        path = self._prefix + name
        # Special bits would go with the first change of owner.
        made = mode if self._unmasked and mode < 0o1000 else 0o600
        tree.unhide(name)
        try:
            file = os.open(name, _NEW_FILE, made, dir_fd=directory)
        except FileExistsError:
            if tree.make_room(name):
                self.odd(f"a second entry for {printable(path)!r} replaces the first")
            file = os.open(name, _NEW_FILE, made, dir_fd=directory)
        try:
            digest = self._write(file, entry, reader, path) if entry.size else _EMPTY
            owner = self._owner or (entry.uid, entry.gid)
            if owner != self._given:
                self._give(file, owner, directory, path)
            if mode != made:
                os.fchmod(file, mode)
            if entry.xattrs:
                attributes.write_xattrs(file, entry.xattrs, entry.path, self._warn)
            attributes.set_times(file, entry.mtime_ns, entry.path, self._warn)
            if entry.size and self.leave_out is not None:
                self.leave_out(file)
        finally:
            os.close(file)
        if self._owner is None and path == entry.path:
            self._record(entry, digest)
        else:
            self._tell(path, entry, digest)

    def _give(self, file: int, owner: tuple[int, int], directory: int, path: bytes) -> None:
        """Give a new file its owner; notes who owns new files of the same directory without that."""
        if self._given is None and owner == self._self:
            if self._honest is None:
                # Not over NFS, say, where root is nobody.
                found = os.fstat(file)
                self._honest = owner == (found.st_uid, found.st_gid)
            # Else the group may be the directory's: setgid, or a file system mounted with grpid (mount(8)).
            if self._honest and os.fstat(directory).st_gid == owner[1]:
                self._given = owner
                return
        try:
            os.fchown(file, *owner)
        except OSError as error:
            raise attributes.owner_refused(error, path, *owner) from error

    def _write(self, file: int, entry: Entry, reader: _Reader, path: bytes) -> Hash | str | None:
        """Write a file's data, and give its digest."""
        if isinstance(reader, _Listed):
            self._count(entry.size)
            os.ftruncate(file, entry.size)
            return reader.digest
        if self.skeleton is not None:
            self.skeleton.refer(entry, path, reader.offset)
        if self.hasher is None or entry.size < _HASHED_APART:
            data = reader.whole()
            if data is not None:
                self._put_data(file, 0, data)
                return hashlib.sha256(data).hexdigest()
        if entry.segments is not None:
            os.ftruncate(file, entry.size)
        if self.hasher is not None and entry.size >= _HASHED_APART:
            return self._write_large(file, reader, self.hasher)
        digest = hashlib.sha256()
        for offset, data in reader.chunks():
            self._put_data(file, offset, data)
            digest.update(data)
        return digest.hexdigest()

    def _write_large(self, file: int, reader: _Reader, hasher: Hasher) -> Hash:
        digest = hasher.begin()
        try:
            for offset, data in reader.chunks():
                hasher.update(digest, data)
                self._put_data(file, offset, data)
        finally:
            hasher.end(digest)
        return digest

    def _put_data(self, file: int, offset: int, data: bytes) -> None:
        self._count(len(data))
        written = os.pwrite(file, data, offset)
        while written < len(data):
            written += os.pwrite(file, data[written:], offset + written)

    def _count(self, size: int) -> None:
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise exceeded(f"the layer has more than {self._budget.bytes} bytes of data", "bytes")

    def _put_node(self, tree: LayerTree, name: bytes, entry: Entry) -> None:
        directory = tree.directory
        if entry.kind is Kind.SYMLINK:
            if len(entry.target) > _LONGEST_TARGET:
                raise LayerError(f"a link to more than {_LONGEST_TARGET} bytes", entry=entry.path)
            self._make(tree, name, lambda: os.symlink(entry.target, name, dir_fd=directory))
        else:
            if entry.kind is Kind.CHARACTER and entry.device == (0, 0):
                raise LayerError("a character device 0:0 would hide files of older layers", entry=entry.path)
            mode, device = _NODE_TYPES[entry.kind] | 0o600, os.makedev(*entry.device)
            try:
                self._make(tree, name, lambda: os.mknod(name, mode, device, dir_fd=directory))
            except PermissionError:
                if entry.kind not in (Kind.CHARACTER, Kind.BLOCK):
                    raise
                # Nobody in a user namespace may make one, whatever it maps (user_namespaces(7)).
                self._warn(f"device {printable(entry.path)!r} left out: only root can make it")
                return
        uid, gid = self._owner or (entry.uid, entry.gid)
        try:
            os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            raise attributes.owner_refused(error, self._prefix + name, uid, gid) from error
        if entry.kind is not Kind.SYMLINK:
            # The node is ours and fresh, and no link: fchmodat(2) cannot be led elsewhere.
            os.chmod(name, entry.mode, dir_fd=directory)
        if entry.xattrs:
            place = through_descriptor(directory, name)
            attributes.write_xattrs(place, entry.xattrs, entry.path, self._warn)
        attributes.set_times(name, entry.mtime_ns, entry.path, self._warn, directory=directory)
        self._tell(self._prefix + name, entry)

    def _tell(self, path: bytes, entry: Entry, digest: Hash | str | None = None) -> None:
        if self._owner is None and path == entry.path:
            self._record(entry, digest)
            return
        uid, gid = self._owner or (entry.uid, entry.gid)
        self._record(
            Entry(path, entry.kind, entry.mode, uid, gid, entry.mtime_ns, entry.size,
                  entry.target, entry.device, entry.xattrs, entry.segments),
            digest,
        )  # fmt: skip

    # -- whiteouts and aufs's own files ---------------------------------------------------------

    def _place_marker(self, tree: LayerTree, entry: Entry, reader: _Reader) -> bool:
        """Deal with an entry that has a reserved name; says whether it had one."""
        parts = split(entry.path, strict=self._strict, warn=self._warn)
        reserved = next((i for i, part in enumerate(parts) if part.startswith(PREFIX)), None)
        if reserved is None:
            return False
        self._parent = None
        name = parts[reserved]
        if name == _PLINKS and reserved == 0:
            self._place_plink(tree, parts, entry, reader)
        elif name == OPAQUE and reserved == len(parts) - 1:
            self._check_marker(entry)
            if tree.hide_all(parts[:reserved]):
                self._tell_marker(tree.here, name)
        elif name.startswith(AUFS_PREFIX):
            pass
        elif reserved < len(parts) - 1:
            self.odd(f"entry {printable(entry.path)!r} below a whiteout ignored")
        else:
            hidden = name[len(PREFIX) :]
            if hidden in (b"", b".", b".."):
                raise LayerError("a whiteout that names no file", entry=entry.path)
            self._check_marker(entry)
            if tree.hide(parts[:reserved], hidden):
                self._tell_marker(tree.here, name)
        return True

    def _check_marker(self, entry: Entry) -> None:
        if entry.kind is not Kind.FILE or entry.size:
            self.odd(f"whiteout {printable(entry.path)!r} is not an empty file")

    def _tell_marker(self, here: list[bytes], name: bytes) -> None:
        self._record(Entry(b"/".join([*here, name]), Kind.FILE), None)

    def _place_plink(self, tree: LayerTree, parts: list[bytes], entry: Entry, reader: _Reader) -> None:
        if len(parts) != 2 or entry.kind in (Kind.DIRECTORY, Kind.HARDLINK):
            return
        told, self._record = self._record, self._keep_plink
        # What is put here is taken away at the end.
        skeleton, self.skeleton = self.skeleton, None
        try:
            self._enter(tree, parts[:1])
            self._put(tree, parts[1], entry, reader)
        finally:
            self._record = told
            self.skeleton = skeleton

    def _keep_plink(self, entry: Entry, digest: Hash | str | None) -> None:
        name = entry.path.removeprefix(_PLINKS + b"/")
        if name != entry.path:
            self._plinks[name] = (entry, digest, None)
            self._remember()

    # -- hard links ---------------------------------------------------------------------------

    def _put_link(self, tree: LayerTree, name: bytes, entry: Entry) -> None:
        own = (*tree.here, name)
        target = split(entry.target, strict=self._strict, warn=self._warn)
        if not target:
            raise LayerError("a hard link to the root of the layer", entry=entry.path)
        if len(target) == 2 and target[0] == _PLINKS:
            self._put_plink_link(tree, name, entry, target[1])
            return
        if any(part.startswith(PREFIX) for part in target):
            raise LayerError("a hard link to nothing", entry=entry.path)
        if not self._link_own(tree, own, target, entry):
            # An empty file keeps the place, so that what later takes it away takes the link away.
            directory = tree.directory
            self._make(tree, name, lambda: os.close(os.open(name, _NEW_FILE, 0o600, dir_fd=directory)))
            self._deferred[own] = entry
            self._remember()

    def _remember(self) -> None:
        if len(self._deferred) + len(self._plinks) > self._budget.links:
            raise exceeded(f"the layer has more than {self._budget.links} hard links to remember", "links")

    def _put_plink_link(self, tree: LayerTree, name: bytes, entry: Entry, plink: bytes) -> None:
        if plink not in self._plinks:
            raise LayerError("a hard link to nothing", entry=entry.path)
        kept, digest, first = self._plinks[plink]
        path = self._prefix + name
        with tree.resolve([_PLINKS]) as place:
            source, directory = place.own, tree.directory
            self._deferred.pop((*tree.here, name), None)
            self._make(tree, name, lambda: os.link(plink, name, src_dir_fd=source, dst_dir_fd=directory))
        if first is None:
            self._plinks[plink] = (kept, digest, path)
            self._tell(path, kept, digest)
        else:
            self._tell(path, kept._replace(kind=Kind.HARDLINK, target=first, size=0))

    def _link_own(self, tree: LayerTree, own: tuple[bytes, ...], target: list[bytes], entry: Entry) -> bool:
        """Link to a file of this layer; False when it has none of that name."""
        *parent, last = target
        with tree.resolve(parent) as place:
            real = (*place.real, last)
            if real == own:
                return True
            found = lstat(place.own, last) if place.own >= 0 else None
            if found is None or real in self._deferred:
                return False
            if is_overlay_whiteout(found):
                return False
            if stat.S_ISDIR(found.st_mode):
                raise LayerError("a hard link to a directory", entry=entry.path)
            if real[: len(own)] == own:
                raise LayerError("a hard link in the place of a directory above its target", entry=entry.path)
            source, directory = place.own, tree.directory
            name = own[-1]
            self._deferred.pop(own, None)
            self._make(
                tree,
                name,
                lambda: os.link(last, name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False),
            )
        self._tell(
            b"/".join(own),
            Entry(b"", Kind.HARDLINK, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid,
                  found.st_mtime_ns, target=b"/".join(real)),
        )  # fmt: skip
        return True

    def _link_deferred(self, tree: LayerTree) -> None:
        """Make the hard links whose other name came later, or lies in an older layer."""
        for own in list(self._deferred):
            # From a link to the link that it is a link to, and so on; then back.
            chain: dict[tuple[bytes, ...], None] = {own: None}
            while chain:
                last = next(reversed(chain))
                entry = self._deferred.get(last)
                waits = None if entry is None else self._link_late(tree, last, entry)
                if waits is None:
                    del chain[last]
                elif waits in chain:
                    raise LayerError("a hard link to nothing", entry=self._deferred[own].path)
                else:
                    chain[waits] = None

    def _link_late(self, tree: LayerTree, own: tuple[bytes, ...], entry: Entry) -> tuple[bytes, ...] | None:
        """Make a link that waited; gives the link that has to be made first, if there is one."""
        if not tree.enter_own(own[:-1]) or not _is_file(tree.directory, own[-1]):
            # A later entry has taken the place, or that of a parent.
            del self._deferred[own]
            return None
        target = split(entry.target, strict=self._strict, warn=self._warn)
        *parent, last = target
        with tree.resolve(parent) as place:
            real = (*place.real, last)
        if real in self._deferred and real != own:
            return real
        del self._deferred[own]
        os.unlink(own[-1], dir_fd=tree.directory)
        self._copy_up(tree, list(real), entry)
        self._enter(tree, list(own[:-1]))
        if not self._link_own(tree, own, target, entry):
            raise LayerError("a hard link to nothing", entry=entry.path)
        return None

    def _copy_up(self, tree: LayerTree, real: list[bytes], entry: Entry) -> None:
        """Take a file of an older layer over into this one, so that a hard link can be made to it."""
        *parent, name = real
        with tree.resolve(parent) as place:
            own = lstat(place.own, name) if place.own >= 0 else None
            if own is not None and not is_overlay_whiteout(own):
                return
            hidden = own is not None or tree.is_hidden(place.own, name)
            found = lstat(place.lower, name) if place.lower >= 0 and not hidden else None
            if found is None:
                problem = "a hard link to a deleted file" if hidden else "a hard link to nothing"
                raise LayerError(problem, entry=entry.path)
            if stat.S_ISDIR(found.st_mode):
                raise LayerError("a hard link to a directory", entry=entry.path)
            lower = os.dup(place.lower)
        try:
            self._enter(tree, parent)
            self._copy_node(tree, name, lower, found)
        finally:
            os.close(lower)

    def _copy_node(self, tree: LayerTree, name: bytes, lower: int, found: os.stat_result) -> None:
        xattrs = attributes.read_layer_xattrs(through_descriptor(lower, name))
        mode = stat.S_IMODE(found.st_mode)
        if not stat.S_ISREG(found.st_mode):
            kind, text = Kind.SYMLINK, b""
            if stat.S_ISLNK(found.st_mode):
                text = os.readlink(name, dir_fd=lower)
            else:
                kind = next(k for k, t in _NODE_TYPES.items() if t == stat.S_IFMT(found.st_mode))
            device = (os.major(found.st_rdev), os.minor(found.st_rdev))
            node = Entry(self._prefix + name, kind, mode, found.st_uid, found.st_gid,
                         found.st_mtime_ns, 0, text, device, xattrs)  # fmt: skip
            self._put_node(tree, name, node)
            return
        source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=lower)
        try:
            file = os.open(name, _NEW_FILE, 0o600, dir_fd=tree.directory)
            try:
                copy_data(source, file, size=found.st_size)
                os.fchown(file, found.st_uid, found.st_gid)
                os.fchmod(file, mode)
                attributes.write_xattrs(file, xattrs, self._prefix + name, self._warn)
                attributes.set_times(file, found.st_mtime_ns, self._prefix + name, self._warn)
            finally:
                os.close(file)
        finally:
            os.close(source)
        self._record(
            Entry(self._prefix + name, Kind.FILE, mode, found.st_uid, found.st_gid,
                  found.st_mtime_ns, found.st_size, xattrs=xattrs),
            None,
        )  # fmt: skip


def _is_file(directory: int, name: bytes) -> bool:
    found = lstat(directory, name)
    return found is not None and stat.S_ISREG(found.st_mode)


def _bare(error: LayerError) -> str:
    """The problem alone, as it was before the entry's name was put behind it."""
    text = str(error)
    if error.entry is None:
        return text
    return text.removesuffix(f" in entry {printable(error.entry)!r}")
