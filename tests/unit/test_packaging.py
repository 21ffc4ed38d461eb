"""Tests of what is shipped: the wheel, the source archive, and what an installed wheel can do."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import layerfs

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "--directory", str(directory)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return directory


def test_the_wheel_holds_the_library_and_the_drivers_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert all(top.startswith("layerfs") for top in tops), tops
    assert {"layerfs/py.typed", "layerfs/cli/__init__.py", "layerfs_overlay2.py", "layerfs_vfs.py"} <= set(
        names
    )
    assert not [name for name in names if "__pycache__" in name or "tests" in name.split("/")]


def test_the_source_archive_can_be_tested(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {
        "pyproject.toml",
        "Makefile",
        "LICENSE",
        "tests/unit/test_packaging.py",
        "examples/demo.py",
    } <= names


def test_an_installed_wheel_has_its_command_and_its_drivers(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv/bin/python"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        "--quiet",
    ]
    subprocess.run([*pip, str(wheel)], check=True, stdin=subprocess.DEVNULL)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    layerfs_command = [tmp_path / "venv/bin/layerfs", "--version"]
    printed = subprocess.run(layerfs_command, capture_output=True, text=True, check=True, env=environment)
    assert printed.stdout == f"layerfs {layerfs.__version__}\n"
    script = "from layerfs import plugins; print(*[p.load().name for p in plugins.available().values()])"
    drivers = subprocess.run(
        [python, "-I", "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    assert {"overlay2", "vfs"} <= set(drivers.stdout.split())


def test_the_version_is_told_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == layerfs.__version__
    assert f"## {layerfs.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_dependency_has_a_line_in_the_readme() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    readme = (ROOT / "README.md").read_text()
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        name = requirement.partition(">")[0]
        assert f"| {name} |" in readme, f"{name} earns no line in README.md"
