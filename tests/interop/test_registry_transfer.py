"""Images pulled from and pushed to a real registry, unpacked as they come."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import Store, linux, mounting
from layerfs.digest import Digest
from layerfs.errors import (
    AuthenticationError,
    Interrupted,
    NotFoundError,
    RegistryError,
    TransportError,
    VerificationError,
)
from layerfs.oci import media_types
from layerfs.oci.platform import Platform
from layerfs.registry import manifests, ranges
from layerfs.registry.credentials import Credentials
from layerfs.registry.settings import Options
from layerfs.transports import copying, parse
from tests.support.authority import Authority
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.registries import PASSWORD, USER, Registry, put_blob
from tests.support.tiny_images import TinyImage, tar
from tests.support.token_server import TokenServer

BLOB = "GET /v2/.*/blobs/"
# Larger than what is fetched ahead, so that a forked process fetches it; and not to be compressed.
LARGE = 3 << 20


def noise(seed: int, size: int = LARGE) -> bytes:
    return tar({f"noise{seed}": random.Random(seed).randbytes(size)})


def push(registry: Registry, name: str, image: TinyImage) -> str:
    """Put an image into a registry by plain requests; give its reference."""
    repository = registry.repository(name.partition(":")[0])
    for blob in image.blobs[:-1]:
        put_blob(repository, blob, "application/octet-stream")
    manifests.put(repository, image.manifest, media_types.OCI_MANIFEST, name.partition(":")[2] or "latest")
    return f"{registry.host}/{name}"


def through(proxy: FaultProxy, registry: Registry, reference: str) -> str:
    return reference.replace(registry.host, proxy.host)


def ends(proxy: FaultProxy) -> Counter[str]:
    """Count the requests for each blob, by its digest."""
    return Counter(seen.path.rpartition("/")[2] for seen in proxy.asked(BLOB))


def partial(store: Path) -> dict[str, int]:
    """Give the lengths of the partial blobs of a store, by digest."""
    found = {}
    for path in (store / "tmp").glob("ingest-sha256-*"):
        with contextlib.suppress(FileNotFoundError):  # it is whole by now
            found[f"sha256:{path.name.rpartition('-')[2]}"] = path.stat().st_size
    return found


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", durability="none") as opened:
        yield opened
    for info in reversed(mounting.mounts_below(tmp_path)):
        linux.umount(info.target, linux.MNT_DETACH)


@pytest.fixture
def proxy(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    monkeypatch.setattr(ranges, "_PAUSE", 0.001)
    with FaultProxy(registry.host) as started:
        yield started


OPTIONS = Options(backoff=0.001, attempts=2)


class TestPull:
    def test_gives_the_tree_and_the_name_that_was_asked_for(
        self, registry: Registry, store: Store, tmp_path: Path
    ) -> None:
        image = TinyImage(b"one", b"two", tars=[noise(1), noise(2)])
        reference = push(registry, "pull/tree:1", image)
        pulled = store.pull(f"docker://{reference}")
        assert pulled.names == (reference,)
        assert pulled.digest == Digest.of(image.manifest)
        target = tmp_path / "mnt"
        target.mkdir()
        store.mount(reference, target)
        assert (target / "file1").read_bytes() == b"two"
        assert (target / "noise2").stat().st_size == LARGE
        store.unmount(target)
        assert store.check(contents=True).problems == ()
        assert partial(store.root) == {}

    def test_by_digest_gives_no_name(self, registry: Registry, store: Store) -> None:
        image = TinyImage(b"digest")
        reference = push(registry, "pull/digest:1", image)
        name = reference.removesuffix(":1")
        assert store.pull(f"{name}:1@{Digest.of(image.manifest)}").names == ()
        assert store.pull(f"{name}@{Digest.of(image.manifest)}", "mine:2").names == ("mine:2",)

    def test_chooses_the_platform(self, registry: Registry, store: Store) -> None:
        ours, theirs = TinyImage(b"ours"), TinyImage(b"theirs", platform="linux/riscv64")
        for image in (ours, theirs):
            push(registry, f"pull/platforms:{image.platform['architecture']}", image)
        index = {
            "schemaVersion": 2,
            "mediaType": media_types.OCI_INDEX,
            "manifests": [image.entry(with_platform=True) for image in (theirs, ours)],
        }
        repository = registry.repository("pull/platforms")
        manifests.put(repository, json.dumps(index).encode(), media_types.OCI_INDEX, "all")
        name = f"{registry.host}/pull/platforms:all"
        pulled = store.pull(name, platform=Platform.parse("linux/riscv64"))
        assert pulled.digest == Digest.of(theirs.manifest)
        with pytest.raises(NotFoundError, match="s390x"):
            store.pull(name, platform=Platform.parse("linux/s390x"))

    def test_fetches_each_blob_once_and_no_shared_one(
        self, registry: Registry, proxy: FaultProxy, store: Store
    ) -> None:
        base, more = noise(3), noise(4)
        first = TinyImage(b"a", tars=[base])
        second = TinyImage(b"a", b"b", tars=[more])
        second = TinyImage(tars=[*first.plain, more])
        store.pull(through(proxy, registry, push(registry, "pull/shared:1", first)))
        assert set(ends(proxy).values()) == {1} and len(ends(proxy)) == 3
        proxy.clear()
        store.pull(through(proxy, registry, push(registry, "pull/shared:2", second)))
        new = [second.config, second.layers[2]]
        assert sorted(ends(proxy)) == sorted(str(Digest.of(blob)) for blob in new)
        proxy.clear()
        store.pull(through(proxy, registry, f"{registry.host}/pull/shared:2"))
        assert not ends(proxy)

    def test_of_layers_that_are_not_compressed_keeps_no_copy(self, registry: Registry, store: Store) -> None:
        image = TinyImage(b"plain", tars=[noise(5)], compress=False)
        pulled = store.pull(push(registry, "pull/plain:1", image))
        layer = Digest.of(image.layers[1])
        assert not store.blobs.is_whole(layer)
        with store.blobs.open(layer) as stream:
            assert b"".join(iter(lambda: stream.read(1 << 20), b"")) == image.layers[1]
        assert pulled.digest == Digest.of(image.manifest)
        assert partial(store.root) == {}

    def test_needs_the_credentials_that_are_given(self, basic_registry: Registry, store: Store) -> None:
        alice = Options(creds=Credentials(USER, PASSWORD))
        image = TinyImage(b"closed", tars=[noise(6)])
        repository = basic_registry.repository("pull/closed", alice)
        for blob in image.blobs[:-1]:
            put_blob(repository, blob, "application/octet-stream")
        manifests.put(repository, image.manifest, media_types.OCI_MANIFEST, "1")
        with pytest.raises(AuthenticationError):
            store.pull(f"{basic_registry.host}/pull/closed:1")
        assert store.pull(f"{basic_registry.host}/pull/closed:1", options=alice).names

    def test_signs_in_once_for_all_the_processes_that_fetch_layers(
        self, token_registry: Registry, token_server: TokenServer, store: Store
    ) -> None:
        alice = Options(creds=Credentials(USER, PASSWORD))
        image = TinyImage(b"token", tars=[noise(17), noise(18)])
        repository = token_registry.repository("pull/token", alice)
        for blob in image.blobs[:-1]:
            put_blob(repository, blob, "application/octet-stream")
        manifests.put(repository, image.manifest, media_types.OCI_MANIFEST, "1")
        token_server.requests.clear()
        store.pull(f"{token_registry.host}/pull/token:1", options=alice)
        assert [request.scopes for request in token_server.requests] == [("repository:pull/token:pull",)]
        token_server.requests.clear()
        store.push(
            f"{token_registry.host}/pull/token:1", f"{token_registry.host}/push/token:1", options=alice
        )
        assert store.check(contents=True).problems == ()

    def test_comes_over_tls(self, tls_registry: Registry, authority: Authority, store: Store) -> None:
        known = Options(cert_dir=authority.certs_d("transfer"))
        image = TinyImage(b"tls", tars=[noise(19)])
        repository = tls_registry.repository("pull/tls", known)
        for blob in image.blobs[:-1]:
            put_blob(repository, blob, "application/octet-stream")
        manifests.put(repository, image.manifest, media_types.OCI_MANIFEST, "1")
        assert store.pull(f"{tls_registry.host}/pull/tls:1", options=known).names
        store.push(f"{tls_registry.host}/pull/tls:1", f"{tls_registry.host}/push/tls:1", options=known)

    def test_of_many_small_layers_forks_nothing_and_gives_them_all(
        self, registry: Registry, proxy: FaultProxy, store: Store
    ) -> None:
        image = TinyImage(*(b"%d" % number for number in range(60)))
        store.pull(through(proxy, registry, push(registry, "pull/many:1", image)))
        assert set(ends(proxy).values()) == {1}
        assert len(ends(proxy)) == 61

    @pytest.mark.parametrize("driver", ["overlay2", "vfs"])
    def test_goes_on_where_a_connection_was_cut(
        self, registry: Registry, proxy: FaultProxy, tmp_path: Path, driver: str
    ) -> None:
        image = TinyImage(b"cut", tars=[noise(7), noise(8)])
        reference = through(proxy, registry, push(registry, "pull/cut:1", image))
        proxy.add(Fault(BLOB + str(Digest.of(image.layers[1])), cut=2_000_000))
        with Store.open(tmp_path / "store", driver=driver, durability="none") as store:
            store.pull(reference)
            assert store.check(contents=True).problems == ()
        found = proxy.asked(str(Digest.of(image.layers[1])))
        assert [seen.headers.get("Range") for seen in found] == [None, "bytes=2000000-"]

    def test_that_failed_is_gone_on_with_the_next_time(
        self, registry: Registry, proxy: FaultProxy, tmp_path: Path
    ) -> None:
        image = TinyImage(b"later", tars=[noise(9), noise(10)])
        reference = through(proxy, registry, push(registry, "pull/later:1", image))
        layer = str(Digest.of(image.layers[1]))
        proxy.add(Fault(BLOB + layer, cut=2_000_000), Fault(BLOB + layer, times=1000, silent=True))
        with Store.open(tmp_path / "store", durability="none") as store:
            with pytest.raises(Interrupted):
                store.pull(reference, options=OPTIONS)
            assert store.images.list() == []
        assert partial(tmp_path / "store")[layer] == 2_000_000
        proxy.clear()
        with Store.open(tmp_path / "store", durability="none") as store:
            store.pull(reference, options=OPTIONS)
            assert store.check(contents=True).problems == ()
        (seen,) = proxy.asked(layer)
        assert seen.headers["Range"] == "bytes=2000000-"
        assert partial(tmp_path / "store") == {}

    def test_finds_wrong_bytes_and_fetches_them_once_more(
        self, registry: Registry, proxy: FaultProxy, store: Store
    ) -> None:
        image = TinyImage(b"wrong", tars=[noise(11), noise(12)])
        reference = through(proxy, registry, push(registry, "pull/wrong:1", image))
        layer = str(Digest.of(image.layers[1]))
        proxy.add(Fault(BLOB + layer, flip=1_500_000))
        store.pull(reference)
        assert store.check(contents=True).problems == ()
        assert ends(proxy)[layer] == 2
        # What came right is not fetched again.
        assert [seen.headers.get("Range") for seen in proxy.asked(layer)] == [None, None]
        assert sum(ends(proxy).values()) <= len(image.blobs) + 2

    def test_finds_a_wrong_config_and_a_wrong_small_layer(
        self, registry: Registry, proxy: FaultProxy, store: Store
    ) -> None:
        image = TinyImage(b"small", b"wrong", tars=[noise(15)])
        reference = through(proxy, registry, push(registry, "pull/small-wrong:1", image))
        for blob in (image.config, image.layers[0]):
            proxy.clear()
            proxy.add(Fault(BLOB + str(Digest.of(blob)), flip=30))
            store.pull(reference)
            assert ends(proxy)[str(Digest.of(blob))] == 2
            assert store.check(contents=True).problems == ()
            store.images.remove(reference)
            store.collect(grace=0)

    def test_gives_up_where_the_bytes_stay_wrong(
        self, registry: Registry, proxy: FaultProxy, store: Store
    ) -> None:
        image = TinyImage(b"always", tars=[noise(13)])
        reference = through(proxy, registry, push(registry, "pull/always:1", image))
        layer = str(Digest.of(image.layers[1]))
        for fault in (Fault(BLOB + layer, times=9, flip=3), Fault(BLOB + layer, times=9, flip=LARGE)):
            proxy.clear()
            proxy.add(fault)
            with pytest.raises(VerificationError):
                store.pull(reference)
            assert ends(proxy)[layer] == 2
            assert layer not in partial(store.root)
            assert store.images.list() == []
        proxy.clear()
        store.pull(reference)

    def test_does_not_go_on_with_what_is_wrong(
        self, registry: Registry, proxy: FaultProxy, store: Store
    ) -> None:
        """A partial blob whose beginning is wrong is thrown away, and the blob fetched from its beginning."""
        image = TinyImage(b"poison", tars=[noise(14)])
        reference = through(proxy, registry, push(registry, "pull/poison:1", image))
        layer = Digest.of(image.layers[1])
        with store.blobs.ingest(layer, len(image.layers[1])) as ingest:
            ingest.write(image.layers[1][:1000] + bytes(1000))
        store.pull(reference)
        assert [seen.headers.get("Range") for seen in proxy.asked(str(layer))] == ["bytes=2000-", None]
        assert store.check(contents=True).problems == ()

    @pytest.mark.parametrize("compress", [True, False])
    @pytest.mark.parametrize("known", [1, 3, 4, 5000, None])
    def test_goes_on_from_any_place(
        self, registry: Registry, proxy: FaultProxy, store: Store, compress: bool, known: int | None
    ) -> None:
        image = TinyImage(b"any", tars=[noise(16)], compress=compress)
        reference = through(proxy, registry, push(registry, f"pull/any:{compress}", image))
        layer = image.layers[1]
        with store.blobs.ingest(Digest.of(layer), len(layer)) as ingest:
            ingest.write(layer[:known])
        store.pull(reference)
        asked = [seen.headers.get("Range") for seen in proxy.asked(str(Digest.of(layer)))]
        assert asked == ([] if known is None else [f"bytes={known}-" if known > 3 else None])
        assert store.blobs.is_whole(Digest.of(layer)) is compress
        with store.blobs.open(Digest.of(layer)) as stream:
            assert b"".join(iter(lambda: stream.read(1 << 20), b"")) == layer
        assert store.check(contents=True).problems == ()
        assert partial(store.root) == {}


SCRIPT = """
import sys
from layerfs import Store
with Store.open(sys.argv[1], durability="none") as store:
    store.pull(sys.argv[2])
"""


def pulling(store: Path, reference: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", SCRIPT, str(store), reference]
    return subprocess.Popen(words, stderr=subprocess.PIPE, start_new_session=True)


class TestProcesses:
    def test_that_pull_one_image_fetch_each_blob_once(self, registry: Registry, tmp_path: Path) -> None:
        image = TinyImage(b"several", tars=[noise(20), noise(21)])
        with FaultProxy(registry.host, rate=8 << 20) as proxy:
            reference = through(proxy, registry, push(registry, "pull/several:1", image))
            with Store.open(tmp_path / "store", durability="none"):
                pass
            running = [pulling(tmp_path / "store", reference) for _ in range(4)]
            for each in running:
                assert each.wait() == 0, each.stderr and each.stderr.read()
            assert set(ends(proxy).values()) == {1}
            assert len(ends(proxy)) == 4

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
    def test_that_are_ended_leave_what_came(
        self, registry: Registry, tmp_path: Path, number: signal.Signals
    ) -> None:
        image = TinyImage(b"killed", tars=[noise(22), noise(23)])
        place = tmp_path / "store"
        with FaultProxy(registry.host, rate=2 << 20) as proxy:
            reference = through(proxy, registry, push(registry, f"pull/killed:{number.name}", image))
            process = pulling(place, reference)
            while not [size for size in partial(place).values() if size > 500_000]:
                assert process.poll() is None
                time.sleep(0.02)
            os.kill(process.pid, number)
            assert process.wait() != 0
        # Those that it forked end with it.
        time.sleep(0.2)
        left = partial(place)
        with FaultProxy(registry.host) as proxy, Store.open(place, durability="none") as store:
            assert store.images.list() == []
            store.pull(through(proxy, registry, f"{registry.host}/pull/killed:{number.name}"))
            assert store.check(contents=True).problems == ()
            for layer, size in left.items():
                if 0 < size < LARGE and layer in map(str, map(Digest.of, image.layers[1:])):
                    (seen,) = proxy.asked(layer)
                    assert seen.headers["Range"] == f"bytes={size}-"
        assert partial(place) == {}

    def test_leave_partial_blobs_that_are_collected(
        self, registry: Registry, proxy: FaultProxy, store: Store
    ) -> None:
        image = TinyImage(b"left", tars=[noise(24)])
        reference = through(proxy, registry, push(registry, "pull/left:1", image))
        layer = str(Digest.of(image.layers[1]))
        proxy.add(Fault(BLOB + layer, cut=1_000_000), Fault(BLOB + layer, times=1000, silent=True))
        with pytest.raises(Interrupted):
            store.pull(reference, options=OPTIONS)
        assert partial(store.root)[layer] == 1_000_000
        store.collect()
        assert layer in partial(store.root)
        store.collect(grace=0)
        assert partial(store.root) == {}


class TestPush:
    def test_gives_every_byte_as_it_came(self, registry: Registry, store: Store, tmp_path: Path) -> None:
        image = TinyImage(b"push", tars=[noise(30)])
        store.pull(push(registry, "push/from:1", image), "mine:1")
        descriptor = store.push("mine:1", f"docker://{registry.host}/push/to:1")
        assert descriptor.digest == Digest.of(image.manifest)
        repository = registry.repository("push/to")
        assert manifests.get(repository, "1")[0] == image.manifest
        with Store.open(tmp_path / "other", durability="none") as other:
            assert other.pull(f"{registry.host}/push/to:1").digest == descriptor.digest

    def test_of_layers_that_were_not_compressed_puts_them_together(
        self, registry: Registry, store: Store, tmp_path: Path
    ) -> None:
        image = TinyImage(b"skeleton", tars=[noise(31)], compress=False)
        store.pull(push(registry, "push/plain:1", image), "plain:1")
        descriptor = store.push("plain:1", f"{registry.host}/push/again:1")
        assert descriptor.digest == Digest.of(image.manifest)
        with Store.open(tmp_path / "other", durability="none") as other:
            other.pull(f"{registry.host}/push/again:1")
            assert other.check(contents=True).problems == ()

    def test_sends_nothing_that_is_there(self, registry: Registry, proxy: FaultProxy, store: Store) -> None:
        image = TinyImage(b"there", tars=[noise(32)])
        store.pull(push(registry, "push/there:1", image), "there:1")
        store.push("there:1", f"{proxy.host}/push/there:2")
        assert proxy.asked("^(POST|PUT .*uploads)") == []
        assert manifests.get(registry.repository("push/there"), "2")[0] == image.manifest

    def test_mounts_what_the_registry_has_elsewhere(
        self, registry: Registry, proxy: FaultProxy, store: Store
    ) -> None:
        image = TinyImage(b"mount", tars=[noise(33)])
        store.pull(through(proxy, registry, push(registry, "push/origin:1", image)))
        store.push(f"{proxy.host}/push/origin:1", f"{proxy.host}/push/mounted:1")
        assert proxy.asked("^PUT .*/blobs/") == []
        assert len(proxy.asked("^POST .*mount=")) == 3

    def test_that_was_cut_goes_on(self, registry: Registry, proxy: FaultProxy, store: Store) -> None:
        image = TinyImage(b"push cut", tars=[noise(34)])
        store.pull(push(registry, "push/cut-from:1", image), "cut:1")
        proxy.add(Fault(f"PUT .*{image_digest(image, 1)}", cut_upload=2_000_000))
        store.push("cut:1", f"{proxy.host}/push/cut:1")
        assert manifests.get(registry.repository("push/cut"), "1")[0] == image.manifest

    def test_that_fails_leaves_no_image(self, registry: Registry, proxy: FaultProxy, store: Store) -> None:
        image = TinyImage(b"push fails", tars=[noise(35)])
        store.pull(push(registry, "push/fails-from:1", image), "fails:1")
        proxy.add(Fault("PUT .*/blobs/", times=99, status=400))
        with pytest.raises(RegistryError, match="400"):
            store.push("fails:1", f"{proxy.host}/push/fails:1")
        with pytest.raises(NotFoundError):
            manifests.get(registry.repository("push/fails"), "1")

    def test_leaves_out_what_may_not_be_distributed(self, registries: Path, store: Store) -> None:
        image = TinyImage(b"owned", b"ours")
        foreign = json.loads(image.manifest)
        foreign["layers"][0]["mediaType"] = f"{media_types.OCI_FOREIGN_LAYER}+gzip"
        foreign["layers"][0]["urls"] = ["https://127.0.0.1:1/layer"]
        image.manifest = json.dumps(foreign).encode()
        image.blobs[-1] = image.manifest
        allowed = {"manifests": {"urls": {"allow": [".*"]}}}
        with Registry(registries / "foreign", validation=allowed) as registry:
            store.pull(push(registry, "push/owned-from:1", image), "owned:1")
            store.push("owned:1", f"{registry.host}/push/owned:1")
            repository = registry.repository("push/owned")
            assert manifests.get(repository, "1")[0] == image.manifest
            with pytest.raises(NotFoundError):
                repository.send("GET", f"blobs/{Digest.of(image.layers[0])}")
            with repository.send("GET", f"blobs/{Digest.of(image.layers[1])}") as answer:
                assert answer.data(1 << 20) == image.layers[1]

    def test_by_a_digest_must_fit(self, registry: Registry, store: Store) -> None:
        image = TinyImage(b"by digest")
        store.pull(push(registry, "push/digest-from:1", image), "digest:1")
        found = store.push("digest:1", f"{registry.host}/push/digest@{Digest.of(image.manifest)}")
        assert manifests.get(registry.repository("push/digest"), found.digest)[0] == image.manifest
        with pytest.raises(TransportError, match="cannot be pushed as"):
            store.push("digest:1", f"{registry.host}/push/digest@{Digest.of(b'other')}")


def image_digest(image: TinyImage, number: int) -> str:
    return str(Digest.of(image.layers[number])).replace(":", "(:|%3A)")


def test_a_place_in_a_registry_is_copied_to_another(registry: Registry, proxy: FaultProxy) -> None:
    image = TinyImage(b"copied", tars=[noise(40)])
    origin = parse(through(proxy, registry, push(registry, "copy/from:1", image)))
    target = parse(f"{proxy.host}/copy/to:1")
    copying.between(origin, target, spool=tempfile.TemporaryFile, warn=print)  # type: ignore[arg-type]
    # In one registry everything is mounted.
    assert proxy.asked("^GET .*/blobs/") == []
    assert proxy.asked("^PUT .*/blobs/") == []
    assert manifests.get(registry.repository("copy/to"), "1")[0] == image.manifest
