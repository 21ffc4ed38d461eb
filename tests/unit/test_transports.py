"""Transports: places read, written and refused; the walk between them."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import json
import os
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from layerfs.errors import (
    ArchiveError,
    BudgetError,
    DocumentError,
    InvalidError,
    LayerError,
    LayerfsError,
    NotFoundError,
    TransportError,
    UnsupportedError,
    VerificationError,
)
from layerfs.oci.descriptor import Descriptor
from layerfs.oci.manifest import Manifest
from layerfs.oci.platform import Platform
from layerfs.transports import Place, copy, docker_archive, oci_archive, oci_layout, parse
from layerfs.transports.archive_sink import ArchiveSink
from layerfs.transports.endpoint import Available, Source
from layerfs.tree.budget import DEFAULT_BUDGET
from tests.support.tiny_images import (
    INDEX,
    TinyImage,
    document,
    layout_files,
    old_docker_archive,
    sha256,
    tar,
    write_files,
)


def spool() -> BinaryIO:
    return tempfile.TemporaryFile()  # type: ignore[return-value]


def quiet(message: str) -> None:
    pass


def stream(data: bytes) -> BinaryIO:
    return io.BytesIO(data)


def open_docker(data: bytes) -> docker_archive.DockerSource:
    return docker_archive.open_source(stream(data), spool=spool, warn=quiet)


def content(source: Source, name: str | Available | None = None, **choice: Any) -> tuple[bytes, list[bytes]]:
    """Give an image's manifest and, read through the source, its config and layers."""
    resolved = source.manifest(name, **choice)
    manifest = Manifest.parse(resolved.raw, resolved.descriptor.media_type)
    blobs = []
    for descriptor in (manifest.config, *manifest.layers):
        with source.open(descriptor) as opened:
            parts = []
            while data := opened.read(1 << 20):
                parts.append(data)
        blobs.append(b"".join(parts))
    return resolved.raw, blobs


def layout(path: Path, *images: tuple[TinyImage, str | None]) -> Path:
    entries = [image.entry(name=name) for image, name in images]
    return write_files(path, layout_files(entries, [blob for image, _ in images for blob in image.blobs]))


class TestPlaces:
    @pytest.mark.parametrize(
        ("text", "place"),
        [
            ("oci:/a/b", Place("oci", Path("/a/b"))),
            ("oci:a:1.0", Place("oci", Path("a"), "1.0")),
            ("oci:a:docker.io/library/x:1", Place("oci", Path("a"), "docker.io/library/x:1")),
            ("oci-archive:f.tar:t", Place("oci-archive", Path("f.tar"), "t")),
            ("docker-archive:f.tar:debian:12", Place("docker-archive", Path("f.tar"), "debian:12")),
            ("docker-archive:f.tar:@1", Place("docker-archive", Path("f.tar"), "@1")),
        ],
    )
    def test_are_written_as_skopeo_writes_them(self, text: str, place: Place) -> None:
        assert parse(text) == place
        assert str(place) == text

    @pytest.mark.parametrize(
        ("text", "name"),
        [
            ("docker://debian:12", "docker.io/library/debian:12"),
            ("debian", "docker.io/library/debian:latest"),
            ("docker:dind", "docker.io/library/docker:dind"),
            ("localhost:5000/a/b:1", "localhost:5000/a/b:1"),
            (f"docker://x.y/a@sha256:{'0' * 64}", f"x.y/a@sha256:{'0' * 64}"),
        ],
    )
    def test_in_a_registry_are_completed_as_docker_does(self, text: str, name: str) -> None:
        place = parse(text)
        assert (place.transport, place.name) == ("docker", name)
        assert str(place.reference) == name
        assert parse(str(place)) == place

    @pytest.mark.parametrize("text", ["", "ftp://x", "./file.tar", "docker://", "docker-daemon:a:1", "A"])
    def test_that_can_be_no_image_are_refused(self, text: str) -> None:
        with pytest.raises(InvalidError) as caught:
            parse(text)
        assert caught.value.hint is not None

    @pytest.mark.parametrize("text", ["oci:", "oci::tag", "docker-archive:"])
    def test_need_a_path(self, text: str) -> None:
        with pytest.raises(TransportError):
            parse(text)


class TestLayoutDirectory:
    def test_gives_the_very_bytes_of_an_image(self, tmp_path: Path) -> None:
        image = TinyImage(b"one", b"two")
        source = oci_layout.open_source(layout(tmp_path, (image, "latest")))
        assert content(source, "latest") == (image.manifest, [image.config, *image.layers])
        assert content(source) == content(source, "latest")
        source.close()

    def test_lists_all_names_of_an_image_once(self, tmp_path: Path) -> None:
        one, two = TinyImage(b"one"), TinyImage(b"two")
        source = oci_layout.open_source(layout(tmp_path, (one, "a"), (two, None), (one, "x/b:1")))
        assert [image.names for image in source.images()] == [("a", "x/b:1"), ()]
        assert source.images()[0].references == ("docker.io/x/b:1",)

    def test_with_several_images_needs_a_name(self, tmp_path: Path) -> None:
        one, two = TinyImage(b"one"), TinyImage(b"two")
        source = oci_layout.open_source(layout(tmp_path, (one, "a"), (two, "docker.io/library/b:latest")))
        with pytest.raises(NotFoundError) as caught:
            source.manifest()
        assert caught.value.hint == "there is a, docker.io/library/b:latest"
        for name in ("b", "docker.io/library/b:latest", "@1", sha256(two.manifest)):
            assert source.manifest(name).raw == two.manifest
        for name in ("c", "@2", "a:latest"):
            with pytest.raises(NotFoundError):
                source.manifest(name)

    def test_resolves_nested_indexes_by_platform(self, tmp_path: Path) -> None:
        arm, amd = TinyImage(b"arm", platform="linux/arm64"), TinyImage(b"amd", platform="linux/amd64")
        inner = document(
            {"schemaVersion": 2, "manifests": [arm.entry(with_platform=True), amd.entry(with_platform=True)]}
        )
        outer = document({"schemaVersion": 2, "manifests": [TinyImage.describe(inner, INDEX)]})
        entry = TinyImage.describe(outer, INDEX, annotations={"org.opencontainers.image.ref.name": "multi"})
        blobs = [*arm.blobs, *amd.blobs, inner, outer]
        source = oci_layout.open_source(write_files(tmp_path, layout_files([entry], blobs)))
        assert source.manifest("multi", platform=Platform.parse("arm64")).raw == arm.manifest
        assert source.manifest(platform=Platform.parse("amd64")).raw == amd.manifest
        with pytest.raises(NotFoundError):
            source.manifest("multi", platform=Platform.parse("s390x"))

    def test_selects_among_nameless_entries_by_platform(self, tmp_path: Path) -> None:
        images = [TinyImage(b"x", platform=f"linux/{name}") for name in ("arm/v7", "arm/v6", "amd64")]
        entries = [image.entry(with_platform=True) for image in images]
        files = layout_files(entries, [blob for image in images for blob in image.blobs])
        source = oci_layout.open_source(write_files(tmp_path, files))
        assert source.manifest(platform=Platform.parse("linux/arm/v6")).raw == images[1].manifest

    def test_endless_indexes_end(self, tmp_path: Path) -> None:
        inner = document({"schemaVersion": 2, "manifests": [TinyImage(b"x").entry()]})
        blobs = [inner]
        for _ in range(10):
            inner = document({"schemaVersion": 2, "manifests": [TinyImage.describe(inner, INDEX)]})
            blobs.append(inner)
        files = layout_files([TinyImage.describe(inner, INDEX)], blobs)
        with pytest.raises(ArchiveError, match="nested"):
            oci_layout.open_source(write_files(tmp_path, files)).manifest()

    @pytest.mark.parametrize("name", ["blobs/sha256/HEX", "blobs/sha256", "blobs"])
    def test_follows_no_symlink(self, tmp_path: Path, name: str) -> None:
        image = TinyImage(b"one")
        path = layout(tmp_path / "layout", (image, None))
        victim = path / name.replace("HEX", sha256(image.layers[0])[7:])
        victim.rename(tmp_path / "outside")
        victim.symlink_to(tmp_path / "outside")
        with pytest.raises(ArchiveError, match="symlink"):
            content(oci_layout.open_source(path))
        sink = oci_layout.LayoutSink(path)
        with pytest.raises(ArchiveError, match="symlink"):
            sink.has(Manifest.parse(image.manifest).layers[0])
        sink.close()

    def test_does_not_wait_for_a_fifo(self, tmp_path: Path) -> None:
        image = TinyImage(b"one")
        path = layout(tmp_path, (image, None))
        victim = path / "blobs" / sha256(image.config).replace(":", "/")
        victim.unlink()
        os.mkfifo(victim)
        with pytest.raises(ArchiveError, match="not a regular file"):
            content(oci_layout.open_source(path))

    def test_refuses_a_document_with_another_digest_and_a_blob_with_another_size(
        self, tmp_path: Path
    ) -> None:
        image = TinyImage(b"one")
        path = layout(tmp_path, (image, None))
        manifest = path / "blobs" / sha256(image.manifest).replace(":", "/")
        layer = path / "blobs" / sha256(image.layers[0]).replace(":", "/")
        layer.write_bytes(b"short")
        with pytest.raises(VerificationError):
            content(oci_layout.open_source(path))
        manifest.write_bytes(image.manifest.replace(b"config", b"c0nfig"))
        with pytest.raises(VerificationError):
            oci_layout.open_source(path).manifest()
        manifest.unlink()
        with pytest.raises(ArchiveError, match="lacks"):
            oci_layout.open_source(path).manifest()

    @pytest.mark.parametrize(
        ("name", "data", "error"),
        [
            ("oci-layout", None, ArchiveError),
            ("index.json", None, ArchiveError),
            ("oci-layout", b'{"imageLayoutVersion":"2.0.0"}', UnsupportedError),
            ("oci-layout", b"[]", DocumentError),
            ("index.json", b'{"schemaVersion":2,"manifests":[{}]}', DocumentError),
            ("index.json", b" " * (5 << 20), BudgetError),
        ],
    )
    def test_that_is_none_is_refused(
        self, tmp_path: Path, name: str, data: bytes | None, error: type[LayerfsError]
    ) -> None:
        path = layout(tmp_path, (TinyImage(b"one"), None))
        (path / name).unlink() if data is None else (path / name).write_bytes(data)
        with pytest.raises(error):
            oci_layout.open_source(path)


def put(sink: Any, image: TinyImage, *names: str) -> None:
    manifest = Manifest.parse(image.manifest)
    for descriptor, blob in zip((manifest.config, *manifest.layers), image.blobs, strict=False):
        if not sink.has(descriptor):
            sink.put_blob(descriptor, stream(blob))
    sink.put_manifest(image.manifest, manifest.media_type, names=names)


class TestLayoutSink:
    def test_what_is_written_reads_back(self, tmp_path: Path) -> None:
        one, two = TinyImage(b"one", b"same"), TinyImage(b"one", b"other")
        sink = oci_layout.LayoutSink(tmp_path / "new" / "layout")
        put(sink, one, "a", "b")
        put(sink, two)
        sink.commit()
        sink.close()
        source = oci_layout.open_source(tmp_path / "new" / "layout")
        assert [image.names for image in source.images()] == [("a", "b"), ()]
        assert content(source, "b") == (one.manifest, [one.config, *one.layers])
        assert content(source, "@1")[1] == [two.config, *two.layers]
        assert sorted(path.name for path in (tmp_path / "new" / "layout").iterdir()) == [
            "blobs", "index.json", "oci-layout",
        ]  # fmt: skip

    def test_a_name_moves_and_everything_else_stays(self, tmp_path: Path) -> None:
        one, two = TinyImage(b"one"), TinyImage(b"two")
        path = layout(tmp_path, (one, "a"), (one, "keep"), (two, None))
        index = json.loads((path / "index.json").read_bytes())
        index["x-unknown"] = 1
        index["manifests"][1]["x-unknown"] = 2
        (path / "index.json").write_bytes(document(index))
        sink = oci_layout.LayoutSink(path)
        put(sink, two, "a")
        sink.commit()
        after = json.loads((path / "index.json").read_bytes())
        assert after["x-unknown"] == 1
        assert after["manifests"][0] == index["manifests"][1]
        source = oci_layout.open_source(path)
        assert [(image.names, image.descriptor.digest.hex) for image in source.images()] == [
            (("keep",), sha256(one.manifest)[7:]),
            (("a",), sha256(two.manifest)[7:]),
        ]

    def test_nothing_is_listed_without_a_commit(self, tmp_path: Path) -> None:
        one, two = TinyImage(b"one"), TinyImage(b"two")
        path = layout(tmp_path, (one, "a"))
        sink = oci_layout.LayoutSink(path)
        put(sink, two, "a")
        sink.close()
        assert oci_layout.open_source(path).manifest("a").raw == one.manifest

    def test_an_interrupted_first_write_can_be_taken_up_again(self, tmp_path: Path) -> None:
        image = TinyImage(b"one")
        sink = oci_layout.LayoutSink(tmp_path / "x")
        put(sink, image, "a")
        sink.close()
        again = oci_layout.LayoutSink(tmp_path / "x")
        put(again, image, "a")
        again.commit()
        assert oci_layout.open_source(tmp_path / "x").manifest("a").raw == image.manifest

    @pytest.mark.parametrize("wrong", [b"", b"sho", b"wrong!", b"much longer"])
    def test_a_wrong_blob_leaves_nothing(self, tmp_path: Path, wrong: bytes) -> None:
        right = Descriptor.to(b"right!", "x")
        sink = oci_layout.LayoutSink(tmp_path)
        with pytest.raises(VerificationError):
            sink.put_blob(right, stream(wrong))
        assert not sink.has(right)
        assert [path.name for path in tmp_path.iterdir()] == ["oci-layout"]

    def test_a_directory_with_other_things_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(TransportError):
            oci_layout.LayoutSink(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    def test_many_writers_at_once_lose_no_name(self, tmp_path: Path) -> None:
        images = [TinyImage(b"%d" % number) for number in range(8)]
        failures: list[BaseException] = []

        def write(number: int) -> None:
            try:
                sink = oci_layout.LayoutSink(tmp_path / "layout", durable=False)
                put(sink, images[number], f"n{number}")
                sink.commit()
                sink.close()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        source = oci_layout.open_source(tmp_path / "layout")
        for number, image in enumerate(images):
            assert source.manifest(f"n{number}").raw == image.manifest


class TestOldDockerArchives:
    def test_give_each_image_one_manifest_whose_digests_fit(self) -> None:
        image = TinyImage(b"one", b"two", b"one", compress=False)
        source = open_docker(tar(old_docker_archive(image, ["debian:12", "me/app:1"])))
        (available,) = source.images()
        assert available.references == ("docker.io/library/debian:12", "docker.io/me/app:1")
        raw, blobs = content(source, "debian:12")
        assert blobs == [image.config, *image.plain]
        again = open_docker(tar(old_docker_archive(image, ["other:1"])))
        assert again.manifest().raw == raw
        manifest = Manifest.parse(raw)
        assert [str(layer.digest) for layer in manifest.layers] == [sha256(blob) for blob in image.plain]

    def test_a_layer_that_occurs_twice_is_a_symlink_there(self) -> None:
        image = TinyImage(b"x", compress=False)
        image.plain *= 2
        image.config = image.config.replace(
            document([sha256(image.plain[0])]), document([sha256(image.plain[0])] * 2)
        )
        source = open_docker(tar(old_docker_archive(image, [])))
        assert content(source)[1] == [image.config, *image.plain]

    def test_compressed_layers_are_hashed(self) -> None:
        image = TinyImage(b"x")
        config, manifest = "c.json", [{"Config": "c.json", "RepoTags": None, "Layers": ["l.tar"]}]
        members = {config: image.config, "l.tar": image.layers[0], "manifest.json": document(manifest)}
        source = open_docker(tar(members))
        raw, blobs = content(source)
        assert blobs == [image.config, image.layers[0]]
        assert str(Manifest.parse(raw).layers[0].digest) == sha256(image.layers[0])
        assert source.images()[0].names == ()

    def test_pipes_and_compressed_files_are_read_too(self, tmp_path: Path) -> None:
        import zstandard

        image = TinyImage(b"one", compress=False)
        plain = tar(old_docker_archive(image, ["a:1"]))
        for number, data in enumerate((plain, gzip.compress(plain), zstandard.compress(plain))):
            file = tmp_path / str(number)
            file.write_bytes(data)
            source = docker_archive.open_source(file, spool=spool, warn=quiet)
            assert content(source, "a:1")[1] == [image.config, *image.plain]
            source.close()
            ends = os.pipe()
            writer = threading.Thread(
                target=lambda end, data: os.fdopen(end, "wb").write(data), args=(ends[1], data)
            )
            writer.start()
            with open(ends[0], "rb") as pipe:
                source = docker_archive.open_source(pipe, spool=spool, warn=quiet)
            writer.join()
            assert content(source)[1] == [image.config, *image.plain]

    def test_a_plain_file_is_read_in_place(self, tmp_path: Path) -> None:
        def never() -> BinaryIO:
            raise AssertionError("a temporary file was made")

        image = TinyImage(b"one", compress=False)
        (tmp_path / "a.tar").write_bytes(tar(old_docker_archive(image, ["a:1"])))
        with open(tmp_path / "a.tar", "rb") as file:
            source = docker_archive.open_source(file, spool=never, warn=quiet)
        assert content(source)[1] == [image.config, *image.plain]

    def test_large_bodies_are_not_read_for_the_index(self, tmp_path: Path) -> None:
        image = TinyImage(b"x", compress=False)
        members = old_docker_archive(image, [])
        path = tmp_path / "a.tar"
        with tarfile.open(path, "w") as archive, open(path, "r+b") as hole:
            big = tarfile.TarInfo("big")
            big.size = (3 << 20) + 5
            archive.fileobj.write(big.tobuf())  # type: ignore[union-attr]
            archive.fileobj.flush()  # type: ignore[union-attr]
            hole.truncate(512 + (3 << 20) + 512)
            archive.fileobj.seek(0, os.SEEK_END)  # type: ignore[union-attr]
            archive.offset = 512 + (3 << 20) + 512
            for name, data in members:
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
        source = docker_archive.open_source(path, spool=spool, warn=quiet)
        assert content(source)[1] == [image.config, *image.plain]


class TestDockerArchivesOfToday:
    def archive(self, image: TinyImage, **item: Any) -> dict[str, bytes]:
        """Give what docker saves of one platform of an index whose other blobs are elsewhere."""
        other = TinyImage(b"elsewhere", platform="linux/s390x")
        index = document(
            {
                "schemaVersion": 2,
                "manifests": [other.entry(with_platform=True), image.entry(with_platform=True)],
            }
        )
        entry = TinyImage.describe(
            index, INDEX, annotations={"io.containerd.image.name": "docker.io/me/app:1"}
        )
        config, *layers = ("blobs/" + sha256(blob).replace(":", "/") for blob in image.blobs[:-1])
        members = {"Config": config, "RepoTags": ["me/app:1"], "Layers": layers, "LayerSources": {}, **item}
        return {
            **layout_files([entry], [*image.blobs, index]),
            "manifest.json": document([members]),
        }

    def test_give_the_very_manifest_of_the_layout_below_an_index(self) -> None:
        image = TinyImage(b"one", b"two")
        source = open_docker(tar(self.archive(image)))
        assert [found.references for found in source.images()] == [("docker.io/me/app:1",)]
        assert content(source, "me/app:1") == (image.manifest, [image.config, *image.layers])

    def test_paths_may_be_written_in_long(self) -> None:
        image = TinyImage(b"one", compress=False)
        files = self.archive(image)
        del files["index.json"], files["oci-layout"]
        (item,) = json.loads(files["manifest.json"])
        item["Layers"] = [f"./{path}" for path in item["Layers"]]
        files["manifest.json"] = document([item])
        assert content(open_docker(tar({f"./{name}": data for name, data in files.items()})))[1] == [
            image.config,
            *image.plain,
        ]

    def test_a_manifest_whose_layers_are_missing_is_written_anew(self) -> None:
        image = TinyImage(b"one")
        files = self.archive(image, Layers=["plain.tar"])
        del files["blobs/" + sha256(image.layers[0]).replace(":", "/")]
        source = open_docker(tar({**files, "plain.tar": image.plain[0]}))
        assert content(source)[1] == [image.config, *image.plain]

    def test_names_with_a_digest_are_no_names_to_give(self) -> None:
        image = TinyImage(b"one")
        tags = [f"a:1@{sha256(b'')}", "a:1", "NOT A NAME"]
        assert open_docker(tar(self.archive(image, RepoTags=tags))).images()[0].references == (
            "docker.io/library/a:1",
        )


def broken(change: Callable[[dict[str, Any]], None]) -> bytes:
    image = TinyImage(b"x", b"y", compress=False)
    members = dict(old_docker_archive(image, ["a:1"]))
    (item,) = json.loads(members["manifest.json"])
    change(item)
    members["manifest.json"] = document([item])
    return tar(members)


class TestHostileArchives:
    @pytest.mark.parametrize(
        ("members", "error"),
        [
            ([("../x", b"")], ArchiveError),
            ([("/x", b"")], ArchiveError),
            ([("a/../../x", b"")], ArchiveError),
            ([("x", ("2", b"../../etc/shadow"))], ArchiveError),
            ([("x", ("2", b"/etc/shadow"))], ArchiveError),
            ([("x", ("1", b"../shadow"))], ArchiveError),
            ([("x", b"1"), ("./x", b"2")], ArchiveError),
            ([("x", b"")], ArchiveError),
            ([("manifest.json", b"{}")], DocumentError),
            ([("manifest.json", b"[1]")], DocumentError),
            ([("manifest.json", b"[" * 5000)], DocumentError),
            ([("manifest.json", b"[" + b" " * (4 << 20) + b"]")], BudgetError),
            ([("manifest.json", ("2", b"manifest.json"))], ArchiveError),
            ([("manifest.json", ("2", b"a")), ("a", ("1", b"manifest.json"))], ArchiveError),
            ([("manifest.json", b'[{"Config":"c"}]'), ("c", b" " * (5 << 20))], BudgetError),
        ],
    )  # fmt: skip
    def test_are_refused(self, members: list[tuple[str, Any]], error: type[LayerfsError]) -> None:
        with pytest.raises(error):
            open_docker(tar(members))

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            (lambda item: item.pop("Config"), DocumentError),
            (lambda item: item.update(Config="../../etc/shadow"), DocumentError),
            (lambda item: item.update(Config=item["Layers"][0]), DocumentError),
            (lambda item: item["Layers"].pop(), DocumentError),
            (lambda item: item["Layers"].append(item["Layers"][0]), DocumentError),
            (lambda item: item.update(Layers=["/etc/shadow", "x"]), ArchiveError),
            (lambda item: item.update(RepoTags="a:1"), DocumentError),
        ],
    )
    def test_with_a_broken_manifest_are_refused(
        self, change: Callable[[dict[str, Any]], None], error: type[LayerfsError]
    ) -> None:
        with pytest.raises(error):
            open_docker(broken(change))

    def test_a_layer_that_is_not_its_diff_id_is_found_by_whoever_stores_it(self, tmp_path: Path) -> None:
        source = open_docker(broken(lambda item: item["Layers"].reverse()))
        with pytest.raises(VerificationError):
            copy(source, oci_layout.LayoutSink(tmp_path / "x"))

    def test_no_cut_or_flip_gives_anything_but_an_error_of_ours(self) -> None:
        data = tar(old_docker_archive(TinyImage(b"x", compress=False), ["a:1"]))
        for end in range(0, len(data), 509):
            with pytest.raises(LayerfsError):
                open_docker(data[:end]).manifest("b:1")
        for place in range(0, len(data), 97):
            flipped = bytearray(data)
            flipped[place] ^= 0x15
            with contextlib.suppress(LayerfsError):
                content(open_docker(bytes(flipped)))

    def test_a_compressed_bomb_is_stopped(self) -> None:
        budget = dataclasses.replace(DEFAULT_BUDGET, ratio=10.0, ratio_floor=1 << 20)
        bomb = gzip.compress(bytes(8 << 20))
        with pytest.raises(BudgetError):
            docker_archive.open_source(stream(bomb), spool=spool, budget=budget, warn=quiet)

    def test_what_is_no_archive_is_refused(self) -> None:
        for data in (b"hello", b"\x1f\x8b\x08junk", bytes(range(256)) * 4):
            with pytest.raises(LayerError):
                open_docker(data)


class TestArchives:
    def saved(self, docker: bool, *images: tuple[TinyImage, list[str]]) -> bytes:
        written = io.BytesIO()
        sink = ArchiveSink(written, docker=docker)
        for image, names in images:
            put(sink, image, *names)
        sink.commit()
        sink.close()
        return written.getvalue()

    def test_are_read_as_they_were_written_by_every_reader(self) -> None:
        one, two = TinyImage(b"one", b"two"), TinyImage(b"one", b"three")
        data = self.saved(True, (one, ["app:1", "app:2"]), (two, ["other:1"]))
        as_layout = oci_archive.open_source(stream(data), spool=spool, warn=quiet)
        for source in (open_docker(data), as_layout):
            assert [image.references for image in source.images()] == [
                ("docker.io/library/app:1", "docker.io/library/app:2"),
                ("docker.io/library/other:1",),
            ]
            assert content(source, "app:2") == (one.manifest, [one.config, *one.layers])
            assert content(source, "docker.io/library/other:1")[1] == [two.config, *two.layers]

    def test_of_docker_name_their_images_as_docker_does(self) -> None:
        image = TinyImage(b"one")
        with tarfile.open(fileobj=stream(self.saved(True, (image, ["app"])))) as archive:
            (item,) = json.load(archive.extractfile("manifest.json"))  # type: ignore[arg-type]
            (entry,) = json.load(archive.extractfile("index.json"))["manifests"]  # type: ignore[arg-type]
        config, layer = (sha256(blob).replace(":", "/") for blob in (image.config, image.layers[0]))
        assert item == {"Config": f"blobs/{config}", "RepoTags": ["app:latest"], "Layers": [f"blobs/{layer}"]}
        assert entry["annotations"] == {
            "io.containerd.image.name": "docker.io/library/app:latest",
            "org.opencontainers.image.ref.name": "latest",
        }

    def test_of_equal_images_are_equal(self) -> None:
        image = TinyImage(b"one")
        assert self.saved(True, (image, ["a"])) == self.saved(True, (image, ["a"]))

    def test_hold_a_shared_blob_once(self) -> None:
        one, two = TinyImage(b"one", b"two"), TinyImage(b"one", b"three")
        with tarfile.open(fileobj=stream(self.saved(False, (one, ["a"]), (two, ["b"])))) as archive:
            names = archive.getnames()
        assert len(names) == len(set(names))
        assert names[0] == "oci-layout"

    def test_keep_a_plain_tag_as_it_is(self) -> None:
        data = self.saved(False, (TinyImage(b"one"), ["1.0"]))
        source = oci_archive.open_source(stream(data), spool=spool, warn=quiet)
        assert source.images()[0].names == ("1.0",)
        assert source.images()[0].references == ()

    def test_appear_at_their_path_only_when_complete(self, tmp_path: Path) -> None:
        target = tmp_path / "a.tar"
        target.write_bytes(b"old")
        sink = docker_archive.open_sink(target)
        put(sink, TinyImage(b"one"), "a")
        assert target.read_bytes() == b"old"
        sink.close()
        assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]
        sink = docker_archive.open_sink(target)
        put(sink, TinyImage(b"one"), "a")
        sink.commit()
        sink.close()
        assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]
        assert target.stat().st_mode & 0o777 == 0o600
        docker_archive.open_source(target, spool=spool, warn=quiet).manifest("a")

    def test_are_written_to_a_pipe_too(self) -> None:
        ends = os.pipe()
        read: list[bytes] = []
        reader = threading.Thread(target=lambda: read.append(os.fdopen(ends[0], "rb").read()))
        reader.start()
        image = TinyImage(os.urandom(300_000))
        with open(ends[1], "wb", buffering=0) as pipe:
            sink = ArchiveSink(pipe, docker=True)
            put(sink, image, "a")
            sink.commit()
            sink.close()
        reader.join()
        assert content(open_docker(read[0]))[1] == [image.config, *image.layers]

    def test_need_every_blob_and_a_name_that_docker_knows(self) -> None:
        image = TinyImage(b"one")
        sink = ArchiveSink(io.BytesIO(), docker=True)
        with pytest.raises(ArchiveError, match="was not put"):
            sink.put_manifest(image.manifest, Manifest.parse(image.manifest).media_type)
        with pytest.raises(ArchiveError, match="cannot be a name"):
            put(sink, image, "UPPER")

    def test_are_told_apart_by_what_is_in_them(self) -> None:
        image = TinyImage(b"one", compress=False)
        kinds = {
            tar(old_docker_archive(image, ["a:1"])): docker_archive.DockerSource,
            self.saved(True, (image, ["a"])): docker_archive.DockerSource,
            self.saved(False, (image, ["a"])): oci_layout.LayoutSource,
        }
        for data, kind in kinds.items():
            assert type(docker_archive.open_any(stream(data), spool=spool, warn=quiet)) is kind
        with pytest.raises(ArchiveError) as caught:
            docker_archive.open_any(stream(tar({"etc/passwd": b""})), spool=spool, warn=quiet)
        assert "layerfs import" in (caught.value.hint or "")


class TestCopy:
    def test_between_all_places_changes_no_byte(self, tmp_path: Path) -> None:
        image = TinyImage(b"one", b"two")
        here = parse(f"oci:{layout(tmp_path / 'first', (image, 'x'))}:x")
        texts = [
            f"oci-archive:{tmp_path}/a.tar:y:1",
            f"docker-archive:{tmp_path}/b.tar:z:2",
            f"oci:{tmp_path}/c:d",
        ]
        for text in texts:
            there = parse(text)
            source = here.source(spool=spool, budget=DEFAULT_BUDGET, warn=quiet)
            sink = there.sink()
            assert there.name is not None
            descriptor = copy(source, sink, image=here.name, names=[there.name])
            sink.commit()
            sink.close()
            source.close()
            assert str(descriptor.digest) == sha256(image.manifest)
            here = there
        source = here.source(spool=spool, budget=DEFAULT_BUDGET, warn=quiet)
        assert content(source, "d") == (image.manifest, [image.config, *image.layers])

    def test_reads_no_blob_that_is_there(self, tmp_path: Path) -> None:
        image = TinyImage(b"one")
        path = layout(tmp_path / "from", (image, None))
        sink = oci_layout.LayoutSink(tmp_path / "to")
        put(sink, image)
        (path / "blobs" / sha256(image.layers[0]).replace(":", "/")).unlink()
        copy(oci_layout.open_source(path), sink)

    def test_tells_how_many_bytes_went(self, tmp_path: Path) -> None:
        seen: list[tuple[int, int]] = []

        class Counting:
            @contextlib.contextmanager
            def task(self, label: str, total: int | None) -> Iterator[Callable[[int], None]]:
                counts: list[int] = []
                yield counts.append
                assert total is not None
                seen.append((total, sum(counts)))

        image = TinyImage(b"one", b"two")
        source = oci_layout.open_source(layout(tmp_path / "from", (image, None)))
        copy(source, oci_layout.LayoutSink(tmp_path / "to"), progress=Counting())
        # Several are written at once.
        assert sorted(seen) == sorted((len(blob), len(blob)) for blob in image.blobs[:-1])
