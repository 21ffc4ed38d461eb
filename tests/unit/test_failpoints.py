"""Failpoints: what can be armed, what happens then, and that the table of names is that of the code."""

from __future__ import annotations

import ast
import errno
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import failpoints
from layerfs.errors import InvalidError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


def in_code() -> Counter[str]:
    """Count the failpoints that stand in the library and in the drivers."""
    found: Counter[str] = Counter()
    for path in [*(ROOT / "layerfs").rglob("*.py"), *(ROOT / "drivers").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_bytes())):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="failpoints"), attr="reach"),
                    args=[ast.Constant(value=str(name))],
                ):
                    found[name] += 1
    return found


def test_every_failpoint_has_its_name_in_the_table_and_one_place_in_the_code() -> None:
    assert in_code() == Counter(dict.fromkeys(failpoints.NAMES, 1))


def test_nothing_happens_while_nothing_is_armed() -> None:
    failpoints.reach("blob.begin")
    failpoints.arm("blob.write=error")
    failpoints.reach("blob.begin")


@pytest.mark.parametrize(("action", "number"), [("enospc", errno.ENOSPC), ("eio", errno.EIO)])
def test_an_error_of_the_system_comes_once_the_time_that_was_asked_for(action: str, number: int) -> None:
    failpoints.arm(f"blob.write={action}@2")
    failpoints.reach("blob.write")
    with pytest.raises(OSError, match=r"blob\.write") as caught:
        failpoints.reach("blob.write")
    assert caught.value.errno == number
    failpoints.reach("blob.write")


def test_several_failpoints_can_be_armed_at_once() -> None:
    failpoints.arm("blob.write=error,blob.write=eio@2,blob.begin=enospc")
    with pytest.raises(failpoints.Injected):
        failpoints.reach("blob.write")
    with pytest.raises(OSError, match="Input/output"):
        failpoints.reach("blob.write")
    with pytest.raises(OSError, match="No space"):
        failpoints.reach("blob.begin")


def test_a_process_that_is_to_be_killed_gets_no_further() -> None:
    child = os.fork()
    if child == 0:
        failpoints.arm("blob.write=kill")
        failpoints.reach("blob.write")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9


@pytest.mark.parametrize("text", ["blob.wrote=kill", "blob.write", "blob.write=stop", "blob.write=kill@x"])
def test_what_is_no_failpoint_is_refused_with_the_actions_that_there_are(text: str) -> None:
    with pytest.raises(InvalidError, match="no failpoint") as caught:
        failpoints.arm(text)
    assert "enospc" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "status", "words"),
    [("store.directories=eio", 1, "Input/output error"), ("store.directories=kill", -9, "")],
)
def test_the_command_line_arms_what_the_environment_says(
    tmp_path: Path, text: str, status: int, words: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "layerfs", "--root", str(tmp_path / "store"), "--driver", "vfs", "info"],
        env={**os.environ, "LAYERFS_FAILPOINTS": text}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == status
    assert words in done.stderr
