"""Layers unpacked by several processes: the result of one process, and nothing left when any fails."""

from __future__ import annotations

import errno
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.filesystem import fresh
from layerfs import linux, mounting, unpacking
from layerfs.errors import LayerError, LayerfsError, NotFoundError, VerificationError
from layerfs.filling import Filling
from layerfs.store import Store
from layerfs.testing.snapshot import Snapshot, snapshot
from layerfs.tree.toc import read_toc
from layerfs.worker import Worker
from tests.support.tiny_images import TinyImage, layout_files, old_docker_archive, tar, write_files

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for overlayfs without a user namespace")

ROOT = Path(__file__).parents[2]
DATA = random.Random(5).randbytes(3 << 20)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have every layer unpacked by a process of its own; gives their pids as they come."""
    pids: list[int] = []
    begin = Worker.__init__

    def noted(self: Worker[Any], *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        pids.append(self._pid)

    monkeypatch.setattr(Worker, "__init__", noted)
    monkeypatch.setattr(unpacking, "_WORTH_A_WORKER", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    return pids


@pytest.fixture(autouse=True)
def unmounted(tmp_path: Path) -> Iterator[None]:
    yield
    for info in reversed(mounting.mounts_below(tmp_path)):
        linux.umount(info.target, linux.MNT_DETACH)


def layer(*members: tuple[str, Any], root: int | None = None) -> bytes:
    """Pack a layer: a name and bytes, None for a directory, or (type, target) for a link."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        if root is not None:
            entry = tarfile.TarInfo("./")
            entry.type, entry.mode, entry.mtime, entry.uid = tarfile.DIRTYPE, root, 77, 12
            archive.addfile(entry)
        for place, (name, content) in enumerate(members):
            entry = tarfile.TarInfo(name)
            entry.mode, entry.uid, entry.gid, entry.mtime = (
                0o640 + place % 8,
                place % 3,
                place % 2,
                1000 + place,
            )
            if isinstance(content, bytes):
                entry.size = len(content)
            elif content is None:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o2750
            else:
                entry.type, entry.linkname = content[0].encode(), content[1]
            archive.addfile(entry, io.BytesIO(content) if isinstance(content, bytes) else None)
    return packed.getvalue()


# Each layer but the first needs what is below it in some way, and the first takes longest.
CHAIN = [
    layer(
        ("low", None),
        *((f"low/{number}", DATA[number * 100 : number * 110]) for number in range(300)),
        ("low/deep", None),
        ("low/deep/er", None),
        ("kept", b"kept"),
        ("big", DATA),
        root=0o750,
    ),
    layer(("low/deep/er/new", b"without its parents")),
    layer(("other", ("1", "low/7")), ("another", ("1", "other"))),
    layer(("low/.wh.3", b""), ("low/deep/.wh..wh..opq", b""), ("low/deep/only", b"")),
    layer(("set", b"x"), ("set.id", b"y"), root=0o711),
    layer(("low/3", b"again"), ("kept", ("2", "set"))),
    layer(("last", DATA[:5000])),
]


def pull(root: Path, source: str, driver: str) -> tuple[Snapshot, list[object]]:
    with Store.open(root, driver=driver) as store:
        image = store.pull(source, "app:1")
        box = store.containers.create("app:1")
        with box.mounted(read_only=True) as place:
            seen = snapshot(place)
        layers = []
        for one in store.layers.walk():
            if one.toc is not None:
                with store.blobs.open(one.toc) as toc:
                    layers.append((one.name, one.parent, one.usage, list(read_toc(toc))))
        assert store.check(contents=True).sound
        assert image.names == ("app:1",)
        return seen, layers


@pytest.mark.parametrize("driver", ["overlay2", "aufs"])
@pytest.mark.parametrize("compress", [True, False])
def test_several_processes_make_what_one_makes(
    tmp_path: Path, forked: list[int], driver: str, compress: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = TinyImage(tars=CHAIN, compress=compress)
    write_files(tmp_path / "layout", layout_files([image.entry(name="1")], image.blobs))
    apart = pull(tmp_path / "apart", f"oci:{tmp_path}/layout:1", driver)
    assert len(forked) == len(CHAIN)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    alone = pull(tmp_path / "alone", f"oci:{tmp_path}/layout:1", driver)
    assert len(forked) == len(CHAIN)
    assert apart == alone
    assert apart[0][b""].mode & 0o7777 == 0o711
    assert apart[0][b"other"].links == apart[0][b"another"].links != b""


def test_plain_layers_of_an_archive_are_unpacked_apart_and_given_back(
    tmp_path: Path, forked: list[int]
) -> None:
    image = TinyImage(tars=CHAIN, compress=False)
    (tmp_path / "image.tar").write_bytes(tar(old_docker_archive(image, ["app:1"])))
    with Store.open(tmp_path / "root", driver="overlay2") as store:
        (loaded,) = store.load(tmp_path / "image.tar")
        assert len(forked) == len(CHAIN)
        for descriptor, plain in zip(loaded.manifest.layers, image.plain, strict=True):
            with store.blobs.open(descriptor.digest) as blob:
                parts = []
                while data := blob.read(1 << 20):
                    parts.append(data)
            assert b"".join(parts) == plain


def test_stored_blobs_are_unpacked_apart_too(tmp_path: Path, forked: list[int]) -> None:
    image = TinyImage(tars=CHAIN)
    write_files(tmp_path / "layout", layout_files([image.entry(name="1")], image.blobs))
    with Store.open(tmp_path / "root", driver="vfs") as store:
        store.pull(f"oci:{tmp_path}/layout:1", "app:1")
    assert forked == []
    with Store.open(tmp_path / "root", driver="overlay2") as store:
        found = store.images.get("app:1")
        store.containers.unpack(found.manifest, found.config)
        assert len(forked) == len(CHAIN)
        assert store.check(contents=True).sound


def assert_nothing_is_left(root: Path, source: str) -> None:
    with Store.open(root) as store:
        assert list(store.driver.layers()) == []
        assert not store.layers.table.unfinished()
        with pytest.raises(NotFoundError):
            store.images.get("app:1")
        store.collect(grace=0)
        assert not list((root / "tmp").iterdir())
        store.pull(source, "app:1")
        assert store.check(contents=True).sound


@pytest.mark.parametrize("number", [0, 3, 6])
def test_when_one_process_is_killed_the_others_end_and_nothing_is_left(
    tmp_path: Path, forked: list[int], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = TinyImage(tars=CHAIN)
    write_files(tmp_path / "layout", layout_files([image.entry(name="1")], image.blobs))
    victim = image.plain[number]
    with monkeypatch.context() as patched:
        patched.setattr(Filling, "run_apart", dying(Filling.run_apart, victim))
        with Store.open(tmp_path / "root", driver="overlay2") as store:
            with pytest.raises(LayerfsError, match="signal 9"):
                store.pull(f"oci:{tmp_path}/layout:1", "app:1")
            assert not any(is_child(pid) for pid in forked)
    assert_nothing_is_left(tmp_path / "root", f"oci:{tmp_path}/layout:1")


def dying(run: Callable[..., Any], plain: bytes) -> Callable[..., Any]:
    from layerfs.digest import Digest

    def die(self: Filling, **kwargs: Any) -> Any:
        if self._step.diff_id != Digest.of(plain):
            return run(self, **kwargs)
        kwargs["advance"] = lambda count: os.kill(os.getpid(), signal.SIGKILL)
        return run(self, **kwargs)

    return die


def is_child(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return False


@pytest.mark.parametrize("number", [0, 2, 6])
def test_a_damaged_layer_is_told_by_its_own_error(tmp_path: Path, forked: list[int], number: int) -> None:
    chain = list(CHAIN)
    chain[number] = b"\1" * 8 + chain[number][8:]
    image = TinyImage(tars=chain)
    write_files(tmp_path / "layout", layout_files([image.entry(name="1")], image.blobs))
    with Store.open(tmp_path / "root", driver="overlay2") as store:
        with pytest.raises((LayerError, VerificationError)) as caught:
            store.pull(f"oci:{tmp_path}/layout:1", "app:1")
        if isinstance(caught.value, LayerError):
            assert caught.value.offset is not None
        assert not any(is_child(pid) for pid in forked)
        assert list(store.driver.layers()) == []


def test_a_blob_that_lies_is_refused_and_not_gone_on_with(tmp_path: Path, forked: list[int]) -> None:
    image = TinyImage(tars=CHAIN)
    files = layout_files([image.entry(name="1")], image.blobs)
    name = next(name for name, data in files.items() if data == image.layers[0])
    # Behind the members of gzip: only the digest tells.
    files[name] = image.layers[0][:4] + b"\1" + image.layers[0][5:]
    write_files(tmp_path / "layout", files)
    with Store.open(tmp_path / "root", driver="overlay2") as store:
        with pytest.raises(VerificationError, match="was promised"):
            store.pull(f"oci:{tmp_path}/layout:1", "app:1")
        (tmp_path / "layout" / name).write_bytes(image.layers[0])
        store.pull(f"oci:{tmp_path}/layout:1", "app:1")
        assert store.check(contents=True).sound


def test_when_the_whole_is_killed_its_processes_end_and_the_next_opening_clears_up(tmp_path: Path) -> None:
    image = TinyImage(tars=CHAIN)
    write_files(tmp_path / "layout", layout_files([image.entry(name="1")], image.blobs))
    script = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from layerfs.store import Store
from layerfs import unpacking
from layerfs.filling import Filling
unpacking._WORTH_A_WORKER = 0
os.sched_getaffinity = lambda pid: {0, 1}
run = Filling.run_apart
def stay(self, **kwargs):
    run(self, **kwargs)
    time.sleep(600)
Filling.run_apart = stay
listened = 0
def listen(workers):
    print(*(worker._pid for worker in workers), flush=True)
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)
unpacking.listen = listen
Store.open(sys.argv[2], driver="overlay2").pull(sys.argv[3], "app:1")
"""
    arguments = [sys.executable, "-c", script, ROOT, tmp_path / "root", f"oci:{tmp_path}/layout:1"]
    found = subprocess.run(arguments, check=False, stdout=subprocess.PIPE)
    assert found.returncode == -signal.SIGKILL
    pids = found.stdout.split()
    assert len(pids) == 4
    deadline = time.monotonic() + 10
    while any(os.path.exists(b"/proc/%s/exe" % pid) and os.readlink(b"/proc/%s/exe" % pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert_nothing_is_left(tmp_path / "root", f"oci:{tmp_path}/layout:1")


def test_a_full_disk_is_told_as_such_and_gives_its_room_back(tmp_path: Path, forked: list[int]) -> None:
    image = TinyImage(tars=[*CHAIN, layer(("huge", random.Random(6).randbytes(40 << 20)))], compress=False)
    (tmp_path / "image.tar").write_bytes(tar(old_docker_archive(image, ["app:1"])))
    with fresh("ext4", size=48 << 20) as small:
        with Store.open(small / "store", driver="overlay2") as store:
            free = os.statvfs(small).f_bfree
            with pytest.raises(OSError) as caught:
                store.load(tmp_path / "image.tar")
            assert caught.value.errno == errno.ENOSPC
            assert len(forked) > 1
            assert list(store.driver.layers()) == []
            assert os.statvfs(small).f_bfree > free * 0.9
        with Store.open(small / "store") as store:
            assert store.check().sound


# A module that another thread is just importing can never be imported in a child: its lock stays taken.
IMPORTS = """
import os, sys, threading
from layerfs import unpacking
from layerfs.store import Store
parent = os.getpid()
class Watch:
    def find_spec(self, name, path=None, target=None):
        if os.getpid() != parent:
            os.write(1, f"{name} ".encode())
sys.meta_path.insert(0, Watch())
unpacking._WORTH_A_WORKER = 0
os.sched_getaffinity = lambda pid: {0, 1, 2, 3}
begin = unpacking.Worker.__init__
def begun(*args, **kwargs):
    os.write(1, b"forked ")
    begin(*args, **kwargs)
unpacking.Worker.__init__ = begun
end = threading.Event()
threading.Thread(target=end.wait).start()
try:
    with Store.open(sys.argv[1], driver="overlay2") as store:
        store.pull(f"oci:{sys.argv[2]}:1")
finally:
    end.set()
"""


def test_a_child_of_a_process_with_threads_imports_nothing(tmp_path: Path) -> None:
    image = TinyImage(tars=[layer(("file", b"x" * 3000), ("gone", b"x")), layer((".wh.gone", b""))])
    write_files(tmp_path / "layout", layout_files([image.entry(name="1")], image.blobs))
    words = [sys.executable, "-c", IMPORTS, str(tmp_path / "root"), str(tmp_path / "layout")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["forked"] * 2
