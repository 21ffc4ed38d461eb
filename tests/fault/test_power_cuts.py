"""A few power cuts in the middle of a working load; `python -m tests.reliability power` makes hundreds."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.reliability import power
from tests.reliability.cut_disk import _HEAD, Cutter
from tests.reliability.working_load import Step, promises

SECTOR = 4096


def write_log(log: Path, *records: tuple[bytes, int, bytes]) -> None:
    log.write_bytes(b"".join(_HEAD.pack(kind, at, len(data)) + data for kind, at, data in records))


def test_a_cut_keeps_what_was_flushed_and_of_the_rest_what_the_disk_likes(tmp_path: Path) -> None:
    old, flushed, late = (bytes([letter]) * 64 * SECTOR for letter in b"abc")
    log = tmp_path / "log"
    write_log(log, (b"w", 0, flushed), (b"f", 0, b""), (b"w", 64 * SECTOR, late))
    for habit, expected in (("nothing", {b"a"}), ("everything", {b"c"}), ("a part", {b"a", b"c"})):
        base = tmp_path / "base"
        base.write_bytes(old * 2)
        cutter = Cutter(base, log)
        assert cutter.cut(cutter.ends[0], habit, random.Random(1), tmp_path / "early") == 1
        assert cutter.cut(cutter.ends[-1], habit, random.Random(1), tmp_path / "cut") == 1
        image = (tmp_path / "cut").read_bytes()
        assert image[: 64 * SECTOR] == flushed
        assert {image[start : start + 1] for start in range(64 * SECTOR, len(image), SECTOR)} == expected


def test_a_promise_holds_from_its_acknowledgement_to_the_next_step() -> None:
    steps = [Step("a", "new", 10, 20), Step("a", None, 30, 40)]
    assert promises(steps, 10) == {}
    assert promises(steps, 11) == {"a": (None, "new")}
    assert promises(steps, 20) == {"a": ("new",)}
    assert promises(steps, 39) == {"a": ("new", None)}
    assert promises(steps, 40) == {"a": (None,)}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_what_was_acknowledged_survives_power_cuts() -> None:
    with power.workplace() as place:
        recording = power.record("ext4", place, seconds=1.5, processes=2, durability="commit", seed=1)
        assert recording.errors == []
        found = list(power.cuts(recording, "ext4", place, count=3, seed=1))
    assert [cut.problems for cut in found] == [()] * 3
    assert any(cut.promised for cut in found)
