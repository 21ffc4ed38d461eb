"""Tests of manifests, tags and referrers in a real registry."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from layerfs.digest import Digest
from layerfs.errors import (
    BudgetError,
    DocumentError,
    NotFoundError,
    RegistryError,
    UnsupportedError,
    VerificationError,
)
from layerfs.oci import media_types
from layerfs.oci.descriptor import Descriptor
from layerfs.oci.index import Index
from layerfs.oci.manifest import Manifest
from layerfs.reference import Reference
from layerfs.registry import manifests
from layerfs.registry.repository import Repository
from layerfs.registry.session import Session
from layerfs.registry.settings import Options
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.registries import Registry, put_artifact, put_blob

QUICK = Options(attempts=2, backoff=0.01)


@pytest.fixture
def proxy(registry: Registry) -> Iterator[FaultProxy]:
    with FaultProxy(registry.host) as started:
        yield started


def through(proxy: FaultProxy, name: str) -> Repository:
    return Session(QUICK).repository(Reference.parse(f"{proxy.host}/{name}"))


def answer(proxy: FaultProxy, document: object, *, media_type: str = "", **headers: str) -> None:
    """Have the proxy give a document as a manifest."""
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    told = {"Content-Type": media_type} if media_type else {}
    proxy.add(Fault("GET .*/manifests/", status=200, headers={**told, **headers}, body=raw))


def test_tags_are_listed_page_by_page(proxy: FaultProxy) -> None:
    repository = through(proxy, "documents/tags")
    manifest = put_artifact(repository)
    for number in range(2, 6):
        manifests.put(repository, manifest.raw, manifest.media_type, str(number))
    assert sorted(manifests.tags(repository)) == ["1", "2", "3", "4", "5"]
    page = {"Link": '</v2/documents/tags/tags/list?n=2&last=b>; rel="next"'}
    proxy.add(Fault("tags/list$", status=200, headers=page, body=b'{"name": "x", "tags": ["a", "b"]}'))
    found = list(manifests.tags(repository))
    assert found[:2] == ["a", "b"]
    assert proxy.asked("n=2&last=b")


def test_tags_of_an_unknown_repository_are_an_error(registry: Registry) -> None:
    with pytest.raises(NotFoundError, match="has no repository documents/nothing"):
        list(manifests.tags(registry.repository("documents/nothing")))


def test_a_tag_and_its_digest_give_the_same_bytes(registry: Registry) -> None:
    repository = registry.repository("documents/same")
    manifest = put_artifact(repository)
    descriptor = manifests.head(repository, "1")
    assert descriptor is not None
    assert descriptor.digest == manifest.digest
    assert manifests.get(repository, manifest.digest) == manifests.get(repository, "1")
    assert manifests.get(repository, "1") == (manifest.raw, manifest.descriptor)
    assert manifests.head(repository, "none") is None


def test_an_index_goes_and_comes_as_it_is(registry: Registry) -> None:
    repository = registry.repository("documents/index")
    index = Index.build([put_artifact(repository).descriptor])
    manifests.put(repository, index.raw, index.media_type, "all")
    assert manifests.get(repository, "all") == (index.raw, index.descriptor)


def test_a_manifest_of_another_digest_is_refused(proxy: FaultProxy) -> None:
    repository = through(proxy, "documents/altered")
    manifest = put_artifact(repository)
    proxy.add(Fault("GET .*/manifests/", flip=30, times=2))
    for what in ("1", manifest.digest):
        with pytest.raises(VerificationError, match=str(manifest.digest)):
            manifests.get(repository, what)


def test_a_registry_that_names_a_digest_of_its_own_is_not_believed(proxy: FaultProxy) -> None:
    repository = through(proxy, "documents/liar")
    manifest = put_artifact(repository)
    other = put_artifact(repository, b"other", "2")
    answer(proxy, other.raw, media_type=other.media_type, **{"Docker-Content-Digest": str(other.digest)})
    with pytest.raises(VerificationError):
        manifests.get(repository, manifest.digest)


EMPTY = {"mediaType": media_types.OCI_EMPTY, "digest": str(Digest.of(b"{}")), "size": 2}
IMAGE = {"schemaVersion": 2, "config": EMPTY, "layers": []}
INDEX = {"schemaVersion": 2, "manifests": []}


@pytest.mark.parametrize(
    ("document", "media_type"),
    [
        ({**IMAGE, "manifests": []}, media_types.OCI_MANIFEST),
        ({**INDEX, "layers": []}, media_types.OCI_INDEX),
        ({**IMAGE, "manifests": []}, ""),
        (INDEX, media_types.OCI_MANIFEST),
        (IMAGE, media_types.OCI_INDEX),
        ({**IMAGE, "mediaType": media_types.OCI_MANIFEST}, media_types.DOCKER_MANIFEST),
        ({**IMAGE, "mediaType": media_types.OCI_MANIFEST}, media_types.OCI_INDEX),
        (b"<html>welcome</html>", media_types.OCI_MANIFEST),
        (b'{"schemaVersion": 2, "schemaVersion": 2}', media_types.OCI_MANIFEST),
    ],
)
def test_a_document_of_two_meanings_is_refused(document: object, media_type: str, proxy: FaultProxy) -> None:
    answer(proxy, document, media_type=media_type)
    with pytest.raises(DocumentError):
        manifests.get(through(proxy, "documents/odd"), "1")


@pytest.mark.parametrize(
    "told", ["", "application/json", "application/octet-stream", "text/plain; charset=x"]
)
def test_a_content_type_that_says_nothing_is_passed_over(told: str, proxy: FaultProxy) -> None:
    answer(proxy, {**IMAGE, "mediaType": media_types.OCI_MANIFEST}, media_type=told)
    assert manifests.get(through(proxy, "x"), "1")[1].media_type == media_types.OCI_MANIFEST
    answer(proxy, INDEX, media_type=told)
    assert manifests.get(through(proxy, "x"), "1")[1].media_type == media_types.OCI_INDEX


def test_schema_1_is_told_with_what_to_do(proxy: FaultProxy) -> None:
    for document, media_type in (
        ({"schemaVersion": 1, "fsLayers": []}, "application/json"),
        (b"{}", media_types.DOCKER_SCHEMA1_SIGNED),
    ):
        answer(proxy, document, media_type=media_type)
        with pytest.raises(UnsupportedError, match="schema 1") as refused:
            manifests.get(through(proxy, "x"), "1")
        assert "skopeo" in (refused.value.hint or "")


def test_documents_are_bounded(proxy: FaultProxy) -> None:
    answer(proxy, b" " * (4 << 20) + b"{}", media_type=media_types.OCI_MANIFEST)
    with pytest.raises(BudgetError):
        manifests.get(through(proxy, "x"), "1")


def test_a_deleted_manifest_is_gone(registry: Registry) -> None:
    repository = registry.repository("documents/deleted")
    manifest = put_artifact(repository)
    manifests.delete(repository, manifest.digest)
    assert manifests.head(repository, manifest.digest) is None
    with pytest.raises(NotFoundError, match="has no image"):
        manifests.delete(repository, manifest.digest)


def test_a_registry_that_does_not_delete_says_so(proxy: FaultProxy) -> None:
    repository = through(proxy, "documents/kept")
    manifest = put_artifact(repository)
    body = b'{"errors":[{"code":"UNSUPPORTED","message":"The operation is unsupported."}]}'
    proxy.add(Fault("DELETE", status=405, body=body))
    with pytest.raises(RegistryError, match="does not allow this") as refused:
        manifests.delete(repository, manifest.digest)
    assert "whoever runs it" in (refused.value.hint or "")


def attach(repository: Repository, subject: Manifest, kind: str) -> Manifest:
    config = put_blob(repository, b"{}", media_types.OCI_EMPTY)
    members = {
        "schemaVersion": 2, "mediaType": media_types.OCI_MANIFEST, "artifactType": kind,
        "config": config.members(), "layers": [config.members()],
        "subject": subject.descriptor.members(), "annotations": {"a": kind},
    }  # fmt: skip
    artifact = Manifest.parse(json.dumps(members).encode())
    manifests.put(repository, artifact.raw, artifact.media_type)
    return artifact


def test_referrers_are_listed_by_a_tag_where_the_registry_has_no_api_of_them(registry: Registry) -> None:
    repository = registry.repository("documents/referred")
    subject = put_artifact(repository)
    assert list(manifests.referrers(repository, subject.digest)) == []
    bill, signature = attach(repository, subject, "a/bill"), attach(repository, subject, "a/signature")
    attach(repository, subject, "a/bill")
    found = list(manifests.referrers(repository, subject.digest))
    assert [each.digest for each in found] == [bill.digest, signature.digest]
    assert (found[0].artifact_type, found[0].annotations) == ("a/bill", {"a": "a/bill"})
    only = manifests.referrers(repository, subject.digest, artifact_type="a/signature")
    assert [each.digest for each in only] == [signature.digest]
    assert f"sha256-{subject.digest.hex}" in list(manifests.tags(repository))
    manifests.delete(repository, bill.digest)
    assert [each.digest for each in manifests.referrers(repository, subject.digest)] == [signature.digest]


def test_the_registrys_own_list_of_referrers_is_used_where_it_has_one(proxy: FaultProxy) -> None:
    repository = through(proxy, "documents/api")
    subject = put_artifact(repository)
    one = Descriptor(media_types.OCI_MANIFEST, Digest.of(b"1"), 1, artifact_type="a/one")
    two = Descriptor(media_types.OCI_MANIFEST, Digest.of(b"2"), 1, artifact_type="a/two")
    kind = {"Content-Type": media_types.OCI_INDEX}
    proxy.add(
        Fault("referrers/", status=200, body=Index.build([one]).raw,
              headers={**kind, "Link": '</v2/documents/api/referrers/more?p=2>; rel="next"'}),
        Fault("referrers/more", status=200, headers=kind, body=Index.build([two]).raw),
    )  # fmt: skip
    assert list(manifests.referrers(repository, subject.digest)) == [one, two]
    proxy.clear()
    proxy.add(Fault("PUT .*/manifests/", replace={"OCI-Subject": str(subject.digest)}))
    attach(repository, subject, "a/bill")
    assert not proxy.asked("PUT .*/manifests/sha256-")
