"""Images that go over a real registry: docker, podman and skopeo pull ours, and we pull theirs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from layerfs.testing.snapshot import Snapshot, differences, snapshot
from tests.interop import peers
from tests.interop.conftest import BuiltImage
from tests.interop.image import context
from tests.interop.normalise import as_docker_shows, as_podman_shows, without_root_time
from tests.support.registries import Registry
from tests.support.tiny_images import layout_of_index, multi_platform, sha256

PLAIN = "--tls-verify=false"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    peers.need("docker-registry", "skopeo")
    with Registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def layerfs(tmp_path: Path) -> Iterator[peers.Layerfs]:
    peers.need("skopeo")
    yield peers.Layerfs(tmp_path / "store", "overlay2")
    peers.unmount_below(tmp_path)


@pytest.fixture
def stored(layerfs: peers.Layerfs, built_image: BuiltImage) -> peers.Layerfs:
    layerfs("pull", f"oci:{built_image.layout}:{built_image.tag}", context.IMAGE_NAME)
    return layerfs


def raw(place: str, *flags: str) -> bytes:
    return peers.skopeo("inspect", "--raw", PLAIN, *flags, place)


def same_as_docker(tree: Snapshot, built: BuiltImage) -> list[str]:
    return differences(without_root_time(as_docker_shows(tree)), without_root_time(built.docker_tree))


class TestPushedByUs:
    def test_skopeo_gets_the_same_bytes(
        self, stored: peers.Layerfs, built_image: BuiltImage, registry: Registry, tmp_path: Path
    ) -> None:
        place = f"docker://{registry.host}/skopeo:1"
        digest = stored("push", "--quiet", context.IMAGE_NAME, place).decode().strip()
        assert sha256(raw(place)) == digest
        peers.skopeo("copy", "--src-tls-verify=false", place, f"oci:{tmp_path}/layout:1")
        assert _blobs(tmp_path / "layout") == _blobs(built_image.layout)

    @pytest.mark.parametrize("compression", [None, "gzip", "none"])
    def test_docker_gets_the_same_digest_and_tree(
        self,
        stored: peers.Layerfs,
        built_image: BuiltImage,
        registry: Registry,
        docker: peers.Docker,
        tmp_path: Path,
        compression: str | None,
    ) -> None:
        name = f"{registry.host}/for-docker:{compression or 'as-it-is'}"
        change = [] if compression is None else ["--compression", compression, "--force-compression"]
        digest = stored("push", "--quiet", *change, context.IMAGE_NAME, name).decode().strip()
        docker("pull", "--quiet", name)
        try:
            [details] = json.loads(docker("image", "inspect", name))
            assert f"{registry.host}/for-docker@{digest}" in details["RepoDigests"]
            with docker.mounted(name, tmp_path / "tree") as tree:
                shown = snapshot(tree)
            assert differences(without_root_time(shown), without_root_time(built_image.docker_tree)) == []
        finally:
            docker("rmi", "--force", name)

    @pytest.mark.parametrize("compression", [None, "zstd", "zstd:chunked", "estargz"])
    def test_podman_gets_the_same_digest_and_tree(
        self,
        stored: peers.Layerfs,
        built_image: BuiltImage,
        registry: Registry,
        podman: peers.Podman,
        compression: str | None,
    ) -> None:
        name = f"{registry.host}/for-podman:{(compression or 'as-it-is').replace(':', '-')}"
        change = [] if compression is None else ["--compression", compression, "--compression-level", "5"]
        digest = stored("push", "--quiet", *change, context.IMAGE_NAME, name).decode().strip()
        podman.pull(name)
        try:
            [details] = json.loads(podman("image", "inspect", name))
            assert details["Digest"] == digest
            with podman.mounted(name) as tree:
                expected = without_root_time(as_podman_shows(built_image.umoci_tree))
                assert differences(_known(without_root_time(snapshot(tree))), expected) == []
        finally:
            podman("rmi", "--force", name)

    def test_a_second_push_sends_nothing_and_a_pull_finds_all_there(
        self, stored: peers.Layerfs, registry: Registry
    ) -> None:
        name = f"{registry.host}/twice:1"
        first = stored("push", "--quiet", context.IMAGE_NAME, name)
        before = sorted(registry.store.rglob("data"))
        assert stored("push", "--quiet", context.IMAGE_NAME, name) == first
        assert sorted(registry.store.rglob("data")) == before
        assert stored("pull", "--quiet", name).decode() == f"{name}\n"
        [one] = json.loads(stored("inspect", name))
        assert f"{one['digest']}\n" == first.decode()


class TestPushedByOthers:
    def test_docker(
        self,
        layerfs: peers.Layerfs,
        built_image: BuiltImage,
        registry: Registry,
        docker: peers.Docker,
        tmp_path: Path,
    ) -> None:
        name = f"{registry.host}/by-docker:1"
        docker("tag", context.IMAGE_NAME, name)
        docker("push", "--quiet", name)
        layerfs("pull", "--quiet", name)
        [one] = json.loads(layerfs("inspect", name))
        assert one["digest"] == sha256(raw(f"docker://{name}"))
        assert one["id"] == docker.lines("inspect", "--format", "{{.Id}}", context.IMAGE_NAME)[0]
        with layerfs.mounted(name, tmp_path / "tree") as tree:
            assert same_as_docker(snapshot(tree), built_image) == []

    def test_podman(
        self,
        layerfs: peers.Layerfs,
        built_image: BuiltImage,
        registry: Registry,
        podman: peers.Podman,
        tmp_path: Path,
    ) -> None:
        name = f"{registry.host}/by-podman:1"
        podman.load(built_image.docker_archive)
        podman("push", "--quiet", PLAIN, context.IMAGE_NAME, name)
        layerfs("pull", "--quiet", name)
        [one] = json.loads(layerfs("inspect", name))
        assert one["digest"] == sha256(raw(f"docker://{name}"))
        with layerfs.mounted(name, tmp_path / "tree") as tree:
            assert same_as_docker(snapshot(tree), built_image) == []

    @pytest.mark.parametrize("compression", ["gzip", "zstd", "zstd:chunked"])
    def test_skopeo(
        self,
        layerfs: peers.Layerfs,
        built_image: BuiltImage,
        registry: Registry,
        tmp_path: Path,
        compression: str,
    ) -> None:
        name = f"{registry.host}/by-skopeo:{compression.replace(':', '-')}"
        peers.skopeo(
            "copy", "--dest-tls-verify=false", "--dest-compress-format", compression,
            f"docker-archive:{built_image.docker_archive}", f"docker://{name}",
        )  # fmt: skip
        layerfs("pull", "--quiet", name)
        [one] = json.loads(layerfs("inspect", name))
        assert one["digest"] == sha256(raw(f"docker://{name}"))
        with layerfs.mounted(name, tmp_path / "tree") as tree:
            assert differences(snapshot(tree), built_image.umoci_tree) == []


class TestCopiedAndIndexes:
    @pytest.fixture
    def layout(self, tmp_path: Path) -> Path:
        index, images = multi_platform("linux/amd64", "linux/arm64/v8", "linux/s390x", annotations={"a": "b"})
        return layout_of_index(tmp_path / "from", index, images, name="1")

    def test_skopeo_and_we_copy_all_to_the_same_digests(
        self, layerfs: peers.Layerfs, layout: Path, registry: Registry, tmp_path: Path
    ) -> None:
        ours, theirs = f"docker://{registry.host}/ours/all:1", f"docker://{registry.host}/theirs/all:1"
        digest = layerfs("copy", "--quiet", "--all", f"oci:{layout}:1", ours).decode().strip()
        peers.skopeo("copy", "--all", "--dest-tls-verify=false", f"oci:{layout}:1", theirs)
        assert sha256(raw(ours)) == sha256(raw(theirs)) == digest
        # And back, each what the other put.
        layerfs("copy", "--quiet", "--all", theirs, f"oci:{tmp_path}/ours:1")
        peers.skopeo("copy", "--all", "--src-tls-verify=false", ours, f"oci:{tmp_path}/theirs:1")
        assert _blobs(tmp_path / "ours") == _blobs(tmp_path / "theirs") == _blobs(layout)

    def test_between_two_repositories_and_two_registries(
        self, layerfs: peers.Layerfs, layout: Path, registry: Registry, tmp_path: Path
    ) -> None:
        first = f"docker://{registry.host}/first:1"
        digest = layerfs("copy", "-q", "--all", f"oci:{layout}:1", first)
        assert layerfs("copy", "-q", "--all", first, f"docker://{registry.host}/second:1") == digest
        with Registry(tmp_path / "other") as other:
            assert layerfs("copy", "-q", "--all", first, f"docker://{other.host}/third:1") == digest
            one = layerfs("copy", "-q", "--platform", "arm64", first, f"docker://{other.host}/third:arm")
            assert sorted(layerfs("tags", f"docker://{other.host}/third").decode().split()) == ["1", "arm"]
            assert sha256(raw(f"docker://{other.host}/third:arm")) == one.decode().strip()

    def test_every_platform_is_kept_and_pushed_with_the_index(
        self, layerfs: peers.Layerfs, layout: Path, registry: Registry, tmp_path: Path
    ) -> None:
        first, second = f"{registry.host}/kept:1", f"{registry.host}/kept-again:1"
        digest = layerfs("copy", "-q", "--all", f"oci:{layout}:1", f"docker://{first}")
        layerfs("pull", "-q", "--all-platforms", first)
        assert layerfs("push", "-q", "--all-platforms", first, f"docker://{second}") == digest
        peers.skopeo("copy", "--all", "--src-tls-verify=false", f"docker://{second}", f"oci:{tmp_path}/x:1")
        assert _blobs(tmp_path / "x") == _blobs(layout)

    def test_all_tags_come_and_go(self, layerfs: peers.Layerfs, layout: Path, registry: Registry) -> None:
        for tag in ("a", "b"):
            layerfs("copy", "-q", f"oci:{layout}:1", f"docker://{registry.host}/tags:{tag}")
        printed = layerfs("pull", "-q", "--all-tags", f"{registry.host}/tags").decode().split()
        assert sorted(printed) == [f"{registry.host}/tags:a", f"{registry.host}/tags:b"]
        for tag in ("a", "b"):
            layerfs("tag", f"{registry.host}/tags:{tag}", f"{registry.host}/more-tags:{tag}")
        layerfs("push", "-q", "--all-tags", f"{registry.host}/more-tags")
        assert sorted(layerfs("tags", f"{registry.host}/more-tags").decode().split()) == ["a", "b"]


class TestLookedInto:
    def test_as_skopeo_does(self, stored: peers.Layerfs, registry: Registry) -> None:
        place = f"docker://{registry.host}/looked-into:1"
        stored("push", "-q", context.IMAGE_NAME, place)
        assert stored("inspect", "--raw", place) == raw(place)
        assert stored("inspect", "--raw", "--config", place) == raw(place, "--config")
        theirs = json.loads(peers.skopeo("inspect", PLAIN, place))
        [ours] = json.loads(stored("inspect", place))
        assert (ours["digest"], ours["tags"]) == (theirs["Digest"], theirs["RepoTags"])
        assert [layer["digest"] for layer in ours["layers"]] == theirs["Layers"]
        assert ours["architecture"] == theirs["Architecture"]

    def test_and_deleted(self, stored: peers.Layerfs, registry: Registry) -> None:
        place = f"docker://{registry.host}/deleted:1"
        stored("push", "-q", context.IMAGE_NAME, place)
        assert b"Deleted: " in stored("delete", place)
        assert stored("tags", f"docker://{registry.host}/deleted") == b""
        peers.call(["skopeo", "inspect", PLAIN, place], statuses=(1, 2))
        stored("delete", place, statuses=(1,))

    def test_and_attached_to(self, stored: peers.Layerfs, registry: Registry, tmp_path: Path) -> None:
        place = f"docker://{registry.host}/attached:1"
        image = stored("push", "-q", context.IMAGE_NAME, place).decode().strip()
        bill = tmp_path / "bill.json"
        bill.write_text('{"spdxVersion": "SPDX-2.3"}')
        artifact = "application/spdx+json"
        words = ("attach", "-q", "--artifact-type", artifact, "--annotation", "by=us", place)
        digest = stored(*words, f"{bill}:{artifact}").decode().strip()
        found = json.loads(stored("--json", "referrers", place))
        assert found["subject"] == image
        assert [(one["digest"], one["artifactType"]) for one in found["referrers"]] == [(digest, artifact)]
        assert json.loads(stored("--json", "referrers", "--artifact-type", "x/y", place))["referrers"] == []
        manifest: dict[str, Any] = json.loads(raw(f"docker://{registry.host}/attached@{digest}"))
        assert manifest["subject"]["digest"] == image
        assert manifest["annotations"] == {"by": "us"}
        assert manifest["layers"][0]["annotations"] == {"org.opencontainers.image.title": "bill.json"}
        # The image stays as it is.
        assert sha256(raw(place)) == image


def _known(tree: Snapshot) -> Snapshot:
    """Leave out what eStargz puts into a layer for itself."""
    return {
        path: facts
        for path, facts in tree.items()
        if path not in (b"stargz.index.json", b".no.prefetch.landmark")
    }


def _blobs(layout: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (layout / "blobs" / "sha256").iterdir()}
