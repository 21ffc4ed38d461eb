"""Blobs read from a real registry, through a proxy that cuts, alters and slows down what passes."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from layerfs.errors import Interrupted, NotFoundError, UnsupportedError, VerificationError
from layerfs.oci.descriptor import Descriptor
from layerfs.reference import Reference
from layerfs.registry import ranges
from layerfs.registry.download import Download, fetch_whole
from layerfs.registry.pieces import PIECE, Pieces
from layerfs.registry.prefetch import Prefetch
from layerfs.registry.ranges import BlobRanges, NoRangesError
from layerfs.registry.repository import Repository
from layerfs.registry.session import Session
from layerfs.registry.settings import Options
from layerfs.value import replace
from tests.support.authority import Authority
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.registries import Registry, put_blob

CONTENT = random.Random(5).randbytes(900_001)
BLOB = "GET /v2/.*/blobs/"


@pytest.fixture
def proxy(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    monkeypatch.setattr(ranges, "_PAUSE", 0.001)
    with FaultProxy(registry.host) as started:
        yield started


@pytest.fixture
def blob(registry: Registry) -> Descriptor:
    return put_blob(registry.repository("download/blob"), CONTENT, "application/octet-stream")


@pytest.fixture
def repository(proxy: FaultProxy, blob: Descriptor) -> Repository:
    return through(proxy)


def through(proxy: FaultProxy) -> Repository:
    session = Session(Options(backoff=0.001))
    found = session.repository(Reference.parse(f"{proxy.host}/download/blob"))
    # What a session asks first is not of interest here.
    session.base(found._endpoints[-1])
    proxy.requests.clear()
    return found


def read(stream: Download) -> bytes:
    with stream:
        return b"".join(iter(lambda: stream.read(100_000), b""))


def asked(proxy: FaultProxy) -> list[str | None]:
    """Give the Range of every request for a blob."""
    return [seen.headers.get("Range") for seen in proxy.asked(BLOB)]


class TestDownload:
    def test_asks_for_nothing_before_it_is_read(
        self, repository: Repository, proxy: FaultProxy, blob: Descriptor
    ) -> None:
        stream = Download(repository, blob)
        assert stream.descriptors() == []
        stream.close()
        assert asked(proxy) == []

    def test_is_one_request(self, repository: Repository, proxy: FaultProxy, blob: Descriptor) -> None:
        assert read(Download(repository, blob)) == CONTENT
        assert fetch_whole(repository, blob) == CONTENT
        assert asked(proxy) == [None, None]

    def test_leaves_out_what_is_here(
        self, repository: Repository, proxy: FaultProxy, blob: Descriptor
    ) -> None:
        stream = Download(repository, blob)
        stream.skip(123_456)
        assert read(stream) == CONTENT[123_456:]
        assert asked(proxy) == ["bytes=123456-"]

    def test_of_what_is_here_whole_asks_for_nothing(
        self, repository: Repository, proxy: FaultProxy, blob: Descriptor
    ) -> None:
        stream = Download(repository, blob)
        stream.skip(len(CONTENT))
        assert read(stream) == b""
        assert asked(proxy) == []

    @pytest.mark.parametrize("reset", [False, True])
    def test_goes_on_where_it_was_cut(
        self, repository: Repository, proxy: FaultProxy, blob: Descriptor, reset: bool
    ) -> None:
        proxy.add(Fault(BLOB, cut=350_000, reset=reset), Fault(BLOB, cut=200_000, reset=reset))
        assert read(Download(repository, blob)) == CONTENT
        first, second, third = asked(proxy)
        assert first is None
        if reset:
            # A reset takes with it what was under way.
            assert second is None or second.startswith("bytes=")
        else:
            assert (second, third) == ("bytes=350000-", "bytes=550000-")

    def test_is_given_up_when_nothing_comes_any_more(
        self, repository: Repository, proxy: FaultProxy, blob: Descriptor
    ) -> None:
        proxy.add(Fault(BLOB, times=100, cut=0))
        with pytest.raises(Interrupted):
            read(Download(repository, blob))
        assert len(asked(proxy)) == ranges.CUTS + 1

    def test_begins_anew_where_the_server_has_no_ranges(
        self, repository: Repository, proxy: FaultProxy, blob: Descriptor
    ) -> None:
        proxy.add(Fault(BLOB, cut=500_000), Fault(BLOB, times=9, ignore_range=True))
        assert read(Download(repository, blob)) == CONTENT

    @pytest.mark.parametrize(
        "given",
        ["bytes 0-900000/900001", "bytes 400000-900000/900002", "bytes 400000-800000/900001", "nonsense", ""],
    )
    def test_takes_no_other_range_than_it_asked_for(
        self, repository: Repository, proxy: FaultProxy, blob: Descriptor, given: str
    ) -> None:
        proxy.add(Fault(BLOB, replace={"Content-Range": given}))
        stream = Download(repository, blob, start=400_000)
        assert read(stream) == CONTENT[400_000:]
        assert asked(proxy) == ["bytes=400000-", None]

    def test_of_another_size_is_refused(
        self, repository: Repository, proxy: FaultProxy, blob: Descriptor
    ) -> None:
        for size in (len(CONTENT) - 1, len(CONTENT) + 1):
            with pytest.raises(VerificationError, match="900001 bytes"):
                read(Download(repository, replace(blob, size=size)))

    def test_of_what_is_not_there_says_so(self, repository: Repository, blob: Descriptor) -> None:
        with pytest.raises(NotFoundError):
            read(Download(repository, replace(blob, digest=type(blob.digest).of(b"other"))))


class TestSlowDownload:
    """Over a link where one connection is slow several share the work."""

    SIZE = 8 * PIECE + 12345

    @pytest.fixture
    def large(self, registry: Registry) -> tuple[Descriptor, bytes]:
        data = random.Random(6).randbytes(self.SIZE)
        return put_blob(registry.repository("download/blob"), data, "application/octet-stream"), data

    def test_is_read_by_several_connections(
        self, registry: Registry, large: tuple[Descriptor, bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("layerfs.registry.download._TRIAL", 0.05)
        blob, data = large
        with FaultProxy(registry.host, rate=10 << 20) as proxy:
            repository = through(proxy)
            assert read(Download(repository, blob, connections=4)) == data
            found = asked(proxy)
            assert found[0] is None
            starts = [int(str(each).removeprefix("bytes=").partition("-")[0]) for each in found[1:]]
            assert sorted(starts) == list(range(min(starts), self.SIZE, PIECE))
            assert len(starts) >= 3

    def test_is_put_together_whatever_is_cut(
        self, registry: Registry, large: tuple[Descriptor, bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("layerfs.registry.download._TRIAL", 0.05)
        monkeypatch.setattr(ranges, "_PAUSE", 0.001)
        blob, data = large
        with FaultProxy(registry.host, rate=10 << 20) as proxy:
            repository = through(proxy)
            proxy.add(Fault(BLOB, after=2, cut=1_000_000, times=3), Fault(BLOB, after=3, ignore_range=True))
            assert read(Download(repository, blob, connections=3)) == data

    def test_stays_one_connection_where_that_is_asked_for(
        self, registry: Registry, large: tuple[Descriptor, bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("layerfs.registry.download._TRIAL", 0.0)
        blob, data = large
        with FaultProxy(registry.host, rate=40 << 20) as proxy:
            repository = through(proxy)
            assert read(Download(repository, blob, connections=1)) == data
            assert asked(proxy) == [None]


class TestPieces:
    def test_hold_a_bounded_part_of_what_they_read(self) -> None:
        begun: list[int] = []

        def fetch(start: int, size: int) -> bytes:
            begun.append(start)
            return bytes(size)

        pieces = Pieces(fetch, 0, 100 * PIECE, most=3)
        assert len(pieces.read(10)) == 10
        deadline = time.monotonic() + 5
        while len(begun) < 7 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert len(begun) <= 7
        pieces.close()

    def test_tell_the_reader_what_went_wrong(self) -> None:
        def fetch(start: int, size: int) -> bytes:
            if start >= 2 * PIECE:
                raise Interrupted("cut")
            return bytes(size)

        pieces = Pieces(fetch, 0, 10 * PIECE, most=2)
        with pytest.raises(Interrupted):
            while pieces.read(PIECE):
                pass


class TestRanges:
    def test_give_any_part(self, repository: Repository, proxy: FaultProxy, blob: Descriptor) -> None:
        found = BlobRanges(repository, blob)
        assert found.size == len(CONTENT)
        assert found.read_at(5, 10) == CONTENT[5:15]
        assert found.read_at(900_000, 10) == CONTENT[900_000:]
        assert found.read_at(900_001, 10) == b""
        assert asked(proxy) == ["bytes=5-14", "bytes=900000-900000"]

    def test_use_one_connection_for_one_after_the_other(
        self, repository: Repository, proxy: FaultProxy, blob: Descriptor
    ) -> None:
        found = BlobRanges(repository, blob)
        for place in range(5):
            found.read_at(place * 1000, 500)
        pools = repository.session.state.connections._pools.values()
        hosts = [pool.pools[key] for pool in pools for key in pool.pools.keys()]  # noqa: SIM118
        assert sum(host.num_connections for host in hosts if host.scheme == "http") == 1

    def test_of_the_descriptor_itself_need_no_registry(
        self, repository: Repository, proxy: FaultProxy, blob: Descriptor
    ) -> None:
        assert BlobRanges(repository, replace(blob, data=CONTENT)).read_at(7, 3) == CONTENT[7:10]
        assert asked(proxy) == []

    def test_go_on_where_they_were_cut(
        self, repository: Repository, proxy: FaultProxy, blob: Descriptor
    ) -> None:
        proxy.add(Fault(BLOB, cut=300_000))
        assert BlobRanges(repository, blob).read_at(100_000, 500_000) == CONTENT[100_000:600_000]

    def test_are_refused_where_the_server_has_none(
        self, repository: Repository, proxy: FaultProxy, blob: Descriptor
    ) -> None:
        proxy.add(Fault(BLOB, ignore_range=True), Fault(BLOB, replace={"Content-Range": "bytes 0-9/900001"}))
        for _ in range(2):
            with pytest.raises(UnsupportedError) as refused:
                BlobRanges(repository, blob).read_at(10, 10)
            assert isinstance(refused.value.__cause__, NoRangesError)


class TestPrefetch:
    def blobs(self, *contents: bytes) -> list[Descriptor]:
        return [Descriptor.to(content, "application/octet-stream") for content in contents]

    def fetching(self, blobs: list[Descriptor], contents: tuple[bytes, ...]) -> Callable[[Descriptor], bytes]:
        known = {blob.digest: content for blob, content in zip(blobs, contents, strict=True)}
        return lambda blob: known[blob.digest]

    def test_gives_what_was_expected_in_any_order(self) -> None:
        contents = tuple(bytes([n]) * 1000 for n in range(50))
        blobs = self.blobs(*contents)
        ahead = Prefetch(self.fetching(blobs, contents), threads=4)
        ahead.expect(blobs)
        for number in random.Random(1).sample(range(50), 50):
            assert ahead.has(blobs[number].digest)
            assert ahead.take(blobs[number].digest) == contents[number]
            assert not ahead.has(blobs[number].digest)

    def test_keeps_a_bounded_part_in_memory_and_gives_the_last_first(self) -> None:
        contents = tuple(bytes([n]) * (1 << 20) for n in range(20))
        blobs = self.blobs(*contents)
        ahead = Prefetch(self.fetching(blobs, contents), threads=4)
        ahead.expect(blobs)
        assert ahead.take(blobs[-1].digest) == contents[-1]
        assert sum(map(len, (each for each in ahead._done.values() if isinstance(each, bytes)))) <= 8 << 20
        assert [ahead.take(blob.digest) for blob in blobs[:-1]] == list(contents[:-1])

    def test_has_no_thread_while_it_is_paused(self) -> None:
        contents = tuple(bytes([n]) * 10 for n in range(200))
        blobs = self.blobs(*contents)
        ahead = Prefetch(self.fetching(blobs, contents), threads=4)
        ahead.expect(blobs)
        ahead.pause()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and "layerfs-prefetch" in [
            thread.name for thread in threading.enumerate()
        ]:
            time.sleep(0.01)
        assert "layerfs-prefetch" not in [thread.name for thread in threading.enumerate()]
        assert [ahead.take(blob.digest) for blob in blobs] == list(contents)

    def test_tells_who_wants_a_blob_why_there_is_none(self) -> None:
        (blob,) = self.blobs(b"x")

        def fail(descriptor: Descriptor) -> bytes:
            raise NotFoundError("no such blob")

        ahead = Prefetch(fail, threads=1)
        ahead.expect([blob])
        with pytest.raises(NotFoundError):
            ahead.take(blob.digest)

    def test_leaves_large_blobs_alone(self) -> None:
        (blob,) = self.blobs(bytes((1 << 20) + 1))
        ahead = Prefetch(lambda descriptor: b"", threads=1)
        ahead.expect([blob])
        assert not ahead.has(blob.digest)


def test_what_may_not_be_distributed_comes_from_where_its_owner_has_it(
    registry: Registry, tls_registry: Registry, authority: Authority
) -> None:
    """The registry does not have it, and its credentials do not go along."""
    blob = put_blob(
        tls_registry.repository("download/foreign", Options(cert_dir=authority.certs_d("foreign"))),
        b"foreign",
        "application/octet-stream",
    )
    place = f"https://{tls_registry.host}/v2/download/foreign/blobs/{blob.digest}"
    repository = registry.repository("download/blob", Options(cert_dir=authority.certs_d("foreign")))
    for urls in [(place,), ("https://127.0.0.1:1/nothing", "http://127.0.0.1:1/plain", place)]:
        assert read(Download(repository, replace(blob, urls=urls))) == b"foreign"
    with pytest.raises(NotFoundError):
        read(Download(repository, replace(blob, urls=("http://127.0.0.1:1/plain",))))
