"""fsspec's own tests of reading, and what is ours: how a URL is parted, and images outside of the store."""

from __future__ import annotations

import datetime
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem, make_path_posix
from fsspec.tests.abstract import AbstractFixtures, AbstractGetTests

from layerfs.errors import AuthenticationError, NotFoundError
from layerfs.fsspec import LayerfsFileSystem
from layerfs.registry.credentials import Credentials
from layerfs.registry.settings import Options
from layerfs.store import Store
from tests.support.registries import PASSWORD, USER, Registry

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="importing an image unpacks it, which needs root")

DATA = bytes(range(256)) * 4000


class TestGet(AbstractGetTests, AbstractFixtures):  # type: ignore[misc]
    """What they make first in the file system under test is made as an image here."""

    # It writes into the file system under test, beyond what the fixtures make.
    test_get_directory_recursive = None

    @pytest.fixture
    def fs(self, tmp_path: Path) -> Iterator[LayerfsFileSystem]:
        self.root = tmp_path / "store"
        with Store.open(self.root, driver="overlay2", durability="none"):
            pass
        found = fsspec.filesystem("layerfs", root=str(self.root), skip_instance_cache=True)
        yield found
        found.close()

    @pytest.fixture
    def fs_path(self) -> str:
        return "made:1"

    @pytest.fixture
    def fs_join(self) -> Any:
        return lambda *parts: "/".join(parts)

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return True

    def put(self, tmp_path: Path, make: Any, *more: Any) -> Any:
        place = tmp_path / "image"
        place.mkdir()
        local = LocalFileSystem(auto_mkdir=True)
        source = make(local, lambda *parts: make_path_posix(os.path.join(*parts)), str(place), *more)
        with Store.open(self.root) as store:
            store.import_tree(place, "made:1")
        return source.replace(str(place), "made:1")

    @pytest.fixture
    def fs_bulk_operations_scenario_0(self, fs: Any, tmp_path: Path) -> Any:
        return self.put(tmp_path, self._bulk_operations_scenario_0)

    @pytest.fixture
    def fs_glob_edge_cases_files(self, fs: Any, tmp_path: Path) -> Any:
        return self.put(tmp_path, self._glob_edge_cases_files)

    @pytest.fixture
    def fs_dir_and_file_with_same_name_prefix(self, fs: Any, tmp_path: Path) -> Any:
        return self.put(tmp_path, self._dir_and_file_with_same_name_prefix)

    @pytest.fixture
    def fs_10_files_with_hashed_names(self, fs: Any, tmp_path: Path) -> Any:
        return self.put(tmp_path, self._10_files_with_hashed_names)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("tree")
    (tree / "etc").mkdir()
    (tree / "etc/os-release").write_text("NAME=small\nID=small\n")
    (tree / "data").write_bytes(DATA)
    os.symlink("etc", tree / "link")
    os.symlink("../data", tree / "etc/data")
    os.symlink("nowhere", tree / "dangling")
    root = tmp_path_factory.mktemp("root")
    with Store.open(root, driver="overlay2", durability="none") as store:
        store.import_tree(tree, "ghcr.io/some/deep/app:1")
        store.import_tree(tree, "app")
        store.push("app", f"oci:{root.parent / 'layout'}:1")
    return root


@pytest.fixture
def fs(root: Path) -> Iterator[LayerfsFileSystem]:
    opened = LayerfsFileSystem(str(root), skip_instance_cache=True)
    yield opened
    opened.close()


def test_it_is_found_by_its_scheme(root: Path) -> None:
    assert "layerfs" in fsspec.available_protocols()
    with fsspec.open("layerfs://app/etc/os-release", "rt", root=str(root)) as file:
        assert file.readline() == "NAME=small\n"


def test_the_image_is_the_longest_name_that_there_is(fs: LayerfsFileSystem, root: Path) -> None:
    for name in ("app", "app:latest", "docker.io/library/app", "ghcr.io/some/deep/app:1"):
        assert fs.cat(f"layerfs://{name}/etc/os-release").startswith(b"NAME=small")
    assert fs.ls("", detail=False) == ["app:latest", "ghcr.io/some/deep/app:1"]
    with pytest.raises(IsADirectoryError), fsspec.open("layerfs://app", root=str(root)) as file:
        file.read()


@pytest.mark.parametrize(
    "path", ["nope/etc", "app/nope", "app/etc/os-release/x", "app/dangling", "ghcr.io/some"]
)
def test_what_is_not_there_is_not_found(fs: LayerfsFileSystem, path: str) -> None:
    assert not fs.exists(path)
    with pytest.raises(OSError):
        fs.cat(path)


def test_it_lists_finds_and_walks(fs: LayerfsFileSystem) -> None:
    assert fs.ls("app", detail=False) == ["app/dangling", "app/data", "app/etc", "app/link"]
    assert fs.ls("app/data", detail=False) == ["app/data"]
    assert fs.ls("app/link", detail=False) == ["app/link/data", "app/link/os-release"]
    # A link to a directory is not gone down: it may lead up.
    assert fs.find("app") == ["app/dangling", "app/data", "app/etc/data", "app/etc/os-release", "app/link"]
    assert fs.glob("app/*/os*") == ["app/etc/os-release"]
    assert [(top, sorted(below)) for top, below, _ in fs.walk("app")] == [("app", ["etc"]), ("app/etc", [])]
    assert fs.isdir("app/link")
    assert fs.isdir("app")
    assert fs.isfile("app/etc/data")
    assert fs.du("app/etc") == len(DATA) + 20


def test_it_tells_what_it_knows_of_a_file(fs: LayerfsFileSystem) -> None:
    found = fs.info("app/etc/data")
    assert (found["name"], found["type"], found["size"]) == ("app/etc/data", "file", len(DATA))
    assert (found["islink"], found["destination"]) == (True, "../data")
    assert len(found["sha256"]) == 64
    assert fs.info("app/data")["mode"] == 0o644
    assert fs.modified("app/data").tzinfo is datetime.UTC
    assert fs.size("app/data") == len(DATA)


def test_files_are_read_at_random(fs: LayerfsFileSystem) -> None:
    with fs.open("app/data", block_size=1000) as file:
        for offset, size in ((0, 10), (900_000, 5000), (10, 100_000), (len(DATA) - 3, 10), (5, 0)):
            file.seek(offset)
            assert file.read(size) == DATA[offset : offset + size]
        file.seek(-4, 2)
        assert file.read() == DATA[-4:]
    assert fs.cat_file("app/data", 5, 10) == DATA[5:10]
    assert fs.cat_file("app/data", -5) == DATA[-5:]
    assert fs.cat_file("app/data", 10, 5) == b""
    assert fs.cat_ranges(["app/data"] * 2, [0, 256], [3, 259]) == [b"\0\1\2"] * 2
    assert fs.head("app/data", 4) == DATA[:4]


def test_it_is_read_only(fs: LayerfsFileSystem) -> None:
    for mode in ("wb", "ab", "r+b"):
        with pytest.raises((OSError, ValueError, NotImplementedError)):
            fs.open("app/new", mode)
    for change in (
        lambda: fs.rm("app/data"), lambda: fs.mkdir("app/new"), lambda: fs.touch("app/new"),
        lambda: fs.makedirs("app/new"), lambda: fs.cp("app/data", "app/new"), lambda: fs.rmdir("app/etc"),
        lambda: fs.mv("app/data", "app/new"), lambda: fs.pipe("app/new", b"x"),
    ):  # fmt: skip
        with pytest.raises(OSError, match="Read-only"):
            change()
    with pytest.raises(IsADirectoryError):
        fs.open("app/etc")


def test_an_image_outside_of_the_store_is_an_option(root: Path) -> None:
    with fsspec.open(
        "layerfs:///etc/os-release", image=f"oci:{root.parent / 'layout'}:1", root=str(root)
    ) as file:
        assert file.read() == b"NAME=small\nID=small\n"
    fs = LayerfsFileSystem(str(root), image=f"oci:{root.parent / 'layout'}:1")
    assert fs.ls("/", detail=False) == ["dangling", "data", "etc", "link"]
    assert fs.info("etc/os-release")["name"] == "etc/os-release"


def test_the_store_of_the_environment_is_found_as_the_command_finds_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAYERFS_ROOT", str(root))
    monkeypatch.delenv("LAYERFS_DRIVER", raising=False)
    for given in ({}, {"root": root}, {"root": None}):
        found = LayerfsFileSystem(**given, skip_instance_cache=True)
        assert found.exists("app/etc/os-release")
        found.close()
    other = LayerfsFileSystem(tmp_path / "other", driver="vfs", skip_instance_cache=True)
    assert other.ls("") == []
    other.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rooot": "/x"}, "no option 'rooot': did you mean root?"),
        ({"frobnicate": 1}, "no option 'frobnicate': there is root, image, "),
    ],
)
def test_an_option_that_there_is_not_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        fsspec.filesystem("layerfs", **options)


def test_fsspecs_own_options_are_taken(root: Path) -> None:
    assert LayerfsFileSystem(str(root), use_listings_cache=False, max_paths=3).exists("app/data")


def test_an_image_of_a_registry_is_read_with_the_options_for_it(
    basic_registry: Registry, root: Path, tmp_path: Path
) -> None:
    image = f"docker://{basic_registry.host}/fsspec:1"
    with Store.open(root) as store:
        store.push("app", image, options=Options(creds=Credentials(USER, PASSWORD)))

    def read(**options: Any) -> bytes:
        found = LayerfsFileSystem(root, image=image, skip_instance_cache=True, **options)
        try:
            return bytes(found.cat_file("etc/os-release"))
        finally:
            found.close()

    assert read(creds=f"{USER}:{PASSWORD}") == b"NAME=small\nID=small\n"
    with pytest.raises(AuthenticationError):
        read(anonymous=True)
    with pytest.raises(NotFoundError, match="nowhere"):
        read(authfile=str(tmp_path / "nowhere"))


def test_it_goes_to_another_process(fs: LayerfsFileSystem) -> None:
    again = pickle.loads(pickle.dumps(fs))
    assert again.cat("app/etc/os-release") == fs.cat("app/etc/os-release")


def test_nothing_of_layerfs_imports_fsspec_by_itself() -> None:
    script = "import layerfs.store, layerfs.reading, layerfs.cli.reading, sys; print('fsspec' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "False\n"
