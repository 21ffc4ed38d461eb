"""The life of layers: states, locks, mounts, unpacking; with every built-in driver and with a bare one."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import tarfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from layerfs import linux, mounting, plugins
from layerfs.blobs import Blobs
from layerfs.database import Database
from layerfs.digest import Digest
from layerfs.driver import Driver
from layerfs.errors import ExistsError, InUseError, InvalidError, NotFoundError, VerificationError
from layerfs.files import Lock
from layerfs.layers import Layers, State, Step, chain_ids
from layerfs.leases import Lease
from layerfs.mount import Mount
from layerfs.tree.diff import listing
from layerfs.tree.toc import read_toc


class BareDriver(Driver):
    """The five methods and nothing more: everything else goes through the mount."""

    name = "bare"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.inner = plugins.load("vfs", root)

    @classmethod
    def check(cls, root: Path) -> None:
        """Works everywhere."""

    def create(self, layer: str, below: Sequence[str]) -> None:
        self.inner.create(layer, below)

    def mount(self, layer: str, below: Sequence[str], *, read_only: bool) -> Mount:
        return self.inner.mount(layer, below, read_only=read_only)

    def remove(self, layer: str) -> None:
        self.inner.remove(layer)

    def layers(self) -> Iterable[str]:
        return self.inner.layers()


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    for name in ("blobs", "drivers", "tmp", "trash", "locks"):
        (tmp_path / name).mkdir(0o700)
    Database.create(tmp_path / "db")
    yield tmp_path
    for info in reversed(mounting.mounts_below(tmp_path)):
        linux.umount(info.target, linux.MNT_DETACH)


def open_layers(root: Path, driver: str) -> Layers:
    (root / "drivers" / "bare").mkdir(exist_ok=True)
    found = (
        BareDriver(root / "drivers" / "bare") if driver == "bare" else plugins.load(driver, root / "drivers")
    )
    return Layers(root, Database(root / "db"), Blobs(root), found)


@pytest.fixture(params=["overlay2", "aufs", "vfs", "bare"])
def layers(root: Path, request: pytest.FixtureRequest) -> Layers:
    return open_layers(root, request.param)


def tar(files: dict[str, bytes | None]) -> bytes:
    """Make a tar; None is a directory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.mode = 0o755 if content is None else 0o644
            info.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            info.size = len(content or b"")
            archive.addfile(info, io.BytesIO(content or b""))
    return buffer.getvalue()


def step(layers: Layers, files: dict[str, bytes | None]) -> Step:
    plain = tar(files)
    return Step(layers.blobs.put(gzip.compress(plain, 1)), Digest.of(plain))


BASE: dict[str, bytes | None] = {"etc": None, "etc/hosts": b"localhost\n", "gone": b"x", "kept": b"k"}
TOP: dict[str, bytes | None] = {"etc/new": b"new\n", ".wh.gone": b""}


def shown(layers: Layers, name: str) -> dict[str, bytes]:
    with layers.opened(name) as opened:
        base = f"/proc/self/fd/{opened}"
        return {
            os.path.relpath(os.path.join(where, file), base): Path(where, file).read_bytes()
            for where, _, files in os.walk(base)
            for file in files
        }


def commit(layers: Layers, key: str, name: str, parent: str | None = None, **files: bytes) -> None:
    layers.prepare(key, parent)
    with layers.opened(key, read_only=False) as opened:
        for file, content in files.items():
            Path(f"/proc/self/fd/{opened}/{file}").write_bytes(content)
    layers.commit(key, name)


def test_the_life_of_a_layer(layers: Layers) -> None:
    layer = layers.prepare("key", labels={"a": "b"})
    assert (layer.state, layer.parent, dict(layer.labels)) == (State.ACTIVE, None, {"a": "b"})
    assert layers.stat("key") == layer
    with layers.opened("key", read_only=False) as opened:
        Path(f"/proc/self/fd/{opened}/file").write_bytes(b"content")
    committed = layers.commit("key", "name")
    assert committed.state is State.COMMITTED
    assert committed.usage is not None and committed.usage.inodes >= 1
    assert not layers.has("key")
    child = layers.prepare("key", "name")
    assert child.parent == "name"
    assert shown(layers, "key") == {"file": b"content"}
    view = layers.view("view", "name")
    assert view.state is State.VIEW
    assert shown(layers, "view") == {"file": b"content"}
    with pytest.raises(InUseError, match="child"):
        layers.remove("name")
    layers.remove("key")
    layers.remove("view")
    layers.remove("name")
    assert list(layers.walk()) == []
    assert list(layers.driver.layers()) == []
    assert os.listdir(layers.root / "locks") == []


@pytest.mark.parametrize("first", ["prepare", "view"])
@pytest.mark.parametrize("second", ["prepare", "view"])
def test_a_key_is_taken_once(root: Path, first: str, second: str) -> None:
    layers = open_layers(root, "vfs")
    getattr(layers, first)("key")
    with pytest.raises(ExistsError):
        getattr(layers, second)("key")


def test_states_forbid_what_they_should(layers: Layers) -> None:
    layers.prepare("active")
    layers.view("view")
    with pytest.raises(InvalidError, match="parent"):
        layers.prepare("x", "active")
    with pytest.raises(InvalidError, match="parent"):
        layers.prepare("x", "view")
    with pytest.raises(NotFoundError):
        layers.prepare("x", "nothing")
    with pytest.raises(InvalidError, match="only an active"):
        layers.commit("view", "name")
    with pytest.raises(NotFoundError):
        layers.commit("nothing", "name")
    with pytest.raises(ExistsError):
        layers.commit("active", "view")
    with pytest.raises(InvalidError, match="read-only"), layers.opened("view", read_only=False):
        pass
    with pytest.raises(NotFoundError):
        layers.remove("nothing")
    for name in ("", "~x", "a\0b"):
        with pytest.raises(InvalidError):
            layers.prepare(name)
    assert [layer.name for layer in layers.walk()] == ["active", "view"]


def test_a_failed_create_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = open_layers(root, "vfs")

    def fail(layer: str, below: Sequence[str]) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(layers.driver, "create", fail)
    with pytest.raises(OSError, match="No space"):
        layers.prepare("key")
    assert not layers.has("key")
    assert not layers.table.unfinished()


def test_labels_change_and_filter(layers: Layers) -> None:
    layers.prepare("a", labels={"x": "1", "y": "2"})
    layers.prepare("b", labels={"x": "1"})
    layers.label("a", {"y": None, "z": "3"})
    assert dict(layers.stat("a").labels) == {"x": "1", "z": "3"}
    assert [layer.name for layer in layers.walk(labels={"x": "1"})] == ["a", "b"]
    assert [layer.name for layer in layers.walk(labels={"z": "3"})] == ["a"]
    assert list(layers.walk(state=State.COMMITTED)) == []
    with pytest.raises(NotFoundError):
        layers.label("c", {})


def test_walk_can_stat_and_remove(layers: Layers) -> None:
    for key in "abc":
        layers.prepare(key)
    for layer in layers.walk():
        layers.stat(layer.name)
        layers.remove(layer.name)
    assert list(layers.walk()) == []


def test_apply_gives_the_tree_and_the_changes(layers: Layers) -> None:
    steps = [step(layers, BASE), step(layers, TOP)]
    names = chain_ids(one.diff_id for one in steps)
    top = layers.apply_all(steps)
    assert top.name == names[1]
    assert top.parent == names[0]
    assert top.blob == steps[1].blob
    assert shown(layers, top.name) == {"etc/hosts": b"localhost\n", "etc/new": b"new\n", "kept": b"k"}
    assert shown(layers, names[0]) == {"etc/hosts": b"localhost\n", "gone": b"x", "kept": b"k"}
    changes = {(kind.value, path) for kind, path in listing(layers.changes(top.name))}
    assert {("A", b"/etc/new"), ("D", b"/gone")} <= changes
    assert changes <= {("A", b"/etc/new"), ("D", b"/gone"), ("C", b"/etc")}
    assert top.toc is not None
    with layers.blobs.open(top.toc) as file:
        entries = {entry.path: digest for entry, digest in read_toc(file)}
    assert entries[b"etc/new"] == Digest.of(b"new\n").hex
    assert b".wh.gone" in entries
    assert layers.apply_all(steps).row == top.row, "what is here is not unpacked again"
    assert len(list(layers.driver.layers())) == 2


def test_a_wrong_diff_id_leaves_nothing(layers: Layers) -> None:
    good, bad = step(layers, BASE), step(layers, TOP)
    with pytest.raises(VerificationError, match="diff id"):
        layers.apply_all([good, Step(bad.blob, good.diff_id)])
    assert list(layers.walk()) == []
    assert list(layers.driver.layers()) == []
    assert not layers.table.unfinished()
    assert os.listdir(layers.root / "locks") == []
    assert os.listdir(layers.root / "tmp") == []


def test_a_missing_blob_leaves_nothing(layers: Layers) -> None:
    with pytest.raises(NotFoundError):
        layers.apply(Digest.of(b"missing"), Digest.of(b"x"))
    assert list(layers.driver.layers()) == []


def test_the_layer_of_another_process_is_used(root: Path) -> None:
    layers, other = open_layers(root, "overlay2"), open_layers(root, "overlay2")
    base, top = step(layers, BASE), step(layers, TOP)
    names = chain_ids([base.diff_id, top.diff_id])
    with Lease(Database(root / "db")) as lease:
        from layerfs.progress import Silent
        from layerfs.unpacking import Unpacking

        with Unpacking(
            layers, lease, budget=layers.budget, warn=lambda text: None, progress=Silent()
        ) as unpacking:
            unpacking.begin(base, names[0], None)
            unpacking.begin(top, names[1], None)
            theirs = other.apply(base.blob, base.diff_id)
            unpacking.commit()
    assert layers.stat(names[0]) == theirs
    assert layers.stat(names[1]).parent == names[0]
    assert shown(layers, names[1])["etc/new"] == b"new\n"
    assert len(list(layers.driver.layers())) == 2


def test_a_writable_layer_is_mounted_once(layers: Layers, tmp_path: Path) -> None:
    targets = [tmp_path / "one", tmp_path / "two"]
    for target in targets:
        target.mkdir()
    commit(layers, "k", "base", file=b"x")
    layers.prepare("key", "base")
    layers.mount("key", targets[0])
    try:
        (targets[0] / "new").write_bytes(b"n")
        with pytest.raises(InUseError, match="mounted at"):
            layers.mount("key", targets[1])
        with pytest.raises(InUseError), layers.mounted("key"):
            pass
        with pytest.raises(InUseError), layers.held("key"):
            pass
        with pytest.raises(InUseError):
            layers.remove("key")
        with pytest.raises(InUseError):
            layers.commit("key", "name")
        with pytest.raises(InUseError, match="has a mount"):
            layers.mount("base", targets[0], read_only=True)
        assert [record.target for record in layers.mounts("key")] == [os.fsencode(targets[0])]
        assert shown(layers, "key")["new"] == b"n"
    finally:
        layers.unmount(targets[0])
    assert layers.mounts("key") == []
    layers.mount("key", targets[1])
    assert (targets[1] / "new").read_bytes() == b"n"
    layers.unmount(targets[1])
    with pytest.raises(NotFoundError):
        layers.unmount(targets[1])
    layers.remove("key")


def test_a_view_refuses_writes(root: Path, tmp_path: Path) -> None:
    for driver in ("overlay2", "vfs"):
        layers = open_layers(root, driver)
        commit(layers, "k", "base", file=b"x")
        layers.view("view", "base")
        with layers.mounted("view", read_only=True) as place:
            with pytest.raises(OSError, match="Read-only"):
                (place / "new").write_bytes(b"")
            with pytest.raises(InUseError):
                layers.remove("view")
        layers.remove("view")


def test_a_held_layer_is_free_again_afterwards(layers: Layers) -> None:
    layers.prepare("key")
    with layers.held("key") as mount:
        assert isinstance(mount, Mount)
        with pytest.raises(InUseError), layers.held("key"):
            pass
        with pytest.raises(InUseError):
            layers.remove("key")
    assert layers.ledger.all() == []
    layers.remove("key")


def test_a_block_with_an_error_unmounts_too(layers: Layers) -> None:
    layers.prepare("key")
    with pytest.raises(RuntimeError), layers.mounted("key") as place:
        assert mounting.mounted(place) is not None
        raise RuntimeError
    assert mounting.mounts_below(layers.root) == []
    assert os.listdir(layers.root / "tmp") == []
    assert layers.ledger.all() == []


def test_a_mount_that_was_taken_away_by_other_means_is_forgotten(layers: Layers, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    layers.prepare("key")
    layers.mount("key", tmp_path / "target")
    subprocess.run(["umount", tmp_path / "target"], check=True)
    assert layers.mounts("key") == []
    layers.remove("key")
    assert layers.ledger.all() == []


def test_a_mount_in_another_namespace_is_in_use_until_that_ends(
    layers: Layers, tmp_path: Path, root: Path
) -> None:
    (tmp_path / "target").mkdir()
    layers.prepare("key")
    layers.mount("key", tmp_path / "target")
    other = subprocess.Popen(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", "echo; read x"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdin and other.stdout
    try:
        other.stdout.readline()
        namespace = os.stat(f"/proc/{other.pid}/ns/mnt").st_ino
        with layers._database.transaction() as connection:
            connection.execute("UPDATE mounts SET namespace = ?", (namespace,))
        subprocess.run(["umount", tmp_path / "target"], check=True)
        with pytest.raises(InUseError, match="mounted at"):
            layers.remove("key")
    finally:
        other.stdin.close()
        other.wait()
    layers.remove("key")


def test_what_a_dead_process_held_is_taken_down(root: Path) -> None:
    script = """
import os, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from layerfs import plugins
from layerfs.blobs import Blobs
from layerfs.database import Database
from layerfs.layers import Layers
root = Path(sys.argv[1])
layers = Layers(root, Database(root / "db"), Blobs(root), plugins.load("overlay2", root / "drivers"))
layers.prepare("base-key")
layers.commit("base-key", "base")
layers.prepare("key", "base")
with layers.mounted("key") as place:
    (place / "file").write_bytes(b"x")
    os.kill(os.getpid(), 9)
"""
    import sys

    done = subprocess.run([sys.executable, "-c", script, root, Path(__file__).parents[2]], check=False)
    assert done.returncode == -9
    assert len(mounting.mounts_below(root)) == 1
    layers = open_layers(root, "overlay2")
    layers.recover()
    assert mounting.mounts_below(root) == []
    assert layers.ledger.all() == []
    assert shown(layers, "key") == {"file": b"x"}
    layers.remove("key")


def test_drafts_of_the_dead_are_dropped_and_those_of_the_living_are_not(root: Path) -> None:
    layers = open_layers(root, "vfs")
    database = Database(root / "db")
    with Lease(database) as lease:
        draft = layers.table.add_draft("name", None, lease)
        layers.driver.create(draft.driver_id, [])
        assert layers.finish() == 0
    assert layers.table.unfinished()
    assert layers.finish() == 1
    assert list(layers.driver.layers()) == []
    assert not layers.table.unfinished()


def test_a_half_removed_layer_is_finished(layers: Layers) -> None:
    layer = layers.prepare("key")
    layers.table.mark(layer)
    assert not layers.has("key")
    layers.prepare("key")
    assert layers.finish() == 1
    assert list(layers.driver.layers()) == [layers.stat("key").driver_id]


def test_a_leased_layer_stays(layers: Layers, root: Path) -> None:
    commit(layers, "k", "name", file=b"x")
    with Lease(Database(root / "db")) as lease:
        lease.add("layer", layers.stat("name").driver_id)
        with pytest.raises(InUseError, match="leased"):
            layers.remove("name")
    layers.remove("name")


def test_a_damaged_layer_is_renewed_from_its_blob(layers: Layers) -> None:
    one = step(layers, BASE)
    name = layers.apply(one.blob, one.diff_id).name
    before = layers.stat(name)
    layers.driver.remove(before.driver_id)
    layers.renew(name)
    after = layers.stat(name)
    assert after.driver_id != before.driver_id
    assert (after.row, after.toc) == (before.row, before.toc)
    assert shown(layers, name)["kept"] == b"k"
    assert list(layers.driver.layers()) == [after.driver_id]


def test_usage_of_an_active_layer_is_counted(layers: Layers) -> None:
    commit(layers, "k", "base", file=b"x" * 100_000)
    layers.prepare("key", "base")
    empty = layers.usage("key")
    with layers.opened("key", read_only=False) as opened:
        Path(f"/proc/self/fd/{opened}/more").write_bytes(b"y" * 50_000)
    assert layers.usage("key").bytes - empty.bytes >= 49_152
    assert layers.usage("key").inodes == empty.inodes + 1


def test_who_waited_for_one_layer_waits_for_whoever_unpacks_the_next(root: Path) -> None:
    layers, other = open_layers(root, "overlay2"), open_layers(root, "overlay2")
    steps = [step(layers, BASE), step(layers, TOP)]
    names = chain_ids(one.diff_id for one in steps)
    first, second = (Lock(root / "locks" / f"chain-{name.partition(':')[2]}") for name in names)
    first.acquire()
    waiting = threading.Thread(target=layers.apply_all, args=[steps])
    waiting.start()
    # As two others would: the one ends, the other is at work with what comes next.
    second.acquire()
    commit(other, "key", names[0], file=b"x")
    first.release()
    waiting.join(0.3)
    assert waiting.is_alive() and not other.has(names[1])
    second.release()
    waiting.join()
    assert other.has(names[1])


def test_a_layer_that_is_removed_after_it_was_looked_up_is_not_found(layers: Layers) -> None:
    layer = layers.prepare("key")
    layers.remove("key")
    with pytest.raises(NotFoundError, match="removed meanwhile"):
        layers.table.stack(layer.row)
