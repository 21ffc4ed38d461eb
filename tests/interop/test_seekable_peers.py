"""Layers that carry an index: what podman and stargz-snapshotter's library write is read, and the reverse."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.oci.descriptor import Descriptor
from layerfs.registry.settings import Options
from layerfs.seekable import zstd_chunked
from layerfs.seekable.layer import open_layer
from layerfs.seekable.ranges import MemoryRanges
from layerfs.store import Store
from layerfs.transports.packing import Packing
from layerfs.value import replace
from tests.interop import peers
from tests.support.fault_proxy import FaultProxy
from tests.support.registries import Registry, installed
from tests.support.seekable import files_of, written

# Where Debian's packages have the sources of Go libraries.
GO_SOURCES = Path("/usr/share/gocode/src/github.com")
NOISE = random.Random(5).randbytes(3_000_000)
FILES = {
    "etc/os-release": b"NAME=small\n",
    "big": NOISE + bytes(2_000_000) + NOISE[:1000],
    "zeros": bytes(5000),
    "empty": b"",
    "usr/bin/tool": b"#!/bin/sh\n" * 9000,
}


def layer() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("etc", "usr", "usr/bin"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for name, data in FILES.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        link = tarfile.TarInfo("usr/bin/same")
        link.type, link.linkname = tarfile.LNKTYPE, "usr/bin/tool"
        archive.addfile(link)
    return packed.getvalue()


def go(directory: Path, library: str, program: str) -> Path:
    """Build a program with one of Debian's Go libraries."""
    peers.need("go")
    if not (GO_SOURCES / library).is_dir():
        pytest.skip(f"not installed: the Go library {library}")
    (directory / "main.go").write_text(program)
    environment = {
        **os.environ, "GO111MODULE": "off", "GOPATH": str(GO_SOURCES.parents[1]), "GOFLAGS": "",
        "GOCACHE": str(directory / "cache"),
    }  # fmt: skip
    subprocess.run(["go", "build", "-o", "program", "main.go"], cwd=directory, env=environment, check=True)
    return directory / "program"


ESTARGZ = """
package main

import (
	"fmt"
	"io"
	"os"

	"github.com/containerd/stargz-snapshotter/estargz"
	digest "github.com/opencontainers/go-digest"
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	file, err := os.Open(os.Args[2])
	must(err)
	status, err := file.Stat()
	must(err)
	section := io.NewSectionReader(file, 0, status.Size())
	if os.Args[1] == "build" {
		blob, err := estargz.Build(section, estargz.WithChunkSize(1<<18))
		must(err)
		out, err := os.Create(os.Args[3])
		must(err)
		_, err = io.Copy(out, blob)
		must(err)
		must(blob.Close())
		fmt.Println(blob.TOCDigest(), blob.DiffID())
		return
	}
	reader, err := estargz.Open(section)
	must(err)
	expected, err := digest.Parse(os.Args[3])
	must(err)
	verifier, err := reader.VerifyTOC(expected)
	must(err)
	for _, name := range os.Args[4:] {
		entry, ok := reader.Lookup(name)
		if !ok {
			must(fmt.Errorf("no %s", name))
		}
		open, err := reader.OpenFile(name)
		must(err)
		whole := digest.Canonical.Digester()
		for offset := int64(0); offset < entry.Size; {
			chunk, ok := reader.ChunkEntryForOffset(name, offset)
			if !ok {
				must(fmt.Errorf("no chunk of %s at %d", name, offset))
			}
			data := make([]byte, chunk.ChunkSize)
			if _, err := open.ReadAt(data, offset); err != nil && err != io.EOF {
				must(err)
			}
			own, err := verifier.Verifier(chunk)
			must(err)
			own.Write(data)
			if !own.Verified() {
				must(fmt.Errorf("chunk of %s at %d is wrong", name, offset))
			}
			whole.Hash().Write(data)
			offset += chunk.ChunkSize
		}
		fmt.Println(name, whole.Digest())
	}
}
"""

CHUNKED = """
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/containers/storage/pkg/chunked/compressor"
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	in, err := os.Open(os.Args[1])
	must(err)
	out, err := os.Create(os.Args[2])
	must(err)
	annotations := map[string]string{}
	writer, err := compressor.ZstdCompressor(out, annotations, nil)
	must(err)
	_, err = io.Copy(writer, in)
	must(err)
	must(writer.Close())
	text, err := json.Marshal(annotations)
	must(err)
	fmt.Println(string(text))
}
"""


def check(blob: bytes, annotations: dict[str, str], *more: bytes) -> None:
    descriptor = replace(Descriptor.to(blob, "application/octet-stream"), annotations=annotations)
    found = open_layer(MemoryRanges(blob), descriptor)
    assert found is not None
    bodies = files_of(found)
    assert {name: bodies[name.encode()] for name in FILES} == FILES
    assert set(bodies) - {name.encode() for name in FILES} == set(more)
    digests = {each.entry.path: each.digest for each in found.entries() if each.digest is not None}
    assert digests[b"big"] == hashlib.sha256(FILES["big"]).hexdigest()


def test_estargz_of_the_snapshotters_library_is_read_and_it_reads_ours(tmp_path: Path) -> None:
    program = go(tmp_path, "containerd/stargz-snapshotter/estargz", ESTARGZ)
    (tmp_path / "layer.tar").write_bytes(layer())
    output = peers.call([program, "build", tmp_path / "layer.tar", tmp_path / "theirs"]).decode()
    toc_digest = output.split()[0]
    check(
        (tmp_path / "theirs").read_bytes(),
        {"containerd.io/snapshot/stargz/toc.digest": toc_digest},
        b".no.prefetch.landmark",
        b"stargz.index.json",
    )
    blob, done = written(layer(), "estargz")
    (tmp_path / "ours").write_bytes(blob)
    promised = done.annotations["containerd.io/snapshot/stargz/toc.digest"]
    lines = peers.call([program, "verify", tmp_path / "ours", promised, *FILES]).decode().splitlines()
    assert lines == [f"{name} sha256:{hashlib.sha256(data).hexdigest()}" for name, data in FILES.items()]


def test_zstd_chunked_of_the_storage_library_is_read(tmp_path: Path) -> None:
    program = go(tmp_path, "containers/storage/pkg/chunked/compressor", CHUNKED)
    (tmp_path / "layer.tar").write_bytes(layer())
    annotations = json.loads(peers.call([program, tmp_path / "layer.tar", tmp_path / "theirs"]))
    check((tmp_path / "theirs").read_bytes(), annotations)


def test_zstd_chunked_that_podman_pushes_is_read(podman: peers.Podman, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        entry = tarfile.TarInfo("big")
        entry.size = len(NOISE)
        archive.addfile(entry, io.BytesIO(NOISE))
    (tmp_path / "layer.tar").write_bytes(packed.getvalue())
    podman("import", "--quiet", tmp_path / "layer.tar", "localhost/chunked:1")
    podman(
        "push", "--quiet", "--compression-format", "zstd:chunked", "localhost/chunked:1",
        f"oci:{tmp_path / 'layout'}:1",
    )  # fmt: skip
    [entry_of_index] = json.loads((tmp_path / "layout/index.json").read_bytes())["manifests"]
    blobs = tmp_path / "layout/blobs/sha256"
    manifest = json.loads((blobs / entry_of_index["digest"].partition(":")[2]).read_bytes())
    promises = manifest["layers"][0]["annotations"]
    assert zstd_chunked.CHECKSUM in promises or zstd_chunked.OLD_CHECKSUM in promises
    with (
        Store.open(tmp_path / "store", driver="overlay2") as store,
        store.read_image(f"oci:{tmp_path / 'layout'}:1") as image,
    ):
        assert b"".join(image.read(b"/big", 1_000_000, 5000)) == NOISE[1_000_000:1_005_000]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    if not installed():
        pytest.skip("not installed: docker-registry")
    with Registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.mark.parametrize("compression", ["estargz", "zstd:chunked", "gzip"])
def test_an_image_in_a_registry_is_read_by_ranges(
    registry: Registry, tmp_path: Path, compression: str
) -> None:
    peers.need("skopeo")
    from layerfs.transports.rewriting import Rewriting

    name = f"docker://{registry.host}/read-{compression.replace(':', '-')}:1"
    (tmp_path / "layer.tar").write_bytes(layer())
    with Store.open(tmp_path / "store", driver="overlay2") as store:
        store.import_tree(tmp_path / "layer.tar", "made:1")
        with Rewriting(
            packing=Packing.parse(compression), spool=store._spool, budget=store._budget
        ) as change:
            store.push("made:1", name, rewriting=change)
        manifest = json.loads(peers.skopeo("inspect", "--raw", "--tls-verify=false", name))
        size = manifest["layers"][0]["size"]
    with (
        FaultProxy(registry.host) as proxy,
        Store.open(tmp_path / "other", driver="overlay2") as store,
        store.read_image(name.replace(registry.host, proxy.host), options=Options()) as image,
    ):
        assert image.tree.find(b"/usr/bin/same").links == 2
        listed = proxy.sent
        assert b"".join(image.read(b"/etc/os-release")) == FILES["etc/os-release"]
        read = proxy.sent
        assert b"".join(image.read(b"/big")) == FILES["big"]
    if compression == "gzip":
        assert listed > size
    else:
        assert 0 < listed < 0.05 * size
        assert listed < read < 0.06 * size
