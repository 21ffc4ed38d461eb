"""Many processes, of several threads each, use one store at once for minutes, and some of them are killed.

Afterwards the store is compared with the journals of those who used it, checked, emptied and collected.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import random
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from layerfs import linux, mounting
from layerfs.errors import LayerfsError
from layerfs.store import Store
from layerfs.value import frozen
from tests.reliability import crowd, journal
from tests.reliability.report import Section
from tests.support.registries import Registry, installed
from tests.support.tiny_images import TinyImage, layout_files, old_docker_archive, tar, write_files

HELP = "many processes and threads use one store at once, and are killed"
ROOT = Path(__file__).parents[2]
STALL_SECONDS = 60.0
_ENDING_SECONDS = 90.0
_PROGRAMS = ("/bin/sh",)
_TABLES = (
    "layers", "images", "tags", "links", "image_layers", "containers", "leases", "lease_items", "mounts",
    "seek_tables", "indexes",
)  # fmt: skip
# What nobody may be told whose things nobody else touches: all else is a fault of layerfs.
_OTHERS = "shared"


@frozen
class Outcome:
    """What a run showed; every list is empty when all is well but `errors`, which are told to users."""

    driver: str
    processes: int
    threads: int
    seconds: float
    actions: int
    kills: int
    verified: int
    wrong: tuple[str, ...]
    stalls: tuple[str, ...]
    unclear: tuple[str, ...]
    left: tuple[str, ...]
    errors: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether nothing went wrong."""
        return not (self.wrong or self.stalls or self.unclear or self.left)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1, help="in each process")
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--driver", action="append", help="may be repeated; overlay2 by default")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-convert", dest="convert", action="store_false", help="leave each its driver")
    parser.add_argument("--no-kills", dest="kills", action="store_false", help="kill nobody")
    parser.add_argument("--keep", type=Path, help="work in this directory, and leave it")


def run(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Section:
    outcomes = []
    for driver in arguments.driver or ["overlay2"]:
        with contextlib.ExitStack() as stack:
            directory = arguments.keep and arguments.keep / driver
            if directory is None:
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="layerfs-crowd-")))
            directory.mkdir(parents=True, exist_ok=True)
            registry = stack.enter_context(Registry(directory / "registry")) if installed() else None
            found = campaign(
                directory, driver=driver, processes=arguments.processes, threads=arguments.threads,
                seconds=arguments.seconds, seed=arguments.seed, kills=arguments.kills,
                convert=arguments.convert, registry=registry, tell=tell,
            )  # fmt: skip
        for fault in ("wrong", "stalls", "unclear", "left", "errors"):
            for line in getattr(found, fault):
                tell(f"{fault}: {line}")
        outcomes.append(found)
    kind = "processes" if arguments.threads == 1 else "processes with threads"
    return Section(
        f"Many {kind} on one store",
        f"python -m tests.reliability processes --processes {arguments.processes}"
        f" --threads {arguments.threads} --seconds {arguments.seconds:g}"
        + "".join(f" --driver {each}" for each in arguments.driver or ()),
        (
            "driver", "processes x threads", "seconds", "actions", "killed", "things verified",
            "lost or doubled", "stalls", "errors without a clear cause", "left after gc",
        ),
        tuple(_row(one) for one in outcomes),
        (
            "Each thread pulls (layouts and a registry), loads, imports, creates, mounts, runs, diffs,"
            " commits, tags, pushes, lists, checks, converts, removes and collects at random, on things of"
            " its own and on shared ones that others remove meanwhile; every two seconds a process is killed"
            " and another one goes on with what its journal says. Verified is what the journals say is there"
            " against the store; the database, drivers and blobs are compared with one another.",
            "Errors that were told, each about something that another had removed or was using: "
            + "; ".join(sorted({line.partition(" x ")[2] for one in outcomes for line in one.errors}))
            + ".",
        ),
    )  # fmt: skip


def _row(one: Outcome) -> tuple[str, ...]:
    counts = (one.actions, one.kills, one.verified)
    faults = (one.wrong, one.stalls, one.unclear, one.left)
    return (
        one.driver,
        f"{one.processes} x {one.threads}",
        f"{one.seconds:.0f}",
        *map(str, counts),
        *(str(len(each)) for each in faults),
    )


def campaign(
    directory: Path,
    *,
    driver: str,
    processes: int,
    threads: int,
    seconds: float,
    seed: int = 1,
    kills: bool = True,
    convert: bool = True,
    programs: bool = True,
    registry: Registry | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Let a crowd loose on a new store below `directory`, and look at what it leaves."""
    settings = {
        "directory": str(directory),
        "root": str(directory / "root"),
        "driver": driver,
        "threads": threads,
        "seed": seed,
        "run": programs,
        "check": True,
        "convert": convert,
        "registry": registry is not None,
        "images": make_images(directory, registry, programs=programs),
        "deadline": time.monotonic() + seconds,
    }
    (directory / "settings").write_text(json.dumps(settings))
    Store.open(directory / "root", driver=driver).close()
    begun = time.monotonic()
    crowd_ = _Crowd(directory, processes, seed, tell)
    killed = crowd_.run(settings["deadline"], every=2.0 if kills else None)
    seconds = time.monotonic() - begun
    wrong, errors, unclear, actions = [], collections.Counter(), collections.Counter(), 0
    for path in sorted(directory.glob("journal-*")):
        for line in journal.lines(path):
            actions += line["what"] in ("done", "error")
            # Who was killed when he was about to mount something has left the record of it.
            if line["what"] == "problem" and not (kills and line["kind"] == "mount"):
                wrong.append(f"check while all worked: {line['kind']} {line['name']}: {line['value']}")
            if line["what"] == "error":
                _judge(line, wrong, errors, unclear)
    verified = 0
    with Store.open(directory / "root", driver=driver) as store:
        for path in sorted(directory.glob("journal-*")):
            verified += _compare(store, path, wrong)
        wrong += invariants(directory / "root")
        wrong += [
            f"check: {one.kind} {one.subject}: {one.what}" for one in store.check(contents=True).problems
        ]
        left = empty(store)
    return Outcome(
        driver, processes, threads, seconds, actions, killed, verified, tuple(wrong), tuple(crowd_.stalls),
        tuple(f"{count} x {what}" for what, count in unclear.most_common()), tuple(left),
        tuple(f"{count} x {what}" for what, count in errors.most_common()),
    )  # fmt: skip


def _judge(
    line: dict[str, Any],
    wrong: list[str],
    errors: collections.Counter[str],
    unclear: collections.Counter[str],
) -> None:
    text = f"{line['kind']}: {line['name']}: {line['value']}"
    if line["name"] == "Wrong":
        wrong.append(text)
    elif not line["typed"]:
        unclear[f"{text}\n{line['where']}"] += 1
    elif _OTHERS in line["kind"]:
        errors[text] += 1
    else:
        unclear[text] += 1


class _Crowd:
    """The processes, one in each place; who is killed is followed by another in the same place."""

    def __init__(self, directory: Path, size: int, seed: int, tell: Callable[[str], None]) -> None:
        self._directory = directory
        self._random = random.Random(seed)
        self._tell = tell
        self._size = size
        self._log = directory / "stderr"
        self.stalls: list[str] = []

    def run(self, deadline: float, *, every: float | None) -> int:
        killed = 0
        with self._log.open("ab") as log:
            workers = [self._start(place, log) for place in range(self._size)]
            last = told = time.monotonic()
            progress = [(0, last)] * self._size

            def renew(place: int) -> None:
                workers[place] = self._start(place, log)
                progress[place] = progress[place][0], time.monotonic()

            try:
                while time.monotonic() < deadline + _ENDING_SECONDS:
                    time.sleep(0.1)
                    now = time.monotonic()
                    if all(worker.poll() is not None for worker in workers):
                        break
                    if every is not None and now - last > every and now < deadline - 1:
                        last = now
                        place = self._random.randrange(self._size)
                        workers[place].kill()
                        workers[place].wait()
                        killed += 1
                        renew(place)
                    for place, worker in enumerate(workers):
                        if worker.poll() not in (None, 0) and now < deadline:
                            self.stalls.append(
                                f"worker {place} ended with {worker.returncode}, see {self._log}"
                            )
                            renew(place)
                    progress[:] = self._watch(workers, progress, now)
                    if now - told > 10:
                        told = now
                        self._tell(
                            f"{deadline - now:.0f} s to go, {sum(size for size, _ in progress)} bytes written"
                        )
                else:
                    self.stalls.append("not all came to an end")
            finally:
                for worker in workers:
                    if worker.poll() is None:
                        worker.send_signal(crowd.SHOW_STACKS)
                        time.sleep(0.2)
                        worker.kill()
                    worker.wait()
        return killed

    def _start(self, place: int, log: Any) -> subprocess.Popen[bytes]:
        words = [
            sys.executable,
            "-m",
            "tests.reliability.crowd",
            str(self._directory / "settings"),
            str(place),
        ]
        return subprocess.Popen(words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _watch(
        self, workers: list[subprocess.Popen[bytes]], progress: list[tuple[int, float]], now: float
    ) -> list[tuple[int, float]]:
        """Look who has written nothing for long; his threads' stacks go to the log."""
        found = []
        for place, (worker, (size, since)) in enumerate(zip(workers, progress, strict=True)):
            length = sum(
                os.stat(path).st_size
                for pattern in (f"journal-{place}", f"journal-{place}t*")
                for path in self._directory.glob(pattern)
            )
            if length != size or worker.poll() is not None:
                found.append((length, now))
            elif now - since > STALL_SECONDS:
                self.stalls.append(f"worker {place} did nothing for {STALL_SECONDS:.0f} s")
                worker.send_signal(crowd.SHOW_STACKS)
                found.append((size, now))
            else:
                found.append((size, since))
        return found


def _compare(store: Store, path: Path, wrong: list[str]) -> int:
    """Compare the store with one journal; give how many things were looked at."""
    found = journal.things(path)
    for (kind, name), thing in found.items():
        try:
            if kind == "image":
                there = store.has_image(name)
                if there:
                    box = store.containers.create(name)
                    with box.mounted(read_only=True) as tree:
                        crowd.look(tree, thing.values)
                    store.containers.remove(box.id)
            else:
                box_ = store.containers.find(name)
                there = box_ is not None
                if box_ is not None:
                    if box_.mounts():
                        box_.unmount()
                    with box_.mounted(read_only=True) as tree:
                        crowd.look(tree, thing.values)
        except (LayerfsError, OSError, crowd.Wrong) as error:
            wrong.append(f"{kind} {name}: {type(error).__name__}: {error}")
            continue
        if thing.certain and not there:
            wrong.append(f"{kind} {name} is lost")
    known = {name for _, name in found}
    number = path.name.partition("-")[2]
    names = [one.name for one in store.containers.list()]
    for name in names:
        if name.startswith(f"box{number}-") and name not in known:
            wrong.append(f"container {name} is there, and was removed")
    for image in store.images.list():
        for name in image.names:
            if name.startswith((f"own{number}-", f"localhost/own{number}-")) and name not in known:
                wrong.append(f"image {name} is there, and was removed")
    return len(found)


def invariants(root: Path) -> list[str]:
    """Compare the database with itself, the drivers' directories and the content store; nobody works."""
    found = []
    database = sqlite3.connect(f"file:{root / 'layerfs.db'}?mode=ro", uri=True)
    with contextlib.closing(database):

        def rows(query: str) -> list[tuple[Any, ...]]:
            return database.execute(query).fetchall()

        found += [f"foreign key: {row}" for row in rows("PRAGMA foreign_key_check")]
        for name, state in rows("SELECT name, state FROM layers WHERE state IN ('draft', 'removing')"):
            found.append(f"layer {name} is still {state}")
        for (lease,) in rows("SELECT id FROM leases"):
            found.append(f"lease {lease} outlived its process")
        for kind, item in rows(
            "SELECT kind, item FROM lease_items WHERE lease NOT IN (SELECT id FROM leases)"
        ):
            found.append(f"{kind} {item} belongs to a lease that is gone")
        for (target,) in rows("SELECT target FROM mounts"):
            found.append(f"mount {os.fsdecode(target)} is still recorded")
        for (name,) in rows(
            "SELECT c.name FROM containers c LEFT JOIN layers l ON l.name = c.id AND l.driver = c.driver"
            " WHERE l.id IS NULL OR l.state <> 'active'"
        ):
            found.append(f"container {name} has no layer")
        for name, labels in rows("SELECT name, labels FROM layers WHERE state = 'active'"):
            if "layerfs.container" in labels and not rows(f"SELECT 1 FROM containers WHERE id = '{name}'"):
                found.append(f"layer {name} has no container")
        for name, parent in rows(
            "SELECT l.name, p.state FROM layers l JOIN layers p ON p.id = l.parent"
            " WHERE p.state <> 'committed'"
        ):
            found.append(f"layer {name} stands on one that is {parent}")
        for driver, driver_id in rows(
            "SELECT driver, driver_id FROM layers WHERE state <> 'view' OR parent IS NULL"
        ):
            if not (root / "drivers" / driver / driver_id).is_dir():
                found.append(f"layer {driver_id} of {driver} is not on the disk")
        known = {driver_id for (driver_id,) in rows("SELECT driver_id FROM layers")}
        for driver_directory in (root / "drivers").iterdir():
            for name in os.listdir(driver_directory):
                # What begins with a dot is what a killed process was at, and goes with gc.
                if name not in known and not (name.startswith(".") or driver_directory.name.startswith(".")):
                    found.append(f"{driver_directory.name} holds {name}, of which the database does not know")
        assembled = {blob for (blob,) in rows("SELECT blob FROM layers WHERE skeleton IS NOT NULL")}
        for manifest, blob in rows("SELECT manifest, blob FROM links"):
            if blob not in assembled and not (root / "blobs" / blob.replace(":", "/")).exists():
                found.append(f"image {manifest} lacks blob {blob}")
        query = "SELECT manifest, chain_id FROM image_layers WHERE chain_id NOT IN (SELECT name FROM layers)"
        for manifest, chain_id in rows(query):
            found.append(f"image {manifest} lacks layer {chain_id}")
    return found


def empty(store: Store) -> list[str]:
    """Remove everything, collect, and say what is left all the same."""
    for box in store.containers.list():
        store.containers.remove(box.id, force=True)
    for image in store.images.list():
        store.images.remove(str(image.digest), force=True)
    store.collect(grace=0)
    left = [str(digest) for digest in store.blobs.list()]
    for directory in (store.root / "drivers").iterdir():
        left += [f"{directory.name}/{name}" for name in os.listdir(directory)]
        left += [directory.name] if directory.name.startswith(".") else []
    for place in ("tmp", "locks"):
        names = os.listdir(store.root / place)
        left += [f"{place}/{name}" for name in names if not name.startswith("store")]
    old = time.time() - 3600
    for name in os.listdir(store.root / "trash"):
        os.utime(store.root / "trash" / name, (old, old), follow_symlinks=False)
    store.collect(grace=0)
    left += [f"trash/{name}" for name in os.listdir(store.root / "trash")]
    left += [f"mount {os.fsdecode(info.target)}" for info in mounting.mounts_below(store.root.parent)]
    database = sqlite3.connect(f"file:{store.root / 'layerfs.db'}?mode=ro", uri=True)
    with contextlib.closing(database):
        for table in _TABLES:
            (count,) = database.execute(f"SELECT COUNT(*) FROM {table}").fetchone()
            if count:
                left.append(f"{count} rows of {table}")
    for info in reversed(mounting.mounts_below(store.root.parent)):
        linux.umount(info.target, linux.MNT_DETACH)
    return left


def make_images(directory: Path, registry: Registry | None, *, programs: bool) -> list[dict[str, str]]:
    """Make images that share layers, as layouts and archives, and in a registry if there is one."""
    base = _programs() if programs else tar({"bin/none": b""})
    found = []
    for number in range(4):
        mark = f"image{number}"
        tars = [
            base,
            tar({f"many/{each}": os.urandom(200) for each in range(50)}),
            tar({crowd.MARK: mark.encode()}),
        ]
        if number == 3:
            # One that is unpacked by processes of its own.
            tars.insert(1, tar({f"large/{each}": os.urandom(1 << 18) for each in range(8)}))
        image = TinyImage(tars=tars, compress=number % 2 == 0)
        layout = directory / f"layout{number}"
        write_files(layout, layout_files([image.entry(name="1")], image.blobs))
        archive = directory / f"archive{number}.tar"
        archive.write_bytes(tar(old_docker_archive(image, [f"shared:{mark}"])))
        one = {"mark": mark, "layout": f"oci:{layout}:1", "archive": str(archive)}
        if registry is not None:
            one["registry"] = f"docker://{registry.host}/{mark}:1"
            subprocess.run(
                [sys.executable, "-m", "layerfs", "copy", "--quiet", one["layout"], one["registry"]],
                check=True, capture_output=True,
            )  # fmt: skip
        found.append(one)
    return found


def _programs() -> bytes:
    """Pack a shell and the libraries that it needs."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for program in _PROGRAMS:
            listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
            for path in (program, *(word for word in listed.split() if word.startswith("/"))):
                data = Path(path).read_bytes()
                entry = tarfile.TarInfo(path.lstrip("/"))
                entry.size, entry.mode = len(data), 0o755
                archive.addfile(entry, io.BytesIO(data))
    return packed.getvalue()
