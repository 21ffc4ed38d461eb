"""What a child keeps of the locks of its parent's threads, and that forks wait for each other's pipes."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from layerfs import forking
from layerfs.directories import LayerDirectories
from layerfs.errors import InUseError
from layerfs.files import Lock


class _Child:
    """A forked process that has begun, and lives until the end of the block."""

    def __enter__(self) -> None:
        read, self._write = os.pipe()
        begun, begin = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._write)
            os.close(begin)
            os.read(read, 1)
            os._exit(0)
        os.close(read)
        os.close(begin)
        os.read(begun, 1)
        os.close(begun)

    def __exit__(self, *exception: object) -> None:
        os.close(self._write)
        os.waitpid(self._pid, 0)


def in_thread(work: object) -> None:
    thread = threading.Thread(target=work)  # type: ignore[arg-type]
    thread.start()
    thread.join()


def test_a_child_keeps_no_lock_of_another_thread(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock")
    in_thread(lock.acquire)
    with _Child():
        lock.release()
        Lock(tmp_path / "lock", blocking=False).acquire().release()


def test_a_child_keeps_the_locks_of_the_thread_that_forked_it(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock").acquire()
    with _Child():
        lock.release()
        with pytest.raises(InUseError):
            Lock(tmp_path / "lock", blocking=False).acquire()
    Lock(tmp_path / "lock", blocking=False).acquire().release()


def test_a_layer_that_a_thread_made_can_be_removed_while_a_child_of_another_lives(tmp_path: Path) -> None:
    directories = LayerDirectories(tmp_path)
    making, forked = threading.Event(), threading.Event()

    def make() -> None:
        with directories.making("a"):
            making.set()
            forked.wait()

    thread = threading.Thread(target=make)
    thread.start()
    making.wait()
    with _Child():
        forked.set()
        thread.join()
        # It waits for whoever else makes or removes the layer.
        removing = threading.Thread(target=directories.remove, args=["a"], daemon=True)
        removing.start()
        removing.join(10)
        assert not removing.is_alive()
    assert list(tmp_path.iterdir()) == []


def test_a_child_may_fork_in_turn() -> None:
    with forking.alone:
        pid = os.fork()
        if pid == 0:
            # Its threads, too.
            in_thread(lambda: forking.alone.acquire(timeout=10) or os._exit(1))
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
