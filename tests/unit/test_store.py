"""The store as a whole: opened, filled from archives, handed on, checked and repaired."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import random
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from layerfs import linux, mounting
from layerfs.digest import Digest
from layerfs.errors import (
    ArchiveError,
    InUseError,
    InvalidError,
    NotFoundError,
    StoreError,
    VerificationError,
)
from layerfs.images import Image
from layerfs.oci.config import History, ImageConfig
from layerfs.oci.descriptor import Descriptor
from layerfs.oci.manifest import Manifest
from layerfs.oci.platform import Platform
from layerfs.progress import Silent
from layerfs.store import Store
from layerfs.transports import copy, oci_layout
from layerfs.transports.endpoint import Source
from tests.support.tiny_images import (
    TinyImage,
    document,
    layout_files,
    layout_of_index,
    multi_platform,
    write_files,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "root", driver="overlay2", durability="none") as opened:
        yield opened
    for info in reversed(mounting.mounts_below(tmp_path)):
        linux.umount(info.target, linux.MNT_DETACH)


def layer(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def make_layout(
    place: Path, layers: list[dict[str, bytes]], *, tag: str = "1", odd: bool = False
) -> Manifest:
    """Write an OCI layout by hand, with spacing in its documents that no one else would choose."""
    blobs = place / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def put(data: bytes) -> Digest:
        digest = Digest.of(data)
        (blobs / digest.hex).write_bytes(data)
        return digest

    descriptors, diff_ids = [], []
    for files in layers:
        plain = layer(files)
        packed = gzip.compress(plain, mtime=0)
        descriptors.append(
            Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", put(packed), len(packed))
        )
        diff_ids.append(Digest.of(plain if not odd else plain + b"odd"))
    built = ImageConfig.build(diff_ids=diff_ids, history=[History(created_by="hand")], config={"Cmd": ["sh"]})
    config = json.dumps({**json.loads(built.raw), "unknown": True}, indent=4).encode()
    manifest = Manifest.build(
        Descriptor("application/vnd.oci.image.config.v1+json", put(config), len(config)), descriptors
    )
    raw = json.dumps(json.loads(manifest.raw), indent=1).encode()
    found = {**Descriptor.to(raw, manifest.media_type).members()}
    found["annotations"] = {"org.opencontainers.image.ref.name": tag}
    put(raw)
    (place / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [found]}))
    return Manifest.parse(raw, manifest.media_type)


LAYERS: list[dict[str, bytes]] = [{"a": b"one", "b": b"two"}, {"a": b"three", ".wh.b": b""}]


def files_of(store: Store, image: str) -> dict[str, bytes]:
    box = store.containers.create(image)
    try:
        with box.mounted(read_only=True) as place:
            return {path.name: path.read_bytes() for path in place.iterdir()}
    finally:
        store.containers.remove(box.id)


def test_a_store_is_made_private_and_opens_again(tmp_path: Path) -> None:
    with Store.open(tmp_path / "deep/root", driver="vfs") as store:
        assert store.driver.name == "vfs"
        assert store.info().images == 0
    root = tmp_path / "deep/root"
    for place in (
        root,
        *(root / name for name in ("blobs", "drivers", "drivers/vfs", "tmp", "trash", "locks")),
    ):
        assert place.stat().st_mode & 0o777 == 0o700, place
    assert json.loads((root / "format.json").read_text()) == {"layerfs": 1}
    with Store.open(root) as store:
        assert store.driver.name == "vfs", "the choice is remembered"
        store.close()
        store.close()
    with Store.open(root, driver="overlay2") as store:
        assert store.driver.name == "overlay2"
    with Store.open(root) as store:
        assert store.driver.name == "vfs", "another driver is for one session"


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="not a store"):
        Store.open(tmp_path)
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(StoreError, match="not a directory"):
        Store.open(tmp_path / "file")


def test_a_store_of_another_format_is_refused_with_a_hint(tmp_path: Path) -> None:
    Store.open(tmp_path / "root", driver="vfs").close()
    (tmp_path / "root/format.json").write_text('{"layerfs": 99}')
    with pytest.raises(StoreError, match="format 99") as caught:
        Store.open(tmp_path / "root")
    assert caught.value.hint
    (tmp_path / "root/format.json").write_text("rubbish")
    with pytest.raises(StoreError, match="cannot be read"):
        Store.open(tmp_path / "root")


def test_a_half_made_store_is_finished(tmp_path: Path) -> None:
    (tmp_path / "root/locks").mkdir(parents=True)
    (tmp_path / "root/tmp").mkdir()
    Store.open(tmp_path / "root", driver="vfs").close()
    (tmp_path / "root/layerfs.db").unlink()
    with pytest.raises(StoreError, match="missing"):
        Store.open(tmp_path / "root")


def test_unknown_words_are_refused(tmp_path: Path, store: Store) -> None:
    with pytest.raises(NotFoundError, match="driver"):
        Store.open(tmp_path / "other", driver="nothing")
    with pytest.raises(InvalidError, match="durability"):
        Store.open(tmp_path / "other", durability="sometimes")  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="format"):
        store.save([], tmp_path / "x", format="zip")  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="not an image name"):
        store.pull("docker://debian/")


def test_an_image_is_pulled_and_pushed_byte_for_byte(store: Store, tmp_path: Path) -> None:
    manifest = make_layout(tmp_path / "layout", LAYERS, tag="v1")
    image = store.pull(f"oci:{tmp_path}/layout:v1")
    assert image.manifest.raw == manifest.raw
    assert image.names == ("layout:v1",)
    assert files_of(store, "layout:v1") == {"a": b"three"}
    assert store.pull(f"oci:{tmp_path}/layout", "mine:2").digest == image.digest
    assert store.images.get("mine:2").names == ("layout:v1", "mine:2")
    pushed = store.push("layout:v1", f"oci:{tmp_path}/copy:v2")
    assert pushed.digest == manifest.digest
    for blob in (tmp_path / "layout/blobs/sha256").iterdir():
        assert (tmp_path / "copy/blobs/sha256" / blob.name).read_bytes() == blob.read_bytes()
    with pytest.raises(NotFoundError):
        store.pull(f"oci:{tmp_path}/layout:other")


def test_a_pull_of_what_was_tampered_with_names_the_image(store: Store, tmp_path: Path) -> None:
    image = TinyImage(b"one")
    layout = write_files(tmp_path / "layout", layout_files([image.entry(name="1")], image.blobs))
    blob = layout / "blobs/sha256" / image.describe(image.layers[0], "")["digest"].partition(":")[2]
    blob.write_bytes(blob.read_bytes()[:-4] + b"\1\2\3\4")
    with pytest.raises(VerificationError, match=f"^oci:{layout}:1: sha256:.* was promised"):
        store.pull(f"oci:{layout}:1", "bad:1")


@pytest.mark.parametrize("transport", ["oci", "oci-archive", "docker-archive"])
def test_a_place_where_nothing_is_is_not_found_and_its_form_is_told(store: Store, transport: str) -> None:
    with pytest.raises(NotFoundError, match="there is no /nothing/here") as raised:
        store.pull(f"{transport}:/nothing/here")
    assert raised.value.hint is not None and raised.value.hint.startswith(f"{transport}:")


def test_a_platform_and_a_directory_may_be_given_as_texts(store: Store, tmp_path: Path) -> None:
    index, images = multi_platform("linux/amd64", "linux/arm64")
    layout = layout_of_index(tmp_path / "layout", index, images, name="1")
    image = store.pull(f"oci:{layout}:1", "arm:1", platform="linux/aarch64")
    assert image.config.architecture == "arm64"
    with store.read_image(f"oci:{layout}:1", platform="linux/arm64") as opened:
        assert b"".join(opened.read(b"/file0")) == b"linux/arm64"
    for wrong in ({"os": "linux"}, 5):
        with pytest.raises(TypeError, match="a platform is a Platform, or text"):
            store.pull(f"oci:{layout}:1", platform=wrong)  # type: ignore[arg-type]
    target = tmp_path / "tree"
    target.mkdir()
    made = store.mount("arm:1", str(target))
    assert (target / "file0").read_bytes() == b"linux/arm64"
    store.unmount(str(target))
    made.mount(str(target))
    made.unmount()


@pytest.mark.parametrize(
    ("platform", "wanted", "warning"),
    [
        ("linux/amd64", "linux/arm64", "app:1 is for linux/amd64, not for linux/arm64 as was asked"),
        ("linux/s390x", None, f"app:1 is for linux/s390x, and this machine is {Platform.host()}"),
        ("linux/arm64/v8", "linux/aarch64", None),
        (str(Platform.host()), None, None),
    ],
)
def test_an_image_for_another_machine_is_warned_of(
    tmp_path: Path, platform: str, wanted: str | None, warning: str | None
) -> None:
    image = TinyImage(b"one", platform=platform)
    write_files(tmp_path / "layout", layout_files([image.entry(name="1")], image.blobs))
    told: list[str] = []
    with Store.open(tmp_path / "root", driver="vfs", durability="none", warn=told.append) as store:
        store.pull(f"oci:{tmp_path}/layout:1", "app:1", platform=wanted)
    assert told == ([] if warning is None else [warning])


@pytest.mark.parametrize("form", ["docker", "oci"])
def test_an_image_is_saved_and_loaded_byte_for_byte(store: Store, tmp_path: Path, form: str) -> None:
    manifest = make_layout(tmp_path / "layout", LAYERS)
    store.pull(f"oci:{tmp_path}/layout", "app:1")
    store.images.tag("app:1", "app:2")
    store.save(["app:1"], tmp_path / "archive.tar", format=form)  # type: ignore[arg-type]
    (tmp_path / "packed.tar.gz").write_bytes(gzip.compress((tmp_path / "archive.tar").read_bytes()))
    for number, archive in enumerate(("archive.tar", "packed.tar.gz")):
        with Store.open(tmp_path / f"second{number}", driver="vfs", durability="none") as second:
            (image,) = second.load(tmp_path / archive)
            assert image.manifest.raw == manifest.raw
            assert image.names == ("app:1",)
            assert files_of(second, "app:1") == {"a": b"three"}
            with (tmp_path / "again.tar").open("wb") as file:
                second.save(["app:1"], file, format=form)  # type: ignore[arg-type]
            assert (tmp_path / "again.tar").read_bytes() == (tmp_path / "archive.tar").read_bytes()
            assert os.listdir(second.root / "tmp") == []


def test_several_images_go_into_one_archive(store: Store, tmp_path: Path) -> None:
    make_layout(tmp_path / "one", LAYERS)
    make_layout(tmp_path / "two", LAYERS[:1])
    store.pull(f"oci:{tmp_path}/one", "one:1")
    second = store.pull(f"oci:{tmp_path}/two", "two:1")
    store.save(["one:1", second.id.hex[:12]], tmp_path / "archive.tar")
    for image in store.images.list():
        store.images.remove(str(image.id))
    assert list(store.driver.layers()) == []
    loaded = store.load(io.BytesIO((tmp_path / "archive.tar").read_bytes()))
    assert [image.names for image in loaded] == [("one:1",), ()]
    assert store.check().sound


def test_a_rejected_image_leaves_no_name_and_no_layer(store: Store, tmp_path: Path) -> None:
    make_layout(tmp_path / "layout", LAYERS, odd=True)
    with pytest.raises(VerificationError, match="diff id"):
        store.pull(f"oci:{tmp_path}/layout", "app:1")
    with pytest.raises(NotFoundError):
        store.images.get("app:1")
    assert list(store.driver.layers()) == []
    store.collect(grace=0)
    assert list(store.blobs.list()) == []
    with pytest.raises(ArchiveError):
        store.load(io.BytesIO(layer({"a": b"no image"})))


class Cut:
    """A source whose streams break in the layer with this digest, after so many bytes."""

    def __init__(self, source: Source, digest: Digest, after: int) -> None:
        self._source = source
        self._digest = digest
        self._after = after
        self.read: dict[Digest, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    @contextlib.contextmanager
    def open(self, descriptor: Descriptor) -> Iterator[Any]:
        with self._source.open(descriptor) as stream:
            yield _CutStream(self, descriptor.digest, stream)


class _CutStream:
    def __init__(self, source: Cut, digest: Digest, stream: Any) -> None:
        self._source = source
        self._digest = digest
        self._stream = stream

    def read(self, size: int, /) -> bytes:
        read = self._source.read
        done = read.setdefault(self._digest, 0)
        if self._digest == self._source._digest and done >= self._source._after:
            raise ConnectionError("cut")
        data: bytes = self._stream.read(min(size, 10_000))
        read[self._digest] += len(data)
        return data


def test_a_broken_pull_goes_on_where_it_ended_and_unpacks_all_of_it(store: Store, tmp_path: Path) -> None:
    noise = random.Random(1).randbytes(100_000)
    manifest = make_layout(tmp_path / "layout", [{"a": b"one"}, {"b": noise}, {"c": b"three"}])
    large = manifest.layers[1].digest
    with (
        contextlib.closing(store._sink(Silent())) as sink,
        contextlib.closing(oci_layout.open_source(tmp_path / "layout")) as origin,
        pytest.raises(ConnectionError),
    ):
        copy(Cut(origin, large, 50_000), sink)
    assert list(store.driver.layers()) == []
    assert not store.layers.table.unfinished()
    partial = store.root / "tmp" / f"ingest-sha256-{large.hex}"
    left = partial.stat().st_size
    assert 0 < left <= 50_000
    with partial.open("r+b") as file:
        file.seek(left - 1)
        last = file.read(1)
    store.pull(f"oci:{tmp_path}/layout", "app")
    assert last == store.blobs.read(large, limit=1 << 20)[left - 1 : left]
    assert files_of(store, "app") == {"a": b"one", "b": noise, "c": b"three"}
    assert os.listdir(store.root / "tmp") == []
    assert store.check(contents=True).problems == ()


@pytest.mark.parametrize("what", ["digest", "length", "tar"])
def test_a_layer_that_is_wrong_leaves_nothing_committed(store: Store, tmp_path: Path, what: str) -> None:
    manifest = make_layout(tmp_path / "layout", [{"a": b"one"}, {"b": b"two"}])
    path = tmp_path / "layout/blobs/sha256" / manifest.layers[1].digest.hex
    good = path.read_bytes()
    wrong = {
        "digest": gzip.compress(layer({"b": b"owt"}), mtime=0),
        "length": good + b"more",
        "tar": gzip.compress(b"no tar" * 100, mtime=0),
    }[what]
    path.write_bytes(wrong)
    with pytest.raises(VerificationError):
        store.pull(f"oci:{tmp_path}/layout", "app")
    assert list(store.driver.layers()) == []
    assert list(store.layers.walk()) == []
    assert store.images.list() == []
    path.write_bytes(good)
    store.pull(f"oci:{tmp_path}/layout", "app")
    assert files_of(store, "app") == {"a": b"one", "b": b"two"}
    assert store.check(contents=True).problems == ()


def test_progress_counts_each_byte_that_comes_in_once(store: Store, tmp_path: Path) -> None:
    manifest = make_layout(tmp_path / "layout", [{"a": b"one"}, {"b": b"two"}])
    seen: dict[str, int] = {}

    class Counting:
        @contextlib.contextmanager
        def task(self, label: str, total: int | None) -> Iterator[Callable[[int], None]]:
            seen[label] = 0

            def advance(count: int) -> None:
                seen[label] += count

            yield advance
            assert seen[label] == total

    store.pull(f"oci:{tmp_path}/layout", "app", progress=Counting())
    assert seen == {f"blob {one.digest.hex[:12]}": one.size for one in (manifest.config, *manifest.layers)}


def test_a_blob_that_is_two_layers_is_unpacked_twice(store: Store, tmp_path: Path) -> None:
    same = {"a": b"one"}
    manifest = make_layout(tmp_path / "layout", [same, {".wh.a": b"", "b": b"two"}, same])
    assert manifest.layers[0] == manifest.layers[2]
    image = store.pull(f"oci:{tmp_path}/layout", "app")
    assert len(set(image.chain_ids)) == 3
    assert files_of(store, "app") == {"a": b"one", "b": b"two"}


def test_layers_that_are_here_are_not_read_again(store: Store, tmp_path: Path) -> None:
    make_layout(tmp_path / "first", [{"a": b"one"}, {"b": b"two"}])
    manifest = make_layout(tmp_path / "second", [{"a": b"one"}, {"b": b"two"}, {"c": b"three"}])
    store.pull(f"oci:{tmp_path}/first", "first")
    with (
        contextlib.closing(store._sink(Silent())) as sink,
        contextlib.closing(oci_layout.open_source(tmp_path / "second")) as origin,
    ):
        counting = Cut(origin, manifest.digest, 0)
        copy(counting, sink, names=["second"])
        sink.commit()
    assert set(counting.read) == {manifest.config.digest, manifest.layers[2].digest}
    assert files_of(store, "second") == {"a": b"one", "b": b"two", "c": b"three"}


@pytest.mark.parametrize("where", ["", "drivers", "..", "../link"])
def test_nothing_is_mounted_over_the_store(store: Store, where: str) -> None:
    target = store.root / where
    if where == "../link":
        target.symlink_to(store.root / "tmp")
    with pytest.raises(InvalidError, match="hide the store"):
        store.mount("app", target)
    assert store.containers.list() == []


def test_mount_makes_a_container_that_unmount_keeps(store: Store, tmp_path: Path) -> None:
    make_layout(tmp_path / "layout", LAYERS)
    store.pull(f"oci:{tmp_path}/layout", "app")
    target = tmp_path / "target"
    target.mkdir()
    box = store.mount("app", target, name="work")
    assert (target / "a").read_bytes() == b"three"
    (target / "new").write_text("new")
    with pytest.raises(InUseError):
        store.mount("work", target)
    assert box.mounts() == [target]
    store.unmount(target)
    assert list(target.iterdir()) == []
    assert store.mount("work", target) == box
    assert (target / "new").read_text() == "new"
    store.unmount("work")
    with pytest.raises(NotFoundError):
        store.unmount("work")
    with pytest.raises(NotFoundError):
        store.unmount(target)
    store.mount("work", target, read_only=True)
    with pytest.raises(OSError, match="Read-only"):
        (target / "x").write_text("")
    store.unmount(str(target))
    with pytest.raises(FileNotFoundError):
        store.mount("app", tmp_path / "missing")
    assert [container.name for container in store.containers.list()] == ["work"]
    with pytest.raises(NotFoundError):
        store.mount("nothing", target)


def test_a_sound_store_passes_its_check(store: Store, tmp_path: Path) -> None:
    make_layout(tmp_path / "layout", LAYERS)
    store.pull(f"oci:{tmp_path}/layout", "app")
    box = store.containers.create("app")
    with box.mounted() as place:
        (place / "new").write_text("new")
        (place / "a").unlink()
    box.commit("app:2")
    findings = store.check(contents=True)
    assert findings.problems == ()
    assert findings.sound
    assert (findings.blobs, findings.layers) == (len(list(store.blobs.list())) + 1, 4)


def damage_file(store: Store, image: Image) -> None:
    name = image.chain_ids[-1]
    path = next((store.driver.root).rglob("a"))
    path.write_bytes(b"damaged")
    assert store.layers.has(name)


def test_a_changed_file_is_found_and_mended(store: Store, tmp_path: Path) -> None:
    make_layout(tmp_path / "layout", LAYERS[:1])
    image = store.pull(f"oci:{tmp_path}/layout", "app")
    damage_file(store, image)
    (problem,) = store.check().problems
    assert problem.kind == "layer" and "/a" in problem.what and not problem.repaired
    (problem,) = store.check(repair=True).problems
    assert problem.repaired
    assert store.check(contents=True).problems == ()
    assert files_of(store, "app") == LAYERS[0]


def test_content_of_the_same_size_and_time_is_found_by_reading(store: Store, tmp_path: Path) -> None:
    make_layout(tmp_path / "layout", LAYERS[:1])
    store.pull(f"oci:{tmp_path}/layout", "app")
    path = next((store.driver.root).rglob("a"))
    found = path.stat()
    path.write_bytes(b"ONE")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert store.check().problems == ()
    (problem,) = store.check(contents=True).problems
    assert "content" in problem.what


def test_missing_files_of_layers_are_mended_from_blobs(store: Store, tmp_path: Path) -> None:
    make_layout(tmp_path / "layout", LAYERS)
    image = store.pull(f"oci:{tmp_path}/layout", "app")
    for name in image.chain_ids:
        store.driver.remove(store.layers.stat(name).driver_id)
    findings = store.check(repair=True)
    assert len(findings.problems) == 2 and findings.sound, findings
    assert files_of(store, "app") == {"a": b"three"}
    assert store.check(contents=True).problems == ()


def test_damaged_and_missing_blobs_orphans_and_stale_mounts_are_found(store: Store, tmp_path: Path) -> None:
    manifest = make_layout(tmp_path / "layout", LAYERS)
    store.pull(f"oci:{tmp_path}/layout", "app")
    store.driver.create("orphan", [])
    with store.blobs.path(manifest.layers[0].digest).open("r+b") as file:
        file.write(b"x")
    store.blobs.delete(manifest.layers[1].digest)
    box = store.containers.create("app")
    store.layers.driver.remove(store.layers.stat(box.id).driver_id)
    with store.layers.held(box.id) if False else store.layers.held(store.containers.create("app").id):
        with store._database.transaction() as connection:
            connection.execute("UPDATE mounts SET start = 1")
        kinds = sorted(problem.kind for problem in store.check().problems)
    assert kinds == ["blob", "container", "image", "mount", "orphan"]
    findings = store.check(repair=True)
    assert not findings.sound
    assert {problem.kind for problem in findings.problems if not problem.repaired} == {"container", "image"}
    assert list(store.driver.layers()).count("orphan") == 0
    again = store.pull(f"oci:{tmp_path}/layout", "app")
    assert again.digest == manifest.digest
    store.containers.remove(box.id)
    assert store.check().problems == ()


def test_what_a_killed_process_was_unpacking_is_cleared_at_the_next_opening(tmp_path: Path) -> None:
    make_layout(tmp_path / "layout", LAYERS)
    script = """
import os, sys
sys.path.insert(0, sys.argv[1])
from layerfs.store import Store
from layerfs import unpacking
unpacking.Unpacking.commit = lambda self: os.kill(os.getpid(), 9)
Store.open(sys.argv[2], driver="overlay2").pull(sys.argv[3], "app")
"""
    arguments = [sys.executable, "-c", script, ROOT, tmp_path / "root", f"oci:{tmp_path}/layout"]
    assert subprocess.run(arguments, check=False).returncode == -9
    with Store.open(tmp_path / "root") as store:
        assert list(store.driver.layers()) == []
        assert not store.layers.table.unfinished()
        with pytest.raises(NotFoundError):
            store.images.get("app")
        assert store.pull(f"oci:{tmp_path}/layout", "app").names == ("app:latest",)
        assert store.check().sound


def test_unsynced_layers_are_verified_after_a_reboot(tmp_path: Path) -> None:
    make_layout(tmp_path / "layout", LAYERS[:1])
    with Store.open(tmp_path / "root", driver="vfs", durability="none") as store:
        store.pull(f"oci:{tmp_path}/layout", "app")
        path = next(store.driver.root.rglob("a"))
        found = path.stat()
        # As a power failure leaves it: the size is there, the data is not.
        path.write_bytes(bytes(3))
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
        with store._database.transaction() as connection:
            connection.execute("UPDATE layers SET boot = 'earlier'")
            connection.execute("UPDATE meta SET value = 'earlier' WHERE key = 'boot'")
    warnings: list[str] = []
    with Store.open(tmp_path / "root", warn=warnings.append) as store:
        assert files_of(store, "app") == LAYERS[0]
        assert len(warnings) == 1 and "repaired" in warnings[0]
    warnings.clear()
    Store.open(tmp_path / "root", warn=warnings.append).close()
    assert warnings == []


def test_a_container_keeps_its_driver(tmp_path: Path) -> None:
    make_layout(tmp_path / "layout", LAYERS)
    with Store.open(tmp_path / "root", driver="vfs", durability="none") as store:
        store.pull(f"oci:{tmp_path}/layout", "app")
        box = store.containers.create("app")
    with Store.open(tmp_path / "root", driver="overlay2", durability="none") as store:
        other = store.containers.create("app")
        assert (store.containers.get(box.id).driver, other.driver) == ("vfs", "overlay2")
        with store.containers.get(box.id).mounted() as place:
            assert (place / "a").read_bytes() == b"three"
        store.collect(grace=0)
        assert store.check().sound
        for one in store.containers.list():
            store.containers.remove(one.id)
        store.images.remove("app")
        assert list(store.driver.layers()) == []
        assert list(store.layers_of("vfs").driver.layers()) == []


def test_what_another_process_leaves_for_a_moment_is_no_reason_not_to_make_a_store(tmp_path: Path) -> None:
    (tmp_path / ".format.json.1.abcd").touch()
    (tmp_path / "drivers" / ".check-abcd" / "lower").mkdir(parents=True)
    with Store.open(tmp_path) as store:
        assert store.check().sound


@pytest.mark.parametrize(
    ("kind", "words"), [("", "gzip stream, its media type says plain"), ("+zstd", "a zstd")]
)
def test_content_decides_how_a_layer_is_compressed_and_a_wrong_media_type_is_told(
    tmp_path: Path, kind: str, words: str
) -> None:
    image = TinyImage(b"one")
    found = json.loads(image.manifest)
    found["layers"][0]["mediaType"] = f"application/vnd.oci.image.layer.v1.tar{kind}"
    image.manifest = document(found)
    image.blobs[-1] = image.manifest
    write_files(tmp_path / "layout", layout_files([image.entry(name="a:1")], image.blobs))
    warnings: list[str] = []
    with Store.open(tmp_path / "store", warn=warnings.append) as store:
        store.pull(f"oci:{tmp_path / 'layout'}:a:1", "a:1")
        assert [words in warning for warning in warnings] == [True]
        assert files_of(store, "a:1") == {"file0": b"one"}


def test_a_load_that_fails_leaves_no_image_without_a_name(store: Store, tmp_path: Path) -> None:
    make_layout(tmp_path / "layout", LAYERS)
    store.pull(f"oci:{tmp_path}/layout", "app")
    store.save(["app"], tmp_path / "saved.tar")
    store.images.remove("app")
    trigger = "CREATE TRIGGER no BEFORE INSERT ON tags BEGIN SELECT RAISE(ABORT, 'no'); END"
    store._database._connection.execute(trigger)
    with pytest.raises(sqlite3.IntegrityError):
        store.load(tmp_path / "saved.tar")
    store._database._connection.execute("DROP TRIGGER no")
    assert store.images.list() == []
    assert [image.names for image in store.load(tmp_path / "saved.tar")] == [("app:latest",)]


def test_a_container_of_which_only_the_record_survived_goes_after_a_reboot(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    with Store.open(tmp_path / "root", driver="overlay2") as store:
        store.import_tree(tmp_path / "tree", "app")
        lost = store.containers.create("app", name="lost")
        kept = store.containers.create("app", name="kept")
        # As if its making had not reached the disk, or its record's removal.
        store.driver.remove(store.layers.stat(lost.id).driver_id)
        with store._database.transaction() as connection:
            connection.execute("UPDATE meta SET value = 'earlier' WHERE key = 'boot'")
    told: list[str] = []
    with Store.open(tmp_path / "root", warn=told.append) as store:
        assert [container.id for container in store.containers.list()] == [kept.id]
        assert not store.layers.has(lost.id)
        assert store.check(contents=True).problems == ()
    assert told == ["container lost did not survive the last stop"]


def test_a_container_without_files_is_only_told_of_before_the_next_reboot(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    with Store.open(tmp_path / "root", driver="overlay2") as store:
        store.import_tree(tmp_path / "tree", "app")
        lost = store.containers.create("app", name="lost")
        store.driver.remove(store.layers.stat(lost.id).driver_id)
    with Store.open(tmp_path / "root") as store:
        assert [one.kind for one in store.check().problems] == ["container"]
