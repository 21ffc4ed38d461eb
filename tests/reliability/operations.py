"""What is done to a store while it is made to fail, what that needs, and how it is done again."""

from __future__ import annotations

import io
import os
import random
import sqlite3
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from layerfs.cli import main
from layerfs.store import Store
from layerfs.value import frozen
from tests.support import hosttree
from tests.support.registries import Registry, put_blob
from tests.support.tiny_images import (
    TinyImage,
    layout_files,
    layout_of_index,
    multi_platform,
    old_docker_archive,
    tar,
    write_files,
)

# A layer of more bytes is unpacked by a process of its own, one of still more is not fetched ahead.
LARGE: Final = 1_500_000
_MINUTES_AGO: Final = 600


def _noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


@frozen
class Place:
    """Where operations find what they need: `root` of the store, `target` to mount at, and what comes in."""

    root: Path
    target: Path
    inputs: Path
    driver: str
    registry: str | None

    def layerfs(self, *words: object) -> int:
        """Carry out a command line in this process."""
        return main(["--root", str(self.root), "--driver", self.driver, *map(str, words)])

    def store(self) -> Store:
        return Store.open(self.root, driver=self.driver)


def write_inputs(inputs: Path) -> None:
    """Make the trees, archives and layouts that come in."""
    inputs.mkdir()
    for name, more in (("tree", {}), ("tree2", {"another": b"another"})):
        tree = inputs / name
        (tree / "directory").mkdir(parents=True)
        for number in range(4):
            (tree / "directory" / f"file{number}").write_bytes(_noise(3000, number))
        for file, content in more.items():
            (tree / file).write_bytes(content)
        (tree / "link").symlink_to("directory")
        for path in (*tree.rglob("*"), tree):
            os.utime(path, (1_700_000_000, 1_700_000_000), follow_symlinks=False)
    plain = TinyImage(b"low", b"high", tars=[_tree_tar()], compress=False)
    (inputs / "plain.tar").write_bytes(tar(old_docker_archive(plain, ["plain:1"])))
    large = TinyImage(_noise(LARGE, 5), _noise(LARGE, 6), b"top", compress=False)
    (inputs / "large.tar").write_bytes(tar(old_docker_archive(large, ["large:1"])))
    bad = TinyImage(b"low", b"high", compress=False)
    # Of the same length, so that only its digest is another.
    bad.plain[1] = bad.plain[1].replace(b"high", b"high"[::-1])
    (inputs / "bad.tar").write_bytes(tar(old_docker_archive(bad, ["bad:1"])))
    packed = TinyImage(b"low", b"high", tars=[_tree_tar()])
    write_files(inputs / "layout", layout_files([packed.entry(name="latest")], packed.blobs))
    layout_of_index(inputs / "index", *multi_platform("linux/amd64", "linux/arm64"), name="1")
    hosttree.build(inputs / "programs", ("sh", "true"))
    other = TinyImage(b"other low", b"other high")
    write_files(inputs / "layout2", layout_files([other.entry(name="latest")], other.blobs))


def _tree_tar() -> bytes:
    """Pack a deletion, links and a directory, on top of `file0`."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, content in (
            ("d", tarfile.DIRTYPE, b""),
            ("d/file", tarfile.REGTYPE, b"content"),
            ("d/hard", tarfile.LNKTYPE, b"d/file"),
            ("d/soft", tarfile.SYMTYPE, b"file"),
            (".wh.file0", tarfile.REGTYPE, b""),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = kind, 0o755 if kind == tarfile.DIRTYPE else 0o644
            if kind in (tarfile.LNKTYPE, tarfile.SYMTYPE):
                entry.linkname = content.decode()
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def fill_registry(registry: Registry) -> str:
    """Upload an image with a small layer and a large one, and say what it is called."""
    image = TinyImage(b"small", _noise(LARGE, 7))
    repository = registry.repository("crash")
    for blob in image.blobs[:-1]:
        put_blob(repository, blob, "application/octet-stream")
    repository.send(
        "PUT", "manifests/1", body=image.manifest, actions=("pull", "push"), expect=(201,),
        headers={"Content-Type": "application/vnd.oci.image.manifest.v1+json"},
    ).close()  # fmt: skip
    return f"{registry.host}/crash:1"


@frozen
class Operation:
    """One thing that a store is asked for.

    Args:
        name: as the table has it.
        perform: does it, in a process that may die of it; gives an exit status.
        prepare: makes the store that it is done to; nothing is there when left out.
        ready: what of that cannot be copied with the files: mounts.
        again: does it once more after it failed; `perform` when left out.
        done: whether it has taken effect, so that it need not be done again.
        takes: the names of images and containers that it takes away, or changes.
        status: what `perform` gives when all goes well.
        damaged: there is damage until it has succeeded.
        several_ways: what it leaves takes more or less room, as it went.
        needs: what must be there besides.
    """

    name: str
    perform: Callable[[Place], int]
    prepare: Callable[[Place], None] | None = None
    ready: Callable[[Place], int] | None = None
    again: Callable[[Place], int] | None = None
    done: Callable[[Place, Store], bool] = lambda place, store: False
    takes: tuple[str, ...] = ()
    status: int = 0
    damaged: bool = False
    several_ways: bool = False
    needs: str | None = None


# -- the stores that operations begin with


def _base(place: Place) -> None:
    """An image, and a container that changed something."""
    with place.store() as store:
        store.import_tree(place.inputs / "tree", "app:1")
        box = store.containers.create("app:1", name="box")
        with box.mounted() as tree:
            (tree / "directory/file0").unlink()
            (tree / "new").write_text("new")


def _runnable(place: Place) -> None:
    with place.store() as store:
        store.import_tree(place.inputs / "programs", "app:1")
        store.containers.create("app:1", name="box")


def _several(place: Place) -> None:
    """What `_base` has, and a second image on layers of its own."""
    _base(place)
    with place.store() as store:
        store.load(place.inputs / "plain.tar")


def _littered(place: Place) -> None:
    """What `_base` has, and one of each sort of garbage."""
    _base(place)
    with place.store() as store:
        store.pull(f"oci:{place.inputs}/layout:latest", "going:1")
        # The name moves on, so that the first image has none.
        store.pull(f"oci:{place.inputs}/layout2:latest", "going:1")
        _orphan(store)
        store.blobs.put(b"nobody needs this")
    (place.root / "tmp" / f"ingest-{'0' * 24}").write_bytes(b"partial")
    (place.root / "tmp" / "left").write_bytes(b"left behind")
    (place.root / "trash" / "blob-left").write_bytes(b"half deleted")
    (place.root / "locks" / "0123456789abcdef").touch()
    age(place.root)
    _dead_lease(place)


def _damaged(place: Place) -> None:
    """What can be repaired from what is there: a layer, a record, an orphan, a blob that nobody needs."""
    _base(place)
    with place.store() as store:
        store.pull(f"oci:{place.inputs}/layout:latest", "hurt:1")
        layer = store.layers.stat(str(store.images.get("hurt:1").chain_ids[1]))
        _orphan(store)
        unneeded = store.blobs.path(store.blobs.put(b"nobody needs this"))
        own = store.layers.stat(store.containers.get("box").id)
    file = next((place.root / "drivers" / place.driver / layer.driver_id).rglob("file1"))
    file.unlink()
    unneeded.write_bytes(b"nobody needs that")
    with sqlite3.connect(place.root / "layerfs.db") as connection:
        connection.execute(
            "INSERT INTO mounts (layer, target, source, directory, read_only, held, namespace, pid, start,"
            " boot, created_ns)"
            " SELECT ?, CAST('/nowhere' AS BLOB), 'layerfs-none', NULL, 0, 0, ?, 1, 1, ?, 0",
            (own.row, os.stat("/proc/self/ns/mnt").st_ino, _boot()),
        )
    connection.close()


def _altered(place: Place) -> None:
    """An image whose blob is held in parts by a layer of which a file was altered."""
    _base(place)
    with place.store() as store:
        store.load(place.inputs / "large.tar")
        layer = store.layers.stat(str(store.images.get("large:1").chain_ids[0]))
    file = next((place.root / "drivers" / place.driver / layer.driver_id).rglob("file0"))
    found = file.stat()
    with file.open("r+b") as opened:
        opened.write(b"altered")
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))


def _crashed(place: Place) -> None:
    """What `_base` has, and what a process left that was killed before its layers were committed."""
    _base(place)
    child = os.fork()
    if child == 0:
        try:
            os.environ["LAYERFS_FAILPOINTS"] = "layer.commit=kill"
            place.layerfs("load", "--quiet", "-i", place.inputs / "plain.tar")
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -9


def _orphan(store: Store) -> None:
    store.driver.create("0rphan", ())


def _dead_lease(place: Place) -> None:
    with sqlite3.connect(place.root / "layerfs.db") as connection:
        connection.execute("INSERT INTO leases VALUES ('dead', 1, 1, ?, 0)", (_boot(),))
        connection.execute("INSERT INTO lease_items VALUES ('dead', 'blob', 'sha256:00')")
    connection.close()


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def age(root: Path) -> None:
    """Make what lies about look as if it had done so for a while."""
    past = time.time() - _MINUTES_AGO
    for directory in ("tmp", "trash", "locks"):
        for path in (root / directory).iterdir():
            os.utime(path, (past, past), follow_symlinks=False)


# -- the operations


def _words(*words: str) -> Callable[[Place], int]:
    def perform(place: Place) -> int:
        return place.layerfs(*(word.format(place=place) for word in words))

    return perform


def _has_image(name: str) -> Callable[[Place, Store], bool]:
    return lambda place, store: store.has_image(name)


def _lacks_image(name: str) -> Callable[[Place, Store], bool]:
    return lambda place, store: not store.has_image(name)


def _has_container(place: Place, store: Store) -> bool:
    return store.containers.find("new") is not None


def _mount_again(place: Place) -> int:
    """A container that was made, and not mounted, is mounted by its name."""
    with place.store() as store:
        made = store.containers.find("new") is not None
    if made:
        return place.layerfs("mount", "new", place.target)
    return place.layerfs("mount", "--name", "new", "app:1", place.target)


def _is_mounted(place: Place, store: Store) -> bool:
    found = store.containers.find("new")
    return found is not None and found.mounts() == [place.target]


def _run_again(place: Place) -> int:
    with place.store() as store:
        if store.containers.find("new") is not None:
            return place.layerfs("start", "--attach", "new")
    return place.layerfs("run", "--name", "new", "app:1", "true")


def _mount_privately(place: Place) -> int:
    with place.store() as store, store.containers.get("box").mounted() as tree:
        (tree / "more").write_text("more")
    return 0


def _freeze(place: Place) -> int:
    """Do as a user of the library does: a writable layer of one's own, and its commit."""
    with place.store() as store:
        if not store.layers.has("key"):
            store.layers.prepare("key", str(store.images.get("app:1").chain_ids[-1]))
        with store.layers.opened("key", read_only=False) as root:
            file = os.open("frozen", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=root)
            os.write(file, b"frozen")
            # Else its table of contents would have another size each time.
            for each in (file, root):
                os.utime(each, (1_700_000_000, 1_700_000_000))
            os.close(file)
            # Else the table of contents would have another length each time.
            os.utime("frozen", (1, 1), dir_fd=root)
            os.utime(root, (1, 1))
        store.layers.commit("key", "name")
    return 0


def _repair_from_outside(place: Place) -> int:
    """A blob that was held in parts is lost with the layer: it comes in again, and mends that."""
    place.layerfs("check", "--quiet", "--repair", "--contents")
    place.layerfs("load", "--quiet", "-i", place.inputs / "large.tar")
    return place.layerfs("check", "--quiet", "--repair", "--contents")


OPERATIONS: Final = (
    Operation("open a new store", _words("info")),
    Operation(
        "import", _words("import", "--quiet", "{place.inputs}/tree2", "new:1"), _base,
        done=_has_image("new:1"),
    ),
    Operation(
        "load", _words("load", "--quiet", "-i", "{place.inputs}/plain.tar"), _base, done=_has_image("plain:1")
    ),
    Operation(
        "load large layers", _words("load", "--quiet", "-i", "{place.inputs}/large.tar"), _base,
        done=_has_image("large:1"),
    ),
    Operation(
        "load what is damaged", _words("load", "--quiet", "-i", "{place.inputs}/bad.tar"), _base, status=1
    ),
    Operation(
        "pull", _words("pull", "--quiet", "oci:{place.inputs}/layout:latest", "new:1"), _base,
        done=_has_image("new:1"),
    ),
    Operation(
        "pull all platforms",
        _words("pull", "--quiet", "--all-platforms", "oci:{place.inputs}/index:1", "new:1"), _base,
    ),
    Operation(
        "pull from a registry", _words("pull", "--quiet", "{place.registry}", "new:1"), _base,
        done=_has_image("new:1"), needs="registry",
    ),
    Operation("create", _words("create", "--name", "new", "app:1"), _base, done=_has_container),
    Operation(
        "mount", _words("mount", "--name", "new", "app:1", "{place.target}"), _base, again=_mount_again,
        done=_is_mounted,
    ),
    Operation(
        "umount", _words("umount", "{place.target}"), _base,
        ready=_words("mount", "box", "{place.target}"),
        done=lambda place, store: store.containers.get("box").mounts() == [],
    ),
    Operation("mount for a block", _mount_privately, _base, takes=("box",)),
    Operation("run", _words("run", "--name", "new", "app:1", "true"), _runnable, again=_run_again),
    Operation("commit", _words("commit", "--quiet", "box", "new:1"), _base, done=_has_image("new:1")),
    Operation(
        "commit compressed", _words("commit", "--quiet", "--compression", "gzip", "box", "new:1"), _base,
        done=_has_image("new:1"),
    ),
    Operation("commit a layer", _freeze, _base, done=lambda place, store: store.layers.has("name")),
    Operation("tag", _words("tag", "app:1", "new:1"), _base, done=_has_image("new:1")),
    Operation(
        "rmi", _words("rmi", "plain:1"), _several, done=_lacks_image("plain:1"), takes=("plain:1",)
    ),
    Operation(
        "rm", _words("rm", "box"), _base, done=lambda place, store: store.containers.find("box") is None,
        takes=("box",),
    ),
    Operation("gc", _words("gc", "--grace", "0"), _littered),
    Operation("check --repair", _words("check", "--quiet", "--repair"), _damaged, damaged=True),
    Operation("repair of a lost blob", _repair_from_outside, _altered, damaged=True, several_ways=True),
    Operation("open after a crash", _words("images"), _crashed),
)  # fmt: skip
