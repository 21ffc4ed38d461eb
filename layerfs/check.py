"""Looks for damage in a store, and repairs what can be repaired from what is kept.

Compared are: every blob with its digest, every committed layer with its table of contents, the database
with itself, with the content store, with what the drivers hold, and with what the kernel shows mounted.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from layerfs import failpoints, garbage, leases, liveness
from layerfs.assembly import Assembly
from layerfs.blobs import Blobs
from layerfs.contents import digest_of_data
from layerfs.database import Database
from layerfs.digest import Digest
from layerfs.driver import Lazy, Logs
from layerfs.errors import InUseError, LayerfsError, NotFoundError, VerificationError, printable
from layerfs.layers import Layer, Layers, State
from layerfs.ledger import Record
from layerfs.progress import Progress, Silent
from layerfs.tree.absent import FETCH_FAILED
from layerfs.tree.entry import Entry, Kind
from layerfs.tree.read_entry import read_directory_entry, read_entry
from layerfs.tree.toc import read_toc
from layerfs.tree.whiteouts import PREFIX
from layerfs.value import frozen

# What is asked again when something is missing: others work meanwhile.
_HOLDS = "SELECT 1 FROM layers WHERE id = ? AND skeleton = ? AND driver = ? AND state = 'committed'"
_LINKED = "SELECT 1 FROM links WHERE blob = ?1 UNION SELECT 1 FROM index_links WHERE blob = ?1"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Problem(NamedTuple):
    """One thing that is wrong: where, what, whether it was repaired, and what to do ("" if nothing)."""

    kind: str
    subject: str
    what: str
    repaired: bool
    hint: str


@frozen
class Findings:
    """What a check found, and how much it looked at."""

    problems: tuple[Problem, ...]
    blobs: int
    layers: int

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong, or nothing any more."""
        return all(problem.repaired for problem in self.problems)


class Check:
    """One check of one store."""

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        assembly: Assembly,
        *,
        all_layers: Callable[[], Sequence[Layers]],
        repair: bool,
        contents: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Args: `contents` reads the data of every file in every layer; `repair` mends what it can."""
        self._database = database
        self._blobs = blobs
        self._assembly = assembly
        self._all_layers = all_layers
        self._repair = repair
        self._contents = contents
        self._progress = progress or Silent()
        self._problems: list[Problem] = []
        # Rows of layers whose files cannot be what they were.
        self._altered: set[int] = set()

    def run(self) -> Findings:
        """Look at everything."""
        for what in self._database.problems():
            self._tell("database", "layerfs.db", what, hint="restore it from a copy, or start a new root")
        leases.expire(self._database)
        failpoints.reach("check.begin")
        blobs = self._check_blobs() + self._check_assembled()
        layers = 0
        for each in self._all_layers():
            layers += self._check_driver(each)
            self._check_logs(each)
        self._check_links()
        self._check_mounts()
        return Findings(tuple(self._problems), blobs, layers)

    def settle(self, layers: Layers, boot: str) -> None:
        """Look at the layers that an earlier boot committed without syncing them, and mend them."""
        rows = self._database.rows(
            "SELECT name FROM layers WHERE driver = ? AND state = 'committed' AND durable = 0 AND boot <> ?"
            " ORDER BY id",
            layers.driver.name,
            boot,
        )
        for (name,) in rows:
            if self._check_layer(layers, layers.stat(name), set(layers.driver.layers())):
                layers.sync()
                with self._database.transaction() as connection:
                    connection.execute(
                        "UPDATE layers SET durable = 1 WHERE driver = ? AND name = ?",
                        (layers.driver.name, name),
                    )

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What was found so far."""
        return tuple(self._problems)

    def _tell(self, kind: str, subject: str, what: str, *, repaired: bool = False, hint: str = "") -> None:
        self._problems.append(Problem(kind, subject, what, repaired, "" if repaired else hint))

    def _check_blobs(self) -> int:
        count = 0
        with self._progress.task("check blobs", None) as advance:
            for digest in self._blobs.list():
                count += 1
                try:
                    self._blobs.verify(digest)
                    advance(self._blobs.size(digest))
                except VerificationError as error:
                    if self._repair:
                        # Layers that were unpacked from it stay as they are; who needs it says so below.
                        self._blobs.delete(digest)
                    self._tell(
                        "blob", str(digest), str(error), repaired=self._repair, hint="layerfs check --repair"
                    )
                except NotFoundError:
                    continue  # collected meanwhile
        return count

    def _check_assembled(self) -> int:
        """Put every blob together that a layer holds in parts; what cannot is not relied on any more."""
        held = self._assembly.all()
        with self._progress.task("check blobs in layers", None) as advance:
            for one in held:
                try:
                    self._assembly.verify(one)
                    advance(one.size)
                    continue
                except (LayerfsError, OSError) as error:
                    what = str(error)
                if not self._database.rows(_HOLDS, one.row, str(one.skeleton), one.driver):
                    continue  # it was removed meanwhile
                self._altered.add(one.row)
                if self._repair:
                    failpoints.reach("check.drop")
                    self._assembly.drop(one.row)
                again = self._repair and self._blobs.has(one.blob)
                self._tell(
                    "blob", str(one.blob), what, repaired=again,
                    hint="its only copy was in these files: load or pull the image again, then"
                    " layerfs check --repair --contents",
                )  # fmt: skip
        return len(held)

    def _check_links(self) -> None:
        rows = self._database.rows(
            "SELECT l.blob, COALESCE((SELECT name FROM tags t WHERE t.manifest = l.manifest), l.manifest)"
            " FROM links l UNION"
            " SELECT l.blob, COALESCE((SELECT name FROM index_tags t WHERE t.digest = l.digest), l.digest)"
            " FROM index_links l"
        )
        for blob, image in rows:
            if not self._blobs.has(Digest.parse(blob)) and self._database.rows(_LINKED, blob):
                self._tell("image", image, f"its blob {blob} is missing", hint="pull or load the image again")

    def _check_mounts(self) -> None:
        for layers in self._all_layers()[:1]:  # the ledger is the same for all of them
            ledger = layers.ledger
            for record in ledger.all():
                if not ledger.exists(record):
                    if liveness.alive(record.owner) and not self._is_stale(layers, record):
                        continue
                    what = "recorded, but not there"
                    if self._repair:
                        failpoints.reach("check.mount")
                        ledger.forget(record.id)
                elif ledger.dead(record):
                    what = "the process that served it is gone"
                    if self._repair:
                        layers.clear([record])
                else:
                    continue
                target = os.fsdecode(record.target) or "(private)"
                self._tell("mount", target, what, repaired=self._repair, hint="layerfs check --repair")

    def _is_stale(self, layers: Layers, record: Record) -> bool:
        """Say whether a record has no mount, and nobody is about to make or to forget that."""
        row = self._database.row("SELECT driver_id FROM layers WHERE id = ?", record.layer)
        if row is None:
            return False
        try:
            with layers.lock(row[0]):
                return record in layers.ledger.all() and not layers.ledger.exists(record)
        except InUseError:
            return False

    def _check_logs(self, layers: Layers) -> None:
        for log in layers.driver.logs() if isinstance(layers.driver, Logs) else ():
            lines = log.read_text(errors="replace").strip().splitlines() or [""]
            what = (
                f"a process of the driver {layers.driver.name} met an error of its own: {lines[-1].strip()}"
            )
            hint = "read the log, tell the authors, then delete it"
            if lines[-1].startswith(FETCH_FAILED):
                what, hint = lines[-1], "it is tried again when the file is read; then delete the log"
            self._tell("log", str(log), what, hint=hint)

    def _check_driver(self, layers: Layers) -> int:
        held = set(layers.driver.layers())
        if layers.table.unfinished() and self._repair:
            layers.finish()
        count = 0
        for layer in layers.walk():
            count += 1
            if layer.state is State.COMMITTED:
                self._check_layer(layers, layer, held)
            elif (layer.state is State.ACTIVE or layer.parent is None) and _lacks_files(layers, layer, held):
                container = layers.table.container(layer.name)
                kind, subject = ("container", container) if container else ("layer", layer.name)
                self._tell(
                    kind, subject, f"the driver {layers.driver.name} has no files of it",
                    hint="remove the container; what it wrote is lost",
                )  # fmt: skip
        for driver_id in garbage.orphans(layers):
            if self._repair:
                with contextlib.suppress(InUseError), layers.lock(driver_id) as lock:
                    failpoints.reach("check.orphan")
                    layers.driver.remove(driver_id)
                    lock.path.unlink(missing_ok=True)
            what = f"the driver {layers.driver.name} holds it, the database does not know it"
            self._tell("orphan", driver_id, what, repaired=self._repair, hint="layerfs check --repair")
        return count

    def _check_layer(self, layers: Layers, layer: Layer, held: set[str]) -> bool:
        """Compare a committed layer with its table of contents; say whether it is sound now."""
        if _lacks_files(layers, layer, held):
            what: str | None = f"the driver {layers.driver.name} has no files of it"
        elif _is_unfinished(layers, layer):
            what = None
        elif layer.toc is None or not self._blobs.has(layer.toc):
            what = "its table of contents is missing"
        else:
            try:
                what = self._compare(layers, layer, layer.toc)
            except (LayerfsError, OSError) as error:
                what = f"it cannot be read: {error}"
        if what is None or not _is_there(layers, layer):
            return True
        repaired = False
        hint = "layerfs check --repair"
        if self._repair:
            try:
                failpoints.reach("check.layer")
                layers.renew(layer.name)
                repaired = True
            except LayerfsError as error:
                if layer.skeleton is not None and isinstance(error, VerificationError | NotFoundError):
                    # What it came from cannot be had from itself: it has to come in once more.
                    self._assembly.drop(layer.row)
                hint = f"{error}; {error.hint or 'pull or load the image again'}"
        self._tell("layer", layer.name, what, repaired=repaired, hint=hint)
        return repaired

    def _compare(self, layers: Layers, layer: Layer, toc: Digest) -> str | None:
        wrong: dict[bytes, str] = {}
        contents = self._contents or layer.row in self._altered
        lazy = layers.driver if isinstance(layers.driver, Lazy) else None
        if lazy is not None and not lazy.bodies_list(layer.driver_id).exists():
            lazy = None
        with layers.opened(layer.name) as root, self._blobs.open(toc) as file:
            for entry, digest in read_toc(file):
                path = entry.path
                if path.rpartition(b"/")[2].startswith(PREFIX):
                    continue
                # Of two lines of one path the later holds; what it replaced is gone with all below.
                if wrong:
                    wrong.pop(path, None)
                    if entry.kind is not Kind.DIRECTORY:
                        wrong = {p: w for p, w in wrong.items() if not p.startswith(path + b"/")}
                # What is not here is verified when it comes.
                read = contents and entry.kind is Kind.FILE and entry.size > 0
                if read and lazy is not None and lazy.lacks(layer.driver_id, path):
                    read = False
                what = self._compare_entry(root, entry, digest, contents=read)
                if what is not None:
                    wrong[path] = what
        if not wrong:
            return None
        path, what = next(iter(wrong.items()))
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        return f"/{printable(path)}: {what}{more}"

    def _compare_entry(self, root: int, entry: Entry, digest: str | None, *, contents: bool) -> str | None:
        with _parent(root, entry.path) as directory:
            if directory is None:
                return "it is missing"
            name = entry.path.rpartition(b"/")[2]
            if not name:
                return _difference(entry, read_directory_entry(directory, b""))
            try:
                found = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                return "it is missing"
            if entry.kind is Kind.HARDLINK:
                return self._compare_link(root, entry, found)
            there = read_entry(directory, name, found, entry.path)
            what = _difference(entry, there)
            if what is None and contents and entry.kind is Kind.FILE and digest is not None:
                file = os.open(
                    name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory
                )
                try:
                    if digest_of_data(file, entry.size, entry.segments) != digest:
                        what = "its content is another"
                finally:
                    os.close(file)
            return what

    def _compare_link(self, root: int, entry: Entry, found: os.stat_result) -> str | None:
        with _parent(root, entry.target) as directory:
            with contextlib.suppress(FileNotFoundError):
                if directory is not None:
                    name = entry.target.rpartition(b"/")[2]
                    first = os.stat(name, dir_fd=directory, follow_symlinks=False)
                    if (first.st_dev, first.st_ino) == (found.st_dev, found.st_ino):
                        return None
            return f"it is no hard link to /{printable(entry.target)}"


def _lacks_files(layers: Layers, layer: Layer, held: set[str]) -> bool:
    """Say whether the driver has nothing of a layer; `held` is what it had a while ago."""
    if layer.driver_id in held or layer.driver_id in set(layers.driver.layers()):
        return False
    return _is_there(layers, layer)


def _is_there(layers: Layers, layer: Layer) -> bool:
    """Say whether a layer was neither removed nor replaced since it was looked up."""
    try:
        return layers.stat(layer.name).driver_id == layer.driver_id
    except NotFoundError:
        return False


def _is_unfinished(layers: Layers, layer: Layer) -> bool:
    return isinstance(layers.driver, Lazy) and not layers.driver.unfinished(layer.driver_id).is_whole


def _difference(expected: Entry, found: Entry) -> str | None:
    if found.kind is not expected.kind:
        return f"it is a {found.kind.name.lower()}, not a {expected.kind.name.lower()}"
    if expected.kind is not Kind.SYMLINK and found.mode != expected.mode:
        return f"its mode is {found.mode:o}, not {expected.mode:o}"
    # Without privilege everything belongs to whoever unpacked it.
    if os.geteuid() == 0 and (found.uid, found.gid) != (expected.uid, expected.gid):
        return f"its owner is {found.uid}:{found.gid}, not {expected.uid}:{expected.gid}"
    if expected.kind is Kind.FILE and found.size != expected.size:
        return f"it has {found.size} bytes, not {expected.size}"
    if found.target != expected.target:
        return "its target is another"
    if found.device != expected.device:
        return "its device number is another"
    if found.mtime_ns != expected.mtime_ns and 0 <= expected.mtime_ns < 1 << 61:
        return "its modification time is another"
    for name, value in found.xattrs.items():
        # One that the file system refused is missing, and that was told when it was unpacked.
        if expected.xattrs.get(name) != value:
            return f"its xattr {printable(name)} is another"
    return None


@contextlib.contextmanager
def _parent(root: int, path: bytes) -> Iterator[int | None]:
    """Open the directory that holds a path, by single names, following no link; None when it is missing."""
    directory = os.dup(root)
    try:
        for name in path.split(b"/")[:-1]:
            try:
                below = os.open(name, _DIRECTORY, dir_fd=directory)
            except (FileNotFoundError, NotADirectoryError):
                yield None
                return
            os.close(directory)
            directory = below
        yield directory
    finally:
        os.close(directory)
