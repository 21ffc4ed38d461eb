"""The server is killed at any system call of a change: what was done is there, and nothing is half done."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.union_changes import CHANGES, Traced, closest, do, lay_out, seen, steps_of
from tests.support.unions import Union, missing

# Before how many system calls of each change the server is killed; 0: before every one.
POINTS = int(os.environ.get("LAYERFS_KILL_POINTS", "1"))
# How many times a server is killed at a random moment of much work.
TIMES = int(os.environ.get("LAYERFS_KILL_TIMES", "4"))


@pytest.fixture(scope="module", autouse=True)
def able(tmp_path_factory: pytest.TempPathFactory) -> None:
    if reason := missing(tmp_path_factory.mktemp("check")):
        pytest.skip(reason)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_done_or_not_wherever_the_server_is_killed(tmp_path: Path, name: str) -> None:
    if shutil.which("strace") is None:
        pytest.skip("not installed: strace")
    change = CHANGES[name]
    whole = Union(tmp_path / "whole")
    lay_out(whole)
    with whole.mounted() as server:
        states = [seen(whole.place)]
        traced = Traced(server, tmp_path / "log")
        for _ in steps_of(change, whole.place):
            states.append(seen(whole.place))
        calls = Traced.calls(traced.stop())
    assert states[0] != states[-1]
    for call, when in random.Random(name).sample(calls, min(POINTS, len(calls))) if POINTS else calls:
        union = Union(tmp_path / f"{call} {when}")
        lay_out(union)
        with union.mounted() as server:
            traced = Traced(server, tmp_path / "log", "-e", f"inject={call}:signal=KILL:when={when}")
            with contextlib.suppress(OSError):
                do(change, union.place)
            server.wait(10)
            log = traced.stop()
        with union.overlaid():
            after = seen(union.place)
            assert after in states, (closest(states, after), log)
        with union.mounted():
            assert seen(union.place) == after, log
            if after == states[0]:
                do(change, union.place)
                assert seen(union.place) == states[-1], log
        left = os.listdir(union.work / "work")
        assert [each for each in left if each.startswith("#")] == [], log
        shutil.rmtree(tmp_path / f"{call} {when}")


class Worker:
    """Changes a tree in random order, one system call at a time, and knows what must be there after each.

    `before` is the tree without the call at hand, `after` is the one with it: a file's path stands for
    its mode and content, a directory's for None.
    """

    def __init__(self, place: Path, tree: dict[str, tuple[int, bytes] | None], seed: int) -> None:
        self.place, self.before, self.after = place, tree, tree
        self.random = random.Random(seed)
        self.steps = 0

    def run(self) -> None:
        """Work until the server is gone."""
        with contextlib.suppress(OSError):
            while True:
                self.step()
                self.steps += 1
                self.before = self.after

    def step(self) -> None:
        files = [path for path, found in self.before.items() if found is not None]
        directories = [path for path, found in self.before.items() if found is None]
        file, directory = self.random.choice(files), self.random.choice(directories)
        new = f"{directory}/{self.random.randrange(1 << 40):x}"
        match self.random.randrange(8):
            case 0:
                mode = self.random.choice((0o600, 0o640, 0o755))
                self.expect({file: (mode, self.before[file][1])})  # type: ignore[index]
                os.chmod(self.place / file, mode)
            case 1:
                self.expect({new: (0o644, b"")})
                os.close(os.open(self.place / new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            case 2:
                mode, data = self.before[file]  # type: ignore[misc]
                with open(self.place / file, "r+b", buffering=0) as opened:
                    self.expect({file: (mode, b"changed!" + data[8:])})
                    opened.write(b"changed!")
            case 3:
                self.expect({new: self.before[file]}, gone=(file,))
                os.rename(self.place / file, self.place / new)
            case 4:
                other = self.random.choice(files)
                if other != file:
                    self.expect({other: self.before[file]}, gone=(file,))
                    os.rename(self.place / file, self.place / other)
            case 5:
                if len(files) > 20:
                    self.expect({}, gone=(file,))
                    os.unlink(self.place / file)
            case 6:
                self.expect({new: None})
                os.mkdir(self.place / new)
            case 7:
                moved = self.random.choice(directories)
                if moved != "." and not f"{directory}/".startswith(f"{moved}/"):
                    below = [path for path in self.before if path == moved or path.startswith(f"{moved}/")]
                    self.expect({new + path[len(moved) :]: self.before[path] for path in below}, gone=below)
                    os.rename(self.place / moved, self.place / new)

    def expect(self, new: dict[str, tuple[int, bytes] | None], gone: Sequence[str] = ()) -> None:
        self.after = {path: found for path, found in self.before.items() if path not in gone} | new


def as_modelled(place: Path) -> dict[str, tuple[int, bytes] | None]:
    """Read a tree as `Worker` describes it."""
    found: dict[str, tuple[int, bytes] | None] = {".": None}
    for above, directories, files in os.walk(place):
        start = "./" + os.path.relpath(above, place) + "/" if above != str(place) else "./"
        found.update({start + name: None for name in directories})
        for name in files:
            path = Path(above, name)
            found[start + name] = (path.stat().st_mode & 0o7777, path.read_bytes())
    return found


def test_a_server_killed_at_any_moment_leaves_what_was_done_and_nothing_half_done(
    tmp_path: Path,
) -> None:
    seed = int(os.environ.get("LAYERFS_KILL_SEED", "0"))
    for time_ in range(TIMES):
        rest = random.Random(seed + time_)
        union = Union(tmp_path / str(time_))
        for number in range(60):
            place = union.lower / rest.choice((".", "a", "a/b", "a/b/c", "d", "d/e"))
            place.mkdir(parents=True, exist_ok=True)
            (place / f"file{number}").write_bytes(rest.randbytes(64) * rest.choice((0, 1, 100, 20_000)))
            (place / f"file{number}").chmod(0o604)
        worker = Worker(union.place, as_modelled(union.lower), seed + time_)
        with union.mounted() as server:
            working = threading.Thread(target=worker.run)
            working.start()
            time.sleep(rest.random() * 0.4)
            server.kill()
            working.join()
        with union.overlaid():
            after = as_modelled(union.place)
            assert after in (worker.before, worker.after), (seed + time_, worker.steps)
        with union.mounted():
            assert as_modelled(union.place) == after
        assert [each for each in os.listdir(union.work / "work") if each.startswith("#")] == []
        shutil.rmtree(tmp_path / str(time_))
