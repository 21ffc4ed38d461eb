"""Indexes: reading, and picking the manifest for a platform."""

from __future__ import annotations

import json

import pytest

from layerfs.digest import Digest
from layerfs.errors import DocumentError, NotFoundError
from layerfs.oci import media_types
from layerfs.oci.descriptor import Descriptor
from layerfs.oci.index import Index
from layerfs.oci.platform import Platform


def offer(platform: str | None, *, media_type: str = media_types.OCI_MANIFEST) -> Descriptor:
    found = None if platform is None else Platform(*platform.split("/"))
    return Descriptor(media_type, Digest.of(str(platform).encode()), 1, platform=found)


def select(wanted: str, *platforms: str | None) -> str:
    chosen = Index.build([offer(platform) for platform in platforms]).select(Platform.parse(wanted))
    return str(chosen.platform)


def test_the_best_variant_is_selected_whatever_the_order() -> None:
    assert select("linux/arm/v7", "linux/arm/v5", "linux/arm/v6", "linux/arm64") == "linux/arm/v6"
    assert select("linux/arm64", "linux/arm/v7", "linux/arm64/v8", "linux/amd64") == "linux/arm64/v8"


def test_attestations_are_never_selected() -> None:
    with pytest.raises(NotFoundError):
        select("linux/amd64", "unknown/unknown")


def test_a_manifest_that_names_no_platform_is_the_last_resort() -> None:
    assert select("linux/amd64", None, "linux/amd64") == "linux/amd64"
    assert select("linux/amd64", "linux/s390x", None) == "None"


def test_the_first_of_equals_wins() -> None:
    first, second = offer("linux/amd64"), offer("linux/amd64/v1")
    assert Index.build([first, second]).select(Platform("linux", "amd64")) == first


def test_what_is_there_stands_in_the_hint() -> None:
    with pytest.raises(NotFoundError) as caught:
        select("linux/riscv64", "linux/amd64", "linux/arm64")
    assert caught.value.hint == "there is linux/amd64, linux/arm64: choose one with --platform"


def test_things_that_are_no_images_are_passed_over() -> None:
    artifact = offer(None, media_type="application/vnd.example.thing+json")
    with pytest.raises(NotFoundError):
        Index.build([artifact]).select()


def test_a_document_that_is_manifest_and_index_is_refused() -> None:
    for extra in ({"layers": []}, {"config": {}}):
        with pytest.raises(DocumentError):
            Index.parse(json.dumps({"schemaVersion": 2, "manifests": [], **extra}).encode())


def test_docker_s_manifest_list_is_an_index() -> None:
    raw = json.dumps(
        {"schemaVersion": 2, "mediaType": media_types.DOCKER_MANIFEST_LIST, "manifests": []}
    ).encode()
    index = Index.parse(raw)
    assert index.media_type == media_types.DOCKER_MANIFEST_LIST
    assert (index.raw, index.digest) == (raw, Digest.of(raw))
