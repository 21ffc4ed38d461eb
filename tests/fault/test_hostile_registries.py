"""Tests of registries that mean ill: each answer ends in one error, soon, and nothing is believed or told."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfs.digest import Digest
from layerfs.errors import LayerfsError, RegistryError, UnreachableError, UntrustedError
from layerfs.oci import media_types
from layerfs.oci.descriptor import Descriptor
from layerfs.reference import Reference
from layerfs.registry import manifests
from layerfs.registry.credentials import Credentials
from layerfs.registry.download import fetch_whole
from layerfs.registry.origin import Origin, check_way
from layerfs.registry.repository import Repository
from layerfs.registry.session import Session
from layerfs.registry.settings import Options
from layerfs.registry.upload import Upload
from layerfs.value import replace
from tests.support.commandline import CommandLine
from tests.support.estargz_images import TOC_DIGEST, EstargzImage
from tests.support.modern_registry import ModernRegistry
from tests.support.registries import put_blob
from tests.support.scripted import Answers, Asked, Scripted, answer
from tests.support.tiny_images import MANIFEST, TinyImage, document, layout_files, tar, write_files

QUICK = Options(attempts=2, backoff=0.01, read_timeout=5, connect_timeout=5)
ALICE = Credentials("alice", "wonderland")


def _repository(server: Scripted, options: Options = QUICK) -> Repository:
    return Session(options).repository(Reference.parse(f"{server.host}/app:1"))


def _after_probe(given: Answers) -> Answers:
    return lambda asked: answer(200, b"{}") if asked.target == "/v2/" else given(asked)


def _endless() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    for _ in itertools.repeat(None):
        yield b"100000\r\n" + bytes(1 << 20) + b"\r\n"


def _wide() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    while True:
        yield b"X-Wide: " + b"x" * 60000 + b"\r\n"


def _long_line() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nX-Long: "
    while True:
        yield b"x" * 60000


ANSWERS: dict[str, Callable[[Asked], Iterator[bytes] | bytes]] = {
    "a body without end": lambda asked: _endless(),
    "header fields without end": lambda asked: _wide(),
    "a header line without end": lambda asked: _long_line(),
    "two lengths": lambda asked: answer(200, b"{}", Content_Length="2, 7"),
    "a redirect to no URL": lambda asked: answer(302, Location="http://[bad"),
    "a redirect to a file": lambda asked: answer(302, Location="file:///etc/passwd"),
    "a redirect to nowhere": lambda asked: answer(302),
    "a redirect to a host of odd letters": lambda asked: answer(302, Location="http://localhost\\.a/x"),
    "a redirect to itself": lambda asked: answer(302, Location=asked.target),
    "a redirect to a port that is none": lambda asked: answer(302, Location="http://a:99999/"),
    "a status that is none": lambda asked: b"HTTP/1.1 999999999999 Odd\r\n\r\n",
    "no HTTP": lambda asked: b"SSH-2.0-OpenSSH_9.2\r\n",
    "nothing": lambda asked: b"",
    "a pause without end": lambda asked: answer(429, Retry_After="9" * 5000),
    "a pause until a day that is none": lambda asked: answer(
        429, Retry_After="Mon, 31 Feb 99999 99:99:99 GMT"
    ),
    "a document in gzip": lambda asked: answer(200, b"\x1f\x8b\x08", Content_Encoding="gzip"),
    "a number of 5000 digits": lambda asked: answer(200, b'{"schemaVersion":' + b"9" * 5000 + b"}"),
    "brackets without end": lambda asked: answer(200, b'{"a":' + b"[" * 1000000),
    "a challenge of nothing": lambda asked: answer(401, WWW_Authenticate="Bearer"),
    "a challenge of commas": lambda asked: answer(401, WWW_Authenticate="," * 60000),
    "a realm that is no URL": lambda asked: answer(401, WWW_Authenticate='Bearer realm="http://[bad"'),
    "a realm that is a file": lambda asked: answer(401, WWW_Authenticate='Bearer realm="file:///etc/passwd"'),
}


# What can only be told from a broken connection by looking closer than is worth it.
CUTS = (
    "header fields without end", "a header line without end", "two lengths", "a status that is none",
    "no HTTP", "nothing",
)  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_means_ill_is_one_error(name: str) -> None:
    with Scripted(_after_probe(ANSWERS[name])) as server, pytest.raises(LayerfsError) as refused:
        manifests.get(_repository(server), "1")
    assert 1 <= len(server.asked) < 20
    # The fault is told, and not that of a connection, but where it is one.
    assert isinstance(refused.value, UnreachableError) is (name in CUTS), repr(refused.value)


def test_a_document_that_is_packed_is_said_to_be() -> None:
    given = answer(200, b"\x1f\x8b\x08", Content_Encoding="gzip")
    told = "manifests/1 comes in gzip, which nobody asked for"
    with Scripted(_after_probe(lambda asked: given)) as server, pytest.raises(RegistryError, match=told):
        manifests.get(_repository(server), "1")


def test_a_length_that_is_no_number_says_nothing() -> None:
    with Scripted(_after_probe(lambda asked: answer(200, b"{}", Content_Length="9" * 5000))) as server:
        assert manifests.get(_repository(server), "1")[0] == b"{}"


# ---- where answers lead


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1\\.a/", "https://a\\@b/", "https://a.example\t.b/", "https://\uff41.example/", "http://%31/",
     "https://a b/", "http://[::1/", "file:///etc/passwd", "unix:///run/x", "//a/b"],
)  # fmt: skip
def test_what_libraries_read_in_several_ways_is_no_url(url: str) -> None:
    with pytest.raises(UntrustedError):
        Origin.of(url)


@pytest.mark.parametrize(
    "target",
    ["http://169.254.169.254/latest", "http://[fe80::1%25eth0]/", "http://0.0.0.0/", "http://2852039166/",
     "http://[::ffff:169.254.169.254]/"],
)  # fmt: skip
@pytest.mark.parametrize("start", ["http://127.0.0.1:5000", "http://registry.example.com", "http://10.0.0.1"])
def test_nobody_sends_us_to_the_link(start: str, target: str) -> None:
    with pytest.raises(UntrustedError):
        check_way(Origin.of(start), target, "registry")


def test_blobs_are_not_sent_to_where_a_registry_must_not_lead() -> None:
    def elsewhere(asked: Asked) -> bytes:
        return answer(202, Location="http://169.254.169.254/upload")

    with Scripted(_after_probe(elsewhere)) as server, pytest.raises(UntrustedError):
        put_blob(_repository(server), b"secret", "application/octet-stream")


# ---- lists


def _page(asked: Asked, link: str) -> bytes:
    body = json.dumps({"name": "app", "tags": ["a"]}).encode()
    return answer(200, body, Content_Type="application/json", Link=f'<{link}>; rel="next"')


def test_a_list_that_leads_back_to_itself_is_an_error() -> None:
    with Scripted(_after_probe(lambda asked: _page(asked, "/v2/app/tags/list?last=a"))) as server:
        with pytest.raises(RegistryError, match="without end"):
            list(manifests.tags(_repository(server)))
        assert len(server.asked) == 2


def test_a_list_of_ever_new_pages_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerfs.registry.referrers._MOST_PAGES", 5)
    numbers = itertools.count()
    with Scripted(_after_probe(lambda asked: _page(asked, f"?n={next(numbers)}"))) as server:
        with pytest.raises(RegistryError, match="without end"):
            list(manifests.tags(_repository(server)))
        assert len(server.asked) == 5


def test_a_list_goes_on_at_its_own_host() -> None:
    with Scripted(lambda asked: answer(200, b"{}")) as other:

        def pages(asked: Asked) -> bytes:
            return _page(asked, f"http://{other.host}/v2/app/tags/list?last=a")

        with Scripted(_after_probe(pages)) as server, pytest.raises(RegistryError, match="without end"):
            list(manifests.tags(_repository(server, replace(QUICK, creds=ALICE))))
        assert [asked.target for asked in server.asked][1:] == ["/v2/app/tags/list?last=a"]
        assert other.asked == []


# ---- tokens


@pytest.mark.parametrize(
    "given",
    ['{"token": "t", "expires_in": 1' + "0" * 400 + "}", '{"token": "t", "expires_in": 1e999}',
     '{"token": "t", "expires_in": -5}', '{"token": "t", "expires_in": NaN}'],
)  # fmt: skip
def test_a_token_lasts_as_long_as_makes_sense(given: str) -> None:
    def answers(asked: Asked) -> bytes:
        if asked.target.startswith("/token"):
            return answer(200, given.encode())
        if asked.headers.get("authorization") == "Bearer t":
            return answer(200, b"{}", Content_Type=media_types.OCI_MANIFEST)
        return answer(401, WWW_Authenticate=f'Bearer realm="http://{asked.headers["host"]}/token"')

    with Scripted(answers) as server:
        assert manifests.get(_repository(server), "1")[0] == b"{}"


@pytest.mark.parametrize(
    "given",
    ['{"token": "a\\r\\nX-Evil: 1"}', '{"token": 7}', '{"token": ""}', "[]", "null", '"t"',
     '{"token": "\\u00e9"}', "[" * 100000, '{"token": "' + "t" * (2 << 20) + '"}'],
)  # fmt: skip
def test_what_is_no_token_is_told(given: str) -> None:
    def answers(asked: Asked) -> bytes:
        if asked.target.startswith("/token"):
            return answer(200, given.encode())
        return answer(401, WWW_Authenticate=f'Bearer realm="http://{asked.headers["host"]}/token"')

    with Scripted(answers) as server, pytest.raises(LayerfsError):
        manifests.get(_repository(server), "1")
    assert len(server.asked) < 20


def test_a_proof_that_is_never_accepted_is_asked_for_twice_at_most() -> None:
    def answers(asked: Asked) -> bytes:
        if asked.target.startswith("/token"):
            return answer(200, json.dumps({"token": f"t{len(server.asked)}"}).encode())
        return answer(401, WWW_Authenticate=f'Bearer realm="http://{asked.headers["host"]}/token"')

    with Scripted(answers) as server, pytest.raises(LayerfsError):
        manifests.get(_repository(server), "1")
    assert len(server.asked) <= 6


# ---- blobs


def _blob(given: Answers, size: int = 1000) -> bytes:
    data = bytes(size)
    with Scripted(_after_probe(given)) as server:
        return fetch_whole(_repository(server), Descriptor("application/octet-stream", Digest.of(data), size))


@pytest.mark.parametrize(
    "given",
    [
        lambda asked: answer(200, bytes(1001)),
        lambda asked: answer(200, bytes(999)),
        lambda asked: answer(200, bytes(1000), Content_Length="10"),
        lambda asked: answer(206, bytes(1000), Content_Range="bytes 0-999/1000"),
        lambda asked: answer(416),
    ],
)
def test_a_blob_of_another_length_is_refused_or_cut(given: Answers) -> None:
    with pytest.raises(LayerfsError):
        _blob(given)


def test_a_blob_without_end_ends_where_it_was_promised_to() -> None:
    assert _blob(lambda asked: _endless()) == bytes(1000)


def test_an_upload_that_is_forgotten_and_remembered_by_turns_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("layerfs.registry.ranges._PAUSE", 0)
    turns = itertools.cycle([500, 0, 700, 0])

    def answers(asked: Asked) -> bytes:
        if asked.method == "POST":
            return answer(202, Location="/v2/app/blobs/uploads/1")
        if asked.method == "GET":
            return answer(204, Location="/v2/app/blobs/uploads/1", Range=f"0-{next(turns)}")
        return b""

    data = bytes(1000)
    descriptor = Descriptor("application/octet-stream", Digest.of(data), len(data))
    with Scripted(_after_probe(answers)) as server:
        sending = Upload(_repository(server), descriptor, lambda: io.BytesIO(data))
        with pytest.raises(LayerfsError):
            sending.send()
    assert len(server.asked) < 60


# ---- what reaches the terminal


def test_a_strangers_words_move_no_cursor_and_forge_no_line(tmp_path: Path) -> None:
    layerfs = CommandLine(tmp_path / "store")
    modern = ModernRegistry()
    modern.tags = {"good": "", "\x1b[31mred\nforged": ""}
    with Scripted(modern) as server:
        assert sorted(layerfs.good("tags", f"{server.host}/app").splitlines()) == [" [31mred forged", "good"]
    image = EstargzImage(tar({"file": b"content"}))
    manifest = json.loads(image.manifest)
    evil = "\x1b]0;owned\x07\nhint: run this"
    manifest["layers"][0]["annotations"] = {TOC_DIGEST: evil}
    image.manifest = document(manifest)
    write_files(tmp_path / "from", layout_files([image.entry(name="1")], [*image.blobs, image.manifest]))
    done = layerfs.run("ls", f"oci:{tmp_path}/from:1")
    assert done.status == 2
    assert done.err.endswith("its descriptor promises ?]0;owned??hint: run this\n")
    debugged = layerfs.run("--debug", "mount", "--lazy", f"oci:{tmp_path}/from:1", tmp_path)
    assert debugged.status == 1
    assert not {"\x1b", "\x07"} & set(debugged.err)


def test_a_password_is_not_in_the_list_of_processes_while_a_registry_is_asked(tmp_path: Path) -> None:
    shown = []

    def answers(asked: Asked) -> bytes:
        for place in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = place.read_bytes()
                if str(tmp_path).encode() in words:
                    shown.append(words)
        if asked.headers.get("authorization") == ALICE.basic():
            return answer(404, b"{}", Content_Type="application/json")
        return answer(401, WWW_Authenticate='Basic realm="x"')

    layerfs = CommandLine(tmp_path / "store")
    with Scripted(answers) as server:
        place = f"docker://{server.host}/app:1"
        for words in (
            ("pull", "--creds", "alice:wonderland", place),
            ("copy", "--src-creds=alice:wonderland", place, f"oci:{tmp_path}/to"),
            ("login", "-u", "alice", "-pwonderland", "--authfile", tmp_path / "auth.json", server.host),
        ):
            layerfs.run(*words)
        proven = [asked for asked in server.asked if asked.headers.get("authorization") == ALICE.basic()]
    assert len(proven) >= 3
    assert shown and not [words for words in shown if b"wonderland" in words]


def test_tags_that_may_not_be_listed_keep_nobody_from_looking_at_an_image(tmp_path: Path) -> None:
    modern = ModernRegistry()
    image = TinyImage(b"text")
    for blob in image.blobs:
        modern.add(blob)
    modern.put(image.manifest, MANIFEST, "1")

    def answers(asked: Asked) -> bytes:
        return answer(403) if "/tags/" in asked.target else modern(asked)

    with Scripted(answers) as server:
        done = CommandLine(tmp_path / "store").run("inspect", f"docker://{server.host}/app:1")
    assert done.status == 0
    assert json.loads(done.out)[0]["tags"] is None
    assert done.err.startswith("warning: the tags are not known: ")
