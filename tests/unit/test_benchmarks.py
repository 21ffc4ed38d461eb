"""The benchmark harness: every workload once, tiny; what they measure is never asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import estimates
from benchmarks.commands import CommandError, Commands
from benchmarks.filesystem import fresh
from benchmarks.images.archives import digests
from benchmarks.images.cache import Images
from benchmarks.results import from_json
from benchmarks.scales import TINY

ROOT = Path(__file__).parents[2]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a file system")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def run(cache: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", "--scale", "tiny", "--cache", cache, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def mounts_and_loops() -> tuple[int, str]:
    table = Path("/proc/self/mounts").read_text()
    loops = subprocess.run(["losetup", "--all"], capture_output=True, text=True, check=False).stdout
    return table.count("layerfs-benchmark-"), loops


@needs_root
def test_the_folder_workloads_run_on_a_driver_and_on_the_kernels_overlay(cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    subjects = "layerfs-overlay2,kernel-overlay"
    done = run(cache, "--subjects", subjects, "--filesystem", "ext4", "--targets", "--json", file)
    assert done.returncode == 0, done.stderr
    found = from_json(file)
    assert not [result for result in found.results if result.failed]
    assert all(len(result.samples) == 1 and result.walls[0] > 0 for result in found.results)
    assert "delete-lower" in done.stdout


def test_an_unknown_workload_is_refused_with_the_known_ones(cache: Path) -> None:
    done = run(cache, "--workloads", "walk-*,fly", "--filesystem", "none")
    assert done.returncode == 2
    assert "'fly'" in done.stderr
    assert "copy-up" in done.stderr


def test_the_images_are_the_same_every_time(tmp_path: Path) -> None:
    made = [Images(tmp_path / name, TINY, told=lambda line: None).get("tree") for name in ("one", "other")]
    assert made[0].directory != made[1].directory
    for name in ("docker.tar", "oci-gzip/index.json", "oci-zstd/index.json"):
        one, other = digests([image.directory / name for image in made])
        assert one == other, name


@needs_root
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_fresh_file_system_is_of_the_kind_asked_for_and_gone_afterwards(kind: str) -> None:
    with fresh(kind, size=1 << 29) as place:
        (place / "file").write_bytes(b"x")
        table = Path("/proc/self/mounts").read_text()
        assert any(line.split()[1:3] == [str(place), kind] for line in table.splitlines())
    assert not place.exists()


def test_what_a_command_has_used_is_counted(tmp_path: Path) -> None:
    hungry = "data = bytearray(200 << 20); [x * x for x in range(2_000_000)]"
    script = tmp_path / "hungry.py"
    script.write_text(
        "import json, sys\n"
        "from benchmarks.commands import Commands\n"
        "with Commands() as commands:\n"
        "    ballast = bytearray(400 << 20)\n"
        "    commands.run(['true'])\n"
        "    small = commands.peak\n"
        f"    commands.run([sys.executable, '-c', {hungry!r}])\n"
        "    print(json.dumps([small, commands.peak, commands.cpu.total]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=True
    )
    small, large, cpu = json.loads(done.stdout)
    assert small < 50 << 20 < 200 << 20 < large < 400 << 20
    assert cpu > 0.01


def test_a_command_that_fails_says_what_it_said() -> None:
    with Commands() as commands, pytest.raises(CommandError, match=r"ended with 2.*no such thing"):
        commands.run(["sh", "-c", "echo no such thing >&2; exit 2"])


def test_a_median_lies_in_its_interval_and_more_rounds_narrow_it() -> None:
    few = estimates.estimate([1.0, 1.2, 0.9, 1.1, 1.0])
    many = estimates.estimate([1.0, 1.2, 0.9, 1.1, 1.0] * 20)
    assert few.low <= few.median <= few.high
    assert many.high - many.low < few.high - few.low


def test_what_slows_both_down_in_a_round_leaves_their_ratio_alone() -> None:
    rounds = [1.0, 3.0, 1.1, 0.9, 2.0]
    found = estimates.ratio(rounds, [2 * each for each in rounds])
    assert found == pytest.approx((0.5, 0.5, 0.5))
