"""Layers removed together: which go, in what order, and what is left when one cannot."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import removing
from layerfs.removing import remove_together
from layerfs.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "root", driver="overlay2", durability="none") as opened:
        yield opened


def add_chain(store: Store, length: int, files: int = 1) -> list[str]:
    """Commit layers on top of each other; give their names, the topmost first."""
    names: list[str] = []
    for place in range(length):
        store.layers.prepare("next", names[0] if names else None)
        with store.layers.mounted("next") as tree:
            for number in range(files):
                (tree / f"{place}-{number}").write_text("text")
        store.layers.commit("next", f"layer-{place}")
        names.insert(0, f"layer-{place}")
    return names


@pytest.mark.parametrize("batch", [2, 256])
@pytest.mark.parametrize("worth", [0, 10_000])
def test_a_chain_goes_whole(store: Store, monkeypatch: pytest.MonkeyPatch, worth: int, batch: int) -> None:
    monkeypatch.setattr(removing, "_WORTH_A_PROCESS", worth)
    monkeypatch.setattr(removing, "_BATCH", batch)
    names = add_chain(store, 5, files=3)
    removed = remove_together(store.layers, names)
    assert [layer.name for layer in removed] == names
    assert not list(store.driver.layers())
    assert not list(store.layers.walk())
    assert not [each for each in (store.root / "locks").iterdir() if not each.name.startswith("store")]
    assert store.layers.finish() == 0
    assert store.check().sound


@pytest.mark.parametrize("batch", [1, 256])
def test_what_another_layer_needs_stays_with_all_below_it(
    store: Store, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(removing, "_BATCH", batch)
    names = add_chain(store, 4)
    store.layers.prepare("other", "layer-1")
    assert [layer.name for layer in remove_together(store.layers, names)] == ["layer-3", "layer-2"]
    assert {layer.name for layer in store.layers.walk()} == {"other", "layer-1", "layer-0"}
    assert len(list(store.driver.layers())) == 3


def test_a_mounted_layer_stays(store: Store) -> None:
    names = add_chain(store, 2)
    with store.layers.mounted(names[0], read_only=True):
        assert remove_together(store.layers, names) == []
    assert remove_together(store.layers, [names[0], "no such layer", names[1]])
    assert not list(store.driver.layers())


def test_files_that_cannot_be_removed_are_removed_later(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from layerfs.errors import InUseError

    names = add_chain(store, 3)
    middle = store.layers.stat(names[1]).driver_id
    real = store.driver.remove

    def refuse(layer: str) -> None:
        if layer == middle:
            raise InUseError("something is mounted beneath")
        real(layer)

    monkeypatch.setattr(store.driver, "remove", refuse)
    assert [layer.name for layer in remove_together(store.layers, names)] == names
    assert not [name for name in names if store.layers.has(name)]
    monkeypatch.undo()
    assert store.layers.finish() == 2
    assert not list(store.driver.layers())


def test_who_does_not_wait_leaves_the_files_to_another_process(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removing, "_WORTH_A_PROCESS", 0)
    names = add_chain(store, 4, files=300)
    removed = remove_together(store.layers, names, wait=False)
    assert [layer.name for layer in removed] == names
    assert not list(store.layers.walk())
    # The names and the blobs are free at once.
    store.layers.prepare("layer-0")
    held = {layer.driver_id for layer in removed}
    deadline = time.monotonic() + 60
    while store.layers.table.marked():
        assert time.monotonic() < deadline
        store.layers.finish()
        time.sleep(0.01)
    assert not held.intersection(store.driver.layers())
    assert not held.intersection(os.listdir(store.root / "locks"))
    assert store.check().sound


def test_a_killed_remover_is_finished_by_who_opens_the_store(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removing, "_WORTH_A_PROCESS", 0)
    monkeypatch.setattr(removing, "_remove_each", lambda driver, layers: os.kill(os.getpid(), 9))
    remove_together(store.layers, add_chain(store, 2), wait=False)
    assert len(store.layers.table.marked()) == 2
    with Store.open(store.root) as again:
        deadline = time.monotonic() + 60
        while again.layers.table.marked():
            assert time.monotonic() < deadline
            again.layers.finish()
        assert list(again.driver.layers()) == []
