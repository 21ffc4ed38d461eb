"""Containers in the background: `run -d`, `logs` and `wait`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from layerfs import Store
from layerfs.runtime import log
from tests.support.commandline import IMAGE, CommandLine, make_store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def layerfs(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    return make_store(tmp_path_factory.mktemp("store"))


def test_run_in_the_background_prints_the_id_and_keeps_what_is_written(layerfs: CommandLine) -> None:
    script = "echo out; echo err >&2; printf 'no end'; exit 3"
    printed = layerfs.good("run", "-d", "--name", "job", IMAGE, "sh", "-c", script).strip()
    assert re.fullmatch("[0-9a-f]{64}", printed)
    assert layerfs.good("wait", "job") == "3\n"
    done = layerfs.run("logs", "job")
    assert (done.status, done.out, done.err) == (0, "out\nno end", "err\n")
    stamped = layerfs.good("logs", "-t", printed[:12])
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z out\n", stamped)
    # A second start adds to it.
    layerfs.good("start", "job")
    layerfs.good("wait", "job")
    assert layerfs.good("logs", "job") == "out\nno endout\nno end"
    assert layerfs.good("logs", "--tail", "1", "job") == "no end"
    assert layerfs.good("logs", "--tail", "0", "job") == ""
    layerfs.good("rm", "job")
    assert not list((layerfs.root / "logs").iterdir())


def test_who_follows_sees_each_line_when_it_comes(layerfs: CommandLine) -> None:
    layerfs.good(
        "run", "-d", "--name", "slow", IMAGE, "sh", "-c", "echo one; while [ ! -e /go ]; do :; done; echo two"
    )
    with subprocess.Popen(layerfs.words("logs", "-f", "slow"), stdout=subprocess.PIPE) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == b"one\n"
        assert layerfs.good("logs", "slow") == "one\n"
        layerfs.good("exec", "slow", "touch", "/go")
        assert following.stdout.readline() == b"two\n"
        assert following.stdout.read() == b""
    assert following.returncode == 0
    layerfs.good("rm", "slow")


def test_one_that_cannot_start_says_why_with_docker_s_status(layerfs: CommandLine) -> None:
    done = layerfs.run("run", "-d", "--name", "bad", "--rm", IMAGE, "nosuch")
    assert done.status == 127
    assert "executable file not found" in done.err
    assert done.out == ""
    assert layerfs.run("inspect", "bad").status == 1
    # Made, never started.
    layerfs.good("create", "--name", "unused", IMAGE)
    assert layerfs.good("logs", "unused") == ""
    done = layerfs.run("wait", "unused")
    assert done.status == 1
    assert "hint: it never ran" in done.err
    layerfs.good("rm", "unused")


def test_rm_takes_it_away_at_its_end_and_json_names_it(layerfs: CommandLine) -> None:
    made = layerfs.json("run", "-d", "--rm", IMAGE, "sh", "-c", "sleep 0.3")
    assert made["name"] in layerfs.good("ps")
    until = time.monotonic() + 20
    while made["name"] in layerfs.good("ps", "-a") and time.monotonic() < until:
        time.sleep(0.05)
    assert made["name"] not in layerfs.good("ps", "-a")
    assert not list((layerfs.root / "logs").iterdir())


def test_a_terminal_of_its_own_is_kept_too(layerfs: CommandLine) -> None:
    layerfs.good("run", "-d", "-t", "--name", "tty", IMAGE, "sh", "-c", "test -t 1 && echo yes")
    assert layerfs.good("wait", "tty") == "0\n"
    assert layerfs.good("logs", "tty") == "yes\r\n"
    layerfs.good("rm", "tty")


def test_the_log_of_a_container_that_a_killed_process_removed_goes_with_gc(layerfs: CommandLine) -> None:
    left = layerfs.root / "logs" / ("0" * 64)
    left.write_bytes(b"")
    layerfs.good("create", "--name", "kept", IMAGE, "echo", "hello")
    layerfs.good("start", "kept")
    layerfs.good("wait", "kept")
    layerfs.good("gc")
    assert not left.exists()
    assert layerfs.good("logs", "kept") == "hello\n"
    layerfs.good("rm", "kept")


def test_stop_waits_for_nobody_who_keeps_the_output(layerfs: CommandLine) -> None:
    layerfs.good("run", "-d", "--name", "long", IMAGE, "sh", "-c", "echo begun; sleep 100")
    layerfs.good("kill", "long")
    assert layerfs.good("wait", "long") == f"{128 + signal.SIGKILL}\n"
    assert layerfs.good("logs", "long") == "begun\n"
    layerfs.good("rm", "long")


def test_records_are_whole_lines_or_parts_that_say_so(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "one"
    pid, out, err = log.record(path)
    os.write(out, b"x" * 70000 + b"\nlast\n")
    os.close(out)
    os.write(err, b"\n\xff no text")
    os.close(err)
    os.waitpid(pid, 0)
    found = list(log.read(path, lambda: False))
    for stream, written in (("stdout", b"x" * 70000 + b"\nlast\n"), ("stderr", b"\n\xff no text")):
        assert b"".join(each.data for each in found if each.stream == stream) == written
    assert path.stat().st_mode & 0o777 == 0o600
    tags = [line.split(b" ")[2] for line in path.read_bytes().splitlines() if b" stdout " in line]
    assert tags == [b"P", b"F", b"F"]
    # What is half written comes when it is whole.
    with path.open("ab") as grown:
        grown.write(b"2026-01-01T00:00:00.000000000Z stdout F ha")
    assert list(log.read(path, lambda: False)) == found


def test_the_library_waits_and_reads(layerfs: CommandLine) -> None:
    layerfs.good("run", "-d", "--name", "lib", IMAGE, "sh", "-c", "sleep 0.2; echo done; exit 4")
    with Store.open(layerfs.root) as store:
        container = store.containers.get("lib")
        assert container.wait() == 4
        assert [each.data for each in log.read(container.log, lambda: False)] == [b"done\n"]
        store.containers.remove("lib")
        assert not container.log.exists()


def test_what_is_no_record_is_left_out_and_the_next_one_begins_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    whole = b"2026-01-01T00:00:00.000000000Z stdout F whole\n"
    path.write_bytes(whole + bytes(4096) + whole + bytes(10) + b"\n" + b"a b\n" + whole[:25])
    pid, *writers = log.record(path)
    os.write(writers[0], b"next\n")
    for each in writers:
        os.close(each)
    os.waitpid(pid, 0)
    assert [each.data for each in log.read(path, lambda: False)] == [b"whole\n", b"whole\n", b"next\n"]


def test_a_log_that_is_no_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"2026-01-01T00:00:00.000000000Z stdout F secret\n")
    (tmp_path / "link").symlink_to("other")
    with pytest.raises(OSError, match="symbolic links"):
        list(log.read(tmp_path / "link", lambda: False))
    with pytest.raises(OSError, match="symbolic links"):
        log.record(tmp_path / "link")
