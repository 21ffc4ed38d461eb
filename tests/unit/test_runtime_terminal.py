"""`run -t`: the container has a terminal of its own, and the user's behaves as if it were that one."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.errors import ProcessError
from tests.support import hosttree
from tests.support.boxes import Box

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


class Session:
    """A process with a controlling terminal whose other end we hold."""

    def __init__(self, box: Box, *command: str, **settings: object) -> None:
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            try:
                os._exit(box.run(*command, tty=True, **settings))
            except ProcessError as error:
                os.write(1, str(error).encode())
            finally:
                os._exit(99)
        self.resize(33, 99)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def read_until(self, words: str, *, seconds: float = 10) -> str:
        seen = ""
        end = time.monotonic() + seconds
        while words not in seen:
            left = end - time.monotonic()
            assert left > 0, f"{words!r} did not come: {seen!r}"
            if select.select([self.terminal], [], [], left)[0]:
                try:
                    seen += os.read(self.terminal, 65536).decode()
                except OSError:
                    raise AssertionError(f"the terminal ended before {words!r} came: {seen!r}") from None
        return seen

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def status(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hosttree.build(tmp_path_factory.mktemp("host") / "tree")


@pytest.fixture
def box(tree: Path, tmp_path: Path) -> Iterator[Box]:
    yield Box(tree, tmp_path)


def test_a_shell_is_at_home_in_it(box: Box) -> None:
    shell = Session(box, "sh", interactive=True)
    shell.read_until("# ")
    shell.resize(40, 100)
    time.sleep(0.2)
    shell.type("tty; stty size; test -t 0 && echo on-$((1+1)); stat -c %t:%T:%U:%a /dev/console /dev/pts/0\r")
    seen = shell.read_until("620\r\n# ")
    assert "/dev/pts/0\r\n40 100\r\non-2\r\n88:0:root:620\r\n88:0:root:620\r\n" in seen
    # No job control without a controlling terminal: this one is interrupted, and the shell lives on.
    shell.type("sleep 60\r")
    time.sleep(0.3)
    shell.type("\x03")
    shell.read_until("^C")
    shell.type("echo >/dev/tty end-$((1+1)); exit 5\r")
    shell.read_until("end-2")
    assert shell.status() == 5


def test_our_terminal_is_raw_meanwhile_and_comes_back_as_it_was(box: Box) -> None:
    session = Session(box, "sh", interactive=True)
    session.read_until("# ")
    local = termios.tcgetattr(session.terminal)[3]
    assert isinstance(local, int)
    assert not local & (termios.ECHO | termios.ICANON)
    session.type("exit 0\r")
    assert session.status() == 0
    local = termios.tcgetattr(session.terminal)[3]
    assert isinstance(local, int)
    assert local & termios.ECHO
    assert local & termios.ICANON


def test_much_output_arrives_whole(box: Box) -> None:
    session = Session(box, "sh", "-c", "head -c 300000 /dev/zero | tr '\\0' x; echo END")
    seen = session.read_until("END")
    assert seen.count("x") == 300000
    assert session.status() == 0


def test_it_belongs_to_the_user(box: Box) -> None:
    session = Session(box, "sh", "-c", "echo mine > /dev/pts/0; stat -c %U /dev/console", user="app")
    assert session.read_until("app").split() == ["mine", "app"]
    assert session.status() == 0


def test_without_interactive_nothing_typed_arrives(box: Box) -> None:
    session = Session(box, "sh", "-c", "echo ready; sleep 0.5; echo done")
    session.read_until("ready")
    session.type("hello\r")
    session.read_until("done")
    assert session.status() == 0


def test_an_early_failure_is_told_and_not_waited_for(box: Box) -> None:
    session = Session(box, "nosuch")
    session.read_until("not found in $PATH")
    assert session.status() == 99


def test_a_pipe_as_input_ends_as_a_terminal_does(box: Box, capfd: pytest.CaptureFixture[str]) -> None:
    read, write = os.pipe()
    os.write(write, b"one\ntwo\n")
    os.close(write)
    saved = os.dup(0)
    os.dup2(read, 0)
    os.close(read)
    try:
        assert box.sh("stty -echo; echo ready; cat; exit 6", tty=True, interactive=True) == 6
    finally:
        os.dup2(saved, 0)
        os.close(saved)
    assert "one\r\ntwo\r\n" in capfd.readouterr().out
