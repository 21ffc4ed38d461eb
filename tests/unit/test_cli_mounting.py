"""Tests of `mount` and `umount`."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from layerfs_fuse.options import KNOWN

from layerfs import mounting
from tests.support.commandline import IMAGE, CommandLine, make_store
from tests.support.unions import Serving

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture(scope="module")
def layerfs(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    return make_store(tmp_path_factory.mktemp("store"))


def test_a_mounted_image_keeps_what_is_written_in_its_container(layerfs: CommandLine, tmp_path: Path) -> None:
    assert layerfs.good("mount", IMAGE, tmp_path, "--name", "edit") == "edit\n"
    try:
        (tmp_path / "new").write_text("new")
        assert "mounted at" in layerfs.good("ps")
    finally:
        layerfs.good("umount", tmp_path)
    assert not (tmp_path / "new").exists()
    assert layerfs.good("diff", "edit") == "A /new\n"
    assert layerfs.good("mount", "edit", tmp_path) == "edit\n"
    try:
        assert (tmp_path / "new").read_text() == "new"
    finally:
        layerfs.good("umount", "edit")


def test_a_container_keeps_its_driver_and_whoever_asks_for_another_is_told(
    layerfs: CommandLine, tmp_path: Path
) -> None:
    layerfs.good("create", "--name", "kept", IMAGE)
    done = layerfs.run("--driver", "vfs", "mount", "kept", tmp_path)
    layerfs.good("umount", tmp_path)
    assert done.status == 0
    assert "container kept was made with the driver overlay2 and keeps it" in done.err


def test_the_fuse_drivers_front_end_is_the_environments_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.setenv("LAYERFS_DRIVER", "fuse")
    layerfs = make_store(tmp_path)
    for front in ("kernel", "fusepy"):
        monkeypatch.setenv("LAYERFS_FUSE_FRONT", front)
        layerfs.good("mount", IMAGE, place, "--name", front)
        try:
            (place / "new").write_text("new")
            assert by_libfuse(Serving(place).id) is (front == "fusepy")
        finally:
            layerfs.good("umount", front)
        assert layerfs.good("diff", front) == "A /new\n"
    monkeypatch.setenv("LAYERFS_FUSE_FRONT", "fuse-python")
    done = layerfs.run("mount", IMAGE, place)
    assert (done.status, "hint: set it to kernel or fusepy" in done.err) == (2, True)


def by_libfuse(process: int) -> bool:
    """Say whether a process has libfuse 2 in its memory."""
    return "libfuse.so.2" in Path(f"/proc/{process}/maps").read_text()


def test_a_read_only_mount_refuses_writes(layerfs: CommandLine, tmp_path: Path) -> None:
    name = layerfs.good("mount", "--read-only", IMAGE, tmp_path).strip()
    try:
        with pytest.raises(OSError, match="Read-only"):
            (tmp_path / "new").touch()
    finally:
        layerfs.good("umount", name)


def test_options_are_given_as_to_mount(layerfs: CommandLine, tmp_path: Path) -> None:
    name = layerfs.good("mount", "-o", "nosuid,noexec", "-o", "ro", IMAGE, tmp_path).strip()
    info = mounting.mounted(tmp_path)
    assert info is not None and {"nosuid", "noexec", "ro"} <= set(info.options)
    layerfs.good("umount", name)


@pytest.mark.parametrize(
    ("driver", "words", "said", "hint"),
    [
        (
            "overlay2",
            "noexec,unheard_of,of=1",
            "has no mount option 'unheard_of', 'of=1'",
            "takes defaults, rw,",
        ),
        (
            "fuse",
            "ro,unheard_of,upperdir=/x",
            "no mount option 'unheard_of', 'upperdir=/x'",
            "squash_to_root",
        ),
        ("fuse", "timeout=x,squash_to_uid=0", "'timeout=x' makes no sense", "write timeout=SECONDS"),
        ("fuse", "a,timeout=x", "no mount option 'a'; 'timeout=x' makes no sense", "volatile"),
        ("aufs", "a,b", "no mount option 'a', 'b'", "squash_to_root"),
        (
            "fuse",
            "xattr_permissions=2,noxattrs",
            "no mount option 'xattr_permissions=2', 'noxattrs'",
            "noacl",
        ),
        ("fuse", "max_idle_threads=x", "'max_idle_threads=x' makes no sense", "write max_idle_threads=N"),
        ("vfs", "ro=1,exec=2", "'ro=1', 'exec=2' must not have a value", "nosuid, dev, nodev"),
    ],
)
def test_all_wrong_options_are_named_with_those_that_there_are(
    layerfs: CommandLine, tmp_path: Path, driver: str, words: str, said: str, hint: str
) -> None:
    done = layerfs.run("--driver", driver, "mount", "--name", "wrong", "-o", words, IMAGE, tmp_path)
    assert done.status == 2
    assert said in done.err and hint in done.err.splitlines()[-1]
    assert "wrong" not in layerfs.good("ps", "-a")


def test_the_help_names_every_option_of_the_union(layerfs: CommandLine) -> None:
    text = layerfs.good("mount", "--help")
    assert [name for name in KNOWN if name.partition("=")[0] not in text] == []


def test_a_mount_in_the_foreground_ends_with_the_interrupt(layerfs: CommandLine, tmp_path: Path) -> None:
    command = layerfs.words("mount", "--foreground", IMAGE, tmp_path)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "Ctrl-C" in process.stderr.readline()
        assert (tmp_path / "etc").is_dir()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("driver", ["overlay2", "fuse"])
@pytest.mark.parametrize("way", ["umount", "name", "rm", "umount(8)"])
def test_a_mount_in_the_foreground_ends_with_the_mount(
    layerfs: CommandLine, tmp_path: Path, driver: str, way: str
) -> None:
    ways = {
        "umount": layerfs.words("umount", tmp_path),
        "name": layerfs.words("umount", "stays"),
        "rm": layerfs.words("rm", "-f", "stays"),
        "umount(8)": ["umount", str(tmp_path)],
    }
    words = ("--driver", driver, "mount", "--foreground", "--name", "stays", IMAGE, tmp_path)
    with subprocess.Popen(layerfs.words(*words), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            assert "Ctrl-C" in process.stderr.readline()
            # Another mount is none of its business.
            other = tmp_path / "tmp"
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", other], check=True)
            subprocess.run(["umount", other], check=True)
            subprocess.run(["mount", "-o", "remount,bind,noexec", tmp_path], check=True)
            assert process.poll() is None
            subprocess.run(ways[way], check=True, capture_output=True)
            assert process.wait(timeout=20) == 0
            assert process.stderr.read() == f"{tmp_path} is not mounted any more\n"
        finally:
            process.kill()
    if way != "rm":
        layerfs.good("rm", "stays")


def test_a_mount_that_would_hide_the_store_is_refused_before_anything_is_made(
    layerfs: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(layerfs.root)
    layerfs.good("create", "--name", "ready", IMAGE)
    places = (layerfs.root, layerfs.root / "tmp", layerfs.root.parent, "/", tmp_path / "link")
    for what in ([IMAGE, "--name", "hides"], ["ready"]):
        for place in places:
            done = layerfs.run("mount", *what, place)
            assert done.status == 1
            assert f"a mount at {place} would hide the store {layerfs.root}\n" in done.err
    assert "hides" not in layerfs.good("ps", "-a")
    layerfs.good("rm", "ready")


def test_unmounting_what_is_not_mounted_fails(layerfs: CommandLine, tmp_path: Path) -> None:
    assert layerfs.run("umount", tmp_path).status == 1


def test_unmounting_a_container_that_is_not_mounted_says_so(layerfs: CommandLine) -> None:
    layerfs.good("create", "--name", "idle", IMAGE)
    done = layerfs.run("umount", "idle")
    assert done.status == 1
    assert "container idle is not mounted" in done.err
