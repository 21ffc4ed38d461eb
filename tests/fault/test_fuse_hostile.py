"""Layers made to deceive, clients that die while they wait, and requests that nobody has heard of."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from layerfs_fuse.changes import Changes
from layerfs_fuse.overlay_dialect import OverlayDialect
from layerfs_fuse.places import Layers

from layerfs import linux
from layerfs.testing.snapshot import snapshot
from tests.support.unions import Union, listening, missing

OVERLAY = "trusted.overlay."
REDIRECTS = [
    b"..", b"../..", b".", b"", b"/", b"//", b"/..", b"/../../etc", b"../secret", b"a/../../secret", b"a/b",
    b"/target/../../secret", b"/./target", b"\0", b"target\0x", b"\xff" * 300, b"x" * 4000,
    b"/" + b"a/" * 500, b"/loop", b"loop", b"/target", b"target", b"/symlink", b"/symlink/x", b"symlink",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def able(tmp_path_factory: pytest.TempPathFactory) -> None:
    if reason := missing(tmp_path_factory.mktemp("check")):
        pytest.skip(reason)


@pytest.fixture
def union(tmp_path: Path) -> Iterator[Union]:
    """Give a union of two lower layers beside a secret that no layer may lead to."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "stolen").write_text("stolen")
    with listening() as errors:
        union = Union(tmp_path)
        union.lowers = (tmp_path / "lower2", tmp_path / "lower")
        union.lowers[0].mkdir()
        yield union
    assert errors == []


def use(place: Path) -> set[str]:
    """Walk a tree, read and change everything in it; gives all names that were seen."""
    names = set()
    for above, directories, files in os.walk(place, onerror=lambda error: None):
        names.update(directories, files)
        for name in (*directories, *files):
            path = os.path.join(above, name)
            with contextlib.suppress(OSError):
                found = os.lstat(path)
                os.listxattr(path, follow_symlinks=False)
                if stat.S_ISREG(found.st_mode):
                    with open(path, "rb") as file:
                        names.add(file.read(100).decode(errors="replace"))
                    os.chmod(path, 0o600)
                elif stat.S_ISDIR(found.st_mode):
                    os.chmod(path, 0o711)
                    with open(os.path.join(path, "made"), "wb") as file:
                        file.write(b"made")
        if len(names) > 5000:
            raise AssertionError("the tree has no end")
    return names


@pytest.mark.parametrize("where", ["upper", "lower2", "lower"])
def test_a_redirect_leads_nowhere_but_into_the_layers_below(union: Union, where: str) -> None:
    top, bottom = union.lowers
    for layer in (bottom, top):
        (layer / "target").mkdir()
        (layer / "target" / f"in {layer.name}").write_text("x")
        (layer / "loop").mkdir()
        (layer / "symlink").symlink_to("../secret")
        os.setxattr(layer / "loop", OVERLAY + "redirect", b"/loop2")
        (layer / "loop2").mkdir()
        os.setxattr(layer / "loop2", OVERLAY + "redirect", b"/loop")
    layer = union.upper.parent / where
    for number, redirect in enumerate(REDIRECTS):
        (layer / f"evil{number}" / "below").mkdir(parents=True)
        os.setxattr(layer / f"evil{number}", OVERLAY + "redirect", redirect)
    with union.mounted() as server:
        names = use(union.place)
        assert "stolen" not in names
        assert server.alive()
        for number, _ in enumerate(REDIRECTS):
            with contextlib.suppress(OSError):
                os.rename(union.place / f"evil{number}", union.place / "moved")
            with contextlib.suppress(OSError):
                shutil.rmtree(union.place / "moved")
        assert server.alive()
    assert (union.lower.parent / "secret" / "stolen").read_text() == "stolen"
    assert sorted(os.listdir(union.lower.parent / "secret")) == ["stolen"]


@pytest.mark.parametrize(
    "kind", ["symlink to a directory", "absolute symlink", "file", "fifo", "device", "loop"]
)
@pytest.mark.parametrize("above", [True, False])
def test_what_is_a_directory_in_one_layer_and_something_else_in_another_is_never_followed(
    union: Union, kind: str, above: bool
) -> None:
    odd, plain = union.lowers if above else reversed(union.lowers)
    (plain / "d/e").mkdir(parents=True)
    (plain / "d/e/inside").write_text("inside")
    path = odd / "d"
    match kind:
        case "symlink to a directory":
            path.symlink_to("../secret")
        case "absolute symlink":
            path.symlink_to(union.lower.parent / "secret")
        case "file":
            path.write_text("file")
        case "fifo":
            os.mkfifo(path)
        case "device":
            os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(7, 200))
        case "loop":
            path.symlink_to("d")
    with union.overlaid():
        expected = snapshot(union.place)
    with union.mounted(read_only=True):
        # The root is that of the topmost layer.
        assert snapshot(union.place) | {b"": expected[b""]} == expected
    with union.mounted() as server:
        assert snapshot(union.place) == expected
        shutil.rmtree(union.place / "d") if not above else (union.place / "d").unlink()
        (union.place / "d").mkdir()
        (union.place / "d" / "new").write_text("new")
        assert os.listdir(union.place / "d") == ["new"]
        assert server.alive()
    assert os.listdir(union.lower.parent / "secret") == ["stolen"]


def test_odd_attributes_and_whiteouts_are_what_the_kernel_makes_of_them(union: Union) -> None:
    top, bottom = union.lowers
    for number, opaque in enumerate((b"y", b"x", b"n", b"", b"yes", b"y\0", b"Y", b"\xff" * 2000)):
        for layer in (top, bottom):
            (layer / f"d{number}").mkdir()
            (layer / f"d{number}" / f"in {layer.name}").write_text("x")
        os.setxattr(top / f"d{number}", OVERLAY + "opaque", opaque)
        if opaque == b"x":
            # Here, and only here, a marked empty file is a whiteout.
            for name in ("empty", "in lower"):
                (top / f"d{number}" / name).touch()
                os.setxattr(top / f"d{number}" / name, OVERLAY + "whiteout", b"")
    os.setxattr(bottom / "d0", "user.large", b"x" * 3000)
    long = "x" * 255
    (bottom / long).write_text("hidden")
    os.mknod(top / long, stat.S_IFCHR, 0)
    # A whiteout that hides nothing, one in the lowest layer, a device with the number of none.
    os.mknod(top / "nothing", stat.S_IFCHR, 0)
    os.mknod(bottom / "lowest", stat.S_IFCHR, 0)
    os.mknod(bottom / "block", stat.S_IFBLK | 0o600, 0)
    os.mknod(bottom / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (top / "file with attributes").write_text("x")
    os.setxattr(top / "file with attributes", OVERLAY + "opaque", b"y")
    with union.overlaid():
        expected = snapshot(union.place)
    with union.mounted() as server:
        assert sorted(snapshot(union.place)) == sorted(expected)
        assert snapshot(union.place) == expected
        (union.place / long).write_text("mine")
        (union.place / long).unlink()
        (union.place / "nothing").mkdir()
        (union.place / "lowest").write_text("x")
        assert server.alive()


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFCHR, stat.S_IFLNK, stat.S_IFSOCK])
def test_data_of_a_metadata_only_copy_is_a_regular_file_or_none(union: Union, kind: int) -> None:
    copy, data = (layer / "f" for layer in union.lowers)
    copy.write_bytes(bytes(5))
    os.setxattr(copy, OVERLAY + "metacopy", b"")
    if kind == stat.S_IFLNK:
        data.symlink_to(union.lower.parent / "secret" / "stolen")
    else:
        os.mknod(data, kind | 0o600, os.makedev(1, 5))  # endless zeros, were it opened
    with union.mounted() as server:
        for mode in ("rb", "r+b"):
            with pytest.raises(OSError, match="error"):
                (union.place / "f").open(mode).read(5)
        assert server.alive() and os.statvfs(union.place).f_bsize


def test_a_symlink_has_no_mode_that_could_be_changed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.touch(0o600)
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "upper" / "link").symlink_to(victim)
    with contextlib.ExitStack() as opened:
        upper, work = (os.open(tmp_path / name, os.O_RDONLY | os.O_DIRECTORY) for name in ("upper", "work"))
        opened.callback(os.close, upper)
        opened.callback(os.close, work)
        # Kernels before 6.6 send such a request; later ones refuse by themselves.
        union = Changes(Layers([upper], dialect=OverlayDialect(), most_open=10), work)
        node = union.lookup(union.nodes.root, b"link")
        assert node is not None
        with pytest.raises(OSError, match="not supported"):
            union.chmod(node, 0o777)
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600


def test_a_lower_layer_that_changes_beneath_harms_nobody_else(union: Union) -> None:
    for name in ("d/e/f", "gone/x", "swapped"):
        (union.lower / name).mkdir(parents=True)
    for number in range(50):
        (union.lower / "d" / f"file{number}").write_text("x")
    with union.mounted() as server:
        os.listdir(union.place / "d")
        opened = open(union.place / "d/file1")  # noqa: SIM115  open while its layer changes
        for number in range(25):
            (union.lower / "d" / f"file{number}").unlink()
        shutil.rmtree(union.lower / "gone")
        (union.lower / "swapped").rmdir()
        (union.lower / "swapped").symlink_to("../secret")
        (union.lower / "d" / "file30").unlink()
        (union.lower / "d" / "file30").mkdir()
        for path in ("d/file1", "d/file2", "gone/x", "swapped", "swapped/stolen", "d/file30", "d/file40"):
            for action in (
                lambda path: (union.place / path).read_text(),
                lambda path: (union.place / path).write_text("y"),
                lambda path: (union.place / path).chmod(0o700),
                lambda path: os.listdir(union.place / path),
                lambda path: os.rename(union.place / path, union.place / "renamed"),
                lambda path: os.unlink(union.place / path),
                lambda path: os.rmdir(union.place / path),
            ):
                with contextlib.suppress(OSError):
                    action(path)
        opened.close()
        assert server.alive()
        assert (union.place / "d/file45").read_text() == "x"
        (union.place / "d/file45").write_text("still works")
    assert (union.lower.parent / "secret" / "stolen").read_text() == "stolen"


def test_clients_killed_while_they_wait_leave_the_server_at_work(union: Union) -> None:
    (union.lower / "large").write_bytes(bytes(30 << 20))
    for number in range(200):
        (union.lower / f"file{number}").write_text("x")
    script = """
import os, sys
place = sys.argv[1]
while True:
    for number in range(200):
        for change in (os.listdir, lambda path: os.chmod(f"{path}/file{number}", 0o600),
                       lambda path: os.chmod(f"{path}/large", 0o600),
                       lambda path: open(f"{path}/file{number}.new", "w").write("x" * 100_000),
                       lambda path: os.rename(f"{path}/file{number}.new", f"{path}/file{number}"),
                       lambda path: open(f"{path}/file{number}").read()):
            try:
                change(place)
            except OSError:
                pass
"""
    with union.mounted(passthrough=False) as server:
        for round_ in range(6):
            clients = [subprocess.Popen([sys.executable, "-S", "-c", script, union.place]) for _ in range(4)]
            time.sleep(0.05 + round_ / 50)
            # Requests queue up while the server stands still; those who asked are killed meanwhile.
            os.kill(server.id, signal.SIGSTOP)
            time.sleep(0.02)
            for client in clients:
                client.kill()
            time.sleep(0.01)
            os.kill(server.id, signal.SIGCONT)
            for client in clients:
                client.wait(20)
        assert server.alive()
        assert len([name for name in os.listdir(union.place) if not name.endswith(".new")]) == 201
        (union.place / "file1").write_text("works")
        assert (union.place / "file1").read_text() == "works"


def test_an_aborted_connection_ends_the_server_and_keeps_the_layer(union: Union) -> None:
    (union.lower / "file").write_text("x")
    with union.mounted() as server:
        (union.place / "file").write_text("changed")
        opened = os.open(union.place / "file", os.O_RDWR)
        control = union.lower.parent / "control"
        control.mkdir()
        subprocess.run(["mount", "-t", "fusectl", "none", control], check=True)
        try:
            (control / str(server.connection) / "abort").write_text("1")
        finally:
            subprocess.run(["umount", control], check=True)
        server.wait()
        with pytest.raises(OSError):
            os.listdir(union.place)
        os.close(opened)
    with union.mounted():
        assert (union.place / "file").read_text() == "changed"


def test_calls_that_the_server_does_not_know_fail_and_no_more(union: Union) -> None:
    (union.lower / "file").write_text("x" * 10_000)
    (union.lower / "d").mkdir()
    library = ctypes.CDLL(None, use_errno=True)
    with union.mounted() as server:
        for path in ("file", "d", "."):
            file = os.open(union.place / path, os.O_RDONLY)
            for request in (
                0x80086601,
                0x40086602,
                0x5451,
                1,
                0xC020660B,
                0x40049409,
                0xC0406655,
                0x7FFFFFFF,
            ):
                buffer = ctypes.create_string_buffer(4096)
                library.ioctl(file, ctypes.c_ulong(request), buffer)
            for offset in (0, 1 << 62):
                with contextlib.suppress(OSError):
                    os.posix_fadvise(file, offset, 10, os.POSIX_FADV_WILLNEED)
            with contextlib.suppress(OSError):
                os.lseek(file, (1 << 63) - 1, os.SEEK_DATA)
            os.close(file)
        # bmap, quota, file handles, swap: whatever the kernel passes on.
        with contextlib.suppress(OSError):
            linux.renameat2(linux.AT_FDCWD, bytes(union.place / "file"), linux.AT_FDCWD,
                            bytes(union.place / "x"), 1 << 20)  # fmt: skip
        file = os.open(union.place / "file", os.O_RDWR)
        for mode in (8, 32, 64, 128, 1 << 20):
            with pytest.raises(OSError) as caught:
                linux.fallocate(file, mode, 0, 4096)
            assert caught.value.errno in (errno.EOPNOTSUPP, errno.EINVAL)
        os.close(file)
        subprocess.run(["swapon", union.place / "file"], check=False, stderr=subprocess.DEVNULL)
        assert server.alive()
        assert (union.place / "file").read_text() == "x" * 10_000
