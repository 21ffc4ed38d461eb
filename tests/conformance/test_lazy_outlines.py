"""Lazy mounts whose roots show before the rest of the layers' outlines is made."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from layerfs_fuse.unfinished import UnfinishedLayer

from layerfs import Store
from layerfs.errors import LayerfsError
from layerfs.lazy import finishing, making
from tests.support.estargz_images import EstargzImage
from tests.support.lazy_images import absent, layout, lazily, logged, packed, seen
from tests.support.servers import ends, servers

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

BIG = os.urandom(1 << 20) * 5
LAYERS = (
    packed(
        ("./", None, {"mode": 0o711, "mtime": 1_400_000_000, "gid": 3}),
        ("t", None, {"mode": 0o1777, "mtime": 1_300_000_000, "uid": 2}),
        ("t/etc", None, {"mode": 0o750, "gid": 7}),
        ("t/etc/passwd", b"root:x:0:0\n", {"mode": 0o640, "uid": 5, "gid": 6}),
        ("t/etc/removed", b"gone later"),
        ("t/su", b"#!/bin/sh\n" * 1000, {"mode": 0o4755}),
        ("t/hard", (b"1", "t/etc/passwd")),
        ("t/null", b"", {"type": b"3", "devmajor": 1, "devminor": 3, "mode": 0o666}),
        ("t/hidden", None),
        ("t/hidden/below", b"not seen"),
        ("t/big", BIG),
        ("alone", None, {"mtime": 1_200_000_000}),
        ("alone/deep", None),
        ("alone/deep/file", b"some"),
        ("link", (b"2", "t/etc/passwd")),
        ("top", b"top" * 1000, {"pax_headers": {"SCHILY.xattr.user.colour": "red"}}),
        ("pipe", b"", {"type": b"6"}),
    ),
    packed(
        ("t", None, {"mode": 0o755, "mtime": 1_600_000_000}),
        ("t/etc", None, {"mode": 0o755}),
        ("t/etc/.wh.removed", b""),
        ("t/etc/hosts", b"127.0.0.1 localhost\n" * 300),
        ("t/again", (b"1", "t/etc/passwd")),
        ("t/hidden", None),
        ("t/hidden/.wh..wh..opq", b""),
        ("t/hidden/shown", b"seen"),
        ("new", None),
    ),
)


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "WAITING_FROM", 0)


@pytest.fixture
def place(tmp_path: Path) -> str:
    return layout(tmp_path / "layout", EstargzImage(*LAYERS))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", durability="none") as opened:
        yield opened


@pytest.fixture
def expected(place: str, tmp_path: Path) -> dict[str, object]:
    """What the mount of the pulled image shows."""
    with Store.open(tmp_path / "whole", driver="fuse", durability="none") as whole:
        whole.pull(place, "app")
        with whole.containers.create("app").mounted() as tree:
            return seen(tree)


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Name a file before which no outline is made."""
    gate = tmp_path / "gate"
    finish = finishing.Unfinished.finish

    def waiting(self: finishing.Unfinished, show: Callable[[], object]) -> None:
        while not gate.exists():
            time.sleep(0.01)
        finish(self, show)

    monkeypatch.setattr(finishing.Unfinished, "finish", waiting)
    return gate


def unfinished(store: Store) -> list[Path]:
    return [
        path
        for name in ("outline", "moving", "outlined")
        for path in (store.root / "drivers" / "fuse").glob(f"*/{name}")
    ]


def test_a_mount_shows_what_that_of_the_pulled_image_does(
    store: Store, place: str, expected: dict[str, object], tmp_path: Path
) -> None:
    with lazily(store, place, tmp_path / "lazy", name="work") as tree:
        assert seen(tree) == expected
        assert unfinished(store) == []
    container = store.mount("work", tmp_path / "lazy")
    assert seen(tmp_path / "lazy") == expected
    container.unmount()
    assert store.check(contents=True).problems == ()


def test_the_root_shows_before_the_outlines_are_made(
    store: Store, place: str, expected: dict[str, object], held: Path, tmp_path: Path
) -> None:
    def top(tree: Path) -> dict[str, object]:
        found = {}
        for path in [tree, *sorted(tree.iterdir())]:
            status = path.lstat()
            found[path.name if path != tree else "."] = (
                status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_rdev,
                os.listxattr(path, follow_symlinks=False), path.is_symlink() and os.readlink(path),
            )  # fmt: skip
        return found

    with lazily(store, place, tmp_path / "lazy") as tree:
        before, numbers = top(tree), {path: path.lstat().st_ino for path in tree.iterdir()}
        assert sorted(before) == sorted(name for name in expected if "/" not in name)
        assert len(unfinished(store)) == 2
        # Whoever asks for more waits.
        found: list[object] = []
        asks: list[Callable[[], object]] = [
            lambda: os.listdir(tree / "t"),
            lambda: (tree / "top").read_bytes(),
            lambda: (tree / "t" / "etc" / "passwd").stat().st_size,
        ]
        waiting = [threading.Thread(target=lambda ask=ask: found.append(ask())) for ask in asks]
        for thread in waiting:
            thread.start()
        reader = subprocess.Popen(["cat", tree / "t" / "big"], stdout=subprocess.DEVNULL)
        time.sleep(0.1)
        assert found == []
        # Nobody waits against his will.
        reader.send_signal(signal.SIGTERM)
        assert reader.wait(10) == -signal.SIGTERM
        assert top(tree) == before
        held.touch()
        for thread in waiting:
            thread.join(20)
        assert len(found) == len(asks) and 11 in found and b"top" * 1000 in found
        assert {path: path.lstat().st_ino for path in tree.iterdir()} == numbers
        assert seen(tree)["t"] == expected["t"] and seen(tree)["alone"] == expected["alone"]


def test_changes_wait_until_the_outlines_are_made(
    store: Store, place: str, held: Path, tmp_path: Path
) -> None:
    with lazily(store, place, tmp_path / "lazy", name="work") as tree:
        changes: list[Callable[[], object]] = [
            lambda: (tree / "made").mkdir(),
            lambda: (tree / "alone").rename(tree / "moved"),
            lambda: (tree / "link").unlink(),
            lambda: (tree / "t").chmod(0o700),
        ]
        waiting = [threading.Thread(target=change) for change in changes]
        for thread in waiting:
            thread.start()
        time.sleep(0.1)
        assert len(unfinished(store)) == 2
        held.touch()
        for thread in waiting:
            thread.join(20)
        assert (tree / "moved" / "deep" / "file").read_bytes() == b"some"
        assert not os.path.lexists(tree / "link") and (tree / "t").stat().st_mode & 0o777 == 0o700
    paths = {path for _, path in store.containers.get("work").diff()}
    assert {b"/made", b"/moved", b"/alone", b"/link", b"/t"} <= paths


def test_a_mount_that_ends_before_leaves_layers_to_be_finished(
    store: Store, place: str, expected: dict[str, object], held: Path, tmp_path: Path
) -> None:
    with lazily(store, place, tmp_path / "lazy", name="work") as tree:
        os.listdir(tree)
        (server,) = servers(store.root / "drivers" / "fuse")
    assert ends(server)
    store.collect(grace=0)
    assert store.check(contents=True).problems == ()
    assert store.disk_usage().layer_bytes > 0
    assert len(unfinished(store)) == 2
    held.touch()
    store.mount("work", tmp_path / "lazy")
    assert seen(tmp_path / "lazy") == expected
    store.unmount("work")
    store.collect(grace=0)
    assert store.check(contents=True).problems == ()
    store.containers.remove("work")
    store.images.remove(store.images.list()[0].names[0])
    store.collect(grace=0)
    assert list((store.root / "drivers" / "fuse").glob("*/bodies")) == []
    assert list(store.blobs.list()) == []


class Patched:
    """The module os with other functions in some places."""

    def __init__(self, **functions: Callable[..., object]) -> None:
        self.__dict__.update(functions)

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)


@pytest.mark.parametrize(
    ("step", "before"),
    [
        ("begin", False),
        ("note_whole", True),
        ("show", True),
        ("move", False),
        ("show", False),
        ("end", False),
    ],
)
def test_a_kill_at_any_step_leaves_a_layer_that_is_finished_later(
    store: Store, place: str, expected: dict[str, object], tmp_path: Path, step: str, before: bool
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        done = getattr(UnfinishedLayer, step, None)

        def killed(self: UnfinishedLayer) -> None:
            if not before:
                assert done is not None
                done(self)
            os.kill(os.getpid(), signal.SIGKILL)

        if step == "move":
            calls = itertools.count()

            def utime(*arguments: object, **more: object) -> None:
                # All was moved, and not all have got back their times.
                if next(calls) and "dir_fd" in more:
                    os.kill(os.getpid(), signal.SIGKILL)

            patched.setattr("layerfs_fuse.unfinished.os", Patched(utime=utime))
        else:
            patched.setattr(UnfinishedLayer, step, killed)
        with lazily(store, place, tmp_path / "lazy", name="work") as tree:
            with pytest.raises(OSError) as raised:
                os.listdir(tree / "t")
            assert raised.value.errno == errno.EIO
            assert len(os.listdir(tree)) == len([name for name in expected if "/" not in name]) - 1
        assert "cannot fetch the names" in logged(store)
    assert [each for each in store.check(contents=True).problems if "cannot fetch" not in each.what] == []
    store.mount("work", tmp_path / "lazy")
    assert seen(tmp_path / "lazy") == expected
    store.unmount("work")
    store.collect(grace=0)
    assert [each for each in store.check(contents=True).problems if "cannot fetch" not in each.what] == []


def test_a_killed_server_leaves_layers_to_be_finished(
    store: Store, place: str, expected: dict[str, object], held: Path, tmp_path: Path
) -> None:
    target = tmp_path / "lazy"
    target.mkdir()
    store.mount(place, target, lazy=True, name="work")
    (server,) = servers(store.root / "drivers" / "fuse")
    os.kill(server, signal.SIGKILL)
    assert ends(server)
    subprocess.run(["umount", "-l", target], check=True)
    held.touch()
    store.mount("work", target)
    assert seen(target) == expected
    store.unmount("work")


def test_two_mounts_of_an_unfinished_image_show_the_same(
    store: Store, place: str, expected: dict[str, object], tmp_path: Path
) -> None:
    with lazily(store, place, tmp_path / "one") as one, lazily(store, place, tmp_path / "two") as two:
        assert seen(two) == seen(one) == expected
    assert unfinished(store) == []


def test_a_table_that_turns_out_to_be_malformed_is_an_error_for_those_who_wait(
    store: Store, tmp_path: Path
) -> None:
    image = EstargzImage(packed(("d", None), ("d/f", b"x" * 1000))).with_entry(
        {"name": "d/f", "type": "reg", "offset": 1 << 40}
    )
    with lazily(store, layout(tmp_path / "layout", image), tmp_path / "lazy") as tree:
        assert sorted(os.listdir(tree)) == ["d", "stargz.index.json"]
        with pytest.raises(OSError) as raised:
            os.listdir(tree / "d")
        assert raised.value.errno == errno.EIO
    assert "out of order or range" in logged(store)


@pytest.mark.parametrize(
    "members",
    [
        (("implied/file", b"x"),),
        (("d", None), ("d/.wh..wh..opq", b"")),
    ],
)
def test_roots_that_depend_on_more_are_made_at_once(
    store: Store, tmp_path: Path, members: tuple[tuple[str, bytes | None], ...]
) -> None:
    place = layout(tmp_path / "layout", EstargzImage(LAYERS[0], packed(*members)))
    with Store.open(tmp_path / "whole", driver="fuse", durability="none") as whole:
        whole.pull(place, "app")
        with whole.containers.create("app").mounted() as tree:
            wanted = seen(tree)
    with lazily(store, place, tmp_path / "lazy") as tree:
        assert unfinished(store) == []
        assert seen(tree) == wanted


def test_absurd_sizes_are_refused_at_once(store: Store, tmp_path: Path) -> None:
    image = EstargzImage(packed(("d", None), ("d/f", b"x"))).with_entry(
        {"name": "d/f", "type": "reg", "size": 1 << 62}
    )
    with pytest.raises(LayerfsError), lazily(store, layout(tmp_path / "layout", image), tmp_path / "lazy"):
        pass
    assert store.containers.list() == []


def test_what_was_read_stays(store: Store, place: str, tmp_path: Path) -> None:
    with lazily(store, place, tmp_path / "lazy") as tree:
        assert (tree / "top").read_bytes() == b"top" * 1000
        assert (tree / "t" / "big").read_bytes() == BIG
        left = absent(store)
    assert "t/etc/hosts" in left and not {"top", "t/big"} & left
