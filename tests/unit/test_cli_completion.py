"""Tests of the completion scripts, each in its own shell."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from layerfs.cli import commands, completion, main


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_command_and_option_is_in_the_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for name in commands.COMMANDS:
        assert name in script
    assert "env-file" in script


@pytest.mark.parametrize(("shell", "check"), [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")])
def test_the_shell_accepts_its_script(shell: str, check: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "script"
    script.write_text(completion.SHELLS[shell]())
    done = subprocess.run([shell, check, script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def complete_in_bash(line: str, tmp_path: Path, *, names: str = "") -> list[str]:
    """Press tab at the end of `line` in a bash whose `layerfs` prints `names`, and list what is offered."""
    (tmp_path / "completion").write_text(completion.bash())
    layerfs = tmp_path / "layerfs"
    layerfs.write_text(f"#!/bin/sh\nprintf '%s\\n' {names}\n")
    layerfs.chmod(0o755)
    script = f"""
        source {tmp_path}/completion
        COMP_LINE={line!r} COMP_POINT=${{#COMP_LINE}}
        _layerfs
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    return done.stdout.split()


def test_bash_completes_commands(tmp_path: Path) -> None:
    assert complete_in_bash("layerfs im", tmp_path) == ["import", "images"]
    assert complete_in_bash("layerfs --root /x --json his", tmp_path) == ["history"]


def test_bash_completes_options_of_the_command(tmp_path: Path) -> None:
    assert complete_in_bash("layerfs run --env", tmp_path) == ["--env", "--env-file"]
    assert "--root" in complete_in_bash("layerfs --r", tmp_path)


def test_bash_completes_a_value_that_stands_after_an_equals_sign(tmp_path: Path) -> None:
    assert complete_in_bash("layerfs pull --tls", tmp_path) == [
        "--tls-verify", "--tls-verify=true", "--tls-verify=false"
    ]  # fmt: skip
    assert complete_in_bash("layerfs pull --tls-verify=f", tmp_path) == ["false"]


def test_bash_completes_the_names_of_images_past_their_colon(tmp_path: Path) -> None:
    assert complete_in_bash("layerfs run deb", tmp_path, names="debian:12 app:1") == ["debian:12"]
    assert complete_in_bash("layerfs run debian:", tmp_path, names="debian:12 debian:13") == ["12", "13"]


DRIVERS = "aufs fuse vfs"
OPTIONS = "nosuid noexec squash_to_uid= xino=off xino=on"


@pytest.mark.parametrize(
    ("line", "names", "offered"),
    [
        ("layerfs --driver f", DRIVERS, ["fuse"]),
        ("layerfs mount --driver ", DRIVERS, ["aufs", "fuse", "vfs"]),
        ("layerfs mount -o no", OPTIONS, ["nosuid", "noexec"]),
        ("layerfs mount -o ro,squ", OPTIONS, ["ro,squash_to_uid="]),
        ("layerfs mount -o nosuid,xino=o", OPTIONS, ["off", "on"]),
    ],
)
def test_bash_completes_drivers_and_mount_options(
    tmp_path: Path, line: str, names: str, offered: list[str]
) -> None:
    assert complete_in_bash(line, tmp_path, names=names) == offered


def test_the_names_of_drivers_and_of_all_their_mount_options_can_be_had(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["completion", "--names", "drivers"]) == 0
    assert {"aufs", "fuse", "overlay2", "vfs"} <= set(capsys.readouterr().out.splitlines())
    assert main(["completion", "--names", "options"]) == 0
    listed = set(capsys.readouterr().out.splitlines())
    assert {"nosuid", "volatile", "squash_to_uid=", "fsync=0", "xino=auto", "threaded=1"} <= listed


def test_zsh_completes_drivers_and_mount_options(tmp_path: Path) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    (tmp_path / "_layerfs").write_text(completion.zsh())
    layerfs = tmp_path / "layerfs"
    layerfs.write_text("#!/bin/sh\nprintf '%s\\n' fuse squash_to_uid=\n")
    layerfs.chmod(0o755)
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.environ |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TERM": "dumb"}
        os.execvp("zsh", ["zsh", "-f"])
    said = b""

    def hear(word: bytes) -> None:
        nonlocal said
        while word not in said:
            assert select.select([terminal], [], [], 60)[0], said
            said += os.read(terminal, 4096)
        said = said.partition(word)[2]

    load = f"fpath=({tmp_path} $fpath); autoload -U compinit; compinit -u"
    os.write(terminal, f"PROMPT=; unsetopt zle_bracketed_paste; {load}; echo rea''dy\n".encode())
    hear(b"ready")
    os.write(terminal, b"layerfs --driver f\t")
    hear(b"use")
    os.write(terminal, b"mount -o ro,squ\t")
    hear(b"ash_to_uid=")
    os.write(terminal, b"\x15layerfs push fuse docker-a\t")
    hear(b"rchive:")
    os.write(terminal, b"\x15layerfs pull --cert-dir ./_lay\t")
    hear(b"erfs")
    os.write(terminal, b"\x15layerfs pull --cert-dir=./_lay\t")
    hear(b"erfs")
    os.write(terminal, b"\x15layerfs pull --tls-verify=f\t")
    hear(b"alse")
    os.close(terminal)
    os.waitpid(child, 0)


def test_bash_completes_choices_and_files(tmp_path: Path) -> None:
    assert complete_in_bash("layerfs run --network h", tmp_path) == ["host"]
    (tmp_path / "image.tar").touch()
    assert complete_in_bash("layerfs load -i imag", tmp_path) == ["image.tar"]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("layerfs pull oci", ["oci:", "oci-archive:"]),
        ("layerfs pull d", ["docker://", "docker-archive:"]),
        ("layerfs pull oci:ima", ["image.d"]),
        ("layerfs copy --all oci:x docker-archive:image", ["image.d", "image.tar"]),
    ],
)
def test_bash_completes_places_of_images(tmp_path: Path, line: str, offered: list[str]) -> None:
    (tmp_path / "image.d").mkdir()
    if "archive" in line:
        (tmp_path / "image.tar").touch()
    assert sorted(complete_in_bash(line, tmp_path)) == sorted(offered)


NAMES = "debian:12 work localhost:5000/app:1"


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("pull --cert-dir ima", ["image.d", "image.tar"]),
        ("pull --authfile=image.t", ["image.tar"]),
        ("pull --tls-verify=f", ["false"]),
        ("--root=image.d", ["image.d"]),
        ("--budget bytes=3 imag", ["images"]),
        ("push deb", ["debian:12"]),
        ("push -q debian:12 docker-", ["docker-archive:"]),
        ("push --creds a:b debian:12 oci:ima", ["image.d", "image.tar"]),
        ("copy docker://deb", ["//debian:12"]),
        ("copy oci:x:1 lo", ["localhost:5000/app:1"]),
        ("inspect docker:", ["//"]),
        ("inspect wo", ["work"]),
        ("cat oci:image.d", ["image.d"]),
        ("mount --lazy debian:12 image.d", ["image.d"]),
        ("tags docker://lo", ["//localhost:5000/app:1"]),
        ("attach debian:12 image.t", ["image.tar"]),
        ("umount ./image.d", ["./image.d"]),
    ],
)
def test_bash_completes_each_argument_by_what_it_is(tmp_path: Path, line: str, offered: list[str]) -> None:
    (tmp_path / "image.d").mkdir()
    (tmp_path / "image.tar").touch()
    assert sorted(complete_in_bash(f"layerfs {line}", tmp_path, names=NAMES)) == offered


def test_fish_completes_commands_and_names(tmp_path: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    (tmp_path / "completion").write_text(completion.fish())
    layerfs = tmp_path / "layerfs"
    layerfs.write_text("#!/bin/sh\nprintf '%s\\n' debian:12 fuse nosuid squash_to_uid=\n")
    layerfs.chmod(0o755)

    def complete(line: str) -> list[str]:
        command = f"source {tmp_path}/completion; complete --do-complete '{line}'"
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
        done = subprocess.run(
            ["fish", "--command", command], capture_output=True, text=True, env=environment, check=True
        )
        return [line.split("\t")[0] for line in done.stdout.splitlines()]

    assert complete("layerfs im") == ["images", "import"]
    assert complete("layerfs run deb") == ["debian:12"]
    assert complete("layerfs run --network h") == ["host"]
    assert complete("layerfs copy deb") == ["debian:12"]
    assert complete("layerfs inspect docker-") == ["docker-archive:"]
    assert f"{tmp_path}/completion" in complete(f"layerfs pull --authfile {tmp_path}/comp")
    assert "--hostname" in complete("layerfs run --ho")
    assert complete("layerfs --driver f") == ["fuse"]
    assert complete("layerfs mount --driver f") == ["fuse"]
    assert complete("layerfs mount -o no") == ["nosuid"]
    assert complete("layerfs mount -o ro,squ") == ["ro,squash_to_uid="]


def test_pressing_tab_makes_no_store(tmp_path: Path) -> None:
    root = tmp_path / "store"
    command = [sys.executable, "-m", "layerfs", "--root", str(root), "completion", "--names", "both"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not root.exists()
