"""The benchmark harness: every workload once, tiny; what they measure is never asserted."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from pathlib import Path

import pytest

from benchmarks import estimates, link, machine, plots, processes, registry
from benchmarks.clock import Sample, StopWatch
from benchmarks.commands import CommandError, Commands, missing
from benchmarks.filesystem import fresh
from benchmarks.images import estargz
from benchmarks.images.archives import digests
from benchmarks.images.cache import Images
from benchmarks.images.layer import LayerWriter
from benchmarks.results import Result, Results, from_json, to_json
from benchmarks.scales import TINY
from benchmarks.subjects.base import Lazies
from benchmarks.workloads import WORKLOADS

ROOT = Path(__file__).parents[2]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a file system")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def run(cache: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    own = arguments[0] in ("show", "compare")
    options = [] if own else ["--scale", "tiny", "--cache", cache]
    command = [sys.executable, "-m", "benchmarks", *arguments, *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def measured(cache: Path, place: Path, subjects: str, workloads: str) -> Results:
    """Run workloads once, on fresh ext4; every pair that ran must have left a sample."""
    file = place / "figures.json"
    done = run(
        cache, "--subjects", subjects, "--workloads", workloads, "--filesystem", "ext4", "--json", file
    )
    assert done.returncode == 0, done.stderr
    found = from_json(file)
    assert not [result for result in found.results if result.failed]
    assert all(len(result.samples) == 1 and result.walls[0] > 0 for result in found.results)
    return found


def test_a_reader_that_has_enough_ends_the_list_quietly(cache: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--list", "--filesystem", "none", "--cache", str(cache)]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@needs_root
def test_every_workload_runs_on_a_driver(cache: Path, tmp_path: Path) -> None:
    found = measured(cache, tmp_path, "layerfs-overlay2", "*")
    expected = {
        name
        for name, workload in WORKLOADS.items()
        if workload.fits(TINY) and not workload.why_not() and workload.needs is not Lazies
    }
    expected -= {name.removesuffix(" on layerfs-overlay2") for name in found.left_out}
    assert set(found.workloads) == expected


@needs_root
def test_every_driver_and_every_union_shows_a_folder(cache: Path, tmp_path: Path) -> None:
    subjects = "layerfs-*,kernel-overlay,fuse-overlayfs,unionfs-fuse,bare"
    found = measured(cache, tmp_path, subjects, "mount,walk-again,create,depth-3")
    assert {"layerfs-overlay2", "layerfs-vfs", "kernel-overlay", "bare"} <= set(found.subjects)
    fuse = found.find("walk-again", "layerfs-fuse")
    if fuse is not None:
        assert fuse.samples[0].server_memory > 1 << 20
        assert "layerfs-fuse" not in found.left_out


@needs_root
@pytest.mark.parametrize("peer", ["docker", "podman", "containerd-*", "umoci", "skopeo", "tar,cp,dd,python"])
def test_a_peer_that_is_installed_runs_what_it_can(cache: Path, tmp_path: Path, peer: str) -> None:
    workloads = "load,pull-*,save,push,registry-*,slow-link-*,run-true,commit-mixed,export,version"
    found = measured(cache, tmp_path, peer, workloads)
    if found.left_out:
        pytest.skip(f"left out: {found.left_out}")
    assert found.results


@needs_root
def test_an_interrupted_run_leaves_no_daemon_and_no_mount(cache: Path, tmp_path: Path) -> None:
    subjects = "docker,kernel-overlay" if shutil.which("dockerd") else "kernel-overlay"
    command = [sys.executable, "-m", "benchmarks", "--scale", "tiny", "--cache", cache, "--rounds", "99"]
    words = [*command, "--where", tmp_path, "--subjects", subjects, "--workloads", "walk-first"]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if "walk-first" in line:
                break
        started = processes.descendants(running.pid)
        running.send_signal(signal.SIGINT)
        running.stderr.read()
    assert running.returncode == 130
    assert started
    assert not [process for process in started if Path(f"/proc/{process}").exists()]
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    assert not os.listdir(tmp_path)


@needs_root
@pytest.mark.skipif(bool(link.why_not() or missing("skopeo")), reason="no slow link, or no skopeo")
def test_a_registry_at_the_end_of_a_slow_link_gives_what_was_put_there(cache: Path, tmp_path: Path) -> None:
    images = Images(cache, TINY, told=lambda line: None)
    image = images.get_estargz("system")
    with (
        Commands() as commands,
        link.slow(commands) as over,
        registry.serving(commands, tmp_path / "registry", [(image, "estargz")], over=over) as served,
    ):
        began = time.monotonic()
        commands.run(["skopeo", "inspect", "--tls-verify=false", f"docker://{served.reference(image)}"])
        # Two requests over a new connection need three round trips.
        assert time.monotonic() - began > 3 * link.ROUND_TRIP
        assert over.received() > 500
        source, target = f"docker://{served.reference(image)}", f"oci:{tmp_path / 'copy'}:1"
        words = ["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", source, target]
        commands.run(["skopeo", *words])
        assert over.received() > served.stored()
        assert not commands.others()
    layers = sorted((tmp_path / "copy" / "blobs" / "sha256").iterdir())
    assert [path.name for path in layers] == digests(layers)


@needs_root
def test_a_lazy_mount_is_measured_or_noted(cache: Path, tmp_path: Path) -> None:
    found = measured(cache, tmp_path, "layerfs-fuse", "lazy-ls")
    assert found.results or found.left_out


def test_estargz_layers_are_plain_tars_with_a_table_that_says_where_files_begin(tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain.tar", tmp_path / "packed"
    data = random.Random(1).randbytes(9 << 20)
    with LayerWriter(plain) as writer:
        writer.file("etc/large", data)
        writer.file("etc/small", b"small")
        writer.symlink("etc/link", "small")
    table_digest, diff_id = estargz.pack(plain, packed)
    blob = packed.read_bytes()
    unpacked = gzip.decompress(blob)
    assert hashlib.sha256(unpacked).hexdigest() == diff_id
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as archive:
        assert archive.getnames() == ["etc", "etc/large", "etc/small", "etc/link", "stargz.index.json"]
        table = archive.extractfile("stargz.index.json").read()  # type: ignore[union-attr]
    assert f"sha256:{hashlib.sha256(table).hexdigest()}" == table_digest
    begin = int(blob[-35:-19], 16)
    assert zlib.decompressobj(31).decompress(blob[begin:])[512 : 512 + len(table)] == table
    entries = json.loads(table)["entries"]
    chunks = [each for each in entries if each["name"] == "etc/large"]
    found = b"".join(zlib.decompressobj(31).decompress(blob[each["offset"] :]) for each in chunks)
    assert found == data
    assert [each.get("chunkOffset") for each in chunks] == [0, 4 << 20, 8 << 20]


def test_a_run_is_shown_again_and_compared(cache: Path, tmp_path: Path) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_text(to_json(made_up(slower=1)))
    after.write_text(to_json(made_up(slower=2)))
    compared = run(cache, "compare", before, after)
    assert compared.returncode == 1, compared.stderr
    assert [line.split()[1] for line in compared.stdout.splitlines() if "slower" in line] == ["walk-first"]
    assert run(cache, "compare", before, before).returncode == 0
    shown = run(cache, "show", before, "--targets", "--details", "--peer", "kernel-overlay")
    assert "0.50" in shown.stdout


@pytest.mark.skipif(bool(plots.missing()), reason=plots.missing())
def test_a_run_is_drawn_on_a_page_and_into_the_documentation(cache: Path, tmp_path: Path) -> None:
    figures, page, document = (tmp_path / name for name in ("figures.json", "page.html", "page.md"))
    figures.write_text(to_json(made_up(slower=1)))
    document.write_text((ROOT / "docs" / "benchmarks.md").read_text())
    drawn = run(cache, "show", figures, "--html", page, "--markdown", document)
    assert drawn.returncode == 0, drawn.stderr
    assert "<svg" in page.read_text()
    assert "http" not in page.read_text().replace("http://www.w3.org/", "")
    assert "(page/reading.svg)" in document.read_text()
    assert (tmp_path / "page" / "reading.svg").read_text().startswith("<?xml")


def made_up(*, slower: float) -> Results:
    """Five rounds of two workloads on two subjects; the first workload of one takes longer by a factor."""
    walls = {
        ("walk-first", "layerfs-fuse"): 0.1 * slower,
        ("walk-first", "kernel-overlay"): 0.2,
        ("find-again", "layerfs-fuse"): 0.3,
    }
    results = tuple(
        Result(*pair, tuple(Sample(wall + wall * 0.01 * n, 0.1, 0.1, 0.0, 0, 0) for n in range(5)))
        for pair, wall in walls.items()
    )
    facts = machine.facts()
    plan = {"scale": {"name": "tiny"}, "rounds": 5, "warm_up": 0, "filesystem": "ext4"}
    plan["subjects"] = ["layerfs-fuse", "kernel-overlay"]
    about = {"walk-first": "Walk.", "find-again": "Find."}
    noise = [{"stolen": 0.0, "load": 0.5}]
    return Results(facts, plan, {}, noise, about, {"reading": list(about)}, {}, results)


def test_what_is_no_result_is_refused(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"answer": 42}')
    done = run(cache, "show", tmp_path / "other.json")
    assert done.returncode == 2
    assert "does not hold results" in done.stderr


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


def test_the_memory_of_processes_that_work_at_the_same_time_is_added_up() -> None:
    hungry = "import os, time; os.fork(); data = os.urandom(60 << 20); time.sleep(0.4)"
    with Commands() as commands:
        commands.run(["true"])
        watch = StopWatch(commands, set())
        with watch():
            commands.run([sys.executable, "-c", hungry])
    assert watch.sample is not None
    assert 60 << 20 < watch.sample.memory < 110 << 20
    assert 120 << 20 < watch.sample.together < 200 << 20
    assert watch.sample.resting == 0
    assert watch.sample.most_memory == watch.sample.together


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
