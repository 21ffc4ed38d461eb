"""The server is killed at any system call of a change: what was done is there, and nothing is half done."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import threading
import time
from pathlib import Path

import pytest

from tests.support.tree_worker import Worker, as_modelled
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
