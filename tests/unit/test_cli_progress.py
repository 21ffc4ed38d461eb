"""What long work shows: rows on a terminal, lines elsewhere, nothing when quiet."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from layerfs.cli import progress
from layerfs.cli.progress import PULL, Lines, Meter, Rows, duration
from tests.support.terminals import read_until

A, B, C = "blob aaaaaaaaaaaa", "blob bbbbbbbbbbbb", "blob cccccccccccc"


class TestRows:
    def test_show_each_part_with_its_state_as_docker_does(self) -> None:
        rows = Rows(PULL)
        rows.expect({A: 1000, B: 2000, C: 3000})
        rows.exists(B)
        rows.begin(A, 1000)
        rows.advance(A, 500)
        assert rows.lines(100, 25) == [
            "aaaaaaaaaaaa: Downloading [===============>              ] 500B/1kB",
            "bbbbbbbbbbbb: Already exists",
            "cccccccccccc: Waiting",
            "Total: 500B/4kB  500B/s, 7 s left",
        ]
        rows.advance(A, 500)
        assert rows.lines(100, 25)[0] == f"aaaaaaaaaaaa: Unpacking [{'=' * 30}] 1kB/1kB"
        rows.end(A)
        assert rows.lines(100, 25)[0] == "aaaaaaaaaaaa: Pull complete"

    def test_that_failed_are_not_complete(self) -> None:
        rows = Rows(PULL)
        rows.begin(A, 1000)
        rows.advance(A, 999)
        rows.end(A)
        assert "Pull complete" not in rows.lines(100, 25)[0]

    def test_fit_into_the_terminal_and_those_under_way_stay(self) -> None:
        rows = Rows(PULL)
        parts = {f"blob {number:012}": 10 for number in range(100)}
        rows.expect(parts)
        for label in list(parts)[:50]:
            rows.begin(label, 10)
            rows.advance(label, 10)
            rows.end(label)
        rows.begin("blob 000000000070", 10)
        lines = rows.lines(40, 10)
        assert len(lines) <= 9
        assert all(len(line) < 40 for line in lines)
        assert any(line.startswith("000000000070: Downloading") for line in lines)
        assert lines[-1].startswith("Total: 500B/1kB")

    def test_of_other_work_have_no_states(self) -> None:
        rows = Rows(PULL)
        rows.begin("unpack abc", None)
        rows.advance("unpack abc", 5000)
        assert rows.lines(100, 25) == ["unpack abc  5kB"]


class TestMeter:
    def test_the_rate_is_that_of_late(self) -> None:
        meter = Meter()
        meter.expect({A: 10_000})
        for second in range(5):
            meter.advance(A, 1000, float(second))
        assert meter.rate(4.0) == pytest.approx(5000 / 4)
        assert meter.left(4.0) == ", 4 s left"
        meter.advance(A, 100, 60.0)
        assert meter.rate(60.0) == 100.0

    def test_says_nothing_about_the_time_left_before_it_knows(self) -> None:
        meter = Meter()
        meter.expect({A: 10_000})
        assert meter.left(0.0) == ""
        meter.advance(A, 10_000, 0.0)
        assert meter.left(0.0) == ""

    def test_parts_that_exist_are_not_waited_for(self) -> None:
        meter = Meter()
        meter.expect({A: 100, B: 200})
        meter.expect({A: 100})
        meter.exists(B)
        assert meter.total == 100
        meter.advance("unpack", 50, 0.0)
        assert meter.done == 0


class TestLines:
    def test_are_one_for_each_part_that_ends_or_is_there(self, capsys: pytest.CaptureFixture[str]) -> None:
        lines = Lines()
        lines.expect({A: 1000, B: 10})
        lines.exists(B)
        with lines.task(A, 1000) as advance:
            advance(400)
            advance(600)
        lines.exists(A)
        there, came = capsys.readouterr().err.splitlines()
        assert there == f"{B}: already exists"
        assert re.fullmatch(rf"{A}: 1kB in \d+\.\d s, \S+/s", came)

    def test_say_now_and_then_how_far_something_long_is(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(progress, "HEARTBEAT", 0.0)
        lines = Lines()
        lines.expect({A: 1000})
        with lines.task(A, 1000) as advance:
            advance(250)
            (heartbeat,) = capsys.readouterr().err.splitlines()
        assert re.fullmatch(rf"{A}: 250B of 1kB, \S+/s, 3 s left", heartbeat)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.1, "1 s"), (59.6, "1 min 0 s"), (61, "1 min 1 s"), (7322, "2 h 2 min")]
)
def test_lengths_of_time_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_control_c_ends_it_with_130_and_the_cursor_back(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "layerfs", "--root", tmp_path / "root", "import", "-", "never:1"],
        stdin=subprocess.PIPE, stdout=slave, stderr=slave, start_new_session=True,
        env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    try:
        os.close(slave)
        assert child.stdin is not None
        child.stdin.write(b"x" * 4096)
        child.stdin.flush()
        shown = read_until(master, b"read tar")
        os.killpg(child.pid, signal.SIGINT)
        shown += read_until(master, b"interrupted")
        assert child.wait(30) == 130
        assert shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h") > 0
    finally:
        child.kill()
        child.wait()
        os.close(master)
