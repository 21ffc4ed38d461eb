"""The part of the contract about what is in layers: kept exactly, changed only on top, told exactly."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.driver import Driver
from layerfs.errors import LayerError
from layerfs.testing.base import ContractBase
from layerfs.testing.items import TIME, directory, expected, file, hard_link, node, symlink, whiteout
from layerfs.testing.layer_cases import ACL, CAPABILITY, CASES, DEFAULT_ACL, Case
from layerfs.testing.snapshot import differences, snapshot
from layerfs.testing.stack import Stack
from layerfs.testing.trees import make_socket, rewrite

_TEN_DEEP = 10
_DEEP = 600


class CasesContract(ContractBase):
    """One result for every odd layer, whatever the driver."""

    @pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
    def test_a_layer_has_its_one_defined_result(self, driver: Driver, stack: Stack, case: Case) -> None:
        for lower in case.lower:
            stack.apply(lower)
        before = stack.tree() if stack.layers else {}
        if case.tree is None:
            with pytest.raises(LayerError):
                stack.apply(case.layer)
            assert sorted(driver.layers()) == sorted(stack.layers)
            return
        stack.apply(case.layer)
        found, wanted = stack.tree(), expected(case.tree)
        if b"" not in wanted:
            wanted[b""] = found[b""]
        assert differences(found, wanted) == []
        if before:
            assert differences(stack.fork(len(case.lower)).tree(), before) == []

    @pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
    def test_the_changes_of_an_odd_layer_make_the_same_tree_again(self, stack: Stack, case: Case) -> None:
        if case.tree is None:
            return
        for lower in case.lower:
            stack.apply(lower)
        again = stack.fork()
        stack.apply(case.layer)
        again.apply(stack.archive())
        assert differences(again.tree(), stack.tree()) == []
        slowly = stack.fork(len(again.layers) - 1)
        slowly.apply(stack.archive(stack.compared()))
        assert differences(slowly.tree(), stack.tree()) == []


class ContentContract(ContractBase):
    """What is edited through a mount, seen by later layers, and listed as changes."""

    def test_changes_are_exact_for_added_modified_and_deleted_files(self, stack: Stack) -> None:
        stack.apply(
            [directory(b"d"), file(b"d/changed", b"1"), file(b"d/deleted", b"2"), file(b"kept", b"3")]
        )
        with stack.edited() as place:
            (place / "d" / "changed").write_text("changed")
            (place / "d" / "deleted").unlink()
            (place / "d" / "added").touch()
            (place / "new" / "directory").mkdir(parents=True)
        assert stack.listed() == [
            "C /d", "A /d/added", "C /d/changed", "D /d/deleted", "A /new", "A /new/directory",
        ]  # fmt: skip

    def test_changes_of_a_base_layer_are_all_added(self, stack: Stack) -> None:
        with stack.edited() as place:
            (place / "d").mkdir()
            (place / "d" / "f").touch()
        assert stack.listed() == ["A /d", "A /d/f"]

    def test_what_is_undone_is_no_change(self, stack: Stack) -> None:
        stack.apply([directory(b"d"), file(b"d/f", b"1")])
        with stack.edited() as place:
            (place / "new").touch()
            (place / "new").unlink()
            (place / "d" / "other").touch()
            (place / "d" / "other").unlink()
            for name, time in (("d", TIME), ("", stack.fork(1).tree()[b""].mtime_ns)):
                os.utime(place / name, ns=(time, time))
        assert stack.listed() == []

    def test_the_layers_below_never_change(self, stack: Stack) -> None:
        stack.apply([directory(b"d"), file(b"d/f", b"1"), symlink(b"l", b"d"), node(b"p", "fifo")])
        before = stack.tree()
        with stack.edited() as place:
            (place / "d" / "f").write_text("changed")
            (place / "d").chmod(0o700)
            os.chown(place / "l", 5, 5, follow_symlinks=False)
            (place / "p").unlink()
            os.setxattr(place, "user.x", b"1")
        assert differences(stack.fork(1).tree(), before) == []

    def test_a_root_hands_its_attributes_down_to_every_layer_above(self, stack: Stack) -> None:
        stack.apply([directory(b"./", mode=0o1750, uid=3, gid=4, xattrs={b"user.x": b"1"})])
        with stack.edited() as place:
            assert stat.S_IMODE(place.stat().st_mode) == 0o1750
        stack.apply([file(b"f")])
        stack.finish(stack.create())
        facts = stack.tree()[b""]
        assert (facts.mode, facts.uid, facts.gid, facts.mtime_ns) == (0o1750, 3, 4, TIME)
        assert dict(facts.xattrs) == {b"user.x": b"1"}

    def test_a_changed_root_is_seen_above_and_told(self, stack: Stack) -> None:
        stack.apply([file(b"f")])
        with stack.edited() as place:
            place.chmod(0o711)
            os.setxattr(place, "user.x", b"1")
        (change,) = [c for c in stack.changes() if not c.entry.path]
        assert (change.entry.mode, change.entry.xattrs) == (0o711, {b"user.x": b"1"})
        stack.finish(stack.create())
        assert stack.tree()[b""].mode == 0o711

    def test_echo_a_deep_tree_removed_and_made_again_at_each_depth(self, stack: Stack) -> None:
        path = "/".join(str(level) for level in range(_TEN_DEEP))
        with stack.edited() as place:
            (place / path).mkdir(parents=True)
            for level in range(_TEN_DEEP):
                (place / _upto(path, level) / "file").write_text(str(level))
        for level in range(1, _TEN_DEEP):
            removed, made = stack.fork(1), None
            with removed.edited() as place:
                shutil.rmtree(place / _upto(path, level))
            parents = [f"C /{_upto(path, above)}" for above in range(level)]
            assert removed.listed() == [*parents, f"D /{_upto(path, level)}"]
            with removed.edited() as place:
                (place / _upto(path, level)).mkdir()
                (place / _upto(path, level) / "file").write_text("again")
                made = snapshot(place)
            assert removed.listed() == [
                *parents, f"A /{_upto(path, level)}", f"A /{_upto(path, level)}/file",
            ]  # fmt: skip
            assert differences(removed.tree(), made) == []

    @pytest.mark.parametrize("turn", range(5))
    def test_an_edit_of_equal_size_and_time_is_found_by_content(self, stack: Stack, turn: int) -> None:
        stack.apply([file(b"f", b"%d" % turn), file(b"same", b"x")])
        with stack.edited() as place:
            rewrite(os.fsencode(place / "f"))
        assert stack.listed() == ["C /f"]
        with stack.edited() as place:
            (place / "f").chmod(0o600)
        assert stack.listed() == ["C /f"]

    def test_a_directory_removed_and_made_again_does_not_resurrect(self, stack: Stack) -> None:
        stack.apply([directory(b"d"), directory(b"d/sub"), file(b"d/sub/f"), file(b"d/g")])
        with stack.edited() as place:
            shutil.rmtree(place / "d")
            (place / "d" / "sub").mkdir(parents=True)
        assert sorted(stack.tree()) == [b"", b"d", b"d/sub"]
        with stack.edited() as place:
            (place / "d" / "sub" / "new").touch()
        assert sorted(stack.tree()) == [b"", b"d", b"d/sub", b"d/sub/new"]

    def test_a_deletion_survives_grandchildren(self, stack: Stack) -> None:
        stack.apply([directory(b"d"), file(b"d/f"), file(b"g")])
        with stack.edited() as place:
            (place / "d" / "f").unlink()
            (place / "g").unlink()
        for _ in range(3):
            with stack.edited() as place:
                (place / "d" / "other").touch()
        assert sorted(stack.tree()) == [b"", b"d", b"d/other"]

    def test_an_opaque_ancestor_hides_at_every_depth(self, stack: Stack) -> None:
        stack.apply(
            [directory(b"a"), directory(b"a/b"), directory(b"a/b/c"), file(b"a/b/c/f"), file(b"a/b/g")]
        )
        stack.apply([whiteout(b"a"), directory(b"a"), directory(b"a/b")])
        with stack.edited() as place:
            (place / "a" / "b" / "c").mkdir()
        assert sorted(stack.tree()) == [b"", b"a", b"a/b", b"a/b/c"]
        assert stack.listed() == ["C /a", "C /a/b", "A /a/b/c"]

    def test_owners_and_modes_of_files_and_directories_survive_commits(self, stack: Stack) -> None:
        stack.apply(
            [directory(b"d", mode=0o700, uid=1, gid=2), file(b"d/f", b"x", mode=0o4711, uid=3, gid=4)]
        )
        with stack.edited() as place:
            os.chown(place / "d", 5, 6)
            (place / "d" / "f").chmod(0o2755)
        with stack.edited() as place:
            (place / "d" / "new").touch()
        tree = stack.tree()
        assert tree[b"d"][:4] == ("directory", 0o700, 5, 6)
        assert tree[b"d/f"][:4] == ("file", 0o2755, 3, 4)
        assert tree[b"d/f"].mtime_ns == TIME

    def test_a_lower_file_hard_linked_elsewhere_and_then_removed_keeps_its_new_name(
        self, stack: Stack
    ) -> None:
        stack.apply([directory(b"d"), file(b"d/f", b"x")])
        with stack.edited() as place:
            os.link(place / "d" / "f", place / "link")
            (place / "d" / "f").unlink()
        assert stack.listed() == ["C /d", "D /d/f", "A /link"]
        stack.finish(stack.create())
        tree = stack.tree()
        assert sorted(tree) == [b"", b"d", b"link"]
        assert tree[b"link"].size == 1

    def test_hard_links_stay_together_within_a_layer_and_across_one(self, stack: Stack) -> None:
        stack.apply([file(b"a", b"x"), hard_link(b"b", b"a")])
        with stack.edited() as place:
            (place / "c").write_text("y")
            os.link(place / "c", place / "d")
            os.link(place / "a", place / "e")
        tree = stack.tree()
        assert tree[b"c"].links == tree[b"d"].links == b"c"
        assert tree[b"a"].links == tree[b"e"].links == b"a"
        again = stack.fork(1)
        again.apply(stack.archive())
        assert differences(again.tree(), tree) == []

    def test_files_and_directories_are_renamed_across_layers(self, stack: Stack) -> None:
        stack.apply([directory(b"d"), file(b"d/f", b"x"), file(b"g", b"y"), directory(b"e")])
        with stack.edited() as place:
            os.rename(place / "g", place / "d" / "g")
            # Overlayfs may answer EXDEV for a directory of a lower layer, as between file systems.
            shutil.move(place / "d", place / "e" / "d")
            os.mkdir(place / "d")
        assert sorted(stack.tree()) == [b"", b"d", b"e", b"e/d", b"e/d/f", b"e/d/g"]
        assert stack.listed() == ["C /d", "D /d/f", "C /e", "A /e/d", "A /e/d/f", "A /e/d/g", "D /g"]

    def test_types_flip_in_every_direction(self, stack: Stack) -> None:
        stack.apply(
            [file(b"f", b"x"), directory(b"d"), file(b"d/x"), symlink(b"l", b"f"), node(b"p", "fifo")]
        )
        with stack.edited() as place:
            for name in ("f", "l", "p"):
                (place / name).unlink()
            shutil.rmtree(place / "d")
            (place / "f").mkdir()
            (place / "f" / "inside").touch()
            (place / "d").symlink_to("f")
            (place / "l").write_text("now a file")
            (place / "p").mkdir()
            seen = snapshot(place)
        assert differences(stack.tree(), seen) == []
        assert stack.listed() == ["C /d", "C /f", "A /f/inside", "C /l", "C /p"]
        again = stack.fork(1)
        again.apply(stack.archive())
        assert differences(again.tree(), seen) == []

    def test_extended_attributes_lists_and_capabilities_are_kept_and_changed(self, stack: Stack) -> None:
        attributes = {b"system.posix_acl_access": ACL, b"user.keep": b"", b"user.gone": b"1"}
        stack.apply(
            [
                file(b"f", b"x", mode=0o644, xattrs=attributes),
                file(b"capable", b"x", mode=0o755, xattrs={b"security.capability": CAPABILITY}),
                directory(b"d", xattrs={b"system.posix_acl_default": DEFAULT_ACL, b"user.d": b"d"}),
            ]
        )
        lower = stack.tree()
        with stack.edited() as place:
            os.removexattr(place / "f", "user.gone")
            os.setxattr(place / "f", "user.new", b"\0\xff")
            (place / "d" / "inherits").touch()
            seen = snapshot(place)
        assert b"system.posix_acl_access" in seen[b"d/inherits"].xattrs
        assert set(seen[b"f"].xattrs) == {b"system.posix_acl_access", b"user.keep", b"user.new"}
        assert seen[b"capable"] == lower[b"capable"]
        assert differences(stack.tree(), seen) == []
        again = stack.fork(1)
        again.apply(stack.archive())
        assert differences(again.tree(), seen) == []

    def test_sparse_files_stay_sparse(self, stack: Stack) -> None:
        with stack.edited() as place, open(place / "sparse", "wb") as writer:
            writer.truncate(1 << 30)
            writer.seek(512 << 20)
            writer.write(b"x" * 5000)
        with stack.edited() as place:
            (place / "sparse").chmod(0o600)
        again = stack.fork(0)
        again.apply(stack.fork(1).archive())
        again.apply(stack.archive())
        for seen in (stack, again):
            with seen.seen() as place:
                found = (place / "sparse").stat()
                assert (found.st_size, stat.S_IMODE(found.st_mode)) == (1 << 30, 0o600)
                # Overlayfs copies up in pieces of 1 MiB, each whole.
                assert found.st_blocks * 512 <= 2 << 20
                with open(place / "sparse", "rb") as reader:
                    reader.seek((512 << 20) - 1)
                    assert reader.read(5002) == b"\0" + b"x" * 5000 + b"\0"

    def test_sockets_fifos_and_devices_are_kept_between_layers(self, stack: Stack) -> None:
        with stack.edited() as place:
            make_socket(str(place / "socket"))
            os.utime(place / "socket", ns=(TIME, TIME))
            os.chmod(place / "socket", 0o755)
            os.mkfifo(place / "fifo")
            os.mknod(place / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
            seen = snapshot(place)
        stack.finish(stack.create())
        assert differences(stack.tree(), seen) == []
        with stack.edited() as place:
            (place / "socket").unlink()
        assert stack.listed() == ["D /socket"]

    def test_a_socket_is_left_out_of_a_tar_stream_with_a_warning(self, stack: Stack) -> None:
        with stack.edited() as place:
            make_socket(str(place / "socket"))
            (place / "f").touch()
        again = stack.fork(0)
        again.apply(stack.archive())
        assert any("socket" in warning for warning in stack.warnings)
        assert sorted(again.tree()) == [b"", b"f"]

    def test_trees_deeper_than_a_path_can_be_long(self, driver: Driver, stack: Stack) -> None:
        with stack.edited() as place:
            current = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
            for _ in range(_DEEP):
                os.mkdir(b"directory", dir_fd=current)
                below = os.open(b"directory", os.O_RDONLY | os.O_DIRECTORY, dir_fd=current)
                os.close(current)
                current = below
            os.close(os.open(b"file", os.O_CREAT | os.O_WRONLY, dir_fd=current))
            os.close(current)
        before = stack.tree()
        stack.finish(stack.create())
        assert differences(stack.tree(), before) == []
        again = stack.fork(0)
        again.apply(stack.fork(1).archive())
        before[b""] = again.tree()[b""]
        assert differences(again.tree(), before) == []
        for layer in stack.layers:
            driver.remove(layer)

    def test_inodes_are_stable_while_a_tree_is_mounted(self, stack: Stack) -> None:
        stack.apply([directory(b"d"), file(b"d/f", b"x")])
        layer = stack.create()
        with stack.mounted(layer, stack.layers) as place:
            before = (place / "d").stat().st_ino, (place / "d" / "f").stat().st_ino
            with open(place / "d" / "f", "rb") as opened:
                (place / "d").chmod(0o700)
                (place / "d" / "f").chmod(0o600)
                assert os.fstat(opened.fileno()).st_ino == before[1]
                assert stat.S_IMODE(os.fstat(opened.fileno()).st_mode) == 0o600
            assert ((place / "d").stat().st_ino, (place / "d" / "f").stat().st_ino) == before

    def test_a_process_may_stand_in_a_directory_that_is_copied_up(self, stack: Stack) -> None:
        stack.apply([directory(b"d"), file(b"d/f", b"x")])
        layer = stack.create()
        with stack.mounted(layer, stack.layers) as place:
            child = os.fork()
            if child == 0:
                try:
                    os.chdir(place / "d")
                    os.chmod(".", 0o711)
                    with open("f", "a") as opened:
                        opened.write("y")
                    os._exit(0 if os.getcwd() == str(place / "d") else 2)
                finally:
                    os._exit(1)
            assert os.waitpid(child, 0)[1] == 0
            assert (place / "d" / "f").read_text() == "xy"

    def test_the_same_changes_give_the_same_bytes(self, stack: Stack) -> None:
        layer = [
            directory(b"d"),
            file(b"d/b", b"x"),
            file(b"d/a"),
            hard_link(b"z", b"d/b"),
            node(b"p", "fifo"),
        ]
        stack.apply(layer)
        other = stack.fork(0)
        other.apply([layer[0], *reversed(layer[1:3]), *layer[3:]])
        assert stack.archive() == stack.archive() == other.archive()

    def test_changes_applied_to_a_sibling_give_the_same_tree(self, stack: Stack) -> None:
        stack.apply([directory(b"d"), *(file(b"d/%d" % n, b"x" * n) for n in range(20))])
        with stack.edited() as place:
            for number in range(0, 20, 3):
                (place / "d" / str(number)).unlink()
            for number in range(1, 20, 3):
                (place / "d" / str(number)).write_text("changed")
            (place / "new").mkdir()
            seen = snapshot(place)
        again = stack.fork(1)
        again.apply(stack.archive())
        assert differences(again.tree(), seen) == []
        assert again.listed() == stack.listed()

    def test_127_layers_of_changes_equal_a_flat_copy_at_each_step(self, stack: Stack, tmp_path: Path) -> None:
        flat = tmp_path / "flat"
        flat.mkdir()
        for step in range(127):
            layer = stack.create()
            with stack.mounted(layer, stack.layers) as place:
                for root in (place, flat):
                    _change(root, step)
            stack.finish(layer)
            with stack.seen() as place:
                assert _contents(place) == _contents(flat), f"step {step}"


def _upto(path: str, level: int) -> str:
    return "/".join(path.split("/")[: level + 1])


def _change(root: Path, step: int) -> None:
    """Overwrite, delete and make opaque, in a pattern that meets each kind on each depth."""
    (root / f"f{step}").write_text(str(step))
    (root / "top").write_text(str(step))
    with contextlib.suppress(FileNotFoundError):
        (root / f"f{step - 5}").unlink()
    directory = root / f"d{step % 7}"
    if step % 3 == 0 and directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(exist_ok=True)
    (directory / f"in{step % 11}").write_text(str(step))


def _contents(root: Path) -> dict[str, str | None]:
    return {
        str(path.relative_to(root)): path.read_text() if path.is_file() else None for path in _sorted(root)
    }


def _sorted(root: Path) -> Iterator[Path]:
    yield from sorted(root.rglob("*"))
