"""Unions over plain directories, mounted by a server of ours, which is watched, or by the kernel."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from layerfs_fuse import FuseDriver, FuseMount, protocol
from layerfs_fuse.mounts import Front
from layerfs_fuse.paths import PathOperations
from layerfs_fuse.server import Server

from layerfs import linux, mounting
from layerfs.errors import UnsupportedError
from layerfs.mount import Overlay
from tests.support.servers import open_files


class Union:
    """A lower and an upper directory, and the place where they are mounted as one tree.

    Attributes:
        lower, upper, work: the directories, which exist.
        place: an existing directory for the mount.

    The upper and the work directory are made in `above`, else with the others.
    """

    def __init__(self, directory: Path, *, above: Path | None = None) -> None:
        self.lower, self.place = directory / "lower", directory / "place"
        self.upper, self.work = (above or directory) / "upper", (above or directory) / "work"
        for each in (self.lower, self.upper, self.work, self.place):
            each.mkdir(parents=True, exist_ok=True)
        self.lowers = (self.lower,)

    def mount(self, *, read_only: bool = False, passthrough: bool = True, front: Front = "kernel") -> Serving:
        """Mount with a server of our own; without `passthrough` every read and write goes through it."""
        upper, work = (None, None) if read_only else (self.upper, self.work)
        with pytest.MonkeyPatch.context() as patch:
            if not passthrough:
                patch.setattr(protocol, "WANTED", protocol.WANTED & ~protocol.Init.PASSTHROUGH)
            mount = FuseMount("layerfs-test", self.lowers, upper, work, front=front)
            mounting.attach(mount, self.place)
        return Serving(self.place)

    @contextlib.contextmanager
    def mounted(
        self, *, read_only: bool = False, passthrough: bool = True, front: Front = "kernel"
    ) -> Iterator[Serving]:
        """Mount with a server of our own for the length of a block, which may kill the server."""
        server = self.mount(read_only=read_only, passthrough=passthrough, front=front)
        try:
            yield server
        except BaseException:
            # What failed may have left files open, which would keep the server waiting.
            linux.umount(self.place, linux.MNT_DETACH)
            server.kill()
            raise
        linux.umount(self.place, linux.MNT_DETACH)
        server.wait()

    @contextlib.contextmanager
    def overlaid(self) -> Iterator[Path]:
        """Mount with the kernel's overlayfs for the length of a block."""
        options = ("index=off", "redirect_dir=on")
        mounting.attach(Overlay("layerfs-test", self.lowers, self.upper, self.work, options), self.place)
        try:
            yield self.place
        finally:
            linux.umount(self.place, 0)


class Serving:
    """The server process of a mount; by `fdinfo` of /dev/fuse, which names the connection."""

    def __init__(self, place: Path) -> None:
        self.connection = os.minor(os.stat(place).st_dev)
        self.id = self._find()

    def _find(self) -> int:
        for process in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                for descriptor, name in open_files(process).items():
                    if name == "/dev/fuse":
                        text = Path(f"/proc/{process}/fdinfo/{descriptor}").read_text()
                        found = re.search(r"fuse_connection:\s*(\d+)", text)
                        if found and int(found[1]) == self.connection:
                            return int(process)
        raise AssertionError("no process serves the mount")

    def descriptors(self) -> int:
        """Count the descriptors that it has open."""
        return len(os.listdir(f"/proc/{self.id}/fd"))

    def memory(self) -> int:
        """Give its resident memory in bytes."""
        return int(Path(f"/proc/{self.id}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def alive(self) -> bool:
        """Say whether it runs."""
        try:
            return Path(f"/proc/{self.id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    def kill(self) -> None:
        """Kill it at once, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.id, signal.SIGKILL)
        self.wait()

    def wait(self, seconds: float = 20) -> None:
        """Wait until it is gone."""
        until = time.monotonic() + seconds
        while self.alive():
            assert time.monotonic() < until, "the server does not end"
            time.sleep(0.002)


@contextlib.contextmanager
def listening() -> Iterator[list[str]]:
    """Collect the errors that servers started in the block did not expect; the list is filled at its end."""
    # An abstract address: a server has no file system in which it could find another one.
    address = f"\0layerfs-test-{os.getpid()}-{os.urandom(4).hex()}".encode()
    found: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours, pytest.MonkeyPatch.context() as patch:
        ours.bind(address)
        ours.setblocking(False)

        def failed(_: object) -> None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs, contextlib.suppress(OSError):
                theirs.setblocking(False)
                theirs.sendto(traceback.format_exc().encode()[-4000:], address)

        patch.setattr(Server, "failed", failed)
        patch.setattr(PathOperations, "failed", failed)
        try:
            yield found
        finally:
            with contextlib.suppress(BlockingIOError):
                while True:
                    found.append(ours.recv(4096).decode())


def missing(directory: Path) -> str:
    """Say why our server cannot be tested here, "" when it can."""
    if os.geteuid() != 0:
        return "needs root to mount"
    try:
        FuseDriver.check(directory)
    except UnsupportedError as error:
        return str(error)
    return ""
