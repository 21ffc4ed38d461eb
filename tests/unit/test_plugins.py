"""Drivers found by name, tried, and explained."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from layerfs import plugins
from layerfs.errors import NotFoundError, UnsupportedError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="overlay2 needs root")


def test_available_lists_the_built_in_drivers_best_first_without_importing_them() -> None:
    code = (
        "import sys; from layerfs import plugins; print(*plugins.available());"
        "print([m for m in sys.modules if m.startswith('layerfs_')])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, modules = result.stdout.splitlines()
    assert [name for name in names.split() if name in plugins.BUILT_IN] == list(plugins.BUILT_IN)
    assert modules == "[]"


def test_the_built_in_drivers_are_the_entry_points_of_the_package() -> None:
    from importlib.metadata import entry_points

    ours = {p.name: p.value for p in entry_points(group=plugins.GROUP) if p.dist and p.dist.name == "layerfs"}
    assert ours == dict(plugins.BUILT_IN)


def test_a_built_in_driver_is_found_without_reading_package_metadata() -> None:
    code = (
        "import sys; from layerfs import plugins; plugins.find('vfs').load();"
        "print('importlib.metadata' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


def test_load_gives_each_driver_a_private_directory_of_its_own(tmp_path: Path) -> None:
    driver = plugins.load("vfs", tmp_path / "drivers")
    assert (driver.name, driver.root) == ("vfs", tmp_path / "drivers" / "vfs")
    assert driver.root.stat().st_mode & 0o777 == 0o700


def test_choose_takes_the_best_that_works_and_the_preferred_before_it(tmp_path: Path) -> None:
    assert plugins.choose(tmp_path).name == "overlay2"
    assert plugins.choose(tmp_path, "vfs").name == "vfs"


def test_an_unknown_driver_is_an_error_that_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as raised:
        plugins.choose(tmp_path, "nothing")
    assert raised.value.hint is not None and "overlay2, aufs, fuse, vfs" in raised.value.hint


def test_a_driver_that_cannot_be_imported_is_unsupported() -> None:
    for value in ("no_such_module:X", "layerfs_vfs:NoSuchClass", "pathlib:Path"):
        with pytest.raises(UnsupportedError):
            plugins.Plugin("odd", value).load()


def test_explain_says_why_a_driver_does_not_work(tmp_path: Path) -> None:
    found = {candidate.name: candidate for candidate in plugins.explain(tmp_path)}
    assert found["overlay2"].works and found["vfs"].works
    assert os.listdir(tmp_path) == []
    # procfs holds no directories of ours.
    found = {candidate.name: candidate for candidate in plugins.explain(Path("/proc"))}
    assert not found["vfs"].works and found["vfs"].reason
    assert not found["overlay2"].works and found["overlay2"].reason


def test_overlay_on_overlay_is_refused_with_a_hint(tmp_path: Path) -> None:
    from layerfs import mounting
    from layerfs.mount import Overlay

    for name in ("lower", "upper", "work", "target"):
        (tmp_path / name).mkdir()
    mount = Overlay("outer", (tmp_path / "lower",), tmp_path / "upper", tmp_path / "work")
    mounting.attach(mount, tmp_path / "target")
    try:
        found = {candidate.name: candidate for candidate in plugins.explain(tmp_path / "target")}
        assert not found["overlay2"].works
        assert "ext4" in found["overlay2"].hint
        assert plugins.choose(tmp_path / "target").name == "vfs"
    finally:
        mounting.detach(tmp_path / "target")
