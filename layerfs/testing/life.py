"""The part of the contract about a layer's life: made, listed, mounted, removed, by one process or by two."""

from __future__ import annotations

import os
import signal
import stat
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from layerfs import mounting
from layerfs.driver import Copies, Driver, Measures, Seals, Sweeps
from layerfs.errors import ExistsError, InUseError, NotFoundError, UnsupportedError
from layerfs.mount import Bind
from layerfs.testing.base import ContractBase
from layerfs.testing.items import directory, file, hard_link
from layerfs.testing.snapshot import differences
from layerfs.testing.stack import Stack, new_id
from layerfs.testing.trees import make_socket

_READERS = 2
_ROUNDS = 8


class LifeContract(ContractBase):
    """What a driver promises about layers as wholes."""

    def test_check_passes_here_and_leaves_nothing_behind(self, driver: Driver, root: Path) -> None:
        before = os.listdir(root)
        type(driver).check(root)
        assert os.listdir(root) == before

    def test_check_of_a_place_that_cannot_be_written_says_why(self, driver: Driver, tmp_path: Path) -> None:
        place = tmp_path / "read-only"
        place.mkdir()
        mounting.attach(Bind("read-only", place, read_only=True), place)
        try:
            with pytest.raises((UnsupportedError, OSError)):
                type(driver).check(place)
        finally:
            mounting.detach(place)

    def test_the_root_of_an_empty_layer_is_0755_and_roots(self, stack: Stack) -> None:
        stack.finish(stack.create())
        tree = stack.tree()
        assert list(tree) == [b""]
        assert (tree[b""].type, tree[b""].mode, tree[b""].uid, tree[b""].gid) == ("directory", 0o755, 0, 0)

    def test_an_empty_layer_changes_nothing(self, stack: Stack) -> None:
        stack.apply([directory(b"d", mode=0o1777), file(b"d/f", b"x", mode=0o4755, uid=7)])
        before = stack.tree()
        stack.finish(stack.create())
        assert differences(stack.tree(), before) == []
        assert stack.listed() == []

    def test_the_list_of_layers_is_exactly_the_created_ones(self, driver: Driver, stack: Stack) -> None:
        assert list(driver.layers()) == []
        base, child, sibling = stack.apply([]), stack.apply([]), stack.fork(1).apply([])
        assert sorted(driver.layers()) == sorted([base, child, sibling])
        driver.remove(child)
        assert sorted(driver.layers()) == sorted([base, sibling])
        reopened = type(self).make_driver(driver.root)
        assert sorted(reopened.layers()) == sorted([base, sibling])

    def test_removing_is_idempotent_and_takes_what_is_not_there(self, driver: Driver, stack: Stack) -> None:
        layer = stack.apply([file(b"f")])
        driver.remove(layer)
        driver.remove(layer)
        driver.remove(new_id())

    def test_an_id_is_taken_while_its_layer_lives_and_free_afterwards(
        self, driver: Driver, stack: Stack
    ) -> None:
        layer = stack.apply([file(b"old")])
        with pytest.raises(ExistsError):
            driver.create(layer, [])
        with pytest.raises(ExistsError):
            driver.create(layer, [stack.fork(0).apply([])])
        assert b"old" in stack.tree()
        driver.remove(layer)
        driver.create(layer, [])
        assert list(stack.tree()) == [b""]

    def test_a_missing_layer_is_an_error(self, driver: Driver, stack: Stack) -> None:
        layer, missing = stack.apply([]), new_id()
        with pytest.raises(NotFoundError):
            driver.create(new_id(), [layer, missing])
        with pytest.raises(NotFoundError):
            driver.create(new_id(), [missing, layer])
        for read_only in (True, False):
            with pytest.raises(NotFoundError):
                driver.mount(missing, [layer], read_only=read_only)
            with pytest.raises(NotFoundError):
                driver.mount(layer, [missing], read_only=read_only)
        assert list(driver.layers()) == [layer]

    def test_ids_of_one_and_of_64_characters_work(self, driver: Driver, stack: Stack) -> None:
        for layer in ("a", "0" * 64):
            driver.create(layer, stack.layers)
            stack.finish(layer)
        assert sorted(driver.layers()) == ["0" * 64, "a"]
        assert list(stack.tree()) == [b""]

    def test_a_layer_can_be_written_again_and_again_before_it_is_finished(self, stack: Stack) -> None:
        stack.apply([file(b"below")])
        layer = stack.create()
        for name in ("first", "second"):
            with stack.mounted(layer, stack.layers) as place:
                (place / name).write_text(name)
        with stack.mounted(layer, stack.layers) as place:
            assert sorted(os.listdir(place)) == ["below", "first", "second"]

    def test_a_layer_applied_can_still_be_written(self, stack: Stack) -> None:
        layer = stack.create()
        stack.unpack(layer, stack.unpack_of([file(b"applied")]))
        with stack.mounted(layer, stack.layers) as place:
            (place / "written").touch()
        stack.finish(layer)
        assert sorted(stack.tree()) == [b"", b"applied", b"written"]

    @pytest.mark.parametrize("depth", [1, 2])
    def test_a_read_only_mount_refuses_every_write(self, stack: Stack, depth: int) -> None:
        for _ in range(depth):
            stack.apply([directory(b"d"), file(b"d/f", b"x")])
        with stack.seen() as place:
            writes: list[Callable[[], object]] = [
                lambda: (place / "new").touch(),
                lambda: (place / "d" / "f").write_text("y"),
                lambda: (place / "d" / "f").unlink(),
                lambda: (place / "d").chmod(0o700),
                lambda: os.setxattr(place / "d", "user.x", b""),
            ]
            for write in writes:
                with pytest.raises(OSError, match="Read-only"):
                    write()

    def test_several_read_only_mounts_at_once_show_the_same(self, stack: Stack) -> None:
        stack.apply([file(b"f", b"1")])
        stack.apply([file(b"g", b"2")])
        with stack.seen() as one, stack.seen() as other, stack.fork(1).seen() as lower:
            assert sorted(os.listdir(one)) == sorted(os.listdir(other)) == ["f", "g"]
            assert os.listdir(lower) == ["f"]

    def test_siblings_are_written_at_once_and_do_not_see_each_other(self, stack: Stack) -> None:
        stack.apply([file(b"f", b"base")])
        with stack.fork().edited() as one, stack.fork().edited() as other:
            (one / "f").write_text("one")
            (other / "new").touch()
            assert (other / "f").read_text() == "base"
            assert not (one / "new").exists()

    def test_a_layer_is_not_removed_while_something_is_mounted_beneath_it(
        self, driver: Driver, stack: Stack, tmp_path: Path
    ) -> None:
        precious = tmp_path / "precious"
        precious.mkdir()
        (precious / "file").write_text("kept")
        layer = stack.create()
        beneath = [place for place in driver.root.rglob("*") if layer in place.parts and place.is_dir()]
        if not beneath:
            return  # the driver keeps its layers elsewhere: nothing can be mounted beneath them
        mounting.attach(Bind("beneath", precious, read_only=False), beneath[-1])
        try:
            with pytest.raises(InUseError):
                driver.remove(layer)
        finally:
            mounting.detach(beneath[-1])
        assert (precious / "file").read_text() == "kept"
        driver.remove(layer)
        assert list(driver.layers()) == []

    def test_a_failed_unpack_passes_its_error_on_and_the_layer_can_be_removed(
        self, driver: Driver, stack: Stack
    ) -> None:
        for _ in range(2):
            layer = stack.create()

            def fail(directory: int, **how: object) -> None:
                os.close(os.open("half", os.O_CREAT | os.O_WRONLY, dir_fd=directory))
                raise OSError(28, "No space left on device")

            with pytest.raises(OSError, match="No space"):
                stack.unpack(layer, fail)
            driver.remove(layer)
            driver.create(layer, stack.layers)
            stack.unpack(layer, stack.unpack_of([file(b"whole")]))
            stack.finish(layer)
            assert sorted(stack.tree()) == [b"", b"whole"]

    def test_a_copy_stays_as_it_is_when_its_source_is_written_and_removed(
        self, driver: Driver, stack: Stack
    ) -> None:
        stack.apply([directory(b"d"), file(b"d/below", b"below"), file(b"gone")])
        layer = stack.create()
        with stack.mounted(layer, stack.layers) as place:
            (place / "d" / "below").write_text("changed")
            (place / "gone").unlink()
            (place / "big").write_bytes(b"x" * (2 << 20))
            os.link(place / "big", place / "link")
            make_socket(str(place / "socket"))
        source = stack.fork()
        source.layers.append(layer)
        copy = source.copied()
        if copy is None:
            return
        assert len(source.warnings) == 1 and "'socket'" in source.warnings[0]
        with stack.mounted(layer, stack.layers) as place:
            with open(place / "big", "r+b") as big:
                big.write(b"y")
            (place / "d" / "below").write_text("changed again")
            (place / "gone").touch()
        driver.remove(layer)
        assert copy.listed() == ["A /big", "C /d", "C /d/below", "D /gone", "A /link"]
        with copy.seen() as place:
            assert (place / "link").read_bytes() == b"x" * (2 << 20)
            assert (place / "d" / "below").read_text() == "changed"

    def test_copies_of_what_is_not_there_or_to_what_is_are_errors(self, driver: Driver, stack: Stack) -> None:
        if not isinstance(driver, Copies):
            return
        layer, source = stack.apply([]), stack.create()
        with pytest.raises(NotFoundError):
            driver.copy(new_id(), new_id(), [layer], warn=stack.warnings.append)
        with pytest.raises(NotFoundError):
            driver.copy(new_id(), source, [new_id()], warn=stack.warnings.append)
        with pytest.raises(ExistsError):
            driver.copy(layer, source, [layer], warn=stack.warnings.append)
        assert sorted(driver.layers()) == sorted([layer, source])

    def test_a_sealed_layer_is_sealed_again_without_harm(self, driver: Driver, stack: Stack) -> None:
        layer = stack.apply([file(b"f")])
        if isinstance(driver, Seals):
            driver.seal(layer)
        assert sorted(stack.tree()) == [b"", b"f"]

    def test_usage_counts_what_a_layer_holds_and_a_hard_link_once(self, driver: Driver, stack: Stack) -> None:
        if not isinstance(driver, Measures):
            return
        stack.apply([])
        empty = driver.usage(stack.layers[-1], [])
        stack.fork(0).apply([])
        layer = stack.fork(0).apply([file(b"f", b"x" * (1 << 20)), hard_link(b"g", b"f"), directory(b"d")])
        full = driver.usage(layer, [])
        assert 1 << 20 <= full.bytes - empty.bytes < (1 << 20) + 64 * 1024
        assert full.inodes - empty.inodes == 2

    def test_what_lies_below_the_drivers_directory_is_for_nobody_else(
        self, driver: Driver, stack: Stack
    ) -> None:
        stack.apply([file(b"setuid", mode=0o4755)])
        stack.apply([])
        for place in driver.root.iterdir():
            if place.is_dir():
                assert stat.S_IMODE(place.stat().st_mode) & 0o077 == 0

    def test_two_processes_that_make_one_layer_at_once_are_told_apart(
        self, driver: Driver, stack: Stack
    ) -> None:
        stack.apply([file(b"f")])
        for _ in range(_ROUNDS):
            layer = new_id()
            ends = _in_processes(lambda layer=layer: _create(driver, layer, stack.layers))  # type: ignore[misc]
            assert sorted(ends) == [0, 1]
            stack.fork().finish(layer)
            driver.remove(layer)

    def test_two_processes_work_on_layers_of_their_own_at_once(self, driver: Driver, stack: Stack) -> None:
        stack.apply([directory(b"d"), file(b"d/f", b"x")])

        def work() -> int:
            mine = Stack(type(self).make_driver(driver.root), stack.directory, stack.layers)
            for number in range(_ROUNDS):
                mine.apply([file(b"n%d" % number)])
                assert len(mine.tree()) == 4 + number
            for layer in reversed(mine.layers[1:]):
                driver.remove(layer)
            return 0

        assert _in_processes(work) == [0, 0]
        assert list(driver.layers()) == stack.layers

    def test_a_process_killed_at_any_moment_leaves_only_whole_layers(
        self, driver: Driver, stack: Stack
    ) -> None:
        stack.apply([directory(b"d"), *(file(b"d/%d" % n, b"x" * 5000) for n in range(50))])
        whole = stack.tree()
        for round_ in range(_ROUNDS):
            child = os.fork()
            if child == 0:
                os.setpgid(0, 0)
                while True:
                    layer = new_id()
                    driver.create(layer, stack.layers)
                    driver.remove(layer)
            time.sleep(0.004 * round_ + 0.002)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            for layer in driver.layers():
                seen = stack.fork()
                if layer not in stack.layers:
                    seen.finish(layer)
                    assert differences(seen.tree(), whole) == []
                    driver.remove(layer)
        if isinstance(driver, Sweeps):
            layer = stack.create()
            driver.sweep()
            assert sorted(driver.layers()) == sorted([*stack.layers, layer])
            assert len(os.listdir(driver.root)) == len(list(driver.layers()))

    def test_a_stack_of_128_layers(self, stack: Stack) -> None:
        for number in range(128):
            stack.apply([file(b"f", b"%d" % number), file(b"f%d" % number)])
        tree = stack.tree()
        assert len(tree) == 130
        with stack.seen() as place:
            assert (place / "f").read_text() == "127"

    def test_the_deepest_stack_that_the_driver_claims(self, driver: Driver, stack: Stack) -> None:
        for number in range(self.deepest):
            if number in (0, self.deepest - 1):
                stack.apply([file(b"f%d" % number)])
            else:
                stack.finish(stack.create())
        with stack.edited() as place:
            assert sorted(os.listdir(place)) == sorted(["f0", f"f{self.deepest - 1}"])
            (place / "f0").unlink()
        assert stack.listed() == ["D /f0"]
        if self.limited:
            with pytest.raises(UnsupportedError, match=str(self.deepest)):
                driver.mount(stack.create(), stack.layers, read_only=False)


def _create(driver: Driver, layer: str, below: list[str]) -> int:
    try:
        driver.create(layer, below)
    except ExistsError:
        return 1
    return 0


def _in_processes(work: Callable[[], int]) -> list[int]:
    """Run `work` in two child processes that begin together; give their exit statuses."""
    start, go = os.pipe()
    children = []
    for _ in range(_READERS):
        child = os.fork()
        if child == 0:
            status = 70
            try:
                os.close(go)
                os.read(start, 1)
                status = work()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    os.close(start)
    os.close(go)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
