"""Which ids a user may map, and what is said to be missing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from layerfs import subids
from layerfs.subids import IdRange, Mapping


def write(directory: Path, **files: str) -> str:
    for name, text in files.items():
        (directory / name).write_text(text)
    return str(directory)


def test_ranges_are_read_by_name_and_by_number(tmp_path: Path) -> None:
    lines = "0:100000:65536\nroot:300000:10\nother:1:2\nroot:x:1\nroot:5\nroot:7:0\n\nroot:8:\n"
    file = f"{write(tmp_path, subuid=lines)}/subuid"
    assert subids.ranges(file, 0) == [IdRange(100000, 65536), IdRange(300000, 10)]
    assert subids.ranges(str(tmp_path / "none"), 0) == []
    assert subids.user_name(0) == "root"
    assert subids.user_name(4_000_000_000) == "4000000000"


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"subuid": "", "subgid": ""}, "/subuid and "),
        ({"subuid": "root:1:5\n", "subgid": "other:1:5\n"}, "/subgid gives this user no ids"),
    ],
)
def test_who_has_no_ranges_is_told_which_file_lacks_them(
    files: dict[str, str], told: str, tmp_path: Path
) -> None:
    advice = subids.advice(0, etc=write(tmp_path, **files))
    assert told in advice and "`usermod --add-subuids 100000-165535" in advice and " root`" in advice


def test_who_has_ranges_is_told_which_tool_is_missing_or_has_no_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    etc = write(tmp_path, subuid="root:1:5\n", subgid="root:1:5\n")
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    assert subids.advice(0, etc=etc).startswith("install newuidmap and newgidmap (Debian's uidmap)")
    for name in ("newuidmap", "newgidmap"):
        shutil.copy("/bin/true", tools / name)
    assert "newuidmap has neither the setuid bit" in subids.advice(0, etc=etc)
    (tools / "newuidmap").chmod(0o4755)
    assert "newgidmap has neither the setuid bit" in subids.advice(0, etc=etc)
    (tools / "newgidmap").chmod(0o4755)
    assert "more ids" in subids.advice(0, etc=etc)


def test_a_namespace_says_what_it_maps() -> None:
    assert subids.outside(os.geteuid()) == os.geteuid() or not subids.maps_all(subids.mapped())
    assert subids.maps_all([Mapping(0, 0, (1 << 32) - 1)])
    assert not subids.maps_all([Mapping(0, 1000, 1), Mapping(1, 100000, 65536)])


def test_ids_are_the_same_only_if_they_stand_for_the_same_outside() -> None:
    ids = [Mapping(0, 1000, 1), Mapping(1, 100000, 65536)]
    assert (
        subids.covers(ids, []) and subids.covers(ids, ids[:1]) and subids.covers(ids, [Mapping(5, 100004, 9)])
    )
    assert not subids.covers(ids[:1], ids)
    assert not subids.covers(ids, [Mapping(1, 200000, 65536)])
    assert not subids.covers(ids, [Mapping(1, 100000, 65537)])
