"""The contract, kept by the aufs driver, and what is its own: aufs's files, and what kills leave of them."""

from __future__ import annotations

import errno
import io
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from layerfs_aufs import AufsDriver, AufsMount
from layerfs_fuse import FuseMount

from layerfs.mount import Bind
from layerfs.testing import DriverContract
from layerfs.testing.items import directory, file, hard_link, opaque, symlink, tar, whiteout
from layerfs.testing.snapshot import differences
from layerfs.testing.stack import Stack

LONG = "x" * 255
RESERVED = (".wh.", ".wh.f", ".wh..wh.plnk", ".wh..wh..opq", f".wh..wh.long.{'0' * 64}")


class TestAufsDriver(DriverContract):
    make_driver = AufsDriver

    def test_a_layer_holds_the_names_that_its_archive_has(self, stack: Stack) -> None:
        stack.apply([directory(b"d"), file(b"d/f"), directory(b"o"), file(b"o/old"), file(b"g")])
        layer = [directory(b"d"), whiteout(b"d/f"), directory(b"o"), opaque(b"o"), whiteout(b"g"),
                 symlink(b"s", b"d"), file(b"new"), hard_link(b"newer", b"new")]  # fmt: skip
        stack.apply(layer)
        with tarfile.open(fileobj=io.BytesIO(tar(layer))) as archive:
            assert _names(_diff(stack)) == sorted(archive.getnames())

    def test_a_branch_that_aufs_has_written_shows_what_aufs_would_show(self, stack: Stack) -> None:
        _fill(stack, {
            "kept": "1", "gone": "2", "dir/below": "3", "dir/sub/deep": "4", "replaced/old": "5",
            "flip/f": "6",
        })  # fmt: skip
        _fill(stack, {
            ".wh..wh.aufs": "", ".wh..wh.plnk/77.77": "linked", ".wh..wh.orph/.wh.stray": "", ".wh.gone": "",
            "dir/.wh.sub": "", "dir/own": "7", "replaced/.wh..wh..opq": "", "replaced/new": "8", "flip": "9",
        })  # fmt: skip
        diff = _diff(stack)
        os.link(diff / ".wh..wh.plnk/77.77", diff / "linked")
        assert sorted(stack.tree()) == [
            b"", b"dir", b"dir/below", b"dir/own", b"flip", b"kept", b"linked", b"replaced", b"replaced/new",
        ]  # fmt: skip
        assert stack.listed() == [
            "C /dir", "A /dir/own", "D /dir/sub", "C /flip", "D /gone", "A /linked", "C /replaced",
            "A /replaced/new", "D /replaced/old",
        ]  # fmt: skip
        again = stack.fork(1)
        again.apply(stack.archive())
        # The directories made by hand have the times of their making.
        assert sorted(again.tree()) == sorted(stack.tree())

    def test_aufs_files_in_the_only_branch_are_hidden_too(self, stack: Stack) -> None:
        _fill(stack, {".wh..wh.aufs": "", ".wh..wh.plnk/1.1": "", ".wh..wh.orph/x": "", "f": ""})
        assert sorted(stack.tree()) == [b"", b"f"]
        assert stack.listed() == ["A /f"]

    def test_names_that_are_aufss_own_are_refused(self, stack: Stack) -> None:
        stack.apply([file(b"f", b"x"), directory(b"d")])
        for below in (stack.layers, []):
            layer = stack.create() if below else stack.fork(0).create()
            with stack.mounted(layer, below) as place:
                (place / "mine").touch()
                for name in RESERVED:
                    for call in _calls(place, name):
                        with pytest.raises(PermissionError):
                            call()
                assert not any(name.startswith(".wh.") for name in os.listdir(place))

    @pytest.mark.parametrize("left", ["file", "directory", "symlink"])
    @pytest.mark.parametrize("new", ["file", "directory", "link", "renamed", "renamed directory"])
    def test_what_a_kill_left_behind_a_whiteout_is_hidden_and_replaced(
        self, stack: Stack, left: str, new: str
    ) -> None:
        stack.apply([directory(b"name"), file(b"name/below"), file(b"other", b"o"), directory(b"moved")])
        layer = stack.create()
        diff = stack.driver.root / layer / "diff"
        (diff / ".wh.name").touch()
        if left == "directory":
            (diff / "name").mkdir()
            (diff / "name" / "left").touch()
        elif left == "symlink":
            (diff / "name").symlink_to("left")
        else:
            (diff / "name").write_text("left")
        with stack.mounted(layer, stack.layers) as place:
            assert sorted(os.listdir(place)) == ["moved", "other"]
            assert not os.path.lexists(place / "name")
            _make(place, new)
            assert _content(place / "name") == _expected(new)
        assert not os.path.lexists(diff / ".wh.name")
        with stack.mounted(layer, stack.layers) as place:
            assert _content(place / "name") == _expected(new)

    def test_what_a_kill_left_behind_a_whiteout_is_no_change(self, stack: Stack) -> None:
        stack.apply([file(b"f"), file(b"g")])
        _fill(stack, {".wh.f": "", "f": "left", ".wh.new": "", "new": "left"})
        assert stack.listed() == ["D /f"]
        assert sorted(stack.tree()) == [b"", b"g"]

    @pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFREG])
    def test_what_is_no_whiteout_for_a_long_name_hides_nothing(self, stack: Stack, kind: int) -> None:
        stack.apply([file(b"f", b"x"), directory(b"d")])
        layer = stack.create()
        odd = stack.driver.root / layer / "diff" / RESERVED[-1]
        match kind:
            case stat.S_IFIFO:
                os.mkfifo(odd)
            case stat.S_IFDIR:
                odd.mkdir()
            case stat.S_IFLNK:
                odd.symlink_to("f")
            case _:
                odd.write_bytes(b"f")
        stack.finish(layer)
        stack.finish(stack.create())  # the union's, however the layers are mounted
        assert sorted(stack.tree()) == [b"", b"d", b"f"]

    def test_names_too_long_for_a_prefix_are_deleted_and_made_again(self, stack: Stack) -> None:
        stack.apply([file(LONG.encode(), b"x"), directory(b"d"), file(b"d/" + LONG.encode())])
        with stack.edited() as place:
            (place / LONG).unlink()
            (place / "d" / LONG).unlink()
            (place / "d" / LONG).mkdir()
        assert stack.listed() == ["C /d", f"C /d/{LONG}", f"D /{LONG}"]
        markers = [name for name in _names(_diff(stack)) if ".wh." in name]
        assert [name.partition(".long.")[0] for name in markers] == [".wh..wh", f"d/{LONG}/.wh..wh..opq"]
        assert sorted(stack.tree()) == [b"", b"d", b"d/" + LONG.encode()]
        with stack.edited() as place:
            assert os.listdir(place / "d" / LONG) == []
            (place / LONG).write_text("again")
        assert stack.listed() == [f"A /{LONG}"]
        again = stack.fork(1)
        again.apply(stack.fork(2).archive())
        assert differences(again.tree(), stack.fork(2).tree()) == []

    def test_merged_directories_are_renamed_whole(self, stack: Stack) -> None:
        stack.apply([directory(b"d"), file(b"d/f", b"x"), directory(b"d/sub"), file(b"d/sub/g"), file(b"k")])
        stack.apply([file(b"d/own", b"y")])
        with stack.edited() as place:
            os.rename(place / "d", place / "moved")
            (place / "d").mkdir()
            (place / "d" / "new").touch()
        # Nothing in this format says where a directory came from: its files are copied.
        assert _names(_diff(stack)) == [
            "d", "d/.wh..wh..opq", "d/new",
            "moved", "moved/.wh..wh..opq", "moved/f", "moved/own", "moved/sub", "moved/sub/.wh..wh..opq",
            "moved/sub/g",
        ]  # fmt: skip
        assert sorted(stack.tree()) == [
            b"", b"d", b"d/new", b"k", b"moved", b"moved/f", b"moved/own", b"moved/sub", b"moved/sub/g",
        ]  # fmt: skip

    def test_the_whiteouts_of_a_tree_cost_one_inode(self, stack: Stack) -> None:
        stack.apply([directory(b"d"), *(file(b"d/%d" % number) for number in range(100))])
        with stack.edited() as place:
            for path in (place / "d").iterdir():
                path.unlink()
        inodes = {os.lstat(path).st_ino for path in (_diff(stack) / "d").iterdir()}
        assert len(os.listdir(_diff(stack) / "d")) == 100 and len(inodes) == 1

    def test_a_deep_stack_is_left_to_the_union(self, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
        driver = stack.driver
        assert isinstance(driver, AufsDriver)
        for _ in range(128):
            stack.finish(stack.create())
        monkeypatch.setattr(AufsDriver, "_has_kernel", True)
        within = driver.mount(stack.layers[127], stack.layers[1:127], read_only=False)
        assert isinstance(within, AufsMount) and within.writable and len(within.branches) == 127
        assert within.branches[0] == driver.root / stack.layers[127] / "diff"
        assert isinstance(driver.mount(stack.layers[127], stack.layers[:127], read_only=True), FuseMount)

    def test_a_plain_layer_to_be_read_is_bound(self, stack: Stack) -> None:
        stack.apply([file(b"f")])
        (layer,) = stack.layers
        assert isinstance(stack.driver.mount(layer, [], read_only=True), Bind)
        (_diff(stack) / ".wh..wh.aufs").touch()
        assert not isinstance(stack.driver.mount(layer, [], read_only=True), Bind)


def _diff(stack: Stack) -> Path:
    return stack.driver.root / stack.layers[-1] / "diff"


def _fill(stack: Stack, files: dict[str, str]) -> None:
    """Put a layer on the stack whose branch holds these files."""
    stack.finish(stack.create())
    for name, content in files.items():
        path = _diff(stack) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def _names(top: Path) -> list[str]:
    return sorted(str(path.relative_to(top)) for path in top.rglob("*"))


def _calls(place: Path, name: str) -> list[Callable[[], object]]:
    return [
        lambda: os.lstat(place / name),
        lambda: (place / name).touch(),
        lambda: (place / name).mkdir(),
        lambda: (place / name).symlink_to("f"),
        lambda: os.link(place / "mine", place / name),
        lambda: os.rename(place / "mine", place / name),
        lambda: os.mkfifo(place / name),
        lambda: os.unlink(place / name),
    ]


def _make(place: Path, new: str) -> None:
    if new == "file":
        (place / "name").write_text("new")
    elif new == "directory":
        (place / "name").mkdir()
    elif new == "link":
        os.link(place / "other", place / "name")
    elif new == "renamed":
        os.rename(place / "other", place / "name")
    else:
        (place / "moved" / "in").touch()
        os.rename(place / "moved", place / "name")


def _content(path: Path) -> str | list[str]:
    return os.listdir(path) if path.is_dir() else path.read_text()


def _expected(new: str) -> str | list[str]:
    return {"file": "new", "directory": [], "link": "o", "renamed": "o", "renamed directory": ["in"]}[new]


SCRIPT = """
import os, shutil, sys
from pathlib import Path
from layerfs_aufs import AufsDriver
from layerfs.testing.items import directory, file, hard_link, opaque, whiteout
from layerfs.testing.snapshot import differences
from layerfs.testing.stack import Stack

root = Path(sys.argv[1])
for name in ("driver", "mounts"):
    (root / name).mkdir()
AufsDriver.check(root / "driver")
print(AufsDriver.fallback(root / "driver"))
stack = Stack(AufsDriver(root / "driver"), root / "mounts")
stack.apply([directory(b"d"), file(b"d/f", b"x"), file(b"g", b"y"), directory(b"o"), file(b"o/old")])
stack.apply([whiteout(b"g"), opaque(b"o"), hard_link(b"link", b"d/f")])
assert sorted(stack.tree()) == [b"", b"d", b"d/f", b"link", b"o"]
with stack.edited() as place:
    (place / "d" / "f").unlink()
    shutil.rmtree(place / "o")
    (place / "o").mkdir()
    os.rename(place / "d", place / "moved")
    (place / "new").touch()
assert stack.listed() == ["D /d", "A /moved", "A /new"], stack.listed()
assert sorted(stack.tree()) == [b"", b"link", b"moved", b"new", b"o"]
again = stack.fork(2)
again.apply(stack.archive())
assert differences(again.tree(), stack.tree()) == []
for layer in stack.driver.layers():
    stack.driver.remove(layer)
"""


def test_layers_are_applied_edited_and_compared_in_a_user_namespace(tmp_path: Path) -> None:
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode:
        pytest.skip("user namespaces are not allowed here")
    result = subprocess.run(
        [*unshare, sys.executable, "-c", SCRIPT, tmp_path], check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert errno.errorcode[errno.ENODEV] in result.stdout or "EPERM" in result.stdout
