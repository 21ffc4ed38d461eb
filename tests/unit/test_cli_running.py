"""What is done with a container while its process runs: exec, stop and kill."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import Store, signals
from layerfs.errors import InvalidError, NotFoundError
from layerfs.liveness import Owner
from layerfs.runtime.enter import enter
from tests.support.boxes import Box
from tests.support.commandline import IMAGE, CommandLine, make_store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

# Ends at once when asked to, and says so.
PATIENT = (
    "trap 'echo asked > /asked; exit 7' TERM; trap 'echo int > /asked; exit 8' INT;"
    " while :; do sleep 0.05; done"
)


@pytest.fixture(scope="module")
def layerfs(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    return make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def box(layerfs: CommandLine) -> Iterator[str]:
    """A running container's name."""
    words = ["--name", "box", "-e", "OWN=1", "-w", "/tmp", "--hostname", "boxed"]
    layerfs.good("create", *words, IMAGE, "sh", "-c", PATIENT)
    layerfs.good("start", "box")
    yield "box"
    layerfs.good("rm", "-f", "box")


def test_a_command_runs_beside_the_containers_own(layerfs: CommandLine, box: str) -> None:
    layerfs.good("exec", box, "sh", "-c", "echo here > /made")
    assert "A /made" in layerfs.good("diff", box).splitlines()
    script = 'echo "$$ $(hostname) $(pwd) $OWN $GREETING"; cat /proc/1/cmdline | tr "\\0" " "'
    first, second = layerfs.good("exec", box, "sh", "-c", script).split("\n", 1)
    number, *rest = first.split()
    assert int(number) > 1
    assert rest == ["boxed", "/tmp", "1", "hello"]
    assert second.startswith("sh -c trap")


def test_its_namespaces_and_rights_are_those_of_the_container(layerfs: CommandLine, box: str) -> None:
    script = "for n in mnt uts ipc net pid user; do readlink /proc/$1/ns/$n; done; grep Cap /proc/$1/status"
    inside, first = (layerfs.good("exec", box, "sh", "-c", script, "sh", of) for of in ("self", "1"))
    assert inside == first
    assert "net:" in inside
    # Nothing of ours is open in it: the directory's own descriptor is the fourth.
    assert layerfs.good("exec", box, "ls", "/proc/self/fd").split() == ["0", "1", "2", "3"]


def test_variables_directory_user_and_input_are_given(layerfs: CommandLine, box: str) -> None:
    words = ["-e", "MORE=2", "-e", "OWN=3", "-w", "/etc", "-u", "12:34", "-i"]
    out = layerfs.good(
        "exec", *words, box, "sh", "-c", 'echo "$MORE $OWN $PWD $(id -u):$(id -g)"; cat', stdin=b"in"
    )
    assert out == "2 3 /etc 12:34\nin"
    assert layerfs.good("exec", box, "cat", stdin=b"in") == ""


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["sh", "-c", "exit 9"], 9, ""),
        (["sh", "-c", "kill -KILL $$"], 137, ""),
        (["nosuch"], 127, "executable file not found"),
        (["/etc/passwd"], 126, "permission denied"),
    ],
)
def test_the_exit_status_is_the_processs(
    layerfs: CommandLine, box: str, words: list[str], status: int, said: str
) -> None:
    done = layerfs.run("exec", box, *words)
    assert done.status == status
    assert said in done.err


def test_a_directory_that_is_not_there_is_told(layerfs: CommandLine, box: str) -> None:
    done = layerfs.run("exec", "-w", "/nosuch", box, "true")
    assert done.status == 126
    assert "/nosuch" in done.err
    assert layerfs.run("diff", box).out == ""


def test_no_command_is_wrong_usage(layerfs: CommandLine, box: str) -> None:
    done = layerfs.run("exec", box)
    assert (done.status, done.err.splitlines()[0]) == (125, "layerfs: no command is given")


def test_a_terminal_is_the_processs_own(layerfs: CommandLine, box: str) -> None:
    import pty

    pid, master = pty.fork()
    if pid == 0:
        words = layerfs.words("exec", "-it", box, "sh", "-c", "tty; read line; echo got $line; exit 5")
        os.execv(words[0], words)
    shown = b""
    typed = False
    while True:
        if not typed and b"/dev/pts/" in shown:
            # Before that the terminal is not raw yet, and its pending input is dropped.
            os.write(master, b"typed\r")
            typed = True
        try:
            data = os.read(master, 4096)
        except OSError:
            break
        if not data:
            break
        shown += data
    os.close(master)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    assert b"/dev/pts/" in shown
    assert b"got typed" in shown


def test_a_command_ends_with_its_caller_and_with_the_container(layerfs: CommandLine, box: str) -> None:
    def waiting(what: str) -> bool:
        return what in layerfs.good("exec", box, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")

    with subprocess.Popen(layerfs.words("exec", box, "sleep", "3333"), stderr=subprocess.DEVNULL) as process:
        _until(lambda: waiting("sleep 3333"))
        process.kill()
    _until(lambda: not waiting("sleep 3333"))
    with subprocess.Popen(layerfs.words("exec", box, "sleep", "4444")) as process:
        _until(lambda: waiting("sleep 4444"))
        layerfs.good("kill", box)
        assert process.wait(30) == 137


def test_a_container_at_rest_has_no_room_for_another_process(layerfs: CommandLine) -> None:
    layerfs.good("create", "--name", "resting", IMAGE, "true")
    done = layerfs.run("exec", "resting", "true")
    assert done.status == 125
    assert "container resting is not running" in done.err
    assert layerfs.run("kill", "resting").status == 1
    assert layerfs.good("stop", "resting") == "resting\n"
    layerfs.good("rm", "resting")


def test_stop_asks_first(layerfs: CommandLine, box: str) -> None:
    assert layerfs.good("stop", box) == "box\n"
    (found,) = layerfs.json("ps", "-a")
    assert (found["status"], found["exit_code"]) == ("exited", 7)
    # At rest: it can be started, and removed.
    layerfs.good("start", box)
    layerfs.good("stop", "-s", "INT", box)
    (found,) = layerfs.json("ps", "-a")
    assert found["exit_code"] == 8


def test_stop_takes_the_images_signal_and_kills_what_stays(layerfs: CommandLine, tmp_path: Path) -> None:
    layerfs.good("create", "--name", "base", IMAGE, "true")
    layerfs.good("commit", "-c", "STOPSIGNAL SIGUSR1", "base", "stops:1")
    script = "trap '' USR1; trap 'exit 3' TERM; while :; do sleep 0.05; done"
    layerfs.good("create", "--name", "deaf", "stops:1", "sh", "-c", script)
    layerfs.good("start", "deaf")
    began = time.monotonic()
    layerfs.good("stop", "--time", "0.5", "deaf")
    assert time.monotonic() - began >= 0.5
    (found,) = [each for each in layerfs.json("ps", "-a") if each["name"] == "deaf"]
    assert found["exit_code"] == 137
    layerfs.good("rm", "deaf", "base")
    layerfs.good("rmi", "stops:1")


def test_a_run_with_rm_that_is_stopped_is_gone(layerfs: CommandLine) -> None:
    words = layerfs.words("run", "--rm", "--name", "brief", IMAGE, "sh", "-c", "echo up; exec sleep 60")
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert layerfs.good("stop", "-t", "0.1", "brief") == "brief\n"
        assert process.wait(30) == 137
    assert layerfs.json("ps", "-a") == []


def test_a_signal_reaches_the_process(layerfs: CommandLine, box: str) -> None:
    assert layerfs.good("kill", "--signal", "int", box) == "box\n"
    _until(lambda: layerfs.json("ps", "-a")[0]["exit_code"] == 8)


@pytest.mark.parametrize("words", [["kill", "-s", "NOSUCH"], ["stop", "-t", "-1"], ["stop", "-t", "nan"]])
def test_what_makes_no_sense_is_wrong_usage(layerfs: CommandLine, words: list[str]) -> None:
    assert layerfs.run(*words, "box").status == 2


@pytest.mark.parametrize(
    ("text", "number"), [("TERM", 15), ("sigint", 2), ("9", 9), ("RTMIN+1", 35), ("SIGRTMAX-1", 63)]
)
def test_signals_are_written_as_kill_takes_them(text: str, number: int) -> None:
    assert signals.parse(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "SIG", "RTMIN+99", "TERM+x", "-1", "SIGBLOCK"])
def test_what_is_no_signal_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="is no signal"):
        signals.parse(text)


def test_a_process_that_has_the_number_of_a_dead_one_is_left_alone(
    layerfs: CommandLine, tmp_path: Path
) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        mistaken = Owner(other.pid, 1, "another boot")
        assert not signals.send(mistaken, signal.SIGKILL)
        signals.stop(mistaken, signal.SIGTERM, seconds=0)
        with pytest.raises(NotFoundError, match="has ended"):
            enter(mistaken, Box(tmp_path, tmp_path).spec("true"))
        assert other.poll() is None
        other.kill()


def test_the_library_executes_and_stops(layerfs: CommandLine, box: str) -> None:
    with Store.open(layerfs.root) as store:
        container = store.containers.get(box)
        assert container.execute(["sh", "-c", "test $OWN$NEW = 12"], env=["NEW=2"]) == 0
        container.stop()
        assert store.containers.get(box).exit_code == 7
        container.stop()


def _until(holds: object) -> None:
    assert callable(holds)
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
