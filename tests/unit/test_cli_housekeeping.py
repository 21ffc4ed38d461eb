"""Tests of `gc`, `check` and `drivers`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from layerfs import linux
from tests.support.commandline import IMAGE, CommandLine, make_store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture(scope="module")
def layerfs(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    return make_store(tmp_path_factory.mktemp("store"))


def test_collecting_keeps_what_has_a_name_and_says_why(layerfs: CommandLine) -> None:
    out = layerfs.good("gc", "--dry-run", "--verbose")
    assert "named docker.io/library/small:1" in out
    assert layerfs.good("gc") == ""
    report = layerfs.json("gc", "--dry-run")
    assert report["dry_run"]
    assert not [item for item in report["items"] if item["removed"]]


def test_what_nobody_needs_yet_stays_is_told_and_goes_without_the_grace_period(tmp_path: Path) -> None:
    layerfs = make_store(tmp_path)
    layerfs.good("create", "--name", "box", IMAGE, "true")
    layerfs.good("rmi", "--force", IMAGE)
    layerfs.good("rm", "box")
    done = layerfs.run("gc", "--grace", "12h")
    assert "1 thing that nothing needs, younger than 12 hours, stay" in done.err
    assert "image" in layerfs.good("gc", "--grace", "0s")
    assert "stay" not in layerfs.run("gc", "--grace", "0").err


@pytest.mark.parametrize("age", ["-1", "1y", "", "h", "inf", "nan"])
def test_what_is_no_age_is_refused(layerfs: CommandLine, age: str) -> None:
    done = layerfs.run("gc", f"--grace={age}")
    assert done.status == 2
    assert "is no age; such as" in done.err


def test_a_sound_store_is_said_to_be_sound(layerfs: CommandLine) -> None:
    done = layerfs.run("check")
    assert (done.status, done.out) == (0, "")
    assert "all sound" in done.err
    assert layerfs.json("check")["sound"]


def test_a_damaged_blob_is_found(tmp_path: Path) -> None:
    layerfs = make_store(tmp_path)
    config = layerfs.json("inspect", IMAGE)[0]["id"].partition(":")[2]
    (layerfs.root / "blobs/sha256" / config).write_bytes(b"damaged")
    done = layerfs.run("check")
    assert done.status == 1
    assert config in done.out


def test_drivers_are_explained_without_making_a_store(tmp_path: Path) -> None:
    layerfs = CommandLine(tmp_path / "store")
    found = {one["name"]: one for one in layerfs.json("drivers")}
    assert found["vfs"]["works"]
    assert "overlay2" in layerfs.good("drivers")
    assert list(tmp_path.iterdir()) == []


def test_drivers_say_what_serves_aufs(tmp_path: Path) -> None:
    layerfs = CommandLine(tmp_path / "store")
    (aufs,) = (one for one in layerfs.json("drivers") if one["name"] == "aufs")
    if "aufs" in Path("/proc/filesystems").read_text():
        assert aufs["works"] and aufs["note"] is None
    elif aufs["works"]:
        assert aufs["note"] == "served by layerfs's FUSE union: this kernel has no aufs (ENODEV)"
        assert aufs["note"] in layerfs.good("drivers")
    else:
        assert aufs["reason"].startswith("this kernel has no aufs (ENODEV), nor can layerfs's FUSE union")


def test_a_driver_that_was_asked_for_and_cannot_work_is_an_error_with_its_reason(tmp_path: Path) -> None:
    linux.mount("layerfs-test", tmp_path, "tmpfs", linux.MS_RDONLY)
    try:
        done = CommandLine(tmp_path / "store").run("--driver", "aufs", "info")
    finally:
        linux.umount(tmp_path)
    assert done.status == 1
    assert "Read-only file system" in done.err


def test_the_driver_can_be_chosen_by_option_and_by_environment(tmp_path: Path) -> None:
    layerfs = CommandLine(tmp_path / "store")
    assert layerfs.json("--driver", "vfs", "info")["driver"] == "vfs"
    done = layerfs.run("--driver", "nosuch", "info")
    assert done.status == 1
    assert "nosuch" in done.err


def test_damage_that_is_repaired_is_no_failure(tmp_path: Path) -> None:
    layerfs = make_store(tmp_path)
    next((layerfs.root / "drivers").glob("*/*/*/bin")).chmod(0o700)
    assert layerfs.run("check").status == 1
    done = layerfs.run("check", "--repair", "--deep")
    assert done.status == 0
    assert "its mode is 700" in done.out and "(repaired: its " in done.out
    assert layerfs.run("check", "--deep").status == 0


def test_a_lost_database_is_made_anew_by_a_repair_alone(tmp_path: Path) -> None:
    layerfs = make_store(tmp_path)
    layerfs.good("create", "--name", "box", IMAGE)
    for path in layerfs.root.glob("layerfs.db*"):
        path.unlink()
    done = layerfs.run("check")
    assert done.status == 1 and "check --repair" in done.err
    done = layerfs.run("check", "--repair")
    assert done.status == 0, done.err
    assert "database layerfs.db: it is missing (repaired: " in done.out
    assert IMAGE.partition(":")[0] in layerfs.good("images")
    assert "box" in layerfs.good("ps", "-a")
    assert layerfs.run("check").status == 0


def test_remains_of_stopped_processes_are_named_when_asked_for(tmp_path: Path) -> None:
    layerfs = make_store(tmp_path)
    (layerfs.root / "tmp/ingest-abc").write_bytes(b"x")
    done = layerfs.run("check", "--verbose")
    assert done.status == 0
    assert "left behind: partial tmp/ingest-abc" in done.out
    assert "layerfs gc" in done.err
    (one,) = layerfs.json("check")["leftovers"]
    assert one["kind"] == "partial"


def test_registries_are_asked_for_a_repair_only(layerfs: CommandLine) -> None:
    assert layerfs.run("check", "--from-registry").status == 2
