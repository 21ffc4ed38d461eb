"""Indexes in the store: kept with all of their platforms, handed on, let go."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.database import Database
from layerfs.errors import NotFoundError
from layerfs.oci.platform import Platform
from layerfs.store import Store
from tests.support.tiny_images import layout_of_index, multi_platform

PLATFORMS = ("linux/amd64", "linux/arm64/v8", "linux/s390x")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "root", driver="vfs", durability="none") as opened:
        yield opened


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    index, images = multi_platform(*PLATFORMS)
    return layout_of_index(tmp_path / "from", index, images, name="1")


def digest_of(layout: Path) -> str:
    found: str = json.loads((layout / "index.json").read_bytes())["manifests"][0]["digest"]
    return found


def blobs(layout: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (layout / "blobs" / "sha256").iterdir()}


def pull(store: Store, layout: Path, name: str = "app:1", platform: str = PLATFORMS[0]) -> None:
    store.pull(f"oci:{layout}:1", name, platform=Platform.parse(platform), all_platforms=True)


def test_come_and_go_out_byte_for_byte(store: Store, layout: Path, tmp_path: Path) -> None:
    pull(store, layout)
    assert len(store.images.list()) == 1
    pushed = store.push("app:1", f"oci:{tmp_path}/to:1", all_platforms=True)
    assert str(pushed.digest) == digest_of(layout)
    assert blobs(tmp_path / "to") == blobs(layout)


def test_the_name_stands_for_the_chosen_platform(store: Store, layout: Path, tmp_path: Path) -> None:
    pull(store, layout, platform="linux/arm64/v8")
    assert store.images.get("app:1").config.architecture == "arm64"
    store.push("app:1", f"oci:{tmp_path}/to:1")
    assert len(blobs(tmp_path / "to")) == 4


def test_a_further_name_has_it_too_and_each_may_go(store: Store, layout: Path, tmp_path: Path) -> None:
    pull(store, layout)
    store.images.tag("app:1", "app:2")
    store.images.tag("app:2", "app:2")
    store.images.remove("app:1")
    assert store.collect(grace=0).freed == 0
    assert str(store.push("app:2", f"oci:{tmp_path}/to:1", all_platforms=True).digest) == digest_of(layout)
    store.images.remove("app:2")
    assert list(store.blobs.list()) == []


def test_a_name_that_moves_lets_it_go(store: Store, layout: Path, tmp_path: Path) -> None:
    pull(store, layout)
    other, images = multi_platform("linux/amd64")
    store.pull(f"oci:{layout_of_index(tmp_path / 'other', other, images, name='1')}:1", "app:1")
    warned: list[str] = []
    store._warn = warned.append
    store.push("app:1", f"oci:{tmp_path}/to:1", all_platforms=True)
    assert ["one platform only" in text for text in warned] == [True]
    gone = {item.name for item in store.collect(grace=0).removed}
    assert digest_of(layout) in gone
    assert store.check().problems == ()


def test_check_finds_a_blob_of_another_platform_that_is_missing(store: Store, layout: Path) -> None:
    pull(store, layout)
    index = json.loads((layout / "blobs" / digest_of(layout).replace(":", "/")).read_bytes())
    missing = index["manifests"][2]["digest"]
    (store.root / "blobs" / missing.replace(":", "/")).unlink()
    (problem,) = store.check().problems
    assert (problem.kind, problem.subject) == ("image", "docker.io/library/app:1")
    assert missing in problem.what


def test_an_index_without_this_platform_is_refused_whole(store: Store, layout: Path) -> None:
    with pytest.raises(NotFoundError, match="riscv64"):
        pull(store, layout, platform="linux/riscv64")
    assert store.images.list() == []


def test_what_an_interrupted_pull_left_is_no_image(store: Store, layout: Path) -> None:
    index = (layout / "blobs" / digest_of(layout).replace(":", "/")).read_bytes()
    last = json.loads(index)["manifests"][-1]["digest"]
    (layout / "blobs" / last.replace(":", "/")).unlink()
    with pytest.raises(Exception, match=last):
        pull(store, layout)
    assert store.images.list() == []
    store.collect(grace=0)
    assert list(store.blobs.list()) == []


def test_a_store_of_the_schema_before_is_brought_up_to_date(
    store: Store, layout: Path, tmp_path: Path
) -> None:
    store.close()
    path = store.root / "layerfs.db"
    connection = sqlite3.connect(path)
    for table in ("index_tags", "index_links", "indexes", "seek_tables", "records_due"):
        connection.execute(f"DROP TABLE {table}")
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with Store.open(store.root, durability="none") as again:
        pull(again, layout)
        assert str(again.push("app:1", f"oci:{tmp_path}/to:1", all_platforms=True).digest) == digest_of(
            layout
        )
    Database.create(tmp_path / "new.db")
    assert _schema(path) == _schema(tmp_path / "new.db")


def _schema(path: Path) -> set[tuple[str, str]]:
    connection = sqlite3.connect(path)
    try:
        rows = connection.execute("SELECT name, sql FROM sqlite_master").fetchall()
        return {(name, " ".join((sql or "").split())) for name, sql in rows}
    finally:
        connection.close()
