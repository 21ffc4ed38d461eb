"""Lazy mounts whose processes are killed: files are absent or whole afterwards, and the store opens."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import Store
from tests.support.commandline import CommandLine
from tests.support.estargz_images import EstargzImage
from tests.support.lazy_images import absent, layout, lazily, logged, packed
from tests.support.servers import ends, servers

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

DATA = {f"d/{number}": os.urandom(1000) * (number * 3 + 1) for number in range(60)}
DATA["d/large"] = os.urandom(1 << 16) * 208


@pytest.fixture(scope="module")
def image() -> EstargzImage:
    return EstargzImage(packed(("d", None), *DATA.items()))


@pytest.fixture
def place(image: EstargzImage, tmp_path: Path) -> str:
    return layout(tmp_path / "layout", image)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


def fetchers(server: int) -> list[int]:
    """Give the processes that fetch for a server."""
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            name, about = Path(f"/proc/{process}/stat").read_text().partition("(")[2].rsplit(") ", 1)
            if name == "layerfs-fetch" and int(about.split()[1]) == server:
                found.append(int(process))
    return found


@pytest.mark.parametrize("seed", range(6))
def test_a_killed_server_leaves_files_absent_or_whole(
    store: Store, place: str, tmp_path: Path, seed: int
) -> None:
    choice = random.Random(seed)
    target = tmp_path / "lazy"
    target.mkdir()
    store.mount(place, target, lazy=True, name="work")
    (server,) = servers(store.root / "drivers" / "fuse")
    (fetcher,) = fetchers(server)

    def read() -> None:
        for name in choice.sample(sorted(DATA), len(DATA)):
            try:
                assert (target / name).read_bytes() == DATA[name]
            except OSError:
                return

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    time.sleep(choice.uniform(0, 0.25))
    victims = [server, fetcher] if seed % 2 else [server]
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    for reader in readers:
        reader.join()
    assert ends(server) and ends(fetcher)
    subprocess.run(["umount", "-l", target], check=True)
    # What is marked as here is here.
    left = absent(store)
    (diff,) = (path for path in (store.root / "drivers" / "fuse").glob("*/diff") if (path / "d").exists())
    for name, data in DATA.items():
        if name not in left:
            assert (diff / name).read_bytes() == data
            assert (diff / name).stat().st_mtime == 1_500_000_000
    assert [problem for problem in store.check(contents=True).problems if problem.kind != "mount"] == []
    container = store.mount("work", target)
    try:
        for name, data in DATA.items():
            assert (target / name).stat().st_mtime == 1_500_000_000
            assert (target / name).read_bytes() == data
    finally:
        container.unmount()
    assert absent(store) == {"stargz.index.json"}


def test_a_killed_process_that_fetches_has_a_successor(store: Store, place: str, tmp_path: Path) -> None:
    with lazily(store, place, tmp_path / "lazy") as tree:
        assert (tree / "d" / "3").read_bytes() == DATA["d/3"]
        (server,) = servers(store.root / "drivers" / "fuse")
        (keeper,) = fetchers(server)
        for name in ("d/4", "d/5", "d/large"):
            (fetcher,) = fetchers(keeper)
            os.kill(fetcher, signal.SIGSTOP)
            found: list[bytes] = []
            reader = threading.Thread(
                target=lambda name=name, found=found: found.append((tree / name).read_bytes())
            )
            reader.start()
            time.sleep(0.05)
            os.kill(fetcher, signal.SIGKILL)
            reader.join(20)
            assert found == [DATA[name]]
            assert ends(fetcher)
    assert ends(keeper)
    assert store.check(contents=True).problems == ()


def test_without_the_process_that_fetches_readers_get_an_error(
    store: Store, place: str, tmp_path: Path
) -> None:
    with lazily(store, place, tmp_path / "lazy") as tree:
        assert (tree / "d" / "3").read_bytes() == DATA["d/3"]
        (server,) = servers(store.root / "drivers" / "fuse")
        (fetcher,) = fetchers(server)
        os.kill(fetcher, signal.SIGKILL)
        assert ends(fetcher)
        with pytest.raises(OSError) as raised:
            (tree / "d" / "4").read_bytes()
        assert raised.value.errno == errno.EIO
        assert "mount again" in logged(store)
        assert (tree / "d" / "3").read_bytes() == DATA["d/3"]
        assert len(os.listdir(tree / "d")) == len(DATA)
    with lazily(store, place, tmp_path / "lazy") as tree:
        assert (tree / "d" / "4").read_bytes() == DATA["d/4"]


def test_the_fetching_process_ends_with_the_mount(store: Store, place: str, tmp_path: Path) -> None:
    with lazily(store, place, tmp_path / "lazy"):
        (server,) = servers(store.root / "drivers" / "fuse")
        (fetcher,) = fetchers(server)
    assert ends(server) and ends(fetcher)


@pytest.mark.parametrize("delay", [0.2, 0.3, 0.4, 0.5])
def test_a_killed_mount_command_leaves_nothing_half_made(tmp_path: Path, delay: float) -> None:
    many = EstargzImage(packed(("d", None), *((f"d/{number}", b"x" * number) for number in range(4000))))
    place = layout(tmp_path / "layout", many)
    layerfs, target = CommandLine(tmp_path / "store"), tmp_path / "lazy"
    target.mkdir()
    command = subprocess.Popen(layerfs.words("mount", "--lazy", place, target), stdout=subprocess.DEVNULL)
    time.sleep(delay)
    command.kill()
    command.wait()
    subprocess.run(["umount", "-l", target], check=False, stderr=subprocess.DEVNULL)
    with Store.open(tmp_path / "store") as store:
        store.collect(grace=0)
        assert store.check(contents=True).problems == ()
        with lazily(store, place, target) as tree:
            assert (tree / "d" / "3999").read_bytes() == b"x" * 3999
        for container in store.containers.list():
            store.containers.remove(container.id)
        for image in store.images.list():
            store.images.remove(str(image.digest), force=True)
        store.collect(grace=0)
        assert list((store.root / "drivers" / "fuse").glob("*/bodies")) == []


def test_a_full_disk_is_told_as_such(place: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=True)
    try:
        with (
            Store.open(disk / "store", driver="fuse") as store,
            lazily(store, place, tmp_path / "lazy") as tree,
        ):
            with pytest.raises(OSError) as raised:
                (tree / "d" / "large").read_bytes()
            assert raised.value.errno == errno.ENOSPC
            assert "d/large" in absent(store)
            assert len(os.listdir(tree / "d")) == len(DATA)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
