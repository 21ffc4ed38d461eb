"""The crash matrix: every named step of the store's work, broken in every way, and what is left then.

For each operation, each failpoint that it reaches (`layerfs.failpoints`) and each fault (`faults.KINDS`): the
operation is begun in a process of its own, on a copy of a store, and meets the fault there. Then the store
is opened anew, and must keep what it promises (`invariants`); the operation is done again, and succeeds; and
after a collection everything occupies what it does after a run without a fault.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks.filesystem import fresh
from layerfs import failpoints, linux, mounting
from layerfs.errors import StoreError
from layerfs.value import frozen
from tests.reliability import faults, invariants
from tests.reliability.invariants import Contents
from tests.reliability.operations import OPERATIONS, Operation, Place, age, fill_registry, write_inputs
from tests.reliability.report import Section
from tests.support.registries import Registry, installed

HELP: Final = "break the store at every step of its work, in every way"
DRIVERS: Final = ("overlay2", "fuse", "aufs", "vfs")
# From half a GiB on ext4 has blocks of 4 KiB, as any that people use.
_SIZE: Final = 640 << 20
_SURVIVED: Final = (
    "Survived means: the store opens, `check` with all contents finds nothing but garbage, nothing that "
    "was there before is lost or changed, no lease and no mount is left or forgotten, the operation "
    "done again succeeds, and after `gc --grace 0` files, directories, bytes and rows are those of a "
    "run without a fault."
)


@frozen
class Cell:
    """One trial: an operation, the failpoint and which time it is reached, and the fault there."""

    operation: str
    failpoint: str
    number: int
    fault: str

    def __str__(self) -> str:
        return f"{self.operation}: {self.failpoint}={self.fault}@{self.number}"


@frozen
class Clean:
    """What an operation does without a fault: how often it reaches each failpoint, and what is left."""

    reached: Counter[str]
    before: Contents
    occupied: Counter[str]


class Matrix:
    """Trials with one driver on one file system, of which `directory` is a part."""

    def __init__(self, directory: Path, driver: str, registry: str | None) -> None:
        self._templates = directory / "templates"
        self._templates.mkdir()
        self._ballast = directory / "ballast"
        self._notes = directory / "notes"
        self._log = directory / "log"
        self._place = Place(directory / "store", directory / "target", directory / "inputs", driver, registry)
        write_inputs(self._place.inputs)
        self._clean: dict[str, Clean] = {}
        faults.import_everything()

    def operations(self) -> list[Operation]:
        """Give those that can be done here."""
        return [one for one in OPERATIONS if one.needs is None or self._place.registry is not None]

    def clean(self, operation: Operation) -> Clean:
        """Do an operation without a fault, once."""
        found = self._clean.get(operation.name)
        if found is None:
            before = self._begin(operation)
            self._notes.unlink(missing_ok=True)
            outcome = self._attempt(operation.perform, before=faults.noted(self._notes))
            reached = faults.read_notes(self._notes)
            assert outcome.status == operation.status, f"{operation.name}: {outcome.words}"
            problems = self._sweep(operation, before)
            assert not problems, f"{operation.name}: {problems}"
            found = Clean(reached, before, self._occupied())
            self._clean[operation.name] = found
            self._end()
        return found

    def cells(self, *, kinds: Sequence[str], every: bool) -> Iterator[Cell]:
        """List the trials: of each failpoint the first time that it is reached and the last.

        Args:
            every: all times instead.
        """
        for operation in self.operations():
            for failpoint, count in self.clean(operation).reached.items():
                middle = {(count + 1) // 2} if failpoint.startswith("transaction.") else set()
                numbers = range(1, count + 1) if every else sorted({1, count} | middle)
                for number in numbers:
                    for kind in kinds:
                        yield Cell(operation.name, failpoint, number, kind)

    def try_one(self, cell: Cell) -> list[str] | None:
        """Carry out one trial; give what was wrong then, None where the failpoint was not reached."""
        operation = next(one for one in OPERATIONS if one.name == cell.operation)
        clean = self.clean(operation)
        try:
            return self._try(cell, operation, clean)
        except Exception as error:  # of whatever kind: a store that cannot be opened is what is looked for
            return [f"{type(error).__name__}: {error}"]
        finally:
            self._end()

    def _try(self, cell: Cell, operation: Operation, clean: Clean) -> list[str] | None:
        place = self._place
        self._begin(operation)
        self._notes.unlink(missing_ok=True)
        arm = faults.armed(cell.fault, cell.failpoint, cell.number, ballast=self._ballast, mark=self._notes)
        outcome = self._attempt(operation.perform, before=arm)
        if not self._notes.stat().st_size:
            return None
        problems = [f"process {name} does not end" for name in outcome.left]
        if cell.fault in ("enospc", "eio", "full") and "internal error" in outcome.words:
            problems.append(f"no words that a user understands: {outcome.words}")
        if self._ballast.exists():
            # One that is only being made need not be there.
            allowed = () if operation.prepare else (OSError, StoreError)
            with contextlib.suppress(*allowed), place.store() as store:
                store.images.list()
            self._ballast.unlink()
        with place.store() as store:
            if not operation.damaged:
                problems += invariants.unsound(store, self._places, swept=False)
            problems += invariants.lost(clean.before, store, but=operation.takes)
            done = operation.done(place, store)
        if not done:
            again = self._attempt(operation.again or operation.perform)
            if again.status != operation.status:
                problems.append(f"done again it gives {again.status}: {again.words}")
        problems += self._sweep(operation, clean.before)
        return problems + invariants.leaked(self._occupied(), clean.occupied)

    @property
    def _places(self) -> tuple[Path, ...]:
        return self._place.root, self._place.target

    def _begin(self, operation: Operation) -> Contents:
        """Put the store there that the operation is done to, and say what users have in it."""
        self._end()
        place = self._place
        place.target.mkdir()
        if operation.prepare is not None:
            template = self._templates / operation.prepare.__name__.strip("_")
            if not template.exists():
                operation.prepare(place)
                os.rename(place.root, template)
            subprocess.run(["cp", "-a", template, place.root], check=True)
        before = Contents({}, {})
        if operation.name in self._clean:
            before = self._clean[operation.name].before
        elif operation.prepare is not None:
            subprocess.run(["cp", "-a", place.root, self._templates / "looked-at"], check=True)
            with place.store() as store:
                before = invariants.contents(store)
            shutil.rmtree(place.root)
            os.rename(self._templates / "looked-at", place.root)
        if operation.ready is not None:
            made = self._attempt(operation.ready)
            assert made.status == 0, made.words
        return before

    def _attempt(
        self, perform: Callable[[Place], int], *, before: Callable[[], None] = lambda: None
    ) -> faults.Outcome:
        return faults.attempt(lambda: perform(self._place), self._log, before=before)

    def _sweep(self, operation: Operation, before: Contents) -> list[str]:
        """Collect garbage, and look at what is left."""
        age(self._place.root)
        with self._place.store() as store:
            store.collect(grace=0)
        with self._place.store() as store:
            problems = invariants.unsound(store, self._places, swept=True)
            return problems + invariants.lost(before, store, but=operation.takes)

    def _occupied(self) -> Counter[str]:
        with self._place.store() as store:
            return invariants.inventory(self._place.root) + invariants.rows(store)

    def _end(self) -> None:
        """Leave nothing of a trial."""
        self._ballast.unlink(missing_ok=True)
        for place in self._places:
            for info in reversed(mounting.mounts_below(place)):
                with contextlib.suppress(OSError):
                    linux.umount(info.target, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)
            if place.exists():
                shutil.rmtree(place)


class Tally:
    """How many trials each step has survived."""

    def __init__(self) -> None:
        self._tried: Counter[tuple[str, str]] = Counter()
        self._survived: Counter[tuple[str, str]] = Counter()
        self._operations: dict[str, set[str]] = {}
        self.failures: list[str] = []

    def add(self, cell: Cell, problems: list[str]) -> None:
        """Note one trial."""
        key = cell.failpoint, cell.fault
        self._tried[key] += 1
        self._survived[key] += not problems
        self._operations.setdefault(cell.failpoint, set()).add(cell.operation)
        if problems:
            self.failures.append(f"{cell}: {'; '.join(problems)}")

    @property
    def tried(self) -> int:
        """All trials."""
        return self._tried.total()

    def rows(self, kinds: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """Give a row for each failpoint, in their own order, and the sum."""
        for name, what in failpoints.NAMES.items():
            if name in self._operations:
                cells = (self._cell([(name, kind)]) for kind in kinds)
                yield name, what, str(len(self._operations[name])), *cells
        total = (self._cell([(name, kind) for name in failpoints.NAMES]) for kind in kinds)
        operations = set().union(*self._operations.values())
        yield "all", "", str(len(operations)), *total

    def _cell(self, keys: Iterable[tuple[str, str]]) -> str:
        found = list(keys)
        tried = sum(self._tried[key] for key in found)
        return f"{sum(self._survived[key] for key in found)} of {tried}" if tried else "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument(
        "--driver", choices=(*DRIVERS, "all"), default="overlay2", help="overlay2 when left out"
    )
    parser.add_argument("--operation", metavar="NAME", help="only this one")
    parser.add_argument("--failpoint", metavar="NAME", help="only those that begin so")
    parser.add_argument("--fault", choices=faults.KINDS, help="only this one")
    parser.add_argument("--jobs", metavar="N", type=int, default=2, help="processes at once; 2 when left out")
    parser.add_argument("--every", action="store_true", help="every time that a failpoint is reached")


def run(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Section:
    """Try everything that was asked for."""
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    kinds = [arguments.fault] if arguments.fault else list(faults.KINDS)
    drivers = DRIVERS if arguments.driver == "all" else (arguments.driver,)
    tally = Tally()
    began = time.monotonic()
    for driver in drivers:
        for cell, problems in _together(driver, kinds, arguments):
            tally.add(cell, problems)
            if problems:
                tell(f"{driver}: {tally.failures[-1]}")
            elif tally.tried % 100 == 0:
                tell(f"{driver}: {tally.tried} tried, {len(tally.failures)} not survived")
    command = "python -m tests.reliability crash"
    command += f" --driver {arguments.driver}" if arguments.driver != "overlay2" else ""
    command += " --every" if arguments.every else ""
    return Section(
        "Crash matrix",
        command,
        ("step", "what has happened, or is about to", "operations", *map(_HEADINGS.__getitem__, kinds)),
        tuple(tally.rows(kinds)),
        (
            f"{tally.tried} trials in {(time.monotonic() - began) / 60:.0f} minutes,"
            f" {len(tally.failures)} not survived; {', '.join(drivers)} on ext4. {_SURVIVED}",
            *(f"Not survived: {failure}" for failure in tally.failures),
        ),
    )


def _together(
    driver: str, kinds: Sequence[str], arguments: argparse.Namespace
) -> Iterator[tuple[Cell, list[str]]]:
    """Share the trials among processes, each with a file system of its own; give the results as they come."""
    told, tell = os.pipe()
    for job in range(arguments.jobs):
        if os.fork() == 0:
            status = 1
            try:
                os.close(told)
                _take_part(driver, kinds, arguments, job, tell)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
    os.close(tell)
    with open(told) as results:
        for line in results:
            words, problems = json.loads(line)
            yield Cell(*words), problems
    for _ in range(arguments.jobs):
        if os.wait()[1]:
            raise RuntimeError("a process of the matrix failed")


def _take_part(driver: str, kinds: Sequence[str], arguments: argparse.Namespace, job: int, tell: int) -> None:
    with matrix(driver) as trials:
        for number, cell in enumerate(trials.cells(kinds=kinds, every=arguments.every)):
            if number % arguments.jobs != job or arguments.operation not in (None, cell.operation):
                continue
            if not cell.failpoint.startswith(arguments.failpoint or ""):
                continue
            problems = trials.try_one(cell)
            if problems is not None:
                words = [cell.operation, cell.failpoint, cell.number, cell.fault]
                # Longer ones could mix with those of others (pipe(7)).
                problems = [problem[:300] for problem in problems[:8]]
                os.write(tell, json.dumps([words, problems]).encode() + b"\n")


_HEADINGS: Final = {
    "kill": "kill -9",
    "error": "exception",
    "enospc": "ENOSPC",
    "eio": "EIO",
    "full": "disk really full",
}


@contextlib.contextmanager
def matrix(driver: str) -> Iterator[Matrix]:
    """Give a matrix on a file system of its own, with a registry where there can be one."""
    with contextlib.ExitStack() as stack:
        memory = Path("/dev/shm")
        directory = stack.enter_context(fresh("ext4", size=_SIZE, where=memory if memory.is_dir() else None))
        image = None
        if installed():
            apart = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="layerfs-registry-")))
            image = fill_registry(stack.enter_context(Registry(apart)))
        yield Matrix(directory, driver, image)
