"""The benchmark harness: every workload once, tiny; what they measure is never asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.filesystem import fresh
from benchmarks.sample import TINY, write_layers
from benchmarks.workloads import WORKLOADS

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", "--warm-up", "0", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_every_workload_runs_on_every_driver_that_works_here() -> None:
    done = run("--scale", "tiny", "--runs", "1", "--filesystem", "none", "--json", "-")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {result["workload"] for result in found["results"]} == set(WORKLOADS)
    assert {result["driver"] for result in found["results"]} >= {"vfs"}
    assert all(len(result["samples"]) == 1 for result in found["results"])
    assert all(result["median"] > 0 for result in found["results"])


def test_a_table_has_a_row_a_workload_and_a_column_a_driver() -> None:
    done = run(
        "--scale", "tiny", "--runs", "1", "--filesystem", "none", "--drivers", "vfs", "--workloads", "walk"
    )
    assert done.returncode == 0, done.stderr
    assert "vfs" in done.stdout
    assert "walk" in done.stdout


def test_an_unknown_workload_is_refused_with_the_known_ones() -> None:
    done = run("--workloads", "walk,fly")
    assert done.returncode == 2
    assert "'fly'" in done.stderr
    assert "copy-up" in done.stderr


def test_the_sample_is_the_same_every_time(tmp_path: Path) -> None:
    for place in (tmp_path / "one", tmp_path / "other"):
        place.mkdir()
        write_layers(place, TINY)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) == TINY.layers
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a file system")
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_fresh_file_system_is_of_the_kind_asked_for_and_gone_afterwards(kind: str) -> None:
    with fresh(kind, size=1 << 29) as place:
        (place / "file").write_bytes(b"x")
        table = Path("/proc/self/mounts").read_text()
        assert any(line.split()[1:3] == [str(place), kind] for line in table.splitlines())
    assert not place.exists()
