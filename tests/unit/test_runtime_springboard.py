"""The program that executes another one: what it hands on, and what it tells."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from layerfs.runtime import springboard

EMULATORS = {"x86_64": "qemu-x86_64-static", "aarch64": "qemu-aarch64-static"}


def execute(machine: str, path: Path, *arguments: str) -> tuple[int, bytes, bytes]:
    """Run the program for a machine; gives its status, what was printed and what it reported."""
    read, report = os.pipe()
    os.set_inheritable(report, True)
    program = springboard._program(machine, report)
    assert program is not None
    path.write_bytes(program)
    path.chmod(0o755)
    emulator = []
    if machine != os.uname().machine:
        found = shutil.which(EMULATORS[machine])
        if found is None:
            pytest.skip(f"there is no {EMULATORS[machine]}")
        # The program's first argument is the one after its name.
        emulator = [found, "-0", arguments[0]]
        arguments = arguments[1:]
    words = [*emulator, str(path), *arguments] if emulator else list(arguments)
    done = subprocess.run(
        words, executable=None if emulator else path, env={"A": "b"}, capture_output=True, pass_fds=(report,)
    )
    os.close(report)
    with open(read, "rb") as file:
        return done.returncode, done.stdout, file.read()


@pytest.mark.parametrize("machine", EMULATORS)
def test_arguments_and_environment_are_handed_on(tmp_path: Path, machine: str) -> None:
    script = "echo $0 $1 $A; ls /proc/$$/fd | wc -w"
    found = execute(machine, tmp_path / "board", "/bin/sh", "name", "-c", script, "zero", "one")
    assert found == (0, b"zero one b\n3\n", b"")


@pytest.mark.parametrize("machine", EMULATORS)
@pytest.mark.parametrize(("name", "number"), [("missing", errno.ENOENT), ("file", errno.EACCES)])
def test_what_cannot_be_executed_is_reported(tmp_path: Path, machine: str, name: str, number: int) -> None:
    (tmp_path / "file").write_bytes(b"x")
    status, _, told = execute(machine, tmp_path / "board", str(tmp_path / name), "name")
    assert status == 127
    assert told == b"\0\5E" + number.to_bytes(4, "little")


def test_it_is_sealed_and_close_on_exec() -> None:
    read, report = os.pipe()
    board = springboard.make(report)
    if board is None:
        pytest.skip("no program for this machine")
    try:
        assert not os.get_inheritable(board)
        assert stat.S_IMODE(os.fstat(board).st_mode) & 0o111
        for attempt in (lambda: os.write(board, b"x"), lambda: os.ftruncate(board, 0)):
            with pytest.raises(PermissionError):
                attempt()
    finally:
        for descriptor in (read, report, board):
            os.close(descriptor)


def test_other_machines_have_none() -> None:
    assert springboard._program("sparc64", 3) is None
    assert springboard._program("x86_64", 1 << 16) is None
