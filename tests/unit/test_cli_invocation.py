"""Tests of the command line as a process: streams, exit statuses, signals, and how long it takes to start."""

from __future__ import annotations

import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

import layerfs
from layerfs.cli import main

LAYERFS = [sys.executable, "-m", "layerfs"]


def run(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LAYERFS, *words], capture_output=True, text=True, **options)  # type: ignore[call-overload,no-any-return]


def test_the_version_goes_to_stdout() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"layerfs {layerfs.__version__}\n", "")


def test_the_version_is_told_among_other_options_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "--version"]) == 0
    assert capsys.readouterr().out == f"layerfs {layerfs.__version__}\n"


def test_the_version_needs_no_heavy_module() -> None:
    script = """
import sys
before = set(sys.modules)
from layerfs.cli import main
main(["--version"])
print(*sorted(set(sys.modules) - before), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.split() == ["gc", "layerfs", "layerfs.cli"]


def test_help_imports_neither_the_store_nor_what_draws() -> None:
    script = """
import sys
from layerfs.cli import main
main(["run", "--help"])
print(*sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    heavy = {
        "layerfs.store",
        "layerfs.linux",
        "sqlite3",
        "zstandard",
        "isal",
        "rich",
        "ctypes",
        "json",
        "subprocess",
    }
    assert not loaded & heavy


def test_the_version_takes_less_than_twice_what_python_takes_to_start() -> None:
    def seconds(*command: str) -> float:
        started = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - started

    # Pairs, so that a busy machine slows both; the first of each fills the caches.
    script = "import sys; from layerfs.cli import main; sys.exit(main(['--version']))"
    ratios = [
        seconds(sys.executable, "-c", script) / seconds(sys.executable, "-c", "pass") for _ in range(12)
    ]
    assert statistics.median(ratios[1:]) < 2


def test_a_reader_that_goes_away_ends_it_silently_as_sigpipe_would() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*LAYERFS, "--help"], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_a_full_disk_is_one_clear_line_with_a_hint() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*LAYERFS, "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    first, last = done.stderr.splitlines()
    assert first == "layerfs: No space left on device"
    assert last.startswith("hint: ")


def test_an_interrupt_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from layerfs.cli import invocation

    def interrupted(words: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(invocation, "split_global", interrupted)
    assert main(["images"]) == 130
    assert capsys.readouterr().err == "layerfs: interrupted\n"


def test_a_fault_of_ours_is_told_as_one_and_traced_on_demand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from layerfs.cli import invocation

    def broken(name: str) -> None:
        raise ZeroDivisionError("of our own")

    monkeypatch.setattr(invocation, "build", broken)
    assert main(["images"]) == 1
    assert "internal error: ZeroDivisionError: of our own" in capsys.readouterr().err
    assert main(["--debug", "images"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_error_of_the_system_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("--root", str(tmp_path / "file"), "images")
    assert done.returncode == 1
    assert done.stdout == ""
    assert str(tmp_path / "file") in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        ("--help >&-", 1, "layerfs: Bad file descriptor\n"),
        ("--version >&-", 1, "layerfs: Bad file descriptor\n"),
        ("load <&-", 1, "layerfs: Bad file descriptor\n"),
        ("nosuch 2>&-", 2, ""),
    ],
)
def test_a_closed_stream_is_no_fault_of_ours(command: str, status: int, words: str, tmp_path: Path) -> None:
    line = f"{shlex.join(LAYERFS)} {command}"
    done = subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, env={**os.environ, "LAYERFS_ROOT": str(tmp_path)}
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, "", words)
