"""Blobs sent to a real registry, through a proxy that cuts and refuses what passes."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest

from layerfs.compression import Readable
from layerfs.digest import Digest
from layerfs.errors import AuthenticationError, Interrupted, RegistryError, VerificationError
from layerfs.oci.descriptor import Descriptor
from layerfs.reference import Reference
from layerfs.registry import ranges, upload
from layerfs.registry.credentials import Credentials
from layerfs.registry.download import fetch_whole
from layerfs.registry.repository import Repository
from layerfs.registry.session import Session
from layerfs.registry.settings import Options
from layerfs.registry.upload import Upload
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.registries import PASSWORD, USER, Registry, put_blob

MEDIA_TYPE = "application/octet-stream"
PUT = "PUT /v2/.*/blobs/uploads/"


@pytest.fixture
def proxy(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    monkeypatch.setattr(ranges, "_PAUSE", 0.001)
    with FaultProxy(registry.host) as started:
        yield started


@pytest.fixture
def repository(proxy: FaultProxy) -> Repository:
    session = Session(Options(backoff=0.001))
    return session.repository(Reference.parse(f"{proxy.host}/upload/blob"))


class Content:
    """New content, and how often it was opened."""

    def __init__(self, size: int = 3_000_000) -> None:
        self.data = random.randbytes(size)
        self.descriptor = Descriptor.to(self.data, MEDIA_TYPE)
        self.opened = 0
        self.shown = 0

    def open(self) -> AbstractContextManager[Readable]:
        self.opened += 1
        return contextlib.nullcontext(io.BytesIO(self.data))

    def advance(self, count: int) -> None:
        self.shown += count

    def upload(self, repository: Repository) -> Upload:
        return Upload(repository, self.descriptor, self.open, advance=self.advance)


def methods(proxy: FaultProxy) -> list[str]:
    return [seen.method for seen in proxy.asked("/blobs/")]


def test_what_is_there_is_known(repository: Repository, registry: Registry) -> None:
    found = put_blob(registry.repository("upload/blob"), b"known", MEDIA_TYPE)
    assert upload.exists(repository, found)
    assert not upload.exists(repository, Content(10).descriptor)


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_a_blob_goes_in_one_request(repository: Repository, proxy: FaultProxy, size: int) -> None:
    content = Content(size)
    content.upload(repository).send()
    assert methods(proxy) == ["POST", "PUT"]
    assert proxy.asked(PUT)[0].headers["Content-Length"] == str(size)
    assert fetch_whole(repository, content.descriptor) == content.data
    assert content.shown == size


def test_a_blob_that_was_cut_is_gone_on_with(repository: Repository, proxy: FaultProxy) -> None:
    content = Content(9_000_000)
    proxy.add(Fault(PUT, cut_upload=4_000_000))
    content.upload(repository).send()
    assert fetch_whole(repository, content.descriptor) == content.data
    assert content.shown == len(content.data)
    assert content.opened == 2


def test_what_the_registry_has_of_it_is_not_sent_again(repository: Repository, proxy: FaultProxy) -> None:
    content = Content(4_000_000)
    sent = content.upload(repository)
    with repository.send("POST", "blobs/uploads/", actions=("pull", "push"), expect=(202,)) as begun:
        sent._began(begun)
    assert sent._location is not None
    with repository.send(
        "PATCH", sent._location, body=content.data[:1_500_000], actions=("pull", "push"), expect=(202,),
        headers={"Content-Type": MEDIA_TYPE},
    ) as answer:  # fmt: skip
        sent._began(answer)
    proxy.requests.clear()
    # The proxy hands nothing of this on.
    proxy.add(Fault(PUT, cut_upload=0))
    sent.send()
    (patch,) = proxy.asked("PATCH")
    assert patch.headers["Content-Range"] == "1500000-3999999"
    assert patch.headers["Content-Length"] == "2500000"
    assert fetch_whole(repository, content.descriptor) == content.data


def test_an_upload_that_the_registry_forgot_begins_anew(repository: Repository, proxy: FaultProxy) -> None:
    content = Content()
    proxy.add(Fault(PUT, cut_upload=1_000_000), Fault("GET .*/blobs/uploads/", status=404, body=b"{}"))
    content.upload(repository).send()
    assert methods(proxy) == ["POST", "PUT", "GET", "POST", "PUT"]
    assert fetch_whole(repository, content.descriptor) == content.data


def test_where_requests_are_limited_in_size_it_goes_in_chunks(
    repository: Repository, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "_CHUNK", 1_000_000)
    content = Content()
    proxy.add(Fault(PUT, status=413))
    content.upload(repository).send()
    assert methods(proxy) == ["POST", "PUT", "POST", "PATCH", "PATCH", "PATCH", "PUT"]
    assert fetch_whole(repository, content.descriptor) == content.data


def test_a_server_in_trouble_is_asked_again(repository: Repository, proxy: FaultProxy) -> None:
    content = Content()
    proxy.add(Fault(PUT, status=503), Fault(PUT, status=429, headers={"Retry-After": "0"}))
    content.upload(repository).send()
    assert fetch_whole(repository, content.descriptor) == content.data


def test_it_is_given_up_in_the_end(repository: Repository, proxy: FaultProxy) -> None:
    proxy.add(Fault(PUT, times=100, cut_upload=10))
    with pytest.raises(Interrupted):
        Content().upload(repository).send()
    proxy.clear()
    proxy.add(Fault(PUT, times=100, status=400))
    with pytest.raises(RegistryError):
        Content().upload(repository).send()
    assert len(proxy.asked(PUT)) == 1


def test_wrong_bytes_are_found_by_the_registry(repository: Repository) -> None:
    content = Content()
    wrong = Upload(
        repository, content.descriptor, lambda: contextlib.nullcontext(io.BytesIO(bytes(len(content.data))))
    )
    with pytest.raises(VerificationError):
        wrong.send()
    assert not upload.exists(repository, content.descriptor)


def test_too_few_bytes_are_our_own_fault(repository: Repository) -> None:
    content = Content()
    short = Upload(
        repository, content.descriptor, lambda: contextlib.nullcontext(io.BytesIO(content.data[:-1]))
    )
    with pytest.raises(VerificationError, match="2999999"):
        short.send()


def test_what_cannot_be_read_is_not_taken_for_a_cut(repository: Repository, proxy: FaultProxy) -> None:
    content = Content()

    class Broken:
        def read(self, size: int, /) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        Upload(repository, content.descriptor, lambda: contextlib.nullcontext(Broken())).send()
    assert len(proxy.asked(PUT)) <= 1


class TestMount:
    def test_takes_a_blob_over_from_another_repository(
        self, registry: Registry, repository: Repository, proxy: FaultProxy
    ) -> None:
        content = Content()
        put_blob(registry.repository("upload/origin"), content.data, MEDIA_TYPE)
        sent = content.upload(repository)
        assert sent.mount([Reference.parse(f"{proxy.host}/upload/origin:1")])
        assert methods(proxy) == ["POST"]
        assert fetch_whole(repository, content.descriptor) == content.data
        assert content.opened == 0

    def test_that_is_not_granted_is_the_beginning_of_an_upload(
        self, repository: Repository, proxy: FaultProxy
    ) -> None:
        content = Content()
        sent = content.upload(repository)
        assert not sent.mount([Reference.parse(f"{proxy.host}/upload/nothing:1")])
        sent.send()
        assert methods(proxy) == ["POST", "PUT"]
        assert fetch_whole(repository, content.descriptor) == content.data

    def test_asks_no_other_registry_and_not_itself(self, repository: Repository, proxy: FaultProxy) -> None:
        sent = Content().upload(repository)
        assert not sent.mount(
            [Reference.parse("docker.io/a/b"), Reference.parse(f"{proxy.host}/upload/blob")]
        )
        assert methods(proxy) == []

    def test_of_what_we_may_not_read_is_no_failure(self, token_registry: Registry) -> None:
        here = token_registry.repository("upload/mine", Options(creds=Credentials(USER, PASSWORD)))
        content = Content()
        sent = content.upload(here)
        assert not sent.mount([Reference.parse(f"{token_registry.host}/upload/secret:1")])
        sent.send()
        assert fetch_whole(here, content.descriptor) == content.data

    def test_that_the_registry_refuses_is_followed_by_an_upload(
        self, repository: Repository, proxy: FaultProxy
    ) -> None:
        proxy.add(Fault("POST .*mount=", status=403, body=b'{"errors": [{"code": "DENIED"}]}'))
        sent = Content().upload(repository)
        assert not sent.mount([Reference.parse(f"{proxy.host}/upload/other:1")])
        sent.send()
        assert methods(proxy) == ["POST", "POST", "PUT"]


def test_who_may_not_write_hears_it(basic_registry: Registry) -> None:
    content = Content()
    with pytest.raises(AuthenticationError):
        content.upload(basic_registry.repository("upload/closed")).send()
    assert content.opened == 0
    assert isinstance(content.descriptor.digest, Digest)
