"""Executes what the README shows: its library example, and every command line's grammar."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from layerfs.cli.commands import COMMANDS
from layerfs.cli.parser import build, split_global

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("layerfs_demo", ROOT / "examples/demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_the_library_example_runs_as_it_stands(tmp_path: Path) -> None:
    from layerfs import Store

    (example,) = blocks("python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
    demo().make_root(tmp_path / "root")
    with Store.open(tmp_path / "made") as store:
        store.import_tree(tmp_path / "root", "made:1")
        store.save(["made:1"], tmp_path / "image.tar")
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["exit status 0", "A /greeting", "A /motd"]
    assert (tmp_path / "layout/index.json").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_a_file_is_read_as_the_text_says(tmp_path: Path) -> None:
    from layerfs import Store

    opening, expression = re.findall(r"`(with store\.read_image\(.*?|b\"\"\.join\(.*?)`", README)
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/os-release").write_text("ID=small\n")
    with Store.open(tmp_path / "made") as store:
        store.import_tree(tmp_path / "root", "app:1")
        found: dict[str, object] = {"store": store}
        exec(f"{opening}:\n    data = {expression}", found)
    assert found["data"] == b"ID=small\n"


def test_fsspecs_options_are_all_named() -> None:
    import inspect

    from layerfs.fsspec import LayerfsFileSystem

    shown = README.partition("its storage options are")[2].partition("\n\n")[0]
    shape = inspect.signature(LayerfsFileSystem.__init__)
    names = [one.name for one in shape.parameters.values() if one.kind != one.VAR_KEYWORD][1:]
    assert all(f"`{name}`" in shown for name in names)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
@pytest.mark.parametrize("fails", [False, True], ids=["well", "with a failure"])
def test_the_demo_leaves_nothing_behind_but_in_a_directory_that_was_named(
    tmp_path: Path, fails: bool
) -> None:
    command = [sys.executable, str(ROOT / "examples/demo.py")]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    if fails:
        code = (
            "import runpy, layerfs; del layerfs.Store.push\n"
            f"runpy.run_path({command[1]!r}, run_name='__main__')"
        )
        command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode == 0) is not fails, done.stderr
    assert "== committed" in done.stdout
    assert list(tmp_path.iterdir()) == []
    if not fails:
        subprocess.run([*command, tmp_path / "kept"], capture_output=True, check=True)
        assert (tmp_path / "kept/layout/index.json").exists()


def command_lines() -> list[str]:
    lines = [line.partition("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in re.split(r";|&&|\||[<(]", line)]
    return [part.rstrip(")") for part in parts if part.startswith("layerfs ")]


@pytest.mark.parametrize("line", command_lines())
def test_every_command_line_parses(line: str) -> None:
    _, words = split_global(shlex.split(line)[1:])
    build(words[0]).parse(words[1:])


def test_the_tour_shows_most_commands() -> None:
    shown = {split_global(shlex.split(line)[1:])[1][0] for line in command_lines()}
    assert len(shown) >= len(COMMANDS) // 2


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^):]+)\)", README))))
def test_every_link_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
