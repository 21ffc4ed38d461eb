"""An ordinary user of this machine, in a mount namespace of its own that several commands share."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import linux, mounting

ROOT = Path(__file__).parents[2]
_DEVICE = os.makedev(10, 229)


class Login:
    """A user who may read this interpreter and these sources, and has a home with a store."""

    def __init__(self, uid: int, home: Path, holder: int, *, has_ranges: bool) -> None:
        self.uid = uid
        self.home = home
        self.holder = holder
        self.has_ranges = has_ranges

    def run(self, *words: object, check: bool = True, **how: object) -> subprocess.CompletedProcess[str]:
        """Run a command as the user."""
        command = self.command(*words)
        done = subprocess.run(command, capture_output=True, text=True, check=False, **how)  # type: ignore[call-overload]
        assert not check or done.returncode == 0, done.stderr
        assert isinstance(done, subprocess.CompletedProcess)
        return done

    def command(self, *words: object) -> list[str]:
        enter = ["nsenter", f"--mount=/proc/{self.holder}/ns/mnt"]
        become = ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"]
        variables = [
            f"PYTHONPATH={ROOT}:{ROOT / 'drivers'}",
            f"HOME={self.home}",
            f"PATH={os.environ['PATH']}",
        ]
        return [*enter, *become, "env", "-i", "-C", str(self.home), *variables, *map(str, words)]

    def layerfs(self, *words: object, check: bool = True, **how: object) -> subprocess.CompletedProcess[str]:
        """Run layerfs as the user, on the store in his home."""
        return self.run(*self.layerfs_words(*words), check=check, **how)

    def layerfs_words(self, *words: object) -> list[object]:
        return [sys.executable, "-m", "layerfs", "--root", self.home / "store", *words]

    def import_tree(self, tree: Path, *words: object, squash: bool = True) -> None:
        """Import a tree by these words of a command, the image last; with `squash` all is root's."""
        packed = self.home / "tree.tar"
        owners = ["--owner=0", "--group=0"] if squash else []
        subprocess.run(["tar", *owners, "-C", str(tree), "-cf", str(packed), "."], check=True)
        packed.chmod(0o644)
        *options, image = words
        done = self.layerfs(*options, packed, image, check=False)
        if "cannot make a user namespace" in done.stderr:
            pytest.skip(done.stderr)
        assert done.returncode == 0, done.stderr

    def mounts(self) -> list[mounting.MountInfo]:
        """Give the FUSE mounts that the user sees."""
        return [info for info in mounting.mount_table(self.holder) if info.fstype.startswith("fuse.")]


@contextlib.contextmanager
def login(
    uid: int, home: Path, *, ranges: str = "", fuse_conf: str = "", device: int = 0o666
) -> Iterator[Login]:
    """Make the namespace, with `home` (made here) for the user; both are gone after the block.

    Args:
        uid: a number that no other user has.
        ranges: of ids that he may map, as in a line of subuid(5) behind the name: ``START:COUNT``.
        fuse_conf: what stands in /etc/fuse.conf for him.
        device: the mode of /dev/fuse.
    """
    home.mkdir(0o700)
    os.chown(home, uid, uid)
    read, write = os.pipe()
    holder = os.fork()
    if holder == 0:
        status = 1
        try:
            files = {
                "passwd": Path("/etc/passwd").read_text() + f"tester:x:{uid}:{uid}::{home}:/bin/sh\n",
                "group": Path("/etc/group").read_text() + f"tester:x:{uid}:\n",
                "fuse.conf": fuse_conf,
                "subuid": f"tester:{ranges}\n" if ranges else "",
                "subgid": f"tester:{ranges}\n" if ranges else "",
            }
            _prepare(files, device=device)
            os.write(write, b"ready")
            os.close(write)
            signal.pause()
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    os.close(write)
    try:
        assert os.read(read, 5) == b"ready"
        yield Login(uid, home, holder, has_ranges=bool(ranges))
    finally:
        os.close(read)
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        shutil.rmtree(home)


def _prepare(files: dict[str, str], *, device: int) -> None:
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    # Else a mount of another test would live as long as this namespace.
    for info in mounting.mount_table():
        if info.fstype.startswith("fuse."):
            # One below another went with that.
            with contextlib.suppress(OSError):
                linux.umount(info.target, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)
    for needed in (Path(sys.base_prefix), Path(sys.prefix), ROOT):
        _open_way(needed)
    own = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path("/tmp")
    linux.mount("tmpfs", own, "tmpfs", 0)
    os.mknod(own / "fuse", stat.S_IFCHR, _DEVICE)
    os.chmod(own / "fuse", device)
    linux.mount(own / "fuse", "/dev/fuse", None, linux.MS_BIND)
    for name, text in files.items():
        if os.path.exists(f"/etc/{name}"):
            (own / name).write_text(text)
            linux.mount(own / name, f"/etc/{name}", None, linux.MS_BIND)


def _open_way(needed: Path) -> None:
    """Let everybody into a directory: what shuts others out is replaced by the way there alone."""
    shut = next((each for each in (*reversed(needed.parents), needed) if not _is_open(each)), None)
    if shut is None:
        return
    wanted = list(needed.iterdir()) if shut == needed else [needed]
    flags = linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | linux.AT_RECURSIVE
    trees = [(each, linux.open_tree(linux.AT_FDCWD, each, flags)) for each in wanted if not each.is_symlink()]
    links = [(each, os.readlink(each)) for each in wanted if each.is_symlink()]
    kinds = {each: each.is_dir() for each, _ in trees}
    linux.mount("tmpfs", shut, "tmpfs", 0, "mode=755")
    for link, target in links:
        link.symlink_to(target)
    for each, tree in trees:
        each.mkdir(parents=True) if kinds[each] else each.touch()
        linux.move_mount(tree, b"", linux.AT_FDCWD, each, linux.MOVE_MOUNT_F_EMPTY_PATH)
        os.close(tree)
    _open_way(needed)


def _is_open(directory: Path) -> bool:
    return bool(directory.stat().st_mode & stat.S_IXOTH)
