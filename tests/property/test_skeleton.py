"""A layer that is kept as its files and a skeleton gives the very bytes that came in, or is kept whole."""

from __future__ import annotations

import io
import os
import random
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layerfs import linux, mounting
from layerfs.blobs import CHUNK
from layerfs.digest import Digest
from layerfs.errors import LayerError
from layerfs.incoming import Incoming
from layerfs.layers import Step
from layerfs.leases import Lease
from layerfs.store import Store
from layerfs.tree.entry import Entry, Kind
from layerfs.tree.skeleton import Part, SkeletonWriter, read_skeleton
from layerfs.tree.tar_writer import TarWriter
from tests.support.tars import END, Trickle, member

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to own files and to mount overlayfs")

quick = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

# Few names, so that entries meet: with each other, with links, and with what the layer below has.
NAMES = [
    b"a",
    b"b",
    b"dir",
    b"dir/a",
    b"dir/sub/a",
    b"link/a",
    b"link",
    b"up/b",
    b"./a",
    b"dir/../b",
    b"deep/er/a",
]
BASE = [
    Entry(b"dir", Kind.DIRECTORY, 0o755),
    Entry(b"dir/a", Kind.FILE, 0o644),
    Entry(b"link", Kind.SYMLINK, 0o777, target=b"dir"),
    Entry(b"up", Kind.SYMLINK, 0o777, target=b"dir/sub/.."),
    Entry(b"b", Kind.FILE, 0o644),
]


@st.composite
def pieces(draw: st.DrawFn) -> bytes:
    """One member of an archive as it stands there: header, extended headers, body."""
    name = draw(st.sampled_from(NAMES))
    kind = draw(
        st.sampled_from(["file"] * 6 + ["link", "symlink", "dir", "hide", "opaque", "sparse", "plink", "odd"])
    )
    size = draw(st.sampled_from([0, 1, 256, 257, 511, 512, 700, 3000, 70_000]))
    data = random.Random(draw(st.integers(0, 3))).randbytes(size)
    parent, _, last = name.rpartition(b"/")
    below = parent + b"/" if parent else b""
    if kind == "odd":
        # A hard link with a body, and a type that nobody knows.
        return member(data, name, flag=draw(st.sampled_from([b"1", b"Z", b"7", b"\0"])), link=b"a")
    out = io.BytesIO()
    writer = TarWriter(out.write)
    if kind == "file":
        writer.add(Entry(name, Kind.FILE, 0o644, size=len(data)), (data,))
    elif kind == "sparse":
        entry = Entry(name, Kind.FILE, 0o644, size=200_000, segments=((4096, 4096), (100_000, 10)))
        writer.add(entry, (bytes(range(256)) * 16, b"0123456789"))
    elif kind == "link":
        writer.add(Entry(name, Kind.HARDLINK, target=draw(st.sampled_from(NAMES))))
    elif kind == "symlink":
        writer.add(
            Entry(name, Kind.SYMLINK, 0o777, target=draw(st.sampled_from([b"dir", b"a", b"/dir/sub"])))
        )
    elif kind == "dir":
        writer.add(Entry(name + b"/", Kind.DIRECTORY, 0o755))
    elif kind == "plink":
        writer.add(Entry(b".wh..wh.plnk/1.2", Kind.FILE, 0o644, size=len(data)), (data,))
        writer.add(Entry(name, Kind.HARDLINK, target=b".wh..wh.plnk/1.2"))
    else:
        marker = b".wh..wh..opq" if kind == "opaque" else b".wh." + last
        writer.add(Entry(below + marker, Kind.FILE))
    return out.getvalue()


archives = st.tuples(
    st.lists(pieces(), max_size=8).map(b"".join), st.sampled_from([END, END * 9, b"", END + b"odd" * 9])
).map(b"".join)


@pytest.fixture(scope="module", params=["overlay2", "vfs"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    with tempfile.TemporaryDirectory(prefix="layerfs-property-") as place:
        with Store.open(Path(place) / "root", driver=request.param, durability="none") as opened:
            yield opened
        for info in reversed(mounting.mounts_below(Path(place))):
            linux.umount(info.target, linux.MNT_DETACH)


def arrive(store: Store, layers: list[bytes], piece: int) -> bool:
    """Let layers come in; says whether the last one is kept."""
    digests = [Digest.of(layer) for layer in layers]
    kept = store.blobs.has(digests[-1])
    steps = [Step(digest, digest) for digest in digests]
    with Lease(store._database) as lease, store.layers.chain(steps, lease) as chain:
        for number, (digest, layer) in enumerate(zip(digests, layers, strict=True)):
            if chain.lacks(number):
                stream = Trickle(layer, piece)
                incoming = Incoming(store.blobs, digest, len(layer), stream, whole=False)
                kept = chain.arrive(number, incoming)
        chain.finish()
    return kept


def read(store: Store, digest: Digest) -> bytes:
    with store.blobs.open(digest) as blob:
        parts = []
        while data := blob.read(CHUNK):
            parts.append(data)
    return b"".join(parts)


def base() -> bytes:
    out = io.BytesIO()
    writer = TarWriter(out.write)
    for entry in BASE:
        writer.add(entry)
    writer.close()
    return out.getvalue()


class TestWhatComesInGoesOut:
    """Uncompressed layers, whatever stands in them."""

    @quick
    @given(archives, st.sampled_from([100, 512, 1 << 20]))
    def test_byte_for_byte_or_it_is_not_kept(self, store: Store, layer: bytes, piece: int) -> None:
        digest = Digest.of(layer)
        try:
            kept = arrive(store, [base(), layer], piece)
        except LayerError:
            assert not store.blobs.has(digest)
            return
        if kept:
            assert store.blobs.size(digest) == len(layer)
            assert read(store, digest) == layer
            assert not store.blobs.is_whole(digest)
        else:
            assert not store.blobs.has(digest)

    def test_as_gnu_tar_and_python_write_them(self, store: Store, tmp_path: Path) -> None:
        tree = tmp_path / "tree"
        (tree / "sub").mkdir(parents=True)
        for number in range(30):
            (tree / "sub" / f"{number}").write_bytes(random.Random(number).randbytes(number * 173))
        with (tree / "large").open("wb") as file:
            file.write(random.Random(0).randbytes(5_000_001))
            file.truncate(9_000_000)
        (tree / ("long" * 60)).write_bytes(b"x" * 1000)
        os.link(tree / "large", tree / "linked")
        for options in (
            ["--sparse"],
            ["--format=pax"],
            ["--format=v7", "--exclude=long*"],
            ["--format=oldgnu"],
        ):
            layer = subprocess.run(
                ["tar", "-C", tree, *options, "-c", "."], check=True, capture_output=True
            ).stdout
            assert arrive(store, [layer], 1 << 20), options
            digest = Digest.of(layer)
            assert read(store, digest) == layer
            held = store._assembly.size(digest)
            assert held == len(layer) and not store.blobs.is_whole(digest)
            skeleton = store.layers.stat(str(digest)).skeleton
            # The data of files is not in it.
            assert skeleton is not None and store.blobs.size(skeleton) < 100_000
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive:
            archive.add(tree, "tree")
        assert arrive(store, [packed.getvalue()], 1 << 20)
        assert read(store, Digest.of(packed.getvalue())) == packed.getvalue()


class TestASkeleton:
    """Records of bytes and of parts of files, in the order of the stream."""

    @given(
        st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, 40_000), st.booleans()), max_size=12),
        st.sampled_from([1000, 1 << 20]),
    )
    @settings(max_examples=50, deadline=None)
    def test_reads_back_what_was_told(self, runs: list[tuple[int, int, bool]], piece: int) -> None:
        total = sum(gap + length for gap, length, _ in runs)
        data = random.Random(total).randbytes(total)
        out = io.BytesIO()
        writer = SkeletonWriter(Trickle(data, piece), out.write)
        position = have = 0
        files: dict[bytes, bytes] = {}
        for number, (gap, length, known) in enumerate(runs):
            position += gap
            while have < position:
                have += len(writer.read(1 << 20))
            name = b"%d" % number
            if known:
                files[name] = data[position : position + length]
                writer.refer(Entry(name, Kind.FILE, size=length), name, position)
            position += length
        while writer.read(1 << 20):
            pass
        writer.close()
        found = b""
        for record in read_skeleton(io.BytesIO(out.getvalue())):
            if isinstance(record, Part):
                assert record.length > 256
                found += files[record.path][record.offset : record.offset + record.length]
            else:
                found += record
        assert found == data
