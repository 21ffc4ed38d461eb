"""Layers that ask for too much: refused by `load` and `pull` with little memory, and nothing of them left."""

from __future__ import annotations

import gzip
import io
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import zstandard

from layerfs import Budget, InvalidError, Store
from layerfs.tree.extract import extract
from layerfs.tree.whiteouts import OverlayWhiteouts
from tests.support.commandline import CommandLine
from tests.support.tars import END, header, member, padded, pax
from tests.support.tiny_images import TinyImage, document, layout_files, sha256, tar, write_files

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

MEMORY = 160 << 20
"""Bytes of memory that a process of layerfs has at most, whatever comes."""


class Bomb(NamedTuple):
    """A layer's blob, the limits that are set, and what the refusal says."""

    blob: Callable[[], bytes]
    limits: str
    words: str


def many(entry: bytes, count: int) -> bytes:
    return gzip.compress(entry * count + END, 1)


def sparse(runs: int) -> bytes:
    numbers = b"".join(b"%d\n1\n" % (2 * run) for run in range(runs))
    body = padded(b"%d\n" % runs + numbers) + b"x" * runs
    head = pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9999999"))
    return gzip.compress(head + member(body) + END)


def wide(data: bytes) -> bytes:
    """Compress with a window of 128 MiB, which a reader has to fill."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=27)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return frame.compress(data) + frame.flush()


def runs_of_zeros(blocks: int) -> bytes:
    run = ((1 << 17) << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    return zstandard.compress(header(b"zeros", size=b"\x80" + bytes(3) + struct.pack(">Q", blocks << 17))) + (
        b"\x28\xb5\x2f\xfd\x00\x58" + run * blocks
    )


_MEASURE = """
import os, resource, sys
pid = os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:])
_, status, used = os.wait4(pid, 0)
print(os.waitstatus_to_exitcode(status), used.ru_maxrss)
"""
ZEROS = 32 << 20
BOMBS = {
    "bytes": Bomb(lambda: gzip.compress(member(bytes(ZEROS)) + END, 1), "bytes=10M", "bytes of data"),
    "entries": Bomb(lambda: many(header(), 2000), "entries=1000", "more than 1000 entries"),
    "depth": Bomb(
        lambda: gzip.compress(pax((b"path", b"a/" * 3000 + b"f")) + header() + END), "", "2048 parts"
    ),
    "deep directories": Bomb(
        lambda: gzip.compress(pax((b"path", b"a/" * 2100)) + header(flag=b"5") + END), "", "2048 parts"
    ),
    "extended header": Bomb(
        lambda: gzip.compress(pax((b"comment", bytes(2 << 20))) + header() + END),
        "",
        "more than 1048576 bytes",
    ),
    "global header": Bomb(
        lambda: gzip.compress(header(flag=b"g", size=1 << 32) + END), "", "more than 1048576 bytes"
    ),
    "long name": Bomb(
        lambda: gzip.compress(header(flag=b"L", size=1 << 30) + END), "", "more than 65536 bytes"
    ),
    "sparse runs": Bomb(lambda: sparse(70_000), "", "more than 65536 runs"),
    "ratio of gzip": Bomb(
        lambda: gzip.compress(member(bytes(ZEROS)) + END), "ratio_floor=16M", "1000 times its size"
    ),
    "ratio of zstd": Bomb(lambda: runs_of_zeros(2000), "ratio_floor=16M", "1000 times its size"),
    "gzip members": Bomb(lambda: gzip.compress(b"") * 5000, "members=1000", "more than 1000 members"),
    "zstd frames": Bomb(lambda: zstandard.compress(b"") * 5000, "members=1000", "more than 1000 members"),
    "skipped frames": Bomb(
        lambda: struct.pack("<II", 0x184D2A50, 0) * 5000, "members=1000", "more than 1000 members"
    ),
    "window": Bomb(lambda: wide(member(bytes(1000)) + END), "", "window of more than 32768 KiB"),
    "hard links": Bomb(
        lambda: gzip.compress(
            b"".join(header(b"l%d" % n, flag=b"1", link=b"later") for n in range(200))
            + header(b"later")
            + END
        ),
        "links=100",
        "more than 100 hard links",
    ),
    "truncated claim": Bomb(
        lambda: gzip.compress(header(size=b"\x80" + bytes(3) + b"\x3f" + b"\xff" * 7)),
        "",
        "ends inside an entry",
    ),
}


class Image(TinyImage):
    """An image of one layer, whose blob is given."""

    def __init__(self, blob: bytes) -> None:
        super().__init__(b"x")
        kind = "application/vnd.oci.image.layer.v1.tar" + ("+gzip" if blob[:2] == b"\x1f\x8b" else "+zstd")
        self.layers = [blob]
        self.manifest = document(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": self.describe(self.config, "application/vnd.oci.image.config.v1+json"),
                "layers": [self.describe(blob, kind)],
            }
        )
        self.blobs = [self.config, blob, self.manifest]


def measured(words: list[str]) -> tuple[int, str, int]:
    """Run a command; gives its status, what it said, and the most memory that it or a child of it had."""
    # A process begins with the memory that its parent has: it needs a small one.
    done = subprocess.run([sys.executable, "-S", "-c", _MEASURE, *words], capture_output=True, check=True)
    status, memory = map(int, done.stdout.split()[-2:])
    return status, done.stderr.decode(), memory << 10


WAYS = [(name, "load") for name in BOMBS] + [
    (name, "pull") for name in ("bytes", "depth", "gzip members", "window")
]


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_a_bomb_is_refused_with_little_memory(tmp_path: Path, name: str, way: str) -> None:
    bomb = BOMBS[name]
    image = Image(bomb.blob())
    files = layout_files([image.entry(name="bomb:1")], image.blobs)
    layerfs = CommandLine(tmp_path / "store")
    options = ["--budget", bomb.limits] if bomb.limits else []
    if way == "load":
        (tmp_path / "bomb.tar").write_bytes(tar(files))
        words = layerfs.words(*options, "load", "-i", tmp_path / "bomb.tar")
    else:
        write_files(tmp_path / "layout", files)
        words = layerfs.words("pull", f"oci:{tmp_path / 'layout'}:bomb:1", "bomb:1", *options)
    status, said, memory = measured(words)
    assert status == 1
    assert bomb.words in said
    assert "Traceback" not in said
    assert memory < MEMORY
    with Store.open(tmp_path / "store") as store:
        assert store.images.list() == []
        assert [*store.layers.walk()] == []


def test_a_file_that_claims_terabytes_of_holes_costs_nothing(tmp_path: Path) -> None:
    head = pax(
        (b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"%d" % (1 << 43))
    )
    plain = head + member(padded(b"1\n0\n1\n") + b"x", b"big") + END
    image = TinyImage(tars=[plain])
    (tmp_path / "big.tar").write_bytes(tar(layout_files([image.entry(name="big:1")], image.blobs)))
    layerfs = CommandLine(tmp_path / "store")
    status, said, memory = measured(layerfs.words("load", "-i", tmp_path / "big.tar"))
    assert status == 0, said
    assert memory < MEMORY
    used = sum(os.lstat(path).st_blocks for path in (tmp_path / "store").rglob("*"))
    assert used * 512 < 8 << 20


def test_documents_are_bounded(tmp_path: Path) -> None:
    large = document({"schemaVersion": 2, "manifests": [], "annotations": {"a": "x" * (4 << 20)}})
    config = document({"x": "y" * (5 << 20)})
    for files in (
        {"oci-layout": document({"imageLayoutVersion": "1.0.0"}), "index.json": large},
        {"manifest.json": document([{"Config": "c", "RepoTags": ["a:1"], "Layers": []}]), "c": config},
        {"manifest.json": b"[" * 3_000_000},
    ):
        (tmp_path / "large.tar").write_bytes(tar(files))
        status, said, memory = measured(
            CommandLine(tmp_path / "store").words("load", "-i", tmp_path / "large.tar")
        )
        assert status == 1
        assert "4194304" in said or "nested too deep" in said
        assert memory < MEMORY


def test_a_layer_listed_many_times_is_read_once(tmp_path: Path) -> None:
    """A docker archive names a compressed layer by its path: nothing bounds how often."""
    blob = gzip.compress(member(os.urandom(1 << 20)) + END)
    count = 40_000
    config = document(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [sha256(b"x")] * count},
        }
    )
    files = {
        "manifest.json": document([{"Config": "c", "RepoTags": ["a:1"], "Layers": ["l"] * count}]),
        "c": config,
        "l": blob,
    }
    (tmp_path / "many.tar").write_bytes(tar(files))
    status, said, _ = measured(CommandLine(tmp_path / "store").words("load", "-i", tmp_path / "many.tar"))
    assert status == 1
    assert "Traceback" not in said


class Counting(OverlayWhiteouts):
    """Counts how often a name is looked at when a directory becomes opaque."""

    looks = 0

    def hidden(self, directory: int, name: bytes) -> bytes | None:
        self.looks += 1
        return super().hidden(directory, name)


@pytest.mark.parametrize("marker", [b".wh.d", b"d/.wh..wh..opq"])
def test_markers_that_are_repeated_cost_no_walk_each(tmp_path: Path, marker: bytes) -> None:
    (tmp_path / "lower/d").mkdir(parents=True)
    (tmp_path / "own").mkdir()
    files = b"".join(header(b"d/%d" % n) for n in range(300))
    markers = b"".join(header(marker) + header(b"other%d" % n) for n in range(300))
    whiteouts = Counting(user=False)
    own = os.open(tmp_path / "own", os.O_RDONLY)
    extract(
        io.BytesIO(files + markers + END), own, whiteouts=whiteouts, warn=lambda text: None,
        lower=lambda: os.open(tmp_path / "lower", os.O_RDONLY),
    )  # fmt: skip
    os.close(own)
    assert 0 < whiteouts.looks <= 600


def test_limits_are_read_from_text(tmp_path: Path) -> None:
    assert Budget.parse("bytes=10G,entries=1m,ratio=50") == Budget(
        bytes=10 << 30, entries=1 << 20, ratio=50.0
    )
    for text in (
        "x=1",
        "bytes",
        "bytes=",
        "bytes=-1",
        "bytes=1.5",
        "entries=1X",
        "bytes=1 ",
        "bytes=" + "9" * 30,
    ):
        with pytest.raises(InvalidError):
            Budget.parse(text)
    done = CommandLine(tmp_path / "store").run("--budget", "size=1", "images")
    assert done.status == 2
    assert "there are bytes, entries" in done.err


def test_limits_come_from_the_environment_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image(many(header(), 20))
    (tmp_path / "image.tar").write_bytes(tar(layout_files([image.entry(name="a:1")], image.blobs)))
    layerfs = CommandLine(tmp_path / "store")
    monkeypatch.setenv("LAYERFS_BUDGET", "entries=10")
    assert "more than 10 entries" in layerfs.run("load", "-i", tmp_path / "image.tar").err
    assert (
        "more than 15 entries" in layerfs.run("--budget=entries=15", "load", "-i", tmp_path / "image.tar").err
    )
