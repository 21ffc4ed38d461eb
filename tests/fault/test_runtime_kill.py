"""Whatever is killed, and however: the container ends, and nothing of it stays mounted."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfs import failpoints
from layerfs.errors import ProcessError
from layerfs.store import Store
from tests.support import hosttree
from tests.support.boxes import Box, mounts_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hosttree.build(tmp_path_factory.mktemp("host") / "tree")


@pytest.fixture
def box(tree: Path, tmp_path: Path) -> Box:
    return Box(tree, tmp_path)


def start(box: Box, script: str, **settings: object) -> tuple[int, int]:
    """Run a script in a child process; give the child's number and that of the container's process."""
    read, write = os.pipe()
    caller = os.fork()
    if caller == 0:
        try:
            os._exit(box.sh(script, on_start=lambda pid: os.write(write, b"%d" % pid) and None, **settings))
        finally:
            os._exit(99)
    os.close(write)
    pid = int(os.read(read, 20))
    os.close(read)
    return caller, pid


def parent(pid: int) -> int:
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text[text.rindex(")") + 2 :].split()[1])


def until(condition: Callable[[], bool], *, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return text[text.rindex(")") + 2] in "ZX"


IGNORING = "trap '' TERM INT HUP QUIT USR1; while :; do sleep 0.1; done"


def test_the_caller_killed_ends_the_container_and_tidies_up(box: Box) -> None:
    caller, pid = start(box, IGNORING)
    monitor = parent(pid)
    assert len(mounts_of(box.mount.source)) > 0
    os.kill(caller, signal.SIGKILL)
    os.waitpid(caller, 0)
    until(lambda: gone(pid) and gone(monitor))
    assert mounts_of(box.mount.source) == []
    # The empty mount points in /etc are gone as well.
    assert box.diff() == []


def test_the_caller_killed_ends_processes_of_other_users(box: Box) -> None:
    caller, pid = start(box, IGNORING, user="app")
    os.kill(caller, signal.SIGKILL)
    os.waitpid(caller, 0)
    until(lambda: gone(pid))
    until(lambda: mounts_of(box.mount.source) == [])


def test_the_monitor_killed_ends_the_container(box: Box) -> None:
    caller, pid = start(box, IGNORING, user="app")
    os.kill(parent(pid), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(caller, 0)[1]) == 137
    until(lambda: gone(pid))
    until(lambda: mounts_of(box.mount.source) == [])


def test_all_of_them_killed_at_once_leave_no_mount(box: Box) -> None:
    caller, pid = start(box, IGNORING)
    monitor = parent(pid)
    for each in (caller, monitor):
        os.kill(each, signal.SIGKILL)
    os.waitpid(caller, 0)
    until(lambda: gone(pid))
    until(lambda: mounts_of(box.mount.source) == [])


@pytest.mark.parametrize("milliseconds", [0, 2, 5, 8, 12, 20])
def test_a_caller_killed_while_it_starts_leaves_nothing(box: Box, milliseconds: int) -> None:
    marker = f"layerfs-kill-{os.getpid()}-{milliseconds}"
    caller = os.fork()
    if caller == 0:
        try:
            os._exit(box.sh("sleep 86398", env=(f"MARK={marker}",)))
        finally:
            os._exit(99)
    time.sleep(milliseconds / 1000)
    os.kill(caller, signal.SIGKILL)
    os.waitpid(caller, 0)

    def nothing_left() -> bool:
        for each in filter(str.isdigit, os.listdir("/proc")):
            try:
                if marker.encode() in Path(f"/proc/{each}/environ").read_bytes():
                    return False
            except OSError:
                continue
        return mounts_of(box.mount.source) == []

    until(nothing_left)


def test_a_polite_end_is_left_to_the_process(box: Box) -> None:
    caller, pid = start(box, "trap 'exit 7' TERM; while :; do sleep 0.05; done")
    time.sleep(0.2)
    os.kill(caller, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(caller, 0)[1]) == 7
    assert gone(pid)


@pytest.fixture
def store(tree: Path, tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", driver="overlay2", durability="none") as opened:
        opened.import_tree(tree, "app")
        yield opened
    failpoints.arm("")


@pytest.mark.parametrize("fault", ["kill", "error", "enospc"])
def test_mount_points_go_with_a_monitor_that_ended_early(store: Store, fault: str) -> None:
    box = store.containers.create("app", name="box", command=["true"])
    failpoints.arm(f"run.attached={fault}")
    with pytest.raises(ProcessError):
        box.start()
    failpoints.arm("")
    assert [path for _, path in box.diff() if path != b"/etc"] == []
    assert store.containers.get("box").start() == 0


def test_mount_points_go_when_the_caller_was_killed_with_the_monitor(store: Store, tmp_path: Path) -> None:
    box = store.containers.create("app", name="box", command=["sleep", "60"])
    read, write = os.pipe()
    caller = os.fork()
    if caller == 0:
        with Store.open(tmp_path / "store") as again:
            again.containers.get("box").start(on_start=lambda pid: os.write(write, b"%d" % pid) and None)
        os._exit(99)
    os.close(write)
    pid = int(os.read(read, 20))
    os.close(read)
    monitor = parent(pid)
    # Stopped, it cannot tidy up when it hears of the caller's end.
    os.kill(monitor, signal.SIGSTOP)
    for each in (caller, monitor):
        os.kill(each, signal.SIGKILL)
    os.waitpid(caller, 0)
    until(lambda: gone(pid) and gone(monitor))
    with Store.open(tmp_path / "store") as again:
        found = again.containers.get(box.id)
        assert found.status == "exited"
        assert [path for _, path in found.diff() if path != b"/etc"] == []
