"""What is fuzzed: each reader of strangers' bytes as a function that may only raise what layerfs promises."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, cast

from layerfs.compression import open_decompressed
from layerfs.digest import Digest
from layerfs.errors import LayerError, LayerfsError
from layerfs.oci.config import History, ImageConfig
from layerfs.oci.descriptor import Descriptor
from layerfs.oci.document import load
from layerfs.oci.index import Index
from layerfs.oci.manifest import Manifest
from layerfs.oci.platform import Platform
from layerfs.reference import Reference
from layerfs.registry import challenge, credential_files, mirrors, problems, ranges, referrers, tokens
from layerfs.registry.answer import Answer
from layerfs.registry.origin import Origin, check_way
from layerfs.registry.repository import Repository
from layerfs.registry.settings import Options
from layerfs.runtime.settings import RunSettings, Volume
from layerfs.runtime.users import resolve_user
from layerfs.seekable import estargz, zstd_chunked
from layerfs.seekable.layer import IndexedLayer, open_layer
from layerfs.seekable.ranges import MemoryRanges
from layerfs.seekable.table import TableLayer, build_table
from layerfs.seekable.toc_json import read_entries
from layerfs.transports import docker_archive
from layerfs.tree.budget import Budget
from layerfs.tree.extract import extract
from layerfs.tree.tar_reader import TarReader
from layerfs.tree.toc import read_toc
from layerfs.tree.whiteouts import OverlayWhiteouts
from tests.reliability import mutators
from tests.reliability.mutators import Mutator

# A file system in memory where there is one.
_SCRATCH: Final = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
# What is read of one input at most, so that a large sparse file does not take the time of others.
_READ: Final = 8 << 20
_BUDGET: Final = Budget(bytes=16 << 20, entries=2000, depth=200, ratio_floor=4 << 20)


class Target(NamedTuple):
    """A reader: `run` takes an input, `mutate` makes others of it; `rate` is inputs a second, about."""

    run: Callable[[bytes], None]
    mutate: Mutator
    rate: int


def _quiet(text: str) -> None:
    assert "\n" not in text


# -- tar --------------------------------------------------------------------------------------------


def tar(data: bytes) -> None:
    """Read an archive with all its files."""
    reader = TarReader(io.BytesIO(data), warn=_quiet)
    left = _READ
    try:
        for entry in reader:
            assert entry.path
            assert 0 <= entry.mode <= 0o7777
            assert 0 <= entry.uid < (1 << 32) - 1
            end = 0
            for offset, piece in reader.chunks():
                assert piece
                assert end <= offset
                end = offset + len(piece)
                left -= len(piece)
            assert end <= entry.size
            assert left >= 0, "more data than there is"
        reader.drain()
    except LayerError as error:
        assert error.offset is not None
        assert error.offset <= len(data)
        raise


def pax(data: bytes) -> None:
    """Read records of an extended header."""
    head = bytearray(mutators.pax_header(0, b"0"))
    tar(mutators.pax_header(len(data)) + data + bytes(-len(data) % 512) + bytes(head) + bytes(1024))


def sparse(data: bytes) -> None:
    """Read a sparse map in each of its four forms."""
    text, padded = data[:4096], data + bytes(-len(data) % 512)
    for records in (
        b"GNU.sparse.major=1\nGNU.sparse.minor=0\nGNU.sparse.realsize=1000000",
        b"GNU.sparse.size=1000000\nGNU.sparse.map=" + text.replace(b"\n", b","),
        b"GNU.sparse.size=1000000\n" + text,
    ):
        body = b""
        for line in records.split(b"\n"):
            length = len(line) + 2
            while length != len(line) + 2 + len(b"%d" % length):
                length = len(line) + 2 + len(b"%d" % length)
            body += b"%d %b\n" % (length, line)
        head = bytearray(mutators.pax_header(len(padded), b"0"))
        with contextlib.suppress(LayerfsError):
            tar(mutators.pax_header(len(body)) + body + bytes(-len(body) % 512) + bytes(head) + padded)
    old = bytearray(mutators.pax_header(len(padded), b"S"))
    old[257:265] = b"ustar  \0"
    old[386:495] = data[:109].ljust(109, b"\0")
    mutators.seal(old)
    tar(bytes(old) + padded)


def extraction(data: bytes) -> None:
    """Unpack an archive on a lower tree; nothing beside it may change."""
    with _directory() as scratch:
        (scratch / "lower/d/e").mkdir(parents=True)
        (scratch / "lower/d/f").write_bytes(b"lower")
        (scratch / "lower/l").symlink_to("../outside")
        (scratch / "outside").mkdir()
        (scratch / "outside/kept").write_bytes(b"kept")
        (scratch / "own").mkdir()
        before = _outline(scratch / "outside")
        own = os.open(scratch / "own", os.O_RDONLY | os.O_DIRECTORY)
        try:
            extract(
                io.BytesIO(data), own, budget=_BUDGET, warn=_quiet, whiteouts=OverlayWhiteouts(user=False),
                lower=lambda: os.open(scratch / "lower", os.O_RDONLY | os.O_DIRECTORY),
            )  # fmt: skip
        finally:
            os.close(own)
            assert _outline(scratch / "outside") == before
            assert sorted(os.listdir(scratch)) == ["lower", "outside", "own"]


def _outline(directory: Path) -> list[tuple[str, bytes, int, int]]:
    found = os.lstat(directory)
    return [
        (name, (directory / name).read_bytes(), found.st_mode, found.st_mtime_ns)
        for name in sorted(os.listdir(directory))
    ]


# -- documents --------------------------------------------------------------------------------------


def manifest(data: bytes) -> None:
    Manifest.parse(data)


def index(data: bytes) -> None:
    found = Index.parse(data)
    found.select(None)


def config(data: bytes) -> None:
    found = ImageConfig.parse(data)
    found.with_layer(Digest.of(data), History())
    str(found.platform)


def descriptor(data: bytes) -> None:
    Descriptor.of(load(data, what="descriptor"))


def settings(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    with contextlib.suppress(LayerfsError):
        Volume.parse(text)
    RunSettings.from_json(data)


def reference(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    for parse in (Digest.parse, Platform.parse, Reference.local):
        with contextlib.suppress(LayerfsError):
            parse(text)
    found = Reference.parse(text)
    assert Reference.parse(str(found)) == found
    assert Reference.parse(found.familiar()) == found


# -- indexes of layers ------------------------------------------------------------------------------


def toc_json(data: bytes) -> None:
    for _ in read_entries(io.BytesIO(data), limit=1 << 40, budget=_BUDGET, warn=_quiet):
        pass


def toc(data: bytes) -> None:
    for entry, digest in read_toc(io.BytesIO(data)):
        _check_types(entry, digest)


def seek_table(data: bytes) -> None:
    """Read a table of seek points: the first 4 bytes are the length of the blob that it belongs to."""
    size = int.from_bytes(data[:4], "little") % LARGEST_BLOB
    _walk(TableLayer(MemoryRanges(data[4 : 4 + size]), MemoryRanges(data[4 + size :]), budget=_BUDGET))


def new_table(data: bytes) -> None:
    parts: list[bytes] = []
    build_table(io.BytesIO(data), parts.append, budget=_BUDGET, warn=_quiet)
    _walk(TableLayer(MemoryRanges(data), MemoryRanges(b"".join(parts)), budget=_BUDGET))


LARGEST_BLOB: Final = 1 << 20


def own_index(data: bytes) -> None:
    """Read a layer with an index of its own, eStargz or zstd:chunked, whose manifest vouches for it."""
    for promised in (_promised_estargz(data), _promised_zstd_chunked(data)):
        found = Descriptor("application/octet-stream", Digest.of(data), len(data), annotations=promised)
        layer = open_layer(MemoryRanges(data), found, budget=_BUDGET, warn=_quiet)
        if layer is not None:
            _walk(layer)


def _promised_estargz(data: bytes) -> dict[str, str]:
    foot = len(data) - estargz._FOOTER
    start = estargz.parse_footer(data[foot:]) if foot > 0 else None
    if start is None:
        return {}
    digest = Digest.of(b"")
    with contextlib.suppress(LayerfsError):
        made = estargz.EstargzLayer(MemoryRanges(data), start, data[start:foot], budget=_BUDGET, warn=_quiet)
        digest = made.toc_digest
    return {estargz.TOC_DIGEST: str(digest)}


def _promised_zstd_chunked(data: bytes) -> dict[str, str]:
    if not data.endswith(zstd_chunked.MAGIC) or len(data) < zstd_chunked.FOOTER.size:
        return {}
    numbers = zstd_chunked.FOOTER.unpack(data[-zstd_chunked.FOOTER.size :])[:4]
    table = data[numbers[0] : numbers[0] + numbers[1]]
    position = ":".join(map(str, numbers))
    return {zstd_chunked.CHECKSUM: str(Digest.of(table)), zstd_chunked.POSITION: position}


def _walk(layer: IndexedLayer) -> None:
    left = _READ
    for count, each in enumerate(layer.entries()):
        _check_types(each.entry, each.digest)
        if each.extent is not None and count < 50:
            with contextlib.suppress(LayerfsError):
                for piece in layer.read(each.extent, 0, 1 << 16):
                    left -= len(piece)
            assert left > 0


def _check_types(entry: Any, digest: Any) -> None:
    numbers = (entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.size, *entry.device)
    assert all(type(number) is int for number in numbers), entry
    assert 0 <= entry.mode <= 0o7777
    assert min(entry.uid, entry.gid, entry.size, *entry.device) >= 0
    assert digest is None or (isinstance(digest, str) and len(digest) == 64)
    assert all(isinstance(value, bytes) for value in (entry.path, entry.target, *entry.xattrs.values()))


def decompression(data: bytes) -> None:
    with open_decompressed(io.BytesIO(data), budget=_BUDGET, piece=1 << 18) as plain:
        total = 0
        while piece := plain.read(1 << 18):
            assert len(piece) <= 1 << 20
            total += len(piece)
            if total > _READ:
                return


# -- archives ---------------------------------------------------------------------------------------


def archive(data: bytes) -> None:
    """Open an archive as `load` does, and read what each of its images consists of."""
    stream = cast(BinaryIO, io.BytesIO(data))
    with contextlib.closing(
        docker_archive.open_any(stream, spool=_spool, budget=_BUDGET, warn=_quiet)
    ) as source:
        for image in source.images():
            with contextlib.suppress(LayerfsError):
                found = Manifest.parse(source.manifest(image).raw)
                for each in (found.config, *found.layers):
                    with contextlib.suppress(LayerfsError), source.open(each) as file:
                        file.read(4096)


def documents(data: bytes) -> None:
    """Open an archive whose files are the members of a JSON object; text stands for itself."""
    try:
        members = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(members, dict):
        return
    blocks = []
    for name, value in members.items():
        try:
            raw = value.encode() if isinstance(value, str) else json.dumps(value).encode()
            path = name.encode()
        except (ValueError, RecursionError):
            return
        if not 0 < len(path) < 100 or b"\0" in path:
            continue
        block = bytearray(mutators.pax_header(len(raw), b"0"))
        block[0:100] = path.ljust(100, b"\0")
        mutators.seal(block)
        blocks += [bytes(block), raw, bytes(-len(raw) % 512)]
    archive(b"".join(blocks) + bytes(1024))


def _spool() -> BinaryIO:
    return open(os.memfd_create("spool", os.MFD_CLOEXEC), "w+b", buffering=0)  # type: ignore[return-value]


# -- registries -------------------------------------------------------------------------------------


class _Response:
    """What urllib3 would give."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status, self.headers, self._body = status, headers, io.BytesIO(body)

    def read(self, size: int, decode_content: bool = False) -> bytes:
        return self._body.read(size)

    read1 = read

    length_remaining = 0

    def close(self) -> None: ...

    def release_conn(self) -> None: ...

    def drain_conn(self) -> None: ...


class _Registry:
    """A repository whose every answer is the same."""

    def __init__(self, answer: Callable[[int], Answer]) -> None:
        self.reference = Reference.parse("registry.example/a")
        self._answer = answer

    def send(self, *_: object, **__: object) -> Answer:
        return self._answer(206)

    def fetch(self, *_: object, **__: object) -> tuple[Answer, bytes]:
        answer = self._answer(200)
        return answer, answer.data(1 << 16)


def answers(data: bytes) -> None:
    """Read an answer: its header fields, a blank line, its body."""
    head, _, body = data.partition(b"\n\n")
    headers = problems_headers(head)
    url = "https://registry.example/v2/a/blobs/x?y"

    def answer(status: int) -> Answer:
        return Answer(cast(Any, _Response(status, headers, body)), url, host="registry.example")

    start = Origin.of(url)
    doors = challenge.parse([headers.get("WWW-Authenticate", "")])
    for each in doors:
        with contextlib.suppress(LayerfsError):
            Origin.of(each.parameters.get("realm", ""))
    repository = cast(Repository, _Registry(answer))
    wanted = Descriptor("application/octet-stream", Digest.of(body), max(len(body), 1))
    asked = problems.Asked("registry.example", repository="a")
    for read in (
        lambda: answer(200).length,
        lambda: check_way(start, answer(307).location(), "registry.example"),
        lambda: list(itertools.islice(referrers.pages(repository, "tags/list"), 3)),
        lambda: problems.retry_after(headers),
        lambda: tokens._read_token(body, start),
        lambda: ranges.fetch(repository, wanted, 0, wanted.size),
        lambda: documents_get(repository),
        lambda: str(problems.from_answer(len(head) % 200 + 400, headers, body, asked)),
    ):
        with contextlib.suppress(LayerfsError):
            read()


def documents_get(repository: Repository) -> object:
    from layerfs.registry import documents as fetched

    return fetched.get(repository, "latest")


def problems_headers(head: bytes) -> Mapping[str, str]:
    """Read header fields as urllib3 gives them: Latin-1, no line ends inside."""
    from urllib3 import HTTPHeaderDict

    found = HTTPHeaderDict()
    for line in head.decode("latin-1").replace("\r", " ").split("\n"):
        name, colon, value = line.partition(":")
        if colon and name:
            found.add(name, value.strip(" \t"))
    return cast(Mapping[str, str], found)


def registries_conf(data: bytes) -> None:
    with _file("registries.conf", data) as path:
        options = Options(environment={"CONTAINERS_REGISTRIES_CONF": str(path)}, etc=path.parent / "none")
        for name in ("docker.io/library/debian", "localhost:5000/a/b@sha256:" + "0" * 64):
            with contextlib.suppress(LayerfsError):
                for place in mirrors.endpoints(Reference.parse(name), options):
                    assert isinstance(place.host, str)


def auth_json(data: bytes) -> None:
    for name in ("auth.json", ".dockercfg"):
        with _file(name, data) as path:
            options = Options(authfile=path)
            with contextlib.suppress(LayerfsError):
                credential_files.find("docker.io", "library/debian", options)
            with contextlib.suppress(LayerfsError):
                credential_files.where("quay.io", options)


def accounts(data: bytes) -> None:
    """Look users up in a container's passwd and group."""
    passwd, _, rest = data.partition(b"\n\n")
    group, _, wanted = rest.partition(b"\n\n")
    with _file("passwd", passwd) as path:
        (path.parent / "group").write_bytes(group)
        (path.parent / "etc").symlink_to(".")
        root = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for text in (wanted.decode("utf-8", "surrogateescape")[:200], "app", "", "0:app", "app:wheel"):
                with contextlib.suppress(LayerfsError):
                    user = resolve_user(root, text)
                    assert max(user.uid, user.gid, *user.groups, 0) <= (1 << 32) - 2
        finally:
            os.close(root)


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="layerfs-fuzz-", dir=_SCRATCH))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _file(name: str, data: bytes) -> Iterator[Path]:
    with _directory() as directory:
        path = directory / name
        path.write_bytes(data)
        yield path


_HEADER_WORDS: Final = (
    b"WWW-Authenticate: Bearer ", b"realm=\"https://a/t\"", b"service=", b"scope=", b"Basic ", b",", b'"',
    b"\\",
    b"Location: ", b"http://[", b"https://[::1]:99999/", b"//", b"?", b"#", b"Link: </v2/x>; rel=\"next\"",
    b"<",
    b">", b"Content-Range: bytes ", b"0-0/1", b"9" * 5000, b"*", b"Content-Length: ", b"Retry-After: ",
    b"Wed, 21 Oct 2015 07:28:00 GMT", b"Mon, 99 Foo 99999 99:99:99 +9999", b"\n\n", b"\n", b"\xb2", b"\xff",
    b"{\"token\": \"x\", \"expires_in\": ", b"1e999", b"{\"errors\": [{\"code\": \"DENIED\"}]}", b"@", b"%00",
    b"Docker-Content-Digest: sha256:", b"Content-Type: application/json", b"\x00", b"-1", b"http://127.1/",
)  # fmt: skip
_NAME_WORDS: Final = (
    b"docker.io/", b"localhost", b":5000", b"/", b":", b"@", b"@sha256:" + b"0" * 64, b"latest", b"-", b"__",
    b"_",
    b".", b"..", b"[::1]", b"A", b"a" * 130, b"linux/", b"arm64", b"/v8", b"\n", b"\0", b" ", b"\xc3\xa9",
    b"index.docker.io", b"library/", b"0" * 64, b"1" * 5000,
)  # fmt: skip
_TOML_WORDS: Final = (
    b"[[registry]]\n", b"[[registry.mirror]]\n", b"[registries.insecure]\n", b"[registries.block]\n",
    b"registries = [\"a\"]\n", b"registries = 1\n", b"[registries]\ninsecure = 1\n", b"location = \"a\"\n",
    b"prefix = \"*.io\"\n", b"blocked = true\n", b"insecure = \"x\"\n", b"mirror = 1\n", b"prefix = []\n",
    b"pull-from-mirror = \"tag-only\"\n", b"mirror-by-digest-only = 1\n", b"registry = 1\n", b"[", b"]",
    b"{", b"}",
    b"=", b"\"", b"'''", b"a.b.c = 1\n", b"1979-05-27T07:32:00Z", b"\xff", b"location = \"/\"\n", b"1e999",
    b"location = \"\"\n", b"location = \"a//b\"\n", b"9" * 5000, b"unqualified-search-registries = 1\n",
)  # fmt: skip
_PASSWD_WORDS: Final = (
    b"root:x:0:0:root:/root:/bin/sh\n", b"app:x:1000:1000::/:/\n", b"wheel:x:10:app,root\n", b":", b",",
    b"\n\n",
    b"4294967295", b"-1", b"\xb2", b"9" * 5000, b"\xff", b"\0", b"#", b"\n", b"app", b"1000", b"+", b" 1",
)  # fmt: skip

TARGETS: Final[Mapping[str, Target]] = {
    "tar": Target(tar, mutators.of_tar, 8000),
    "pax": Target(pax, mutators.of_pax, 8000),
    "sparse": Target(sparse, mutators.words(b"0\n", b"1\n", b",", b"\n", b"512", b"9" * 20, b"-1",
                     b"00000001000\0", b"GNU.sparse.offset=0\n", b"GNU.sparse.numbytes=5\n", b"\x80", b"\1",
                     b"9223372036854775807"), 3000),
    "extraction": Target(extraction, mutators.of_tar, 400),
    "archive": Target(archive, mutators.of_tar, 2000),
    "documents": Target(documents, mutators.of_json, 2000),
    "manifest": Target(manifest, mutators.of_json, 5000),
    "index": Target(index, mutators.of_json, 5000),
    "config": Target(config, mutators.of_json, 5000),
    "descriptor": Target(descriptor, mutators.of_json, 8000),
    "settings": Target(settings, mutators.of_json, 8000),
    "reference": Target(reference, mutators.words(*_NAME_WORDS), 20000),
    "toc_json": Target(toc_json, mutators.of_json, 3000),
    "toc": Target(toc, mutators.of_json_lines, 3000),
    "seek_table": Target(seek_table, mutators.anyhow, 3000),
    "new_table": Target(new_table, mutators.of_tar, 500),
    "own_index": Target(own_index, mutators.anyhow, 2000),
    "decompression": Target(decompression, mutators.of_compressed, 5000),
    "answers": Target(answers, mutators.words(*_HEADER_WORDS), 2000),
    "registries_conf": Target(registries_conf, mutators.words(*_TOML_WORDS), 2000),
    "auth_json": Target(auth_json, mutators.of_json, 1500),
    "accounts": Target(accounts, mutators.words(*_PASSWD_WORDS), 1500),
}  # fmt: skip
"""Every target by its name."""
