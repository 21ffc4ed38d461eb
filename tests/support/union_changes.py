"""Every kind of change to a union, and a server under strace while it makes one."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from layerfs import linux
from layerfs.testing.snapshot import Snapshot, differences, snapshot
from tests.support.unions import Serving, Union

# The system calls that can change a layer.
CALLS = (
    "mkdirat,mknodat,linkat,symlinkat,unlinkat,renameat,renameat2,fchownat,fchmodat,fchmod,chmod,"
    "fchown,chown,lchown,utimensat,setxattr,lsetxattr,fsetxattr,removexattr,lremovexattr,write,pwrite64,"
    "copy_file_range,sendfile,ftruncate,truncate,fallocate,mkdir,rmdir,unlink,rename,link,symlink,"
    "mknod"
)
SIZE = 200_000


def lay_out(union: Union) -> None:
    """Make layers with something of every kind: only below, only above, in both, hidden, renamed."""
    lower, upper = union.lower, union.upper
    for directory in ("d/e/f", "merged/sub", "gone", "emptied", "pure", "full/a/b"):
        (lower / directory).mkdir(parents=True)
    for number, name in enumerate(
        ("d/e/f/deep", "file", "other", "hidden", "merged/low", "merged/sub/x", "gone/y", "emptied/z",
         "full/a/1", "full/a/b/2", "linked")
    ):  # fmt: skip
        (lower / name).write_bytes(bytes([number + 1]) * SIZE)
        os.chown(lower / name, 1000, 1001)
        os.setxattr(lower / name, "user.colour", b"blue")
    os.link(lower / "linked", lower / "linked too")
    (lower / "symlink").symlink_to("file")
    os.mkfifo(lower / "fifo")
    with union.overlaid() as place:
        (place / "hidden").unlink()
        shutil.rmtree(place / "gone")
        (place / "emptied/z").unlink()
        (place / "merged/high").write_bytes(b"h" * SIZE)
        (place / "above").write_bytes(b"a" * SIZE)
        (place / "new").mkdir()
        (place / "new/inside").write_bytes(b"i")
        (place / "hollow").mkdir()
        os.rename(place / "full", place / "moved")
    assert upper.exists()


Change = Callable[[Path], object]


def write(path: Path) -> Iterator[None]:
    with open(path, "r+b", buffering=0) as file:
        yield  # copied up, which another name of the file may show
        file.write(b"new")


def replace(path: Path) -> Iterator[None]:
    temporary = path.with_name("temporary")
    with open(temporary, "wb", buffering=0) as file:
        yield
        file.write(b"n" * SIZE)
    yield
    os.rename(temporary, path)


def change_and_unlink(path: Path) -> Iterator[None]:
    yield from write(path)
    yield
    path.unlink()


def empty(path: Path) -> None:
    open(path, "wb").close()


def exchange(one: Path, other: Path) -> None:
    linux.renameat2(linux.AT_FDCWD, bytes(one), linux.AT_FDCWD, bytes(other), linux.RENAME_EXCHANGE)


CHANGES: dict[str, Change] = {
    "copy up by writing": lambda at: write(at / "file"),
    "copy up with parents": lambda at: write(at / "d/e/f/deep"),
    "copy up below a renamed directory": lambda at: write(at / "moved/a/b/2"),
    "copy up of one of two links": lambda at: write(at / "linked"),
    "copy up by chmod": lambda at: (at / "d/e/f/deep").chmod(0o600),
    "copy up of a symlink": lambda at: os.chown(at / "symlink", 5, 6, follow_symlinks=False),
    "copy up of a fifo": lambda at: os.chown(at / "fifo", 5, 6),
    "copy up of a directory": lambda at: os.chown(at / "d/e", 5, 6),
    "setxattr": lambda at: os.setxattr(at / "file", "user.colour", b"red"),
    "truncate": lambda at: os.truncate(at / "file", 10),
    "truncate by opening": lambda at: empty(at / "d/e/f/deep"),
    "create": lambda at: empty(at / "d/e/created"),
    "create over a whiteout": lambda at: empty(at / "hidden"),
    "mkdir": lambda at: (at / "d/made").mkdir(),
    "mkdir over a whiteout": lambda at: (at / "gone").mkdir(),
    "symlink over a whiteout": lambda at: (at / "hidden").symlink_to("x"),
    "link": lambda at: os.link(at / "file", at / "d/another"),
    "link over a whiteout": lambda at: os.link(at / "file", at / "hidden"),
    "unlink below": lambda at: (at / "d/e/f/deep").unlink(),
    "unlink above": lambda at: (at / "above").unlink(),
    "unlink in both": lambda at: change_and_unlink(at / "other"),
    "rmdir above": lambda at: (at / "hollow").rmdir(),
    "rmdir below": lambda at: (at / "pure").rmdir(),
    "rmdir merged": lambda at: (at / "emptied").rmdir(),
    "rename a lower file": lambda at: os.rename(at / "d/e/f/deep", at / "shallow"),
    "rename an upper file": lambda at: os.rename(at / "above", at / "d/above"),
    "rename over a lower file": lambda at: os.rename(at / "above", at / "file"),
    "rename over a whiteout": lambda at: os.rename(at / "file", at / "hidden"),
    "rename a lower directory": lambda at: os.rename(at / "d", at / "new/d"),
    "rename a merged directory": lambda at: os.rename(at / "merged", at / "new/merged"),
    "rename a renamed directory": lambda at: os.rename(at / "moved/a", at / "new/a"),
    "rename an upper directory": lambda at: os.rename(at / "new", at / "newer"),
    "rename a directory over a whiteout": lambda at: os.rename(at / "merged", at / "gone"),
    "rename a directory over an emptied one": lambda at: os.rename(at / "merged", at / "emptied"),
    "rename a directory over a lower one": lambda at: os.rename(at / "new", at / "pure"),
    "exchange files": lambda at: exchange(at / "file", at / "d/e/f/deep"),
    "exchange directories": lambda at: exchange(at / "merged", at / "d/e"),
    "replace a lower file": lambda at: replace(at / "file"),
}  # fmt: skip


def seen(place: Path) -> Snapshot:
    """Describe a tree but for times, which a change sets last."""
    return {path: facts._replace(mtime_ns=0) for path, facts in snapshot(place).items()}


class Traced:
    """A server under strace, which fails or kills it at one of its system calls."""

    def __init__(self, server: Serving, log: Path, *options: str, trace: str = CALLS) -> None:
        self.log = log
        command = ["strace", "-f", "-o", log, "-p", str(server.id), "-e", f"trace={trace}", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert "attached" in line, line

    def stop(self) -> str:
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=20)
        return self.log.read_text()

    @staticmethod
    def calls(log: str) -> list[tuple[str, int]]:
        """Read the system calls of a log, each with which of its name it is, as strace's ``when`` counts."""
        names = re.findall(r"^\d+\s+(\w+)\(", log, re.MULTILINE)
        return [(name, names[: number + 1].count(name)) for number, name in enumerate(names)]


def steps_of(change: Change, place: Path) -> Iterator[None]:
    """Do a change, with a stop after each system call that changes something."""
    between = change(place)
    if isinstance(between, Iterator):
        yield from between
    yield


def do(change: Change, place: Path) -> None:
    """Do a change, all of it."""
    for _ in steps_of(change, place):
        pass


def closest(states: list[Snapshot], after: Snapshot) -> list[str]:
    """Say how a tree differs from the one that it resembles most."""
    return min((differences(state, after) for state in states), key=len)
