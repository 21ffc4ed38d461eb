"""Tests of `run`, `create` and `start`."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from layerfs.cli.run import environment
from tests.support.commandline import IMAGE, CommandLine, make_store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture(scope="module")
def layerfs(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    return make_store(tmp_path_factory.mktemp("store"))


def test_run_gives_the_output_and_the_exit_status_of_the_process(layerfs: CommandLine) -> None:
    done = layerfs.run("run", "--rm", IMAGE, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert done == (7, "out\n", "err\n")
    assert layerfs.good("run", "--rm", IMAGE) == "hello\n"
    assert layerfs.json("ps", "-a") == []


@pytest.mark.parametrize(("program", "status"), [("nosuch", 127), ("/etc/passwd", 126), ("/etc", 126)])
def test_a_program_that_cannot_run_gives_dockers_status(
    layerfs: CommandLine, program: str, status: int
) -> None:
    assert layerfs.run("run", "--rm", IMAGE, program).status == status
    assert layerfs.json("ps", "-a") == []


def test_a_missing_image_gives_125_and_says_how_it_is_had(layerfs: CommandLine) -> None:
    done = layerfs.run("run", "nothing:1")
    assert done.status == 125
    assert "`layerfs pull nothing:1`" in done.err.splitlines()[-1]
    assert "nothing:1" in done.err


def test_options_set_up_the_process(layerfs: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "variables").write_text("# comment\n\nFROM_FILE=file value\nBOTH=file\n")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/file").write_text("shared")
    script = (
        "echo $GREETING $FROM_FILE $BOTH; pwd; hostname; id -u; cat /mnt/file; touch /mnt/x 2>&- || echo ro"
    )
    words = ["--env-file", tmp_path / "variables", "-e", "BOTH=option", "-w", "/work", "-u", "1000"]
    words += ["-v", f"{tmp_path}/shared:/mnt:ro", "--hostname", "box", "--rm", IMAGE, "sh", "-c", script]
    out = layerfs.good("run", *words)
    assert out.splitlines() == ["hello file value option", "/work", "box", "1000", "sharedro"]


def test_an_empty_entry_point_clears_the_images(layerfs: CommandLine) -> None:
    assert layerfs.good("run", "--rm", "--entrypoint", "echo", IMAGE, "a", "--rm") == "a --rm\n"
    assert layerfs.good("run", "--rm", "--entrypoint", "", IMAGE, "echo", "b") == "b\n"


def test_standard_input_is_passed_on_only_when_asked_for(layerfs: CommandLine) -> None:
    assert layerfs.good("run", "--rm", "-i", IMAGE, "cat", stdin=b"typed") == "typed"
    assert layerfs.good("run", "--rm", IMAGE, "cat", stdin=b"typed") == ""


def test_a_variable_without_a_name_is_wrong_usage(layerfs: CommandLine) -> None:
    done = layerfs.run("run", "-e", "=x", IMAGE)
    assert done.status == 125
    assert "sets no variable" in done.err


def test_a_bare_name_takes_our_variable_or_takes_the_images_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "value")
    monkeypatch.delenv("MISSING", raising=False)
    assert environment(["OURS", "MISSING", "A=1", "A=2"], []) == ["OURS=value", "MISSING", "A=2"]


def test_a_created_container_starts_in_the_background(layerfs: CommandLine) -> None:
    layerfs.good("create", "--name", "job", IMAGE, "sh", "-c", "sleep 60")
    started = time.monotonic()
    assert layerfs.good("start", "job") == "job\n"
    assert time.monotonic() - started < 30
    try:
        assert "Up " in layerfs.good("ps")
    finally:
        layerfs.good("rm", "-f", "job")
    assert layerfs.json("ps", "-a") == []


def test_a_start_that_fails_is_told(layerfs: CommandLine) -> None:
    layerfs.good("create", "--name", "broken", IMAGE, "nosuch")
    done = layerfs.run("start", "broken")
    assert done.status == 1
    assert "nosuch" in done.err
    assert layerfs.run("start", "-a", "broken").status == 127
    layerfs.good("rm", "broken")


def test_the_mount_points_of_a_running_container_are_not_listed_as_changes(layerfs: CommandLine) -> None:
    layerfs.good("create", "--name", "busy", IMAGE, "sh", "-c", "echo x > /made; sleep 30")
    layerfs.good("start", "busy")
    try:
        deadline = time.monotonic() + 10
        while layerfs.good("diff", "busy") != "A /made\n":
            assert time.monotonic() < deadline
    finally:
        layerfs.good("rm", "-f", "busy")


def test_only_the_image_is_missing_from_an_empty_command_line(layerfs: CommandLine) -> None:
    done = layerfs.run("run")
    assert (done.status, done.err.splitlines()[0]) == (
        125,
        "layerfs: the following arguments are required: IMAGE",
    )


def test_a_run_with_rm_can_be_ended_by_force(layerfs: CommandLine) -> None:
    words = layerfs.words("run", "--rm", "--name", "brief", IMAGE, "sh", "-c", "echo up; sleep 60")
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        # Both want to remove it now; whoever is second must not complain.
        done = layerfs.run("rm", "-f", "brief")
        assert (done.status, done.out, done.err) == (0, "brief\n", "")
        assert process.wait() == 137
    assert layerfs.json("ps", "-a") == []


def test_starting_a_running_container_again_is_no_mistake(layerfs: CommandLine) -> None:
    layerfs.good("create", "--name", "twice", IMAGE, "sleep", "30")
    try:
        assert layerfs.good("start", "twice") == layerfs.good("start", "twice") == "twice\n"
        attached = layerfs.run("start", "-a", "twice")
        assert attached.status == 125
        assert "container twice is running already" in attached.err
    finally:
        layerfs.good("rm", "-f", "twice")
