"""Images read where they lie show what a mount of them shows, whatever their layers are kept as."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import zstandard

from layerfs import linux, mounting
from layerfs.digest import Digest
from layerfs.errors import LayerError, LayerfsError, NotFoundError, VerificationError
from layerfs.oci.config import ImageConfig
from layerfs.oci.descriptor import Descriptor
from layerfs.oci.manifest import Manifest
from layerfs.reading import OpenImage
from layerfs.seekable.merged import walk
from layerfs.seekable.writing import write_layer
from layerfs.store import Store
from layerfs.tree.entry import Kind
from layerfs.value import replace
from tests.support.estargz_images import EstargzImage
from tests.support.tiny_images import document, layout_files, sha256, write_files

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

KINDS = ["none", "gzip", "zstd", "estargz", "zstd:chunked"]


class Seen(NamedTuple):
    """What can be told of a file of a tree."""

    kind: Kind
    mode: int
    owner: tuple[int, int]
    size: int
    mtime: int
    target: bytes
    device: tuple[int, int]
    data: str


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "root", driver="overlay2", durability="none") as opened:
        yield opened
    for info in reversed(mounting.mounts_below(tmp_path)):
        linux.umount(info.target, linux.MNT_DETACH)


def layer(members: list[tuple[str, Any]]) -> bytes:
    """Pack (name, what): bytes for a file, None for a directory, (type, target) for links and devices."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for place, (name, what) in enumerate(members):
            entry = tarfile.TarInfo(name)
            entry.mtime = 1_500_000_000 + place
            entry.uid, entry.gid = place % 3, place % 2
            entry.mode = (0o755, 0o4711, 0o640)[place % 3]
            if isinstance(what, bytes):
                entry.size = len(what)
                archive.addfile(entry, io.BytesIO(what))
                continue
            if what is None:
                entry.type = tarfile.DIRTYPE
            else:
                entry.type = what[0]
                entry.linkname = what[1]
                entry.devmajor, entry.devminor = 1, 3
            archive.addfile(entry)
    return packed.getvalue()


LINK, SYMBOLIC = tarfile.LNKTYPE, tarfile.SYMTYPE
LAYERS = [
    layer([
        ("etc", None), ("etc/passwd", b"root:x:0:0::/:/bin/sh\nada:x:1:1::/:/bin/sh\n"), ("etc/old", b"old"),
        ("bin", None), ("bin/busy", b"#!" * 40_000), ("bin/sh", (LINK, "bin/busy")),
        ("lib", (SYMBOLIC, "usr/lib")), ("usr/lib/deep/file", b"deep"), ("dev/null", (tarfile.CHRTYPE, "")),
        ("gone", None), ("gone/file", b"x"), ("opaque", None), ("opaque/below", b"x"),
        ("fifo", (tarfile.FIFOTYPE, "")),
    ]),
    layer([
        ("etc/.wh.old", b""), (".wh.gone", b""), ("opaque", None), ("opaque/.wh..wh..opq", b""),
        ("opaque/above", b"above"), ("etc/passwd2", (LINK, "etc/passwd")), ("bin/busy", b"new" * 30_000),
        ("loop", (SYMBOLIC, "loop")), ("up", (SYMBOLIC, "../../../etc/passwd")),
        ("abs", (SYMBOLIC, "/etc/../etc")),
    ]),
    layer([
        ("etc", None), ("new/dir/file", b"implied"), ("opaque/above", (SYMBOLIC, "../etc")),
        ("bin/busy", None),
    ]),
]  # fmt: skip


def image(layers: list[bytes], kind: str) -> dict[str, bytes]:
    """Write an image as the files of a layout, its layers packed in one way."""
    blobs: list[bytes] = []
    descriptors = []
    diff_ids = []
    for plain in layers:
        annotations: dict[str, str] = {}
        diff_id = Digest.of(plain)
        if kind in ("estargz", "zstd:chunked"):
            parts: list[bytes] = []
            done = write_layer(io.BytesIO(plain), parts.append, kind)  # type: ignore[arg-type]
            packed, annotations, diff_id = b"".join(parts), dict(done.annotations), done.diff_id
        else:
            packed = {"none": bytes, "gzip": gzip.compress, "zstd": zstandard.compress}[kind](plain)
        suffix = {"none": "", "gzip": "+gzip", "estargz": "+gzip"}.get(kind, "+zstd")
        media_type = f"application/vnd.oci.image.layer.v1.tar{suffix}"
        descriptors.append(replace(Descriptor.to(packed, media_type), annotations=annotations))
        diff_ids.append(diff_id)
        blobs.append(packed)
    config = ImageConfig.build(diff_ids=diff_ids)
    described = Descriptor.to(config.raw, "application/vnd.oci.image.config.v1+json")
    manifest = Manifest.build(described, descriptors)
    entry = {
        "mediaType": manifest.media_type, "digest": sha256(manifest.raw), "size": len(manifest.raw),
        "annotations": {"org.opencontainers.image.ref.name": "1"},
    }  # fmt: skip
    return layout_files([entry], [*blobs, config.raw, manifest.raw])


def keep_packed(store: Store, layers: list[bytes], kind: str, name: str = "app:1") -> None:
    """Put an image into a store whose layers are not unpacked."""
    raw = b""
    for path, data in image(layers, kind).items():
        if path.startswith("blobs/"):
            store.blobs.put(data)
            raw = data
    store.images.put(raw, names=[name])


def shown(opened: OpenImage) -> dict[bytes, Seen]:
    found = {}
    for path, node in walk(opened.tree.root):
        entry = node.entry
        data = b"".join(opened.data(node, path)) if entry.kind is Kind.FILE else b""
        assert len(data) == entry.size
        mode = 0o777 if entry.kind is Kind.SYMLINK else entry.mode
        found[path] = Seen(
            entry.kind, mode, (entry.uid, entry.gid), entry.size, entry.mtime_ns, entry.target, entry.device,
            hashlib.sha256(data).hexdigest(),
        )  # fmt: skip
    return found


def mounted(store: Store, name: str, place: Path) -> dict[bytes, Seen]:
    place.mkdir()
    container = store.mount(name, place, read_only=True)
    found = {}
    top = os.fsencode(place)
    paths = [b""]
    while paths:
        path = paths.pop()
        whole = os.path.join(top, path) if path else top
        status = os.lstat(whole)
        kind = next(
            kind
            for kind, bits in (
                (Kind.FILE, stat.S_IFREG), (Kind.DIRECTORY, stat.S_IFDIR), (Kind.SYMLINK, stat.S_IFLNK),
                (Kind.CHARACTER, stat.S_IFCHR), (Kind.FIFO, stat.S_IFIFO),
            )
            if stat.S_IFMT(status.st_mode) == bits
        )  # fmt: skip
        data = Path(os.fsdecode(whole)).read_bytes() if kind is Kind.FILE else b""
        found[path] = Seen(
            kind, stat.S_IMODE(status.st_mode), (status.st_uid, status.st_gid), len(data), status.st_mtime_ns,
            os.readlink(whole) if kind is Kind.SYMLINK else b"",
            (os.major(status.st_rdev), os.minor(status.st_rdev)), hashlib.sha256(data).hexdigest(),
        )  # fmt: skip
        if kind is Kind.DIRECTORY:
            paths += [os.path.join(path, name) if path else name for name in os.listdir(whole)]
    store.unmount(place)
    store.containers.remove(container.name)
    return found


def same(found: dict[bytes, Seen], wanted: dict[bytes, Seen]) -> None:
    """Compare two trees, but for times of directories that no layer speaks of."""

    def settled(tree: dict[bytes, Seen]) -> dict[bytes, Seen]:
        return {
            path: seen._replace(mtime=0) if seen.kind is Kind.DIRECTORY else seen
            for path, seen in tree.items()
        }

    assert settled(found) == settled(wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_shows_the_same_read_and_mounted(store: Store, tmp_path: Path, kind: str) -> None:
    layout = write_files(tmp_path / "layout", image(LAYERS, kind))
    with store.read_image(f"oci:{layout}:1") as opened:
        outside = shown(opened)
    keep_packed(store, LAYERS, kind)
    with store.read_image("app:1") as opened:
        packed = shown(opened)
    wanted = mounted(store, "app:1", tmp_path / "mount")
    with store.read_image("app:1") as opened:
        unpacked = shown(opened)
    assert b"gone" not in wanted
    assert b"bin/busy" in wanted
    same(packed, wanted)
    same(outside, wanted)
    same(unpacked, wanted)


@pytest.mark.parametrize("seed", [*range(30), 112, 135, 208, 248, 287])
def test_random_layers_show_the_same_read_and_mounted(store: Store, tmp_path: Path, seed: int) -> None:
    made = random.Random(seed)
    names = ["a", "b", "c"]
    layers = []
    for _ in range(4):
        members: list[tuple[str, Any]] = []
        for _ in range(made.randint(1, 12)):
            parts = [made.choice(names) for _ in range(made.randint(1, 3))]
            choice = made.random()
            if choice < 0.2:
                parts[-1] = made.choice([".wh." + parts[-1], ".wh..wh..opq"])
                members.append(("/".join(parts), b""))
            elif choice < 0.45:
                members.append(("/".join(parts), None))
            elif choice < 0.6:
                members.append(
                    ("/".join(parts), (tarfile.SYMTYPE, made.choice(["a", "../b", "/c", "nowhere"])))
                )
            else:
                members.append(("/".join(parts), made.randbytes(made.randint(0, 2000))))
        files = [name for name, what in members if isinstance(what, bytes) and ".wh." not in name]
        if files and made.random() < 0.5:
            last = files[-1]
            members = [each for each in members if not last.startswith(each[0] + "/") or each[1] is None]
            members.append((made.choice(["b/l", "l", "c/l"]), (tarfile.LNKTYPE, last)))
        layers.append(layer(members))
    kind = made.choice(KINDS)
    keep_packed(store, layers, kind)
    try:
        wanted = mounted(store, "app:1", tmp_path / "mount")
    except LayerError:
        # No tree can be made of them; what can be read of them does not matter.
        return
    with Store.open(tmp_path / "other", driver="overlay2", durability="none") as other:
        keep_packed(other, layers, kind)
        with other.read_image("app:1") as opened:
            same(shown(opened), wanted)


def test_paths_are_resolved_inside_the_image(store: Store) -> None:
    keep_packed(store, LAYERS, "gzip")
    with store.read_image("app:1") as opened:
        for path in (b"/up", b"up", b"abs/passwd", b"/abs/../etc/passwd", b"/etc/./passwd", b"//etc///passwd",
                     b"/../../etc/passwd", b"opaque/above/passwd", b"etc/passwd2"):  # fmt: skip
            assert b"".join(opened.read(path)).startswith(b"root:x:0:0"), path
        assert b"".join(opened.read(b"/lib/deep/file", 1, 2)) == b"ee"
        assert opened.tree.find(b"/up", follow=False).entry.kind is Kind.SYMLINK
        assert opened.tree.find(b"/abs/", follow=False).entry.kind is Kind.DIRECTORY
        for path, number in (
            (b"/nope", 2), (b"/etc/nope/x", 2), (b"/etc/passwd/x", 20), (b"/etc/passwd/", 20), (b"/loop", 40),
            (b"/etc/old", 2), (b"/gone/file", 2), (b"/opaque/below", 2),
        ):  # fmt: skip
            with pytest.raises(OSError) as caught:
                list(opened.read(path))
            assert caught.value.errno == number, path
        with pytest.raises(IsADirectoryError):
            list(opened.read(b"/etc"))
        with pytest.raises(OSError, match="Invalid argument"):
            list(opened.read(b"/fifo"))


def test_hard_links_are_one_file(store: Store) -> None:
    keep_packed(store, LAYERS, "gzip")
    with store.read_image("app:1") as opened:
        assert opened.tree.find(b"/etc/passwd") is opened.tree.find(b"/etc/passwd2")
        assert opened.tree.find(b"/etc/passwd").links == 2
        # Its other name was replaced by a later layer.
        assert opened.tree.find(b"/bin/sh").links == 1


def tables(store: Store) -> list[tuple[str, str]]:
    return store._database.rows("SELECT blob, seek FROM seek_tables")  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["gzip", "zstd", "estargz", "zstd:chunked"])
def test_a_table_is_built_once_and_goes_with_its_blob(store: Store, kind: str) -> None:
    keep_packed(store, LAYERS, kind)
    for _ in range(2):
        with store.read_image("app:1") as opened:
            assert b"".join(opened.read(b"/usr/lib/deep/file")) == b"deep"
    assert len(tables(store)) == 3
    seeks = {seek for _, seek in tables(store)}
    report = store.collect(grace=0)
    assert not report.removed
    assert {item.name for item in report.kept if item.reason.startswith("of blob")} == seeks
    assert store.disk_usage().blob_reclaimable == 0
    assert not store.check().problems
    store.images.remove("app:1")
    store.collect(grace=0)
    assert not list(store.blobs.list())
    assert not tables(store)


def test_garbage_collection_takes_a_table_whose_blob_is_lost(store: Store) -> None:
    keep_packed(store, LAYERS[:1], "gzip")
    store.read_image("app:1").close()
    ((blob, seek),) = tables(store)
    raw = store.images.get("app:1").digest
    with store._database.transaction() as connection:
        connection.execute("DELETE FROM tags")
    store.blobs.delete(Digest.parse(blob))
    gone = {item.name for item in store.collect(grace=0).removed}
    assert {seek, str(raw)} <= gone
    assert not tables(store)


def test_a_lost_table_is_built_again(store: Store) -> None:
    keep_packed(store, LAYERS, "gzip")
    for _ in range(2):
        with store.read_image("app:1") as opened:
            assert b"".join(opened.read(b"/usr/lib/deep/file")) == b"deep"
        for _, seek in tables(store):
            store.blobs.delete(Digest.parse(seek))


def test_a_layer_that_is_unpacked_needs_no_table(store: Store, tmp_path: Path) -> None:
    layout = write_files(tmp_path / "layout", image(LAYERS, "gzip"))
    store.pull(f"oci:{layout}:1", "app:1")
    with store.read_image("app:1") as opened:
        assert b"".join(opened.read(b"/usr/lib/deep/file")) == b"deep"
    assert not tables(store)


def test_a_file_that_was_cut_in_its_layer_is_told(store: Store, tmp_path: Path) -> None:
    layout = write_files(tmp_path / "layout", image(LAYERS[:1], "gzip"))
    store.pull(f"oci:{layout}:1", "app:1")
    file = next((tmp_path / "root/drivers").rglob("bin/busy"))
    os.truncate(file, 100)
    with store.read_image("app:1") as opened, pytest.raises(VerificationError, match="shorter"):
        list(opened.read(b"/bin/busy"))


@pytest.mark.parametrize("kind", ["gzip", "estargz"])
def test_wrong_bytes_outside_of_the_store_are_found_out(store: Store, tmp_path: Path, kind: str) -> None:
    made = image([layer([("noise", random.Random(1).randbytes(100_000))])], kind)
    layout = write_files(tmp_path / "layout", made)
    blob = max(made, key=lambda name: len(made[name]))
    damaged = bytearray(made[blob])
    damaged[len(damaged) // 2] ^= 4
    (layout / blob).write_bytes(damaged)
    with pytest.raises(LayerfsError), store.read_image(f"oci:{layout}:1") as opened:
        for path, node in walk(opened.tree.root):
            if node.entry.kind is Kind.FILE:
                list(opened.data(node, path))


def test_archives_are_read_where_they_are(store: Store, tmp_path: Path) -> None:
    layout = write_files(tmp_path / "layout", image(LAYERS, "zstd:chunked"))
    with tarfile.open(tmp_path / "image.tar", "w") as archive:
        archive.add(layout, arcname=".")
    with store.read_image(f"oci-archive:{tmp_path / 'image.tar'}:1") as opened:
        assert b"".join(opened.read(b"/usr/lib/deep/file")) == b"deep"


def test_an_image_that_is_not_there_is_told(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        store.read_image("nope")
    with pytest.raises(NotFoundError):
        store.read_image(f"oci:{tmp_path}/nope:1")


@pytest.mark.parametrize("promised", [True, False])
def test_what_a_stored_layer_shows_is_what_whoever_unpacks_it_gets(store: Store, promised: bool) -> None:
    lies = [
        {"name": "etc/passwd", "size": 4, "digest": sha256(b"lie\n"), "chunkDigest": sha256(b"lie\n")},
        {"name": "etc/more", "type": "dir", "mode": 0o777},
    ]
    image = EstargzImage(layer([("etc", None), ("etc/passwd", b"root:x:0:0\n")]), more=lies)
    manifest = json.loads(image.manifest)
    if not promised:
        manifest["layers"][0].pop("annotations")
    raw = document(manifest)
    for blob in (*image.blobs, raw):
        store.blobs.put(blob)
    store.images.put(raw, names=["app:1"])
    with store.read_image("app:1") as opened:
        assert b"".join(opened.read(b"/etc/passwd")) == b"root:x:0:0\n"
        with pytest.raises(FileNotFoundError):
            opened.tree.find(b"/etc/more")


def test_a_hard_link_to_nothing_is_refused_as_it_is_when_unpacked(store: Store) -> None:
    keep_packed(
        store, [layer([("a", (tarfile.LNKTYPE, "b")), ("b", (tarfile.LNKTYPE, "a"))])], "gzip", "circle:1"
    )
    keep_packed(
        store,
        [layer([("f", b"x")]), layer([(".wh.f", b""), ("a", (tarfile.LNKTYPE, "f"))])],
        "gzip",
        "hidden:1",
    )
    for name in ("circle:1", "hidden:1"):
        with pytest.raises(LayerError, match="hard link to"):
            store.read_image(name)


def test_a_long_chain_of_hard_links_takes_no_time(store: Store) -> None:
    links = [(f"l{number}", (tarfile.LNKTYPE, f"l{number + 1}")) for number in range(4000)]
    keep_packed(store, [layer([*links, ("l4000", b"end")])], "gzip")
    with store.read_image("app:1") as opened:
        assert opened.tree.find(b"/l0").links == 4001


def test_a_tree_is_as_deep_as_strangers_like(store: Store) -> None:
    path = "/".join(["d"] * 1500)
    keep_packed(store, [layer([(f"{path}/f", b"deep")])], "gzip")
    with store.read_image("app:1") as opened:
        assert b"".join(opened.read(f"{path}/f".encode())) == b"deep"
        assert len(list(walk(opened.tree.root))) == 1502
    done = subprocess.run(
        [sys.executable, "-m", "layerfs", "--root", store.root, "ls", "-R", "app:1"], capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(b"/d:\nf\n")
