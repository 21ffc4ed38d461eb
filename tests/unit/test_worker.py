"""Forked processes: what they tell arrives whole and in order, and none outlives whoever wanted it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from layerfs.errors import DocumentError, LayerError, LayerfsError, MountError
from layerfs.worker import Tell, Worker, listen

ROOT = Path(__file__).parents[2]


def finished(
    work: Callable[[Tell], object], *, keep: tuple[int, ...] = ()
) -> tuple[Worker[object], list[object]]:
    heard: list[object] = []
    worker = Worker(work, hear=heard.append, keep=keep)
    while worker.running:
        listen([worker])
    return worker, heard


def test_messages_and_the_result_come_whole_and_in_order() -> None:
    def work(tell: Tell) -> object:
        for number in range(2000):
            tell((number, "x" * number))
        return "y" * 300_000

    worker, heard = finished(work)
    assert heard == [(number, "x" * number) for number in range(2000)]
    assert worker.result() == "y" * 300_000


@pytest.mark.parametrize(
    "error",
    [
        LayerError("odd", entry=b"a\xff", offset=7, hint="look"),
        DocumentError("layers[0]", "is missing"),
        OSError(errno.ENOSPC, "no space", "/somewhere"),
        MountError("refused", errno=errno.EPERM),
        ValueError("a bug"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_arrive_as_they_were_raised(error: Exception) -> None:
    def work(tell: Tell) -> object:
        raise error

    worker, _ = finished(work)
    with pytest.raises(type(error)) as caught:
        worker.result()
    assert str(caught.value) == str(error)
    for name in ("entry", "offset", "path", "hint", "errno", "filename"):
        assert getattr(caught.value, name, None) == getattr(error, name, None)
    if type(error) is ValueError:
        assert any("in work" in note for note in caught.value.__notes__)


def test_only_the_descriptors_that_it_is_to_keep_are_open_there(tmp_path: Path) -> None:
    kept, other = (os.open(tmp_path / name, os.O_CREAT | os.O_RDWR) for name in ("kept", "other"))

    def work(tell: Tell) -> object:
        def is_open(descriptor: int) -> bool:
            try:
                os.fstat(descriptor)
            except OSError:
                return False
            return True

        return is_open(kept), is_open(other)

    try:
        worker, _ = finished(work, keep=(kept,))
    finally:
        os.close(kept)
        os.close(other)
    assert worker.result() == (True, False)


def test_any_thread_may_have_one() -> None:
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda number: finished(lambda tell: number)[0].result(), range(20)))
    assert results == list(range(20))


def test_one_that_was_killed_says_so() -> None:
    worker, _ = finished(lambda tell: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(LayerfsError, match="signal 9"):
        worker.result()


def test_one_that_is_not_wanted_any_more_is_ended_and_waited_for() -> None:
    worker = Worker(lambda tell: time.sleep(600), hear=print, keep=())
    worker.end()
    worker.end()
    assert not worker.running
    with pytest.raises(ChildProcessError):
        os.waitpid(worker._pid, os.WNOHANG)


def test_it_ends_with_whoever_wanted_it(tmp_path: Path) -> None:
    script = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from layerfs.worker import Worker, listen
def work(tell):
    tell(os.getpid())
    time.sleep(600)
def hear(pid):
    print(pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
listen([Worker(work, hear=hear, keep=())])
"""
    found = subprocess.run([sys.executable, "-c", script, ROOT], check=False, stdout=subprocess.PIPE)
    assert found.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while is_alive(int(found.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
