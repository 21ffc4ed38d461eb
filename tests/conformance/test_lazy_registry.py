"""Lazy mounts out of a registry: how much is fetched, with which credentials, and what happens without it."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import Store
from layerfs.registry.credentials import Credentials
from layerfs.registry.settings import Options
from tests.support.commandline import CommandLine
from tests.support.estargz_images import EstargzImage
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.lazy_images import absent, layout, lazily, logged, packed
from tests.support.registries import PASSWORD, USER, Registry

pytestmark = [
    pytest.mark.skipif(
        os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
    ),
    pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed"),
]

FILES = 40
SIZE = 1 << 18


@pytest.fixture(scope="module")
def image() -> EstargzImage:
    first = [("data", None), *((f"data/{n}", os.urandom(SIZE)) for n in range(FILES))]
    second = [("etc", None), ("etc/hosts", b"127.0.0.1 localhost\n"), ("etc/big", os.urandom(9 << 20))]
    return EstargzImage(packed(*first), packed(*second))


def send(image: EstargzImage, directory: Path, host: str, *options: str) -> str:
    """Put an image into a registry by skopeo, byte for byte; give its place."""
    place = layout(directory, image)
    name = f"docker://{host}/{directory.parent.name.lower().strip('_')}/lazy:1"
    command = ["skopeo", "copy", "-q", "--dest-tls-verify=false", "--preserve-digests", *options]
    subprocess.run([*command, place, name], check=True)
    return name


@pytest.fixture
def proxy(registry: Registry) -> Iterator[FaultProxy]:
    with FaultProxy(registry.host) as started:
        yield started


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", durability="none") as opened:
        yield opened


def through(place: str, registry: Registry, proxy: FaultProxy) -> str:
    return place.replace(registry.host, proxy.host)


def test_the_first_look_takes_few_bytes(
    image: EstargzImage, registry: Registry, proxy: FaultProxy, store: Store, tmp_path: Path
) -> None:
    place = through(send(image, tmp_path / "layout", registry.host), registry, proxy)
    whole = sum(map(len, image.layers))
    with lazily(store, place, tmp_path / "lazy") as tree:
        subprocess.run(["ls", "-l", tree, tree / "data"], check=True, capture_output=True)
        assert proxy.sent <= whole * 0.05
        before = proxy.sent
        assert (tree / "etc" / "hosts").read_bytes() == b"127.0.0.1 localhost\n"
        assert proxy.sent - before < 10_000
        assert len((tree / "data" / "3").read_bytes()) == SIZE
        assert proxy.sent - before < SIZE + 20_000
        assert not [seen for seen in proxy.asked("GET .*/blobs/") if "Range" not in seen.headers][1:]
        before = proxy.sent
        (tree / "data" / "3").read_bytes()
        assert proxy.sent == before
    (found,) = store.images.list()
    assert found.names == (place.removeprefix("docker://"),)
    # The next mount asks only what the name stands for.
    proxy.clear()
    # It is listed with the name that it was called by.
    name = place.removeprefix("docker://")
    store.images.tag(name, "aaa:1")
    with lazily(store, name, tmp_path / "lazy") as tree:
        assert len((tree / "data" / "3").read_bytes()) == SIZE
        assert next(iter(store.containers.list())).image == name
    assert proxy.sent < 5000


def test_without_the_registry_what_is_here_is_read_and_the_rest_later(
    image: EstargzImage, registry: Registry, proxy: FaultProxy, store: Store, tmp_path: Path
) -> None:
    place = through(send(image, tmp_path / "layout", registry.host), registry, proxy)
    with lazily(store, place, tmp_path / "lazy", registry=Options(attempts=2, backoff=0.05)) as tree:
        assert len((tree / "data" / "1").read_bytes()) == SIZE
        proxy.add(Fault("blobs", times=1000, silent=True))
        assert len((tree / "data" / "1").read_bytes()) == SIZE
        with pytest.raises(OSError) as raised:
            (tree / "data" / "2").read_bytes()
        assert raised.value.errno == errno.EIO
        assert "cannot fetch /data/2: " in logged(store)
        assert len(os.listdir(tree / "data")) == FILES
        proxy.clear()
        assert len((tree / "data" / "2").read_bytes()) == SIZE


@pytest.mark.parametrize("fault", [Fault("blobs", flip=1000), Fault("blobs", shorten=10)])
def test_wrong_bytes_reach_no_reader(
    image: EstargzImage, registry: Registry, proxy: FaultProxy, store: Store, tmp_path: Path, fault: Fault
) -> None:
    place = through(send(image, tmp_path / "layout", registry.host), registry, proxy)
    with lazily(store, place, tmp_path / "lazy", registry=Options(attempts=1)) as tree:
        proxy.add(fault._replace(times=1000))
        with pytest.raises(OSError):
            (tree / "data" / "2").read_bytes()
        assert "data/2" in absent(store)
        proxy.clear()
        assert len((tree / "data" / "2").read_bytes()) == SIZE


def test_others_are_served_while_a_fetch_hangs_and_who_waits_can_be_killed(
    image: EstargzImage, registry: Registry, proxy: FaultProxy, store: Store, tmp_path: Path
) -> None:
    place = through(send(image, tmp_path / "layout", registry.host), registry, proxy)
    with lazily(store, place, tmp_path / "lazy") as tree:
        proxy.clear()
        proxy.add(Fault("blobs", stall=100))
        reader = subprocess.Popen(["cat", tree / "data" / "5"], stdout=subprocess.PIPE)
        while not proxy.asked("GET .*/blobs/"):
            time.sleep(0.01)
        assert len((tree / "data" / "6").read_bytes()) == SIZE
        assert (tree / "data" / "5").stat().st_size == SIZE
        reader.send_signal(signal.SIGTERM)
        assert reader.wait(timeout=10) == -signal.SIGTERM
        assert reader.stdout is not None
        reader.stdout.close()


def test_one_file_is_fetched_once_for_all_readers(
    image: EstargzImage, registry: Registry, proxy: FaultProxy, store: Store, tmp_path: Path
) -> None:
    place = through(send(image, tmp_path / "layout", registry.host), registry, proxy)
    with lazily(store, place, tmp_path / "one") as one, lazily(store, place, tmp_path / "two") as two:
        before = proxy.sent
        threads = [threading.Thread(target=(tree / "data" / "7").read_bytes) for tree in (one, two) * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert proxy.sent - before < SIZE + 20_000


def test_credentials_serve_as_long_as_the_mount(
    image: EstargzImage, basic_registry: Registry, store: Store, tmp_path: Path
) -> None:
    place = send(image, tmp_path / "layout", basic_registry.host, f"--dest-creds={USER}:{PASSWORD}")
    options = Options(creds=Credentials.parse(f"{USER}:{PASSWORD}"))
    with lazily(store, place, tmp_path / "lazy", registry=options) as tree:
        assert len((tree / "data" / "2").read_bytes()) == SIZE
        assert PASSWORD not in (store.root / "layerfs.db").read_bytes().decode(errors="replace")


def test_the_command_returns_and_the_mount_stays(
    image: EstargzImage, registry: Registry, tmp_path: Path
) -> None:
    place = send(image, tmp_path / "layout", registry.host)
    layerfs, target = CommandLine(tmp_path / "store"), tmp_path / "lazy"
    target.mkdir()
    name = layerfs.good("mount", "--lazy", place, target).strip()
    try:
        assert len((target / "data" / "2").read_bytes()) == SIZE
        assert len((target / "etc" / "big").read_bytes()) == 9 << 20
        (target / "new").write_text("new")
        assert "A /new" in layerfs.good("diff", name)
        (shown,) = layerfs.json("ps", "-a")
        assert shown["name"] == name
    finally:
        layerfs.good("umount", target)
    layerfs.good("mount", name, target)
    try:
        assert (target / "new").read_text() == "new"
        assert len((target / "data" / "9").read_bytes()) == SIZE
    finally:
        layerfs.good("umount", target)
    layerfs.good("check")
    # Whatever needs all of the image has it come.
    completed = layerfs.run("create", "--name", "whole", place.removeprefix("docker://"))
    assert completed.status == 0 and "the rest comes from docker://" in completed.err
    layerfs.good("commit", name, "changed")
    layerfs.good("check")
    layerfs.good("du")
