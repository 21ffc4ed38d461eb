"""Images and containers that reach for the program that runs them, and for what lies outside their tree."""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import liveness
from layerfs.errors import LayerfsError, ProcessError
from layerfs.runtime import program, springboard
from layerfs.runtime.enter import enter
from tests.support import hosttree
from tests.support.boxes import Box

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

Capture = pytest.CaptureFixture[str]

PWN = "open('/pwned', 'w').write('reached')\n"
# With these the host's Python could run inside.
USR = ("/usr:/usr:ro",)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hosttree.build(tmp_path_factory.mktemp("host") / "tree")


@pytest.fixture
def box(tree: Path, tmp_path: Path) -> Box:
    box = Box(tree, tmp_path)
    put(box, "script", f"#!/proc/self/exe\n{PWN}")
    put(box, "through", f"#!/link\n{PWN}")
    put(box, "blank", f"#! \t/proc/self/exe -I\n{PWN}")
    put(box, "nested", "#!/script\n")
    put(box, "good", "#!/bin/sh\nexit 0\n")
    (box.upper / "link").symlink_to("/proc/self/exe")
    (box.upper / "thread").symlink_to("proc/thread-self/exe")
    (box.upper / "descriptor").symlink_to("/proc/self/fd/0")
    put(box, "loaded", with_interpreter((tree / "usr/bin/true").read_bytes(), b"/proc/self/exe"))
    return box


def put(box: Box, name: str, content: str | bytes) -> None:
    (box.upper / name).write_bytes(content.encode() if isinstance(content, str) else content)
    (box.upper / name).chmod(0o755)


def with_interpreter(elf: bytes, interpreter: bytes) -> bytes:
    """Give a program another loader (PT_INTERP of elf(5))."""
    table, size, count = struct.unpack_from("<Q", elf, 32)[0], *struct.unpack_from("<HH", elf, 54)
    for each in range(count):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", elf, table + each * size)
        if kind == 3:
            return elf[:offset] + interpreter.ljust(length, b"\0") + elf[offset + length :]
    raise AssertionError("no dynamic program")


@contextlib.contextmanager
def running(box: Box, script: str) -> Iterator[liveness.Owner]:
    """Have a container at work that ends with the block."""
    started = threading.Event()
    found: list[liveness.Owner] = []

    def tell(pid: int) -> None:
        found.append(liveness.Owner(pid, liveness.start_time(pid) or 0, liveness.boot_id()))
        started.set()

    thread = threading.Thread(target=box.sh, args=(f"while [ ! -e /over ]; do {script}\ndone",),
                              kwargs={"on_start": tell, "volumes": USR})  # fmt: skip
    thread.start()
    assert started.wait(30)
    try:
        yield found[0]
    finally:
        (Path(f"/proc/{found[0].pid}/root") / "over").touch()
        thread.join(30)


NAMES = ["/proc/self/exe", "/proc/1/exe", "/link", "/thread", "/script", "/through", "/blank", "/nested"]


@pytest.mark.parametrize("name", NAMES)
def test_our_own_program_is_never_the_containers(box: Box, name: str, capfd: Capture) -> None:
    with contextlib.suppress(ProcessError):
        assert box.run(name, "-c", PWN, volumes=USR) != 0
    assert not (box.upper / "pwned").exists()
    assert "Python" not in capfd.readouterr().err


@pytest.mark.parametrize("name", NAMES[:-1])
def test_it_is_told_why_a_link_of_proc_is_not_executed(box: Box, name: str) -> None:
    with pytest.raises(ProcessError, match="a link of /proc leads there") as caught:
        box.run(name)
    assert caught.value.status == 126


@pytest.mark.parametrize("name", [*NAMES, "/loaded"])
def test_the_springboard_holds_where_a_look_at_the_name_came_too_early(
    box: Box, name: str, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "_refuse_ours", lambda path: None)
    with contextlib.suppress(ProcessError):
        assert box.run(name, "-c", PWN, volumes=USR) != 0
    assert not (box.upper / "pwned").exists()
    assert "Python" not in capfd.readouterr().err


def test_without_a_springboard_the_look_holds(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(springboard, "make", lambda report: None)
    for name in NAMES[:-1]:
        with pytest.raises(ProcessError):
            box.run(name, "-c", PWN, volumes=USR)
    assert box.sh("exit 7") == 7
    assert not (box.upper / "pwned").exists()


def test_the_springboard_shows_in_nothing(box: Box, capfd: Capture) -> None:
    assert box.sh("cat /proc/1/comm; tr '\\0' ' ' < /proc/1/cmdline; echo; ls /proc/1/fd") == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "sh"
    assert lines[1].startswith("sh -c ")
    assert lines[2:] == ["0", "1", "2"]


def test_a_program_without_the_right_to_be_read_is_executed(box: Box) -> None:
    put(box, "secret", (box.lower / "usr/bin/true").read_bytes())
    (box.upper / "secret").chmod(0o711)
    assert box.run("/secret", user="1000") == 0


def test_exec_is_not_led_to_our_program_by_names_that_change(box: Box) -> None:
    flip = "mv -T /flip /f1; ln -s /proc/self/exe /f2; mv -T /f2 /flip; cp -p /script /f3; mv -T /f3 /flip;" \
           " cp -p /good /f4; mv -T /f4 /flip"  # fmt: skip
    put(box, "flip", "#!/bin/sh\nexit 0\n")
    with running(box, flip) as owner:
        for _ in range(40):
            with contextlib.suppress(LayerfsError):
                enter(owner, box.spec("/flip", "-c", PWN))
    assert not (box.upper / "pwned").exists()


def test_exec_shows_the_container_nothing_of_our_program(box: Box) -> None:
    look = "for p in /proc/[0-9]*; do readlink $p/exe >>/seen; ls -l $p/fd >>/fds; done 2>/dev/null"
    before = os.stat(os.path.realpath(sys.executable))
    with running(box, look) as owner:
        for _ in range(30):
            assert enter(owner, box.spec("true")) == 0
    seen = set((box.upper / "seen").read_text().splitlines())
    assert any(each.endswith("sh") for each in seen)
    assert not any("python" in each for each in seen), seen
    after = os.stat(os.path.realpath(sys.executable))
    assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
