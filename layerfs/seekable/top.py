"""What a table of contents in JSON says of a layer's topmost names, without a look at most of the rest."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, runtime_checkable

from layerfs.errors import LayerError
from layerfs.seekable.names import normalised
from layerfs.seekable.toc_json import entry_of
from layerfs.tree.budget import Budget
from layerfs.tree.entry import Entry, Kind

if TYPE_CHECKING:
    from layerfs.seekable.extent import Indexed
    from layerfs.seekable.layer import IndexedLayer

LONGEST: Final = 32 << 20
"""Bytes of a table up to which it is read at once: as values it takes several times as much memory."""

_MARKER: Final = ".wh."
_OPAQUE: Final = ".wh..wh."
_ODD: Final = ("", ".", "..")


class Top(NamedTuple):
    """The root, if the table tells of it, and what stands in it, in order; and the number of all entries."""

    entries: tuple[Entry, ...]
    number: int


@runtime_checkable
class HasTable(Protocol):
    """A layer whose index is such a table."""

    def table(self, longest: int) -> tuple[bytes, tuple[Indexed, ...]] | None:
        """Give the table as a whole, and the entries that it does not list; None when it is longer."""
        ...


def top_of_layer(layer: IndexedLayer, *, budget: Budget) -> Top | None:
    """Read what stands in the root of a layer; None where only all of its entries tell."""
    found = layer.table(LONGEST) if isinstance(layer, HasTable) else None
    if found is None:
        return None
    table, others = found
    top = top_of(table, budget=budget)
    if top is None or any(each.entry.path in {entry.path for entry in top.entries} for each in others):
        return None
    return Top((*top.entries, *(each.entry for each in others)), top.number)


def top_of(table: bytes, *, budget: Budget) -> Top | None:
    """Read a table; None where what stands in the root cannot be known from the entries of these names alone.

    That is so where names are told of twice, hidden, linked, not normal or only implied, and where the table
    is malformed as far as that is seen here.

    Args:
        table: the whole document, at most `LONGEST` bytes.
        budget: what the layer may ask for.
    """
    try:
        document = json.loads(table)
        return _top(document["entries"], budget) if document.get("version") == 1 else None
    except (LayerError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _top(listed: list[dict[str, Any]], budget: Budget) -> Top | None:
    if len(listed) > budget.entries:
        return None
    size, above, found = 0, set(), {}
    for members in listed:
        kind = members["type"]
        if kind == "chunk":
            continue
        if kind == "reg":
            size += members.get("size") or 0
        name = members["name"].removeprefix("./").removesuffix("/")
        if "/" in name:
            first, _, rest = name.partition("/")
            if rest.startswith(_OPAQUE) or not _is_normal(rest):
                return None
            above.add(first)
        elif name in found or (name in _ODD[1:] and kind != "dir"):
            return None
        else:
            found[name] = members
        if kind == "hardlink":
            first, slash, _ = members["linkName"].removeprefix("./").partition("/")
            if not slash or name in found:
                return None
            above.add(first)
    if not 0 <= size <= budget.bytes:
        return None
    return _checked(found, above, len(listed))


def _is_normal(name: str) -> bool:
    return not ("." in name or "//" in f"/{name}/") or not any(part in _ODD for part in name.split("/"))


def _checked(found: dict[str, dict[str, Any]], above: set[str], count: int) -> Top | None:
    entries = []
    for name, members in found.items():
        if name.startswith(_MARKER) or name == "..":
            return None
        odd: list[str] = []
        entry = normalised(entry_of(members), odd.append)
        if entry is None or odd or entry.path != (b"" if name in _ODD else os.fsencode(name)):
            return None
        entries.append(entry)
    directories = {name for name, entry in zip(found, entries, strict=True) if entry.kind is Kind.DIRECTORY}
    return Top(tuple(entries), count) if above <= directories else None
