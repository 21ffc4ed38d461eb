"""One check of a whole store, part by part, in an order in which each repair can use those before it.

Compared are: the database with itself and with the records beside it, every blob with its digest, every
committed layer with its table of contents, what the database says with what the content store and the drivers
hold, and the ledger with what the kernel shows mounted.
"""

from __future__ import annotations

import contextlib
import re
import stat
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

from layerfs import failpoints, garbage, leases
from layerfs.assembly import Assembly
from layerfs.blobs import Blobs
from layerfs.check.blobs import BlobsCheck
from layerfs.check.findings import REPAIR, Findings, Problem, Telling
from layerfs.check.layers import LayersCheck
from layerfs.check.mounts import MountsCheck
from layerfs.check.refetching import Refetching
from layerfs.database import Database
from layerfs.digest import Digest
from layerfs.driver import Logs, Sweeps
from layerfs.errors import InUseError, LayerfsError
from layerfs.layers import Layers
from layerfs.leftovers import Leftover, Leftovers, is_locked
from layerfs.progress import Progress, Silent
from layerfs.quarantine import Quarantine
from layerfs.rebuilding import Restored, Restoring, drop_dangling, unreadable
from layerfs.tree.absent import FETCH_FAILED

_ASIDE: Final = f"`{REPAIR}` moves the log aside"
# What stands above each text in a log.
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_AGAIN: Final = "layerfs check --repair --from-registry, or pull or load the image again"
# What is asked again when something is missing: others work meanwhile.
_HOLDS: Final = "SELECT 1 FROM layers WHERE id = ? AND skeleton = ? AND driver = ? AND state = 'committed'"
_LINKED: Final = "SELECT 1 FROM links WHERE blob = ?1 UNION SELECT 1 FROM index_links WHERE blob = ?1"


class Check:
    """One check of one store.

    Args:
        all_layers: gives the layers of every driver.
        held: says which layers a driver holds, by its name.
        repair: mend what can be mended.
        contents: read the data of every file in every layer, and all of every blob.
        refetching: gets blobs from registries; None where none is to be asked.
        restored: what was put into the database when the store was opened, as that was lost.
    """

    def __init__(
        self,
        root: Path,
        database: Database,
        blobs: Blobs,
        assembly: Assembly,
        *,
        all_layers: Callable[[], Sequence[Layers]],
        held: Callable[[str], Collection[str]],
        repair: bool,
        contents: bool = False,
        refetching: Refetching | None = None,
        restored: Sequence[Restored] = (),
        progress: Progress | None = None,
    ) -> None:
        self._root = root
        self._database = database
        self._blobs = blobs
        self._assembly = assembly
        self._all_layers = all_layers
        self._held = held
        self._repair = repair
        self._contents = contents
        self._refetching = refetching
        self._restored = restored
        self._progress = progress or Silent()
        self._telling = Telling()
        self._quarantine = Quarantine(root)
        # Rows of layers whose files cannot be what they were.
        self._altered: set[int] = set()

    def run(self) -> Findings:
        """Look at everything; at nothing more than the database, where that is damaged itself."""
        faults = self._database.problems()
        for what in faults:
            self._telling.found("database", "layerfs.db", what)
        if faults:
            return Findings(self.problems, 0, 0)
        failpoints.reach("check.begin")
        self._check_database()
        self._check_modes()
        leftovers = list(self._find_leftovers())
        blobs = BlobsCheck(
            self._database, self._blobs, self._telling, quarantine=self._quarantine,
            refetching=self._refetching, repair=self._repair, contents=self._contents,
            progress=self._progress,
        ).run()  # fmt: skip
        self._fetch_missing()
        self._check_skeletons()
        if self._contents:
            blobs += self._check_assembled()
        layers = files = 0
        drivers = self._all_layers()
        for each in drivers:
            checked = self._layers_check(each)
            layers += checked.run()
            files += checked.entries
            self._check_orphans(each)
            self._check_logs(each)
        self._check_links()
        MountsCheck(drivers, self._telling, repair=self._repair).run()
        return Findings(self.problems, blobs, layers, files, tuple(leftovers), tuple(self._telling.notes))

    def settle(self, layers: Layers, boot: str) -> None:
        """Look at the layers that an earlier boot committed without syncing them, and mend them."""
        rows = self._database.rows(
            "SELECT name FROM layers WHERE driver = ? AND state = 'committed' AND durable = 0 AND boot <> ?"
            " ORDER BY id",
            layers.driver.name,
            boot,
        )
        checked = self._layers_check(layers)
        for (name,) in rows:
            if checked.check_one(layers.stat(name)):
                layers.sync()
                with self._database.transaction() as connection:
                    connection.execute(
                        "UPDATE layers SET durable = 1 WHERE driver = ? AND name = ?",
                        (layers.driver.name, name),
                    )

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What was found so far."""
        return tuple(self._telling.problems)

    def _tell(self, kind: str, subject: str, what: str, *, how: str) -> None:
        """Tell what a repair always mends."""
        if self._repair:
            self._telling.repaired(kind, subject, what, how=how)
        else:
            self._telling.found(kind, subject, what)

    def _layers_check(self, layers: Layers) -> LayersCheck:
        return LayersCheck(
            layers, self._blobs, self._assembly, self._telling, quarantine=self._quarantine,
            refetching=self._refetching, repair=self._repair, contents=self._contents, altered=self._altered,
            progress=self._progress,
        )  # fmt: skip

    # -- the database

    def _check_database(self) -> None:
        for one in self._restored:
            if one.hint:
                self._telling.found(*one[:3], hint=one.hint)
            else:
                self._telling.repaired(*one[:3], how="what lies beside the database")
        for record in unreadable(self._database.records):
            what = "this record of what the database knows is none any more"
            if self._repair:
                with contextlib.suppress(OSError):
                    self._quarantine.take(record.path)
            self._tell("record", str(record.path.relative_to(self._root)), what, how="the database")
        restoring = Restoring(self._database, self._blobs, self._held, anew=False)
        lost = restoring.run(dry=not self._repair)
        for kind, subject, what, _ in lost:
            self._tell(kind, subject, what, how="its record")
        if not (self._repair or lost):
            with self._database.transaction() as connection:
                behind = self._database.records.behind(connection)
            if behind:
                self._telling.noted(
                    "record", "records", f"{behind} say less than the database, or what was so before",
                    hint=REPAIR,
                )  # fmt: skip
        dangling = self._database.dangling()
        if dangling and self._repair:
            drop_dangling(self._database)
        left = self._database.dangling()
        for what in dangling:
            if what in left:
                hint = "remove the containers and images that it is about" if self._repair else REPAIR
                self._telling.found("database", "layerfs.db", what, hint=hint)
            else:
                self._telling.repaired("database", "layerfs.db", what, how="nothing: they were removed")

    def _check_modes(self) -> None:
        """See that nobody else may look into the store."""
        for path in (self._root, self._root / "layerfs.db"):
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & 0o077:
                if self._repair:
                    path.chmod(mode & ~0o077)
                self._tell(
                    "store", str(path), f"others may look into it: its mode is {mode:o}", how="its mode"
                )

    # -- what stopped processes left behind

    def _find_leftovers(self) -> Iterator[Leftover]:
        """Give what is there, and remove what is old enough if that is wanted."""
        for lease, created_ns in leases.dead(self._database):
            yield Leftover("lease", lease, 0, created_ns / 1e9, False)
        query = "SELECT driver_id, COALESCE(bytes, 0), updated_ns FROM layers l WHERE state = 'removing'"
        drafts = " OR (state = 'draft' AND NOT EXISTS (SELECT 1 FROM leases WHERE leases.id = l.lease))"
        if self._repair:
            leases.expire(self._database)
        for driver_id, size, updated_ns in self._database.rows(query + drafts):
            if is_locked(self._root / "locks" / driver_id):
                continue  # it is being removed right now
            yield Leftover("layer", driver_id, size, updated_ns / 1e9, False)
        for layers in self._all_layers():
            for path in garbage.half_made(layers.driver.root):
                yield Leftover("layer", str(path.relative_to(self._root)), 0, path.lstat().st_mtime, False)
            if self._repair:
                layers.finish()
                if isinstance(layers.driver, Sweeps):
                    layers.driver.sweep()
        leftovers = Leftovers(self._root, self._database, self._blobs)
        before = time.time() - garbage.GRACE_SECONDS
        for one in list(leftovers.find()):
            if not one.busy:
                yield one
                if self._repair:
                    leftovers.remove(one, older_than=before)

    # -- blobs

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
                place = self._fetch(one.blob) if self._repair and not self._blobs.has(one.blob) else None
                if place is not None or (self._repair and self._blobs.has(one.blob)):
                    self._telling.repaired("blob", str(one.blob), what, how=place or "another layer")
                else:
                    self._telling.found(
                        "blob", str(one.blob), what,
                        hint="its only copy was in these files: load or pull the image again, then"
                        " layerfs check --repair --deep",
                    )  # fmt: skip
        return len(held)

    def _check_skeletons(self) -> None:
        for blob, skeleton, name, row in self._database.rows(
            "SELECT blob, skeleton, name, id FROM layers WHERE skeleton IS NOT NULL AND state = 'committed'"
        ):
            if self._blobs.is_whole(Digest.parse(skeleton)):
                continue
            what = f"its skeleton {skeleton} is missing, without which it cannot give its blob {blob}"
            digest = Digest.parse(blob)
            if self._repair:
                self._assembly.drop(row)
                place = "another copy" if self._blobs.has(digest) else self._fetch(digest)
                if place is not None:
                    self._telling.repaired("layer", name, what, how=place)
                    continue
            self._telling.found("layer", name, what, hint=_AGAIN)

    def _fetch_missing(self) -> None:
        """Get what images need and the store has not, documents first: they say how long the others are."""
        if self._refetching is None:
            return
        for _ in range(3):
            for blob, image in self._missing():
                place = self._fetch(Digest.parse(blob))
                if place is not None:
                    self._telling.repaired("image", image, f"its blob {blob} is missing", how=place)

    def _fetch(self, digest: Digest) -> str | None:
        """Get a blob from a registry and say from which; None if that cannot be."""
        if self._refetching is None:
            return None
        with contextlib.suppress(LayerfsError, OSError):
            return self._refetching.fetch(digest)
        return None

    def _missing(self) -> list[tuple[str, str]]:
        rows = self._database.rows(
            "SELECT l.blob, COALESCE((SELECT name FROM tags t WHERE t.manifest = l.manifest), l.manifest)"
            " FROM links l UNION"
            " SELECT l.blob, COALESCE((SELECT name FROM index_tags t WHERE t.digest = l.digest), l.digest)"
            " FROM index_links l"
        )
        return [
            (blob, image)
            for blob, image in rows
            if not self._blobs.has(Digest.parse(blob)) and self._database.rows(_LINKED, blob)
        ]

    def _check_links(self) -> None:
        for blob, image in self._missing():
            self._telling.found("image", image, f"its blob {blob} is missing", hint=_AGAIN)

    # -- drivers

    def _check_orphans(self, layers: Layers) -> None:
        for driver_id in list(garbage.orphans(layers)):
            what = f"the driver {layers.driver.name} holds it, the database does not know it"
            if not self._repair:
                self._telling.found("orphan", driver_id, what)
                continue
            called = f"{layers.driver.name}-{driver_id}"
            try:
                with _alone(layers, driver_id):
                    failpoints.reach("check.orphan")
                    place = self._quarantine.take(layers.driver.root / driver_id, called=called)
                self._telling.repaired("orphan", driver_id, what, how=f"moved to {place}")
            except (InUseError, OSError) as error:
                self._telling.found("orphan", driver_id, what, hint=f"it cannot be moved aside: {error}")

    def _check_logs(self, layers: Layers) -> None:
        """Tell what a driver's processes wrote down, each log once: a repair moves it aside."""
        name = layers.driver.name
        for log in layers.driver.logs() if isinstance(layers.driver, Logs) else ():
            try:
                text = log.read_text(errors="replace")
            except FileNotFoundError:
                continue  # removed meanwhile, with its layer
            lines = [line for line in text.splitlines() if line.strip() and not _TIME.fullmatch(line)] or [""]
            faults = [line for line in lines if not line.startswith(FETCH_FAILED)]
            what = lines[-1]
            if faults:
                what = f"a process of the driver {name} met an error of its own: {faults[-1].strip()}"
            if self._repair:
                place = self._quarantine.take(log, called=f"{name}-{log.parent.name}-{log.name}")
                self._telling.repaired("log", str(log), what, how=f"moved to {place}")
            elif faults:
                self._telling.found(
                    "log", str(log), what, hint=f"read the log and tell the authors; {_ASIDE}"
                )
            else:
                # The data is asked for again when the file is read.
                hint = f"reading the file tries again, and nothing here is damaged; {_ASIDE}"
                self._telling.noted("log", str(log), what, hint=hint)


@contextlib.contextmanager
def _alone(layers: Layers, driver_id: str) -> Iterator[None]:
    """Hold the lock of what a driver holds, if that can be a layer's id."""
    if not (driver_id.isascii() and driver_id.isalnum()):
        yield
        return
    with layers.lock(driver_id) as lock:
        yield
        lock.path.unlink(missing_ok=True)
