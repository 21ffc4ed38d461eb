"""The contract, kept by the FUSE driver's second front end, and what is its own: libfuse 2 in between."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from layerfs_fuse import FuseDriver, FuseMount, libfuse, paths
from layerfs_fuse import union as unions
from layerfs_fuse.changes import Maker
from layerfs_fuse.nodes import Node
from layerfs_fuse.overlay_dialect import OverlayDialect
from layerfs_fuse.places import Layers
from layerfs_overlay2 import Overlay2Driver

from layerfs import Store, linux, mounting
from layerfs.errors import MountError, UnsupportedError
from layerfs.mount import Overlay
from layerfs.testing import DriverContract
from layerfs.testing.items import directory, file, hard_link, symlink
from layerfs.testing.snapshot import differences
from layerfs.testing.stack import Stack
from tests.support import hosttree
from tests.support.commandline import CommandLine
from tests.support.exerciser import Exerciser
from tests.support.unions import Union, listening


class FusepyDriver(FuseDriver):
    front = "fusepy"


class TestFusepyFrontEnd(DriverContract):
    make_driver = FusepyDriver

    @pytest.mark.parametrize("first", [FusepyDriver, Overlay2Driver])
    def test_a_layer_made_under_one_driver_of_the_format_shows_the_same_under_the_other(
        self, stack: Stack, first: type[FusepyDriver | Overlay2Driver]
    ) -> None:
        root = stack.driver.root
        second = Overlay2Driver if first is FusepyDriver else FusepyDriver
        for driver in (first(root), second(root)):
            stack.driver = driver
            if not stack.layers:
                stack.apply(
                    [directory(b"d"), file(b"d/f", b"x"), directory(b"d/sub"), file(b"d/sub/g", b"y"),
                     file(b"a", b"1"), hard_link(b"b", b"a"), symlink(b"l", b"a"), directory(b"moved")]
                )  # fmt: skip
            with stack.edited() as place:
                edit(place)
        seen, listed = stack.tree(), stack.listed()
        stack.driver = first(root)
        assert differences(stack.tree(), seen) == []
        assert stack.listed() == listed

    def test_the_mount_table_names_the_layer(self, stack: Stack) -> None:
        stack.finish(stack.create())
        layer = stack.create()
        with stack.mounted(layer, stack.layers) as place:
            found = mounting.mounted(place)
            assert found is not None and (found.source, found.fstype) == (f"layerfs-{layer}", "fuse.layerfs")
            assert not {"nosuid", "nodev"} & set(found.options)


def edit(place: Path) -> None:
    """Change something of each kind; done a second time it meets what the first left."""
    (place / "d" / "f").write_text("changed")
    shutil.rmtree(place / "d" / "sub", ignore_errors=True)
    (place / "d" / "sub").mkdir()
    shutil.move(place / "moved", place / "was moved")
    shutil.move(place / "was moved", place / "moved")
    (place / "a").unlink(missing_ok=True)
    (place / "l").unlink()
    (place / "l").symlink_to("b")
    os.setxattr(place / "b", "user.x", b"1")
    (place / "a").touch()


@pytest.fixture
def union(tmp_path: Path) -> Iterator[Union]:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    with listening() as errors:
        yield Union(tmp_path)
    assert errors == []


def test_the_server_ends_with_the_mount(union: Union) -> None:
    with union.mounted(front="fusepy") as server:
        assert server.alive()
    assert not server.alive()


def test_a_mount_attached_nowhere_leaves_no_trace(
    union: Union, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = tmp_path / "private"
    private.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(private))
    (union.lower / "f").write_text("x")
    mount = FuseMount("layerfs-test", (union.lower,), union.upper, union.work, front="fusepy")
    root = mounting.open_mount(mount)
    try:
        assert mounting.mounts_below(tmp_path) == []
        assert os.listdir(private) == []
        os.unlink("f", dir_fd=root)
        assert os.listdir(root) == []
    finally:
        os.close(root)
    assert stat.S_ISCHR((union.upper / "f").lstat().st_mode)


def test_a_killed_server_leaves_a_whole_upper_that_overlayfs_mounts(union: Union) -> None:
    (union.lower / "d").mkdir()
    (union.lower / "d" / "f").write_text("x")
    (union.lower / "d" / "g").write_text("x")
    with union.mounted(front="fusepy") as server:
        (union.place / "d" / "f").write_text("changed")
        (union.place / "d" / "g").unlink()
        opened = os.open(union.place / "open", os.O_CREAT | os.O_RDWR)
        (union.place / "open").unlink()
        server.kill()
        with pytest.raises(OSError, match=r"not connected|aborted"):
            os.listdir(union.place)
        os.close(opened)
    for mounted in (union.overlaid(), union.mounted(front="fusepy")):
        with mounted:
            assert (union.place / "d" / "f").read_text() == "changed"
            assert sorted(os.listdir(union.place)) == ["d"]
            assert os.listdir(union.place / "d") == ["f"]


@pytest.mark.parametrize("place", ["lower", "upper"])
def test_a_file_without_a_name_is_used_while_it_is_open(union: Union, place: str) -> None:
    above = getattr(union, place) / "d"
    above.mkdir()
    (above / "f").write_bytes(b"0123456789")
    with union.mounted(front="fusepy"), open(union.place / "d" / "f", "r+b", buffering=0) as opened:
        (union.place / "d" / "f").unlink()
        opened.seek(5)
        opened.write(b"x")
        opened.truncate(7)
        os.fchmod(opened.fileno(), 0o640)
        status = os.fstat(opened.fileno())
        assert (status.st_size, stat.S_IMODE(status.st_mode), status.st_nlink) == (7, 0o640, 0)
        assert os.pread(opened.fileno(), 10, 0) == b"01234x6"
        assert os.listdir(union.place / "d") == []
        # Nothing of it is left in the layer that the end of the server would have to clear away.
        upper = union.upper / "d"
        assert not upper.exists() or all(stat.S_ISCHR(one.lstat().st_mode) for one in upper.iterdir())
        (union.place / "d" / "f").write_text("another")
        assert os.pread(opened.fileno(), 10, 0) == b"01234x6"
        (union.place / "d" / "f").unlink()
        (union.place / "d").rmdir()
        assert os.pread(opened.fileno(), 10, 0) == b"01234x6"
    assert not (union.place / "d").exists()


def test_an_open_file_is_replaced_and_stays_what_it_was(union: Union) -> None:
    (union.lower / "f").write_text("old")
    with union.mounted(front="fusepy"):
        with open(union.place / "f") as lower:
            (union.place / "new").write_text("newer")
            os.rename(union.place / "new", union.place / "f")
            with open(union.place / "f") as upper:
                (union.place / "new").write_text("newest")
                os.rename(union.place / "new", union.place / "f")
                assert (lower.read(), upper.read()) == ("old", "newer")
        assert (union.place / "f").read_text() == "newest"
        assert os.listdir(union.place) == ["f"]
    assert os.listdir(union.upper) == ["f"]


def test_two_names_of_a_file_agree_at_once(union: Union) -> None:
    with union.mounted(front="fusepy"):
        first, second = union.place / "first", union.place / "second"
        first.write_text("1")
        os.link(first, second)
        assert first.stat().st_ino == second.stat().st_ino
        for content in ("22", "333", "4"):
            second.write_text(content)
            assert (first.stat().st_size, first.read_text()) == (len(content), content)
        with open(first, "a") as file:
            file.write("5")
        assert (second.stat().st_nlink, second.read_text()) == (2, "45")
        first.unlink()
        assert (second.stat().st_nlink, second.read_text()) == (1, "45")


def test_names_are_any_bytes(union: Union) -> None:
    names = sorted([b"caf\xe9", "日本".encode(), b"\xff\xfe", b"a,b\\c", b"new\nline"])
    top = os.fsencode(union.place)
    for name in names[:2]:
        (union.lower / os.fsdecode(name)).write_text("x")
    with union.mounted(front="fusepy"):
        for name in names:
            with open(os.path.join(top, name), "a") as file:
                file.write("y")
            os.setxattr(os.path.join(top, name), b"user." + name.replace(b"\n", b""), name)
            os.symlink(name, os.path.join(top, name + b" link"))
        assert sorted(os.listdir(top)) == sorted([*names, *(name + b" link" for name in names)])
        for name in names:
            path = os.path.join(top, name)
            (key,) = os.listxattr(path)
            assert os.getxattr(path, key) == name
            assert os.readlink(path + b" link") == name


@contextmanager
def another_user(uid: int, gid: int) -> Iterator[None]:
    """Be somebody else, with no privilege, for the length of a block."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def test_new_files_are_their_makers_and_obey_umask_and_default_acls(union: Union) -> None:
    with union.mounted(front="fusepy"):
        for place in (union.place, union.place / "listed"):
            place.mkdir(exist_ok=True)
            place.chmod(0o777)
        subprocess.run(["setfacl", "-d", "-m", "u::rw,g::rw,o::rw", union.place / "listed"], check=True)
        here = os.open(union.place, os.O_RDONLY | os.O_DIRECTORY)
        umask = os.umask(0o027)
        try:
            with another_user(1234, 2345):
                for name in ("file", "listed/file"):
                    os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o666, dir_fd=here))
                os.mkdir("directory", 0o777, dir_fd=here)
                os.mkfifo("fifo", 0o666, dir_fd=here)
                os.symlink("x", "symlink", dir_fd=here)
        finally:
            os.umask(umask)
            os.close(here)
        found = {
            name: (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))
            for name in ("file", "listed/file", "directory", "fifo", "symlink")
            for status in [(union.place / name).lstat()]
        }
    modes = {"file": 0o640, "listed/file": 0o666, "directory": 0o750, "fifo": 0o640, "symlink": 0o777}
    assert found == {name: (1234, 2345, mode) for name, mode in modes.items()}


def test_truncating_as_another_user_takes_setuid_away_and_copies_no_data(union: Union) -> None:
    with open(union.lower / "f", "wb") as file:
        file.truncate(1 << 40)
    (union.lower / "f").chmod(0o4777)
    with union.mounted(front="fusepy"):
        here = os.open(union.place, os.O_RDONLY | os.O_DIRECTORY)
        with another_user(1234, 2345):
            os.close(os.open("f", os.O_WRONLY | os.O_TRUNC, dir_fd=here))
        os.close(here)
        status = (union.place / "f").stat()
        assert (status.st_size, stat.S_IMODE(status.st_mode)) == (0, 0o777)


def test_times_are_kept_to_the_nanosecond_and_changed_one_at_a_time(union: Union) -> None:
    with union.mounted(front="fusepy"):
        path = union.place / "f"
        path.touch()
        os.utime(path, ns=(-1_500_000_001, 1_234_567_890_123_456_789))
        subprocess.run(["touch", "-a", "-d", "@5.000000007", path], check=True)
        status = path.stat()
        assert (status.st_atime_ns, status.st_mtime_ns) == (5_000_000_007, 1_234_567_890_123_456_789)


def test_what_libfuse_2_cannot_say_is_refused_and_harms_nothing(union: Union) -> None:
    with union.mounted(front="fusepy"):
        (union.place / "a").write_text("a")
        (union.place / "b").write_text("b")
        root = os.open(union.place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for flags in (linux.RENAME_EXCHANGE, linux.RENAME_NOREPLACE):
                with pytest.raises(OSError) as raised:
                    linux.renameat2(root, b"a", root, b"b", flags)
                assert raised.value.errno in (errno.EINVAL, errno.EEXIST)
            with pytest.raises(OSError) as raised:
                os.open(union.place, os.O_TMPFILE | os.O_RDWR)
            assert raised.value.errno == errno.EOPNOTSUPP
        finally:
            os.close(root)
        assert ((union.place / "a").read_text(), (union.place / "b").read_text()) == ("a", "b")


@pytest.mark.parametrize("seed", range(2))
def test_a_file_holds_what_was_written_however_that_was_done(union: Union, seed: int) -> None:
    (union.lower / "f").write_bytes(os.urandom(100_000))
    with union.mounted(front="fusepy"):
        used = Exerciser(union.place / "f", seed=seed)
        # libfuse 2 knows fallocate(2), fusepy does not.
        unknown = (used.allocate, used.punch, used.zero)
        used.weights = [
            0 if operation in unknown else weight
            for operation, weight in zip(used.operations, used.weights, strict=True)
        ]
        used.run(250)
    if used.path is not None:
        assert (union.upper / used.path.name).read_bytes() == bytes(used.model)


def test_a_refused_mount_says_why(union: Union) -> None:
    mount = FuseMount("layerfs-test", (union.lower,), union.upper, union.work, front="fusepy")
    with pytest.raises(FileNotFoundError):
        mounting.attach(mount, union.place / "nowhere")
    (union.place / "file").touch()
    with pytest.raises(NotADirectoryError):
        mounting.attach(mount, union.place / "file")
    union.upper.rmdir()
    with pytest.raises(MountError, match="No such file"):
        mounting.attach(mount, union.place)
    union.upper.mkdir()
    code = (
        "import sys; from pathlib import Path;"
        "from layerfs import mounting; from layerfs_fuse import FuseMount;"
        "lower, upper, work, place = map(Path, sys.argv[1:]);"
        "mounting.attach(FuseMount('x', (lower,), upper, work, front='fusepy'), place)"
    )
    places = (union.lower, union.upper, union.work, union.place)
    powerless = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", sys.executable]
    done = subprocess.run([*powerless, "-c", code, *places], capture_output=True, text=True)
    assert "MountError" in done.stderr and "mount failed: Operation not permitted" in done.stderr
    assert mounting.mounts_below(union.place) == []


def test_an_ordinary_user_mounts_by_libfuses_helper(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("fusermount") is None:
        pytest.skip("needs root, to be somebody else, and fusermount")
    libfuse.load()
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        node = os.path.join(directory, "fuse")
        os.mknod(node, stat.S_IFCHR, os.stat("/dev/fuse").st_rdev)
        os.chmod(node, 0o666)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                linux.unshare(linux.CLONE_NEWNS)
                linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
                linux.mount(node, "/dev/fuse", None, linux.MS_BIND)
                made = Union(Path(directory))
                for place in (made.lower, made.upper, made.work, made.place):
                    os.chown(place, 65534, 65534)
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                status = use_as_ordinary_user(made)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def use_as_ordinary_user(union: Union) -> int:
    """Mount at a directory and nowhere, and change something."""
    (union.lower / "f").write_text("f")
    (union.lower / "d").mkdir()
    layers = ((union.lower,), union.upper, union.work)
    mount = FuseMount("layerfs-test", *layers, OverlayDialect(True), front="fusepy")
    mounting.attach(mount, union.place)
    try:
        (union.place / "f").unlink()
        (union.place / "d").rmdir()
        (union.place / "d").mkdir()
    finally:
        subprocess.run(["fusermount", "-u", union.place], check=True)
    root = mounting.open_mount(mount)
    try:
        assert os.listdir(root) == ["d"]
    finally:
        os.close(root)
    assert stat.S_ISCHR((union.upper / "f").lstat().st_mode)
    assert os.getxattr(union.upper / "d", "user.overlay.opaque") == b"y"
    return 0


HINTED = """
import sys, ctypes.util
{}
from pathlib import Path
from layerfs import mounting
from layerfs.errors import UnsupportedError
from layerfs_fuse import FuseMount
try:
    mounting.open_mount(FuseMount("x", (Path("/"), Path("/")), None, None, front="fusepy"))
except UnsupportedError as error:
    print(error, "/", error.hint)
"""


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("sys.modules['fuse'] = None", "fusepy is not installed / `pip install fusepy`"),
        ("ctypes.util.find_library = lambda name: None", "Unable to find libfuse / `apt install libfuse2`"),
        ("import os; os.environ['FUSE_LIBRARY_PATH'] = '/none.so'", "libfuse 2 cannot be loaded: /none.so: "),
        ("fuse = sys.modules['fuse'] = type(sys)('fuse'); fuse.__file__ = 'x'", "x is not fusepy / `pip"),
    ],
    ids=["fusepy", "libfuse", "the libfuse asked for", "another module"],
)  # fmt: skip
def test_what_is_missing_is_named_with_a_hint(missing: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HINTED.format(missing)], capture_output=True, text=True, check=True
    )
    assert said in done.stdout


def test_the_driver_says_in_its_check_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fuse", None)
    with pytest.raises(UnsupportedError, match="fusepy is not installed"):
        FusepyDriver.check(tmp_path)


def test_neither_front_end_needs_the_others_modules() -> None:
    code = "import sys, {}; print(*sorted(name for name in sys.modules if 'fuse' in name))"
    for module in ("layerfs_fuse", "layerfs_fuse.libfuse, layerfs_fuse.paths"):
        done = subprocess.run(
            [sys.executable, "-c", code.format(module)], capture_output=True, text=True, check=True
        )
        found = set(done.stdout.split())
        assert "layerfs_fuse.union" in found
        assert not found & {"fuse", "layerfs_fuse.server", "layerfs_fuse.device", "layerfs_fuse.protocol"}


def test_no_more_files_are_held_however_many_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "_MOST_HELD", 100)
    for number in range(600):
        (tmp_path / f"{number % 20}").mkdir(exist_ok=True)
        (tmp_path / f"{number % 20}" / f"{number}").touch()
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        layers = Layers([root], dialect=OverlayDialect(), most_open=64)
        operations = paths.PathOperations(
            unions.Union(layers, writable=False), maker=lambda: Maker(0, 0, 0), started=lambda: None
        )
        for number in range(600):
            operations("getattr", f"/{number % 20}/{number}", None)
        gc.collect()
        assert sum(isinstance(each, Node) for each in gc.get_objects()) <= 100 + 20 + 1
    finally:
        for place in list(layers.opened):
            place.close()
        os.close(root)


def test_overlayfs_sees_the_same_tree(union: Union) -> None:
    (union.lower / "d").mkdir()
    (union.lower / "d" / "f").write_text("f")
    with union.mounted(front="fusepy"):
        os.rename(union.place / "d", union.place / "e")
        (union.place / "e" / "g").write_text("g")
        (union.place / "d").mkdir()
    options = ("index=off", "redirect_dir=on")
    mounting.attach(Overlay("layerfs-test", (union.lower,), union.upper, union.work, options), union.place)
    try:
        seen = {str(path.relative_to(union.place)) for path in union.place.rglob("*")}
    finally:
        mounting.detach(union.place)
    assert seen == {"d", "e", "e/f", "e/g"}


def test_a_container_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERFS_FUSE_FRONT", "fusepy")
    hosttree.build(tmp_path / "root")
    with Store.open(tmp_path / "store", driver="fuse") as store:
        store.import_tree(tmp_path / "root", "small:1")
    done = CommandLine(tmp_path / "store").run(
        "run", "--rm", "small:1", "sh", "-c", "echo x > /new; cat /new"
    )
    assert (done.status, done.out) == (0, "x\n"), done.err
