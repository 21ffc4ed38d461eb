"""What a table of contents says of the root of its layer, and when that is not enough."""

from __future__ import annotations

import json
from typing import Any

import pytest

from layerfs.seekable.top import Top, top_of
from layerfs.tree.budget import DEFAULT_BUDGET, Budget


def top(*names: str | dict[str, Any], budget: Budget = DEFAULT_BUDGET, version: int = 1) -> Top | None:
    """Read a table of these names: those that end with a slash are directories, others files of a byte."""
    entries = []
    for each in names:
        if isinstance(each, str):
            each = {"name": each} | ({"type": "dir"} if each.endswith("/") else {"type": "reg", "size": 1})
        entries.append(each)
    return top_of(json.dumps({"version": version, "entries": entries}).encode(), budget=budget)


def link(name: str, target: str) -> dict[str, Any]:
    return {"name": name, "type": "hardlink", "linkName": target}


def test_what_stands_in_the_root_is_told_in_order() -> None:
    found = top(
        "./", "./b/", "b/c", {"name": "b/c", "type": "chunk"}, "a",
        {"name": "l", "type": "symlink", "linkName": "b"}, link("b/d", "b/c"), "b/.wh.e",
    )  # fmt: skip
    assert found is not None
    assert [entry.path for entry in found.entries] == [b"", b"b", b"a", b"l"]
    assert found.number == 8


@pytest.mark.parametrize(
    "names",
    [
        ("implied/file",),
        ("l", "l/file"),
        ("d/", ".wh.gone"),
        ("d/", ".wh..wh..opq"),
        ("d/", "d/.wh..wh..opq"),
        ("d/", ".wh..wh.plnk/", ".wh..wh.plnk/1.2"),
        ("d/", "d/f", link("hard", "d/f")),
        ("d/", "f", link("d/hard", "f")),
        ("d/", link("d/hard", "other/f")),
        ("d/", "d/../e"),
        ("d/", "d//e"),
        ("d/", "d/./e"),
        ("../", "../outside"),
        ("..",),
        ("/d/", "/d/e"),
        ("d/", "d"),
        ("d/", "./d/"),
        ("d/", {"name": "n", "type": "other"}),
        ("d/", {"type": "reg"}),
        ("d/", {"name": "d/f", "type": "reg", "size": 1 << 62}),
        ("d/", {"name": "d/f", "type": "reg", "size": "much"}),
        ("d/", {"name": "c", "type": "char"}),
        ("d/", {"name": 3, "type": "reg"}),
    ],
)
def test_roots_that_depend_on_more_than_their_own_entries_are_not_told(
    names: tuple[str | dict[str, Any], ...],
) -> None:
    assert top(*names) is None


def test_tables_beyond_the_budget_are_not_told() -> None:
    assert top("a", "b", budget=Budget(entries=1)) is None
    assert top("a", "b", budget=Budget(bytes=1)) is None
    assert top("a", "b", budget=Budget(bytes=2, entries=2)) is not None


@pytest.mark.parametrize(
    "table", [b"", b"[]", b"{}", b'{"version": 1}', b'{"version":1,"entries":[3]}', b"\xff"]
)
def test_what_is_no_table_is_not_told(table: bytes) -> None:
    assert top_of(table, budget=DEFAULT_BUDGET) is None


def test_another_version_is_not_told() -> None:
    assert top("a", version=2) is None
