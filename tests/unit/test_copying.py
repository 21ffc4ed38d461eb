"""Copies between places: whole indexes, and what changes on the way; nothing else may change."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from layerfs.compression import Compression, open_decompressed
from layerfs.digest import Digest
from layerfs.errors import (
    ArchiveError,
    InvalidError,
    LayerfsError,
    UnsupportedError,
    VerificationError,
)
from layerfs.oci import media_types
from layerfs.oci.config import ImageConfig
from layerfs.oci.manifest import Manifest
from layerfs.oci.platform import Platform
from layerfs.seekable.layer import open_layer
from layerfs.seekable.ranges import MemoryRanges
from layerfs.transports import parse
from layerfs.transports.copying import between
from layerfs.transports.layout_source import LayoutSource
from layerfs.transports.oci_layout import open_source
from layerfs.transports.packing import Packing
from layerfs.transports.rewriting import Rewriting
from layerfs.tree.budget import DEFAULT_BUDGET
from tests.support.tiny_images import (
    INDEX,
    TinyImage,
    document,
    layout_files,
    layout_of_index,
    multi_platform,
    sha256,
    write_files,
)


def spool() -> BinaryIO:
    return tempfile.TemporaryFile(buffering=0)  # type: ignore[return-value]


def refuse(message: str) -> None:
    raise AssertionError(message)


def go(origin: str, target: str, **how: Any) -> str:
    """Copy, and give the digest of what was put."""
    return str(between(parse(origin), parse(target), spool=spool, warn=refuse, **how).digest)


def rewriting(compression: str | None = None, level: int | None = None, **how: Any) -> Rewriting:
    packing = None if compression is None else Packing.parse(compression, level)
    return Rewriting(packing=packing, spool=spool, budget=DEFAULT_BUDGET, **how)


def blobs(layout: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (layout / "blobs" / "sha256").iterdir()}


def read(layout: Path, digest: str) -> Any:
    return json.loads((layout / "blobs" / digest.replace(":", "/")).read_bytes())


def plain(data: bytes) -> tuple[Compression, bytes]:
    """Give how a blob is compressed, and what is in it."""
    import io

    parts = []
    with open_decompressed(io.BytesIO(data)) as opened:
        while piece := opened.read(1 << 20):
            parts.append(piece)
        return opened.compression, b"".join(parts)


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    index, images = multi_platform("linux/amd64", "linux/arm64/v8", annotations={"a": "b"}, unknown=["kept"])
    return layout_of_index(tmp_path / "from", index, images, name="1")


class TestAllPlatforms:
    @pytest.mark.parametrize(
        "place", ["oci:{}/to:1", "oci-archive:{}/to.tar:1", "docker-archive:{}/to.tar:x:1"]
    )
    def test_go_with_the_very_bytes_of_the_index(self, layout: Path, tmp_path: Path, place: str) -> None:
        there = place.format(tmp_path)
        digest = go(f"oci:{layout}:1", there, every=True)
        assert sha256((layout / "blobs" / digest.replace(":", "/")).read_bytes()) == digest
        if there.startswith("docker"):
            # What it reads like for whoever does not know indexes.
            assert go(there, f"oci:{tmp_path}/one") == str(_manifest_of(layout, digest, 0))
            return
        assert go(there, f"oci:{tmp_path}/back:1", every=True) == digest
        assert blobs(tmp_path / "back") == blobs(layout)

    def test_of_an_image_without_an_index_are_that_image(self, tmp_path: Path) -> None:
        image = TinyImage(b"x")
        write_files(tmp_path / "from", layout_files([image.entry(name="1")], image.blobs))
        assert go(f"oci:{tmp_path}/from", f"oci:{tmp_path}/to", every=True) == sha256(image.manifest)

    def test_of_nested_indexes_go_too_and_endless_ones_end(self, tmp_path: Path) -> None:
        index, images = multi_platform("linux/amd64", "linux/s390x")
        extra: list[bytes] = []
        for _ in range(7):
            extra.append(index)
            index = document({"schemaVersion": 2, "manifests": [TinyImage.describe(index, INDEX)]})
        place = layout_of_index(tmp_path / "from", index, images, name="1")
        for data in extra:
            (place / "blobs" / sha256(data).replace(":", "/")).write_bytes(data)
        assert go(f"oci:{place}:1", f"oci:{tmp_path}/to:1", every=True) == sha256(index)
        assert blobs(tmp_path / "to") == blobs(place)
        deeper = document({"schemaVersion": 2, "manifests": [TinyImage.describe(index, INDEX)]})
        (place / "blobs" / sha256(index).replace(":", "/")).write_bytes(index)
        place = layout_of_index(place, deeper, [], name="1")
        with pytest.raises(ArchiveError, match="nested"):
            go(f"oci:{place}:1", f"oci:{tmp_path}/other:1", every=True)

    def test_an_index_with_a_missing_image_leaves_no_name(self, layout: Path, tmp_path: Path) -> None:
        index, images = multi_platform("linux/amd64", "linux/arm64/v8")
        place = layout_of_index(tmp_path / "sparse", index, images[:1], name="1")
        with pytest.raises(ArchiveError, match="lacks"):
            go(f"oci:{place}:1", f"oci:{tmp_path}/to:1", every=True)
        assert not (tmp_path / "to" / "index.json").exists()

    def test_an_index_of_other_digests_than_sha256_goes_as_it_is(self, tmp_path: Path) -> None:
        index, images = multi_platform("linux/amd64")
        digest = Digest.of(images[0].manifest, "sha512")
        other = index.replace(sha256(images[0].manifest).encode(), str(digest).encode())
        place = layout_of_index(tmp_path / "from", other, images, name="1")
        write_files(place, {f"blobs/sha512/{digest.hex}": images[0].manifest})
        assert go(f"oci:{place}:1", f"oci:{tmp_path}/to:1", every=True) == sha256(other)
        assert (tmp_path / "to" / "blobs" / "sha512" / digest.hex).read_bytes() == images[0].manifest

    def test_layers_that_are_not_to_be_handed_on_stay_where_they_are(self, tmp_path: Path) -> None:
        image = TinyImage(b"x")
        manifest = json.loads(image.manifest)
        manifest["layers"][0]["mediaType"] = media_types.DOCKER_FOREIGN_LAYER
        manifest["layers"][0]["urls"] = ["https://example.org/layer"]
        raw = document(manifest)
        entry = TinyImage.describe(raw, media_types.OCI_MANIFEST)
        write_files(tmp_path / "from", layout_files([entry], [image.config, raw]))
        assert go(f"oci:{tmp_path}/from", f"oci:{tmp_path}/to") == sha256(raw)

    def test_one_platform_goes_alone(self, layout: Path, tmp_path: Path) -> None:
        digest = go(f"oci:{layout}:1", f"oci:{tmp_path}/to:1", platform=Platform.parse("linux/arm64"))
        assert len(blobs(tmp_path / "to")) == 4
        config = read(tmp_path / "to", read(tmp_path / "to", digest)["config"]["digest"])
        assert config["architecture"] == "arm64"


def _manifest_of(layout: Path, index: str, place: int) -> str:
    found: str = read(layout, index)["manifests"][place]["digest"]
    return found


class TestNames:
    def test_are_kept_where_none_is_given(self, tmp_path: Path) -> None:
        image = TinyImage(b"x")
        names = {"org.opencontainers.image.ref.name": "1", "io.containerd.image.name": "example.org/x:1"}
        entry = TinyImage.describe(image.manifest, media_types.OCI_MANIFEST, annotations=names)
        write_files(tmp_path / "from", layout_files([entry], image.blobs))
        go(f"oci:{tmp_path}/from", f"docker-archive:{tmp_path}/a.tar")
        go(f"docker-archive:{tmp_path}/a.tar:example.org/x:1", f"oci:{tmp_path}/to")
        with_names = open_source(tmp_path / "to")
        assert with_names.images()[0].names == ("1",)


class TestCompression:
    @pytest.mark.parametrize("name", ["gzip", "zstd", "none"])
    def test_changes_blobs_and_manifests_but_no_config(self, layout: Path, tmp_path: Path, name: str) -> None:
        with rewriting(name, force=True) as change:
            digest = go(f"oci:{layout}:1", f"oci:{tmp_path}/to:1", every=True, rewriting=change)
        before, after = blobs(layout), blobs(tmp_path / "to")
        index = read(tmp_path / "to", digest)
        assert index["unknown"] == ["kept"]
        assert [item["platform"]["architecture"] for item in index["manifests"]] == ["amd64", "arm64"]
        for item in index["manifests"]:
            manifest = read(tmp_path / "to", item["digest"])
            config = manifest["config"]["digest"].partition(":")[2]
            assert after[config] == before[config]
            for layer, diff_id in zip(
                manifest["layers"], json.loads(after[config])["rootfs"]["diff_ids"], strict=True
            ):
                data = after[layer["digest"].partition(":")[2]]
                assert len(data) == layer["size"]
                assert layer["mediaType"] == media_types.layer_media_type(Compression(name))
                found, content = plain(data)
                assert (found.value, sha256(content)) == (name, diff_id)
        # The layer that both have went once.
        assert len(after) == 1 + 2 * 2 + 3

    @pytest.mark.parametrize("name", ["estargz", "zstd:chunked"])
    def test_with_an_index_of_its_own_is_read_by_it(self, layout: Path, tmp_path: Path, name: str) -> None:
        with rewriting(name) as change:
            digest = go(f"oci:{layout}:1", f"oci:{tmp_path}/to:1", rewriting=change)
        after = blobs(tmp_path / "to")
        manifest = Manifest.parse(after[digest.partition(":")[2]])
        config = ImageConfig.parse(after[manifest.config.digest.hex])
        assert (manifest.config.digest.hex in blobs(layout)) == (name != "estargz")
        for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
            data = after[layer.digest.hex]
            assert sha256(plain(data)[1]) == str(diff_id)
            opened = open_layer(MemoryRanges(data), layer)
            assert opened is not None
            assert any(one.entry.path.startswith(b"file") and one.extent for one in opened.entries())
        with rewriting(name) as change:
            again = go(f"oci:{tmp_path}/to:1", f"oci:{tmp_path}/again:1", rewriting=change)
        assert again == digest

    def test_is_the_same_each_time(self, layout: Path, tmp_path: Path) -> None:
        digests = set()
        for place in ("a", "b"):
            with rewriting("zstd", 19) as change:
                digests.add(go(f"oci:{layout}:1", f"oci:{tmp_path}/{place}:1", rewriting=change))
        assert len(digests) == 1

    def test_leaves_layers_that_are_compressed_so(self, layout: Path, tmp_path: Path) -> None:
        with rewriting("gzip", 9) as change:
            go(f"oci:{layout}:1", f"oci:{tmp_path}/to:1", every=True, rewriting=change)
        assert blobs(tmp_path / "to") == blobs(layout)

    def test_refuses_a_layer_that_is_not_what_the_config_promises(self, tmp_path: Path) -> None:
        image = TinyImage(b"x")
        swapped = gzip.compress(b"another", mtime=0)
        manifest = json.loads(image.manifest)
        manifest["layers"] = [TinyImage.describe(swapped, manifest["layers"][0]["mediaType"])]
        raw = document(manifest)
        entry = TinyImage.describe(raw, media_types.OCI_MANIFEST)
        write_files(tmp_path / "from", layout_files([entry], [image.config, swapped, raw]))
        with rewriting("zstd") as change, pytest.raises(VerificationError, match="the config promises"):
            go(f"oci:{tmp_path}/from", f"oci:{tmp_path}/to", rewriting=change)
        assert not (tmp_path / "to" / "index.json").exists()

    def test_drops_annotations_of_the_old_blob_and_keeps_others(self, tmp_path: Path) -> None:
        image = TinyImage(b"x")
        manifest = json.loads(image.manifest)
        manifest["layers"][0]["annotations"] = {
            "containerd.io/snapshot/stargz/toc.digest": sha256(b"toc"),
            "io.github.containers.zstd-chunked.manifest-position": "1:2:3:4",
            "mine": "kept",
        }
        raw = document(manifest)
        entry = TinyImage.describe(raw, media_types.OCI_MANIFEST)
        write_files(tmp_path / "from", layout_files([entry], [*image.blobs[:-1], raw]))
        with rewriting("zstd") as change:
            digest = go(f"oci:{tmp_path}/from", f"oci:{tmp_path}/to", rewriting=change)
        assert read(tmp_path / "to", digest)["layers"][0]["annotations"] == {"mine": "kept"}

    @pytest.mark.parametrize(
        ("name", "level"), [("gzip", 10), ("zstd", 0), ("zstd", 23), ("none", 1), ("xz", 1)]
    )
    def test_of_no_such_name_or_level_is_refused(self, name: str, level: int) -> None:
        with pytest.raises(InvalidError):
            Packing.parse(name, level)


class TestFormats:
    def test_become_dockers_and_oci_again(self, layout: Path, tmp_path: Path) -> None:
        with rewriting(format="docker") as change:
            digest = go(f"oci:{layout}:1", f"oci:{tmp_path}/docker:1", every=True, rewriting=change)
        index = read(tmp_path / "docker", digest)
        assert index["mediaType"] == media_types.DOCKER_MANIFEST_LIST
        manifest = read(tmp_path / "docker", index["manifests"][0]["digest"])
        assert manifest["mediaType"] == index["manifests"][0]["mediaType"] == media_types.DOCKER_MANIFEST
        assert manifest["config"]["mediaType"] == media_types.DOCKER_CONFIG
        assert {layer["mediaType"] for layer in manifest["layers"]} == {media_types.DOCKER_LAYER_GZIP}
        with rewriting(format="oci") as change:
            back = go(f"oci:{tmp_path}/docker:1", f"oci:{tmp_path}/oci:1", every=True, rewriting=change)
        again = read(tmp_path / "oci", back)["manifests"][0]["digest"]
        first = json.loads((layout / "index.json").read_bytes())["manifests"][0]["digest"]
        assert read(tmp_path / "oci", again) == read(layout, _manifest_of(layout, first, 0))

    def test_of_docker_become_oci_for_zstd_unless_docker_is_asked_for(
        self, layout: Path, tmp_path: Path
    ) -> None:
        with rewriting(format="docker") as change:
            go(f"oci:{layout}:1", f"oci:{tmp_path}/docker:1", rewriting=change)
        with rewriting("zstd") as change:
            digest = go(f"oci:{tmp_path}/docker:1", f"oci:{tmp_path}/to:1", rewriting=change)
        assert read(tmp_path / "to", digest)["mediaType"] == media_types.OCI_MANIFEST
        with pytest.raises(UnsupportedError, match="zstd"):
            rewriting("zstd", format="docker")
        with rewriting(format="docker") as change, pytest.raises(UnsupportedError, match=r"tar\+zstd"):
            go(f"oci:{tmp_path}/to:1", f"oci:{tmp_path}/other:1", rewriting=change)

    def test_an_image_that_fits_is_not_touched(self, layout: Path, tmp_path: Path) -> None:
        with rewriting(format="oci") as change:
            go(f"oci:{layout}:1", f"oci:{tmp_path}/to:1", every=True, rewriting=change)
        assert blobs(tmp_path / "to") == blobs(layout)


class TestAnnotations:
    def test_stand_on_the_topmost_document(self, layout: Path, tmp_path: Path) -> None:
        with rewriting(annotations={"c": "d"}) as change:
            digest = go(f"oci:{layout}:1", f"oci:{tmp_path}/to:1", every=True, rewriting=change)
        index = read(tmp_path / "to", digest)
        assert index["annotations"] == {"a": "b", "c": "d"}
        assert "annotations" not in read(tmp_path / "to", index["manifests"][0]["digest"])

    def test_are_not_dockers(self) -> None:
        with pytest.raises(UnsupportedError, match="annotations"):
            rewriting(annotations={"c": "d"}, format="docker")


class Stalling(LayoutSource):
    """A layout one of whose blobs ends early; the others are read to their ends."""

    wrong = ""

    def open(self, descriptor: Any) -> Any:
        file = super().open(descriptor)
        if str(descriptor.digest) == self.wrong:
            file.read(1)
        return file


def test_a_bad_blob_among_several_at_once_leaves_no_image_and_no_partial_file(tmp_path: Path) -> None:
    from layerfs.transports import copy, file_set, oci_layout

    image = TinyImage(*[bytes([n]) * 5000 for n in range(12)])
    write_files(tmp_path / "from", layout_files([image.entry()], image.blobs))
    source = Stalling(file_set.DirectoryFiles(tmp_path / "from"))
    source.wrong = str(Digest.of(image.layers[7]))
    sink = oci_layout.LayoutSink(tmp_path / "to")
    with pytest.raises(LayerfsError, match="ended after"):
        copy(source, sink)
    sink.close()
    source.close()
    assert not (tmp_path / "to" / "index.json").exists()
    assert [path.name for path in (tmp_path / "to").iterdir() if path.name.startswith(".")] == []


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    import threading

    yield
    assert [thread.name for thread in threading.enumerate() if thread.name == "layerfs-lane"] == []
