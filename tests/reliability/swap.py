"""Layers unpacked and files copied while another process exchanges directories for links that lead outside.

Nothing outside may ever change, and nothing of it may come inside.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import mmap
import os
import random
import shutil
import signal
import struct
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from layerfs import linux, plugins
from layerfs.copying import copy_path
from layerfs.driver import Driver
from layerfs.errors import LayerfsError
from layerfs.testing.stack import Stack
from tests.reliability.report import Section
from tests.support.unions import Union

HELP = "unpack and copy while directories are exchanged for links"

DRIVERS: Final = ("overlay2", "fuse", "aufs", "vfs")
TARGETS: Final = (*(f"unpack, {driver}" for driver in DRIVERS), "cp in", "cp out", "copy-up, fuse")
MARK: Final = b"this is outside"
_NAMES: Final = (b"d", b"e")
_LINK: Final = b".exchanged"
_FILES: Final = 12


class Outcome(NamedTuple):
    """What happened: exchanges, operations while they went on, and how those ended."""

    target: str
    swaps: int
    operations: int
    refused: Counter[str]
    seconds: float
    changed: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", choices=TARGETS, action="append", help="only this one")
    parser.add_argument("--rounds", type=int, default=100_000, help="exchanges for each target")


def run(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Section:
    rows = []
    for target in arguments.target or TARGETS:
        with tempfile.TemporaryDirectory(prefix="layerfs-swap-") as directory:
            outcome = attack(target, Path(directory), rounds=arguments.rounds)
        for each in outcome.changed:
            tell(f"{target}: {each}")
        refused = sum(outcome.refused.values())
        rows.append(
            (
                target, f"{outcome.swaps:,}", f"{outcome.operations:,}", f"{refused:,}",
                f"{outcome.seconds:.0f}", str(len(outcome.changed)),
            )
        )  # fmt: skip
        tell(" | ".join(rows[-1]))
        if outcome.refused:
            tell("  " + ", ".join(f"{number} {kind}" for kind, number in outcome.refused.most_common()))
    return Section(
        "Directories exchanged for links",
        f"python -m tests.reliability swap --rounds {arguments.rounds}",
        ("what is done", "exchanges", "times done", "ended with an error", "seconds", "changed outside"),
        tuple(rows),
        (
            "One process unpacks, copies, or writes through the union, while another exchanges the"
            " directories on the way for links to a directory outside with the same names in it"
            " (renameat2(2), RENAME_EXCHANGE). Of what is outside every inode is compared afterwards,"
            " with its change time, and its content is looked for inside.",
        ),
    )


def attack(target: str, directory: Path, *, rounds: int, operations: int = 10) -> Outcome:
    """Do one thing again and again until there were so many exchanges, and so many times at least."""
    outside = directory / "outside"
    _fill(outside, MARK)
    before = _state(outside)
    refused: Counter[str] = Counter()
    done = 0
    leaks: set[str] = set()
    begin = time.monotonic()
    inside = directory / "inside"
    inside.mkdir()
    with _prepared(target, directory) as (work, where):
        with _exchanging(where, outside) as count:
            while count() < rounds or done < operations:
                done += 1
                try:
                    work()
                except (LayerfsError, OSError) as error:
                    refused[_kind(error)] += 1
                if done % 10 == 0:
                    leaks.update(_leaks(where))
            swaps = count()
        leaks.update(_leaks(where))
    changed = [f"{path} changed" for path, state in before.items() if _state(outside).get(path) != state]
    changed += [f"{path} is new" for path in _state(outside).keys() - before.keys()]
    changed += [f"{path} has what is outside" for path in leaks]
    return Outcome(target, swaps, done, refused, time.monotonic() - begin, tuple(changed))


def _kind(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return type(error).__name__


@contextlib.contextmanager
def _prepared(target: str, directory: Path) -> Iterator[tuple[Callable[[], None], Sequence[Path]]]:
    """Give what is to be done again and again, and where the exchanges take place."""
    inside = directory / "inside"
    if target.startswith("unpack"):
        root = inside / "driver"
        root.mkdir()
        driver = plugins.find(target.partition(", ")[2]).load()(root)
        place = inside / "place"
        place.mkdir()
        yield _unpacking(driver, place), [root]
    elif target.startswith("cp"):
        tree, host = inside / "tree", inside / "host"
        _fill(tree, b"inside")
        _fill(host, b"host")
        yield (_copying_in(tree, host) if target == "cp in" else _copying_out(tree, host)), [tree]
    else:
        union = Union(inside)
        _fill(union.lower, b"lower")
        with union.mounted(front="kernel"):
            yield _writing(union.place), [union.upper, union.lower]


def _unpacking(driver: Driver, place: Path) -> Callable[[], None]:
    base, layer = _base(), _layer()

    def work() -> None:
        stack = Stack(driver, place)
        try:
            stack.apply(base)
            stack.apply(layer)
        finally:
            for each in list(driver.layers()):
                driver.remove(each)

    return work


def _copying_in(tree: Path, host: Path) -> Callable[[], None]:
    def work() -> None:
        with _opened("/") as root, _opened(tree) as target:
            for where in (b"/d/e", b"/d/e/f0", b"/d", b"/e/."):
                with contextlib.suppress(LayerfsError, OSError):
                    copy_path(root, os.fsencode(host / "d"), target, where, warn=lambda text: None)
            copy_path(root, os.fsencode(host / "d/f0"), target, b"/d/e/f1", warn=lambda text: None)

    return work


def _copying_out(tree: Path, host: Path) -> Callable[[], None]:
    out = host.parent / "out"

    def work() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        with _opened("/") as root, _opened(tree) as source:
            try:
                copy_path(source, b"/d", root, os.fsencode(out), warn=lambda text: None)
                copy_path(source, b"/d/e/.", root, os.fsencode(out / "second"), warn=lambda text: None)
                copy_path(source, b"/d/e/f0", root, os.fsencode(out), warn=lambda text: None)
            finally:
                found = sorted(_leaks([out]))
                if found:
                    raise AssertionError(f"copied from outside: {found}")

    return work


def _writing(place: Path) -> Callable[[], None]:
    """Change files of lower layers through a union, each call by itself."""
    turn = 0

    def work() -> None:
        nonlocal turn
        turn += 1
        name, new = f"f{turn % _FILES}", f"n{turn}"
        with _opened(place) as root:
            for parent in (b"d", b"e", b"d/e", b"e/d"):
                with contextlib.suppress(OSError):
                    # Links of the tree are not the way out of it for whoever lives in it.
                    at = linux.openat2(
                        root, parent, os.O_RDONLY | os.O_DIRECTORY, resolve=linux.RESOLVE_IN_ROOT
                    )
                    try:
                        _change(at, name, new)
                    finally:
                        os.close(at)

    return work


def _change(at: int, name: str, new: str) -> None:
    calls: tuple[Callable[[], object], ...] = (
        lambda: _append(at, name),
        lambda: os.chmod(name, 0o640, dir_fd=at),
        lambda: os.chown(name, 5, 6, dir_fd=at, follow_symlinks=False),
        lambda: os.utime(name, ns=(1, 1), dir_fd=at, follow_symlinks=False),
        lambda: os.link(name, f"{new}.link", src_dir_fd=at, dst_dir_fd=at, follow_symlinks=False),
        lambda: _append(at, new),
        lambda: os.mkdir(f"{new}.d", dir_fd=at),
        lambda: os.rename(name, f"{new}.renamed", src_dir_fd=at, dst_dir_fd=at),
        lambda: os.rename(f"{new}.renamed", name, src_dir_fd=at, dst_dir_fd=at),
        lambda: os.rename(f"{new}.d", f"{new}.moved", src_dir_fd=at, dst_dir_fd=at),
        lambda: os.unlink(new, dir_fd=at),
        lambda: os.rmdir(f"{new}.moved", dir_fd=at),
    )
    for call in calls:
        with contextlib.suppress(OSError):
            call()


def _append(at: int, name: str) -> None:
    file = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, dir_fd=at)
    try:
        os.write(file, b"more")
    finally:
        os.close(file)


# -- who exchanges ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _exchanging(where: Sequence[Path], outside: Path) -> Iterator[Callable[[], int]]:
    """Have another process exchange directories below these for links; gives how often it has."""
    counter = mmap.mmap(-1, 8)
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
            _exchange(where, os.fsencode(outside), counter)
        finally:
            os._exit(1)
    try:
        yield lambda: int(struct.unpack("<Q", counter[:8])[0])
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        counter.close()


def _exchange(where: Sequence[Path], outside: bytes, counter: mmap.mmap) -> None:
    count = 0
    rng = random.Random(1)
    while True:
        for root in where:
            for parent, name in _candidates(os.fsencode(root)):
                with contextlib.suppress(OSError):
                    os.symlink(outside + b"/" + name, _LINK, dir_fd=parent)
                with contextlib.suppress(OSError):
                    for _ in range(rng.choice((1, 2, 3, 20))):
                        linux.renameat2(parent, name, parent, _LINK, linux.RENAME_EXCHANGE)
                        count += 1
                        struct.pack_into("<Q", counter, 0, count)
                # The other one is to get further, too.
                time.sleep(rng.choice((0, 0.0005, 0.002)))
                os.close(parent)


def _candidates(root: bytes) -> Iterator[tuple[int, bytes]]:
    """Give directories below a root, open, with the name of one in it that can be exchanged."""
    for parent, directories, _ in os.walk(root):
        for name in _NAMES:
            if name in directories:
                with contextlib.suppress(OSError):
                    yield os.open(parent, os.O_RDONLY | os.O_DIRECTORY), name


# -- what is inside and outside ---------------------------------------------------------------------


def _fill(directory: Path, text: bytes) -> None:
    """Make directories d, e, d/e and e/d with files of the same names everywhere."""
    for parent in ("", "d", "e", "d/e", "e/d"):
        (directory / parent).mkdir(parents=True, exist_ok=True)
        for number in range(_FILES):
            (directory / parent / f"f{number}").write_bytes(text)
    # Some have one more name, so that links are met.
    os.link(directory / "d/f0", directory / "d/hard")


def _base() -> bytes:
    return _tar(
        [(f"{parent}f{number}", b"base") for parent in ("d/", "e/", "d/e/") for number in range(_FILES)]
    )


def _layer() -> bytes:
    members: list[tuple[str, bytes | str]] = []
    for number in range(_FILES):
        members += [
            (f"d/f{number}", b"new"), (f"e/n{number}", b"new"), (f"d/e/n{number}", b"new"),
            (f"d/e/.wh.f{number}", b""), (f"e/l{number}", f"d/f{number}"), (f"d/l{number}", f"e/f{number}"),
            (f"e/d/g{number}", b"new"),
        ]  # fmt: skip
    return _tar(
        [*members, ("d/e/.wh..wh..opq", b""), ("e/.wh.f1", b""), ("d/f1", b"again"), ("d/e/f2/x", b"")]
    )


def _tar(members: Sequence[tuple[str, bytes | str]]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.LNKTYPE, content
                archive.addfile(info)
            else:
                info.size, info.uid, info.mode = len(content), 7, 0o640
                archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def _state(directory: Path) -> dict[str, tuple[object, ...]]:
    """Describe every inode below, in a way that any change shows in."""
    found: dict[str, tuple[object, ...]] = {}
    for parent, directories, names in os.walk(directory):
        for path in (parent, *(os.path.join(parent, name) for name in (*directories, *names))):
            status = os.lstat(path)
            content = Path(path).read_bytes() if os.path.isfile(path) else b""
            found[path] = (
                status.st_ino, status.st_mode, status.st_nlink, status.st_uid, status.st_gid, status.st_size,
                status.st_mtime_ns, status.st_ctime_ns, content,
            )  # fmt: skip
    return found


def _leaks(where: Sequence[Path]) -> Iterator[str]:
    """Name files below these that have what is outside, or are it."""
    for root in where:
        # What disappears on the way is passed over.
        with contextlib.suppress(OSError):
            for parent, _, names, descriptor in os.fwalk(root, onerror=lambda error: None):
                for name in names:
                    with contextlib.suppress(OSError):
                        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=descriptor)
                        try:
                            if os.read(file, 100).startswith(MARK):
                                yield f"{parent}/{name}"
                        finally:
                            os.close(file)


@contextlib.contextmanager
def _opened(path: Path | str) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
