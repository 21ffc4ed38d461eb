"""Drivers found by name, tried, and explained."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from layerfs_aufs import AufsDriver
from layerfs_fuse import FuseDriver
from layerfs_overlay2 import Overlay2Driver
from layerfs_vfs import VfsDriver

from layerfs import plugins
from layerfs.driver import Driver
from layerfs.errors import NotFoundError, UnsupportedError

ROOT = Path(__file__).parents[2]

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
        assert not found["fuse"].works
        # Aufs's format asks nothing of the file system below.
        best = "aufs" if found["aufs"].works else "vfs"
        assert plugins.choose(tmp_path / "target").name == best
    finally:
        mounting.detach(tmp_path / "target")


def test_aufs_ranks_by_what_serves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "aufs" in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has aufs")
    found = plugins.explain(tmp_path)
    assert [one.name for one in found] == ["overlay2", "fuse", "aufs", "vfs"]
    aufs = found[2]
    assert (aufs.works, aufs.note) == (
        True, "served by layerfs's FUSE union: this kernel has no aufs (ENODEV)",
    )  # fmt: skip
    monkeypatch.setattr(AufsDriver, "fallback", classmethod(lambda cls, root: None))
    found = plugins.explain(tmp_path)
    assert [(one.name, one.note) for one in found] == [
        ("overlay2", ""), ("aufs", ""), ("fuse", ""), ("vfs", ""),
    ]  # fmt: skip


def test_choose_takes_the_kernels_aufs_before_fuse_and_our_own_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    _break(monkeypatch, Overlay2Driver)
    assert plugins.choose(tmp_path / "a").name == "fuse"
    _break(monkeypatch, FuseDriver)
    assert plugins.choose(tmp_path / "b").name == "aufs"
    monkeypatch.undo()
    _break(monkeypatch, Overlay2Driver)
    monkeypatch.setattr(AufsDriver, "fallback", classmethod(lambda cls, root: None))
    assert plugins.choose(tmp_path / "c").name == "aufs"


def test_layers_of_another_driver_are_not_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("vfs", "aufs"):
        plugins.load(name, tmp_path)
    # Directories alone are no layers.
    assert plugins.choose(tmp_path).name == "overlay2"
    plugins.load("vfs", tmp_path).create("1", [])
    assert plugins.choose(tmp_path).name == "vfs"
    plugins.load("aufs", tmp_path).create("1", [])
    assert plugins.choose(tmp_path).name == "aufs"
    assert plugins.choose(tmp_path, "overlay2").name == "overlay2"
    for driver in (AufsDriver, VfsDriver):
        _break(monkeypatch, driver)
    with pytest.raises(UnsupportedError, match=r"holds layers of aufs, vfs.*aufs: broken here"):
        plugins.choose(tmp_path)


def test_where_no_driver_works_each_says_why_once(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WHERE_NOTHING_WORKS, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in ("overlay2", "fuse", "aufs", "vfs"):
        assert done.stdout.count(f"{name}: no directory can be made") == 1, done.stdout


# Where a filter keeps fsopen(2) from us, as in many containers, nobody knows whether there is aufs.
WHERE_NOTHING_WORKS = """
import errno, sys
from pathlib import Path
from layerfs import linux, plugins
from layerfs.errors import UnsupportedError
from tests.support.seccomp import refuse_calls
linux.unshare(linux.CLONE_NEWNS)
linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
linux.mount("none", sys.argv[1], "tmpfs", linux.MS_RDONLY)
refuse_calls(errno.EPERM, "fsopen")
try:
    plugins.choose(Path(sys.argv[1]))
except UnsupportedError as error:
    print(error)
"""


def test_a_driver_that_was_asked_for_and_cannot_work_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedError) as raised:
        plugins.choose(Path("/proc"), "aufs")
    assert raised.value.errno == errno.ENOENT and raised.value.hint


def _break(monkeypatch: pytest.MonkeyPatch, driver: type[Driver]) -> None:
    def check(root: Path) -> None:
        raise UnsupportedError("broken here", errno=errno.ENODEV)

    monkeypatch.setattr(driver, "check", check)
