"""What the transports write, the peers read; what the peers write, the transports read; no byte changes."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import BinaryIO

import pytest

from layerfs.oci.manifest import Manifest
from layerfs.transports import copy, docker_archive, oci_layout, parse
from layerfs.transports.archive_sink import ArchiveSink
from layerfs.transports.endpoint import Source
from layerfs.tree.budget import DEFAULT_BUDGET
from tests.interop import peers
from tests.support.tiny_images import TinyImage, layout_files, sha256, write_files

NAME = "example.org/tiny/image:1"


def spool() -> BinaryIO:
    return tempfile.TemporaryFile()  # type: ignore[return-value]


def opened(text: str) -> Source:
    def refuse(message: str) -> None:
        raise AssertionError(message)

    return parse(text).source(spool=spool, budget=DEFAULT_BUDGET, warn=refuse)


@pytest.fixture
def image() -> TinyImage:
    return TinyImage(b"one", b"two", b"one")


@pytest.fixture
def layout(image: TinyImage, tmp_path: Path) -> Path:
    return write_files(tmp_path / "layout", layout_files([image.entry(name="1")], image.blobs))


@pytest.fixture
def archive(layout: Path, tmp_path: Path) -> Path:
    path = tmp_path / "ours.docker.tar"
    sink = docker_archive.open_sink(path)
    copy(oci_layout.open_source(layout), sink, names=[NAME])
    sink.commit()
    sink.close()
    return path


def inspect(place: str, *flags: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(peers.skopeo("inspect", *flags, place))
    return found


def test_skopeo_reads_our_docker_archive_both_ways(archive: Path, image: TinyImage) -> None:
    peers.need("skopeo")
    plain = [sha256(layer) for layer in image.plain]
    assert inspect(f"docker-archive:{archive}:{NAME}")["Layers"] == plain
    config = inspect(f"oci-archive:{archive}", "--config")
    assert config["rootfs"] == {"type": "layers", "diff_ids": plain}


def test_skopeo_and_umoci_read_our_layout(layout: Path, image: TinyImage, tmp_path: Path) -> None:
    peers.need("skopeo", "umoci")
    ours = tmp_path / "ours"
    for tag in ("a", "b"):
        sink = oci_layout.LayoutSink(ours)
        copy(oci_layout.open_source(layout), sink, names=[tag])
        sink.commit()
        sink.close()
    assert peers.call(["umoci", "ls", "--layout", ours]).split() == [b"a", b"b"]
    assert inspect(f"oci:{ours}:b")["Digest"] == sha256(image.manifest)
    tree = peers.umoci_unpack(ours, "a", tmp_path / "bundle")
    assert (tree / "file1").read_bytes() == b"two"
    peers.call(["umoci", "tag", "--image", f"{ours}:a", "c"])
    assert [found.names for found in oci_layout.open_source(ours).images()] == [("a", "b", "c")]


def test_skopeo_writes_into_our_layout(layout: Path, image: TinyImage, tmp_path: Path) -> None:
    peers.need("skopeo")
    ours = tmp_path / "ours"
    sink = oci_layout.LayoutSink(ours)
    copy(oci_layout.open_source(layout), sink, names=["a"])
    sink.commit()
    sink.close()
    peers.skopeo("copy", f"oci:{layout}:1", f"oci:{ours}:b")
    assert opened(f"oci:{ours}").manifest("b").raw == image.manifest


@pytest.mark.parametrize("kind", ["oci", "oci-archive", "docker-archive"])
def test_what_skopeo_writes_is_read(layout: Path, image: TinyImage, tmp_path: Path, kind: str) -> None:
    peers.need("skopeo")
    place = f"{kind}:{tmp_path / 'theirs'}"
    peers.skopeo("copy", f"oci:{layout}:1", f"{place}:{NAME}")
    source = opened(place)
    assert [found.references for found in source.images()] == [(NAME,)]
    sink = oci_layout.LayoutSink(tmp_path / "read")
    copy(source, sink, image=NAME, names=["x"])
    sink.commit()
    raw = source.manifest(NAME).raw
    if kind == "docker-archive":
        # It holds the layers unpacked, so the manifest is another; its config is the same.
        assert [str(layer.digest) for layer in Manifest.parse(raw).layers] == list(map(sha256, image.plain))
    else:
        assert raw == image.manifest
    assert str(Manifest.parse(raw).config.digest) == sha256(image.config)
    assert peers.umoci_unpack(tmp_path / "read", "x", tmp_path / "bundle").joinpath("file1").exists()


def test_podman_loads_our_docker_archive_and_saves_one_that_is_read(
    podman: peers.Podman, archive: Path, image: TinyImage, tmp_path: Path
) -> None:
    podman.load(archive)
    assert (
        podman("image", "inspect", "--format", "{{.Id}}", NAME).decode().strip() == sha256(image.config)[7:]
    )
    for kind in ("docker-archive", "oci-archive"):
        saved = tmp_path / f"podman.{kind}"
        podman("save", "--quiet", "--format", kind, "--output", saved, NAME)
        source = docker_archive.open_any(saved, spool=spool, warn=print)
        assert [found.references for found in source.images()] == [(NAME,)]
        copy(source, ArchiveSink(spool(), docker=True), image=NAME, names=[NAME])


def test_docker_loads_our_archive_and_saves_one_that_is_read(
    docker: peers.Docker, archive: Path, image: TinyImage, tmp_path: Path
) -> None:
    assert docker("load", "--input", archive).decode() == f"Loaded image: {NAME}\n"
    assert docker.lines("inspect", "--format", "{{.Id}}", NAME) == [sha256(image.config)]
    docker("tag", NAME, "second:2")
    saved = tmp_path / "saved.tar"
    docker("save", "--output", saved, NAME, "second:2")
    source = opened(f"docker-archive:{saved}")
    assert {name for found in source.images() for name in found.names} == {NAME, "second:2"}
    manifest = Manifest.parse(source.manifest("second:2").raw)
    assert str(manifest.config.digest) == sha256(image.config)
    sink = oci_layout.LayoutSink(tmp_path / "read")
    copy(source, sink, image=NAME)
