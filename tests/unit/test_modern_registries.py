"""Tests with a registry of distribution-spec 1.1, which Debian's is not yet; by an address of IPv6, too."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.commandline import CommandLine
from tests.support.modern_registry import ModernRegistry
from tests.support.scripted import Asked, Scripted, answer
from tests.support.tiny_images import (
    INDEX,
    MANIFEST,
    TinyImage,
    document,
    layout_files,
    layout_of_index,
    multi_platform,
    sha256,
    write_files,
)

# More than there are connections at once: whoever was refused is let in with the next token.
_USES = 8


@pytest.fixture
def layerfs(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path / "store")


@contextmanager
def serving(modern: ModernRegistry, address: str) -> Iterator[str]:
    try:
        server = Scripted(modern, address=address)
    except OSError as error:
        pytest.skip(f"no {address}: {error}")
    with server:
        yield server.host


@pytest.fixture(
    params=[("127.0.0.1", {}), ("::1", {"filters": False, "page": 1})], ids=["IPv4", "IPv6, paged"]
)
def registry(request: pytest.FixtureRequest) -> Iterator[tuple[ModernRegistry, str]]:
    address, options = request.param
    modern = ModernRegistry(**options)
    with serving(modern, address) as host:
        yield modern, host


def test_referrers_are_attached_listed_and_deleted_without_a_tag_of_theirs(
    layerfs: CommandLine, registry: tuple[ModernRegistry, str], tmp_path: Path
) -> None:
    modern, host = registry
    image = TinyImage(b"subject")
    write_files(tmp_path / "from", layout_files([image.entry(name="1")], image.blobs))
    layerfs.good("copy", "-q", f"oci:{tmp_path}/from:1", f"docker://{host}/team/app:1")
    (tmp_path / "bill").write_text("{}")
    (tmp_path / "signature").write_text("signed")
    digests = [
        layerfs.good("attach", "-q", "--artifact-type", f"a/{name}", f"{host}/team/app:1", tmp_path / name)
        for name in ("bill", "signature")
    ]
    assert layerfs.good("tags", f"{host}/team/app") == "1\n"
    found = layerfs.json("referrers", f"{host}/team/app:1")
    assert found["subject"] == sha256(image.manifest)
    assert [each["digest"] + "\n" for each in found["referrers"]] == digests
    only = layerfs.json("referrers", "--artifact-type", "a/signature", f"{host}/team/app:1")
    assert [each["artifactType"] for each in only["referrers"]] == ["a/signature"]
    layerfs.good("delete", f"{host}/team/app@{digests[0].strip()}")
    assert len(layerfs.json("referrers", f"{host}/team/app:1")["referrers"]) == 1
    assert list(modern.tags) == ["1"]


def sha512_index() -> tuple[bytes, list[TinyImage], bytes]:
    """Make an index that names the first of its images by SHA-512; give the other layout's file, too."""
    raw, images = multi_platform("linux/amd64", "linux/arm64/v8")
    members = json.loads(raw)
    first = images[0].manifest
    members["manifests"][0]["digest"] = f"sha512:{hashlib.sha512(first).hexdigest()}"
    return document(members), images, first


def layout(directory: Path) -> tuple[bytes, list[TinyImage]]:
    index, images, first = sha512_index()
    layout_of_index(directory, index, images, name="1")
    write_files(directory, {f"blobs/sha512/{hashlib.sha512(first).hexdigest()}": first})
    return index, images


def test_an_index_may_name_its_images_by_other_digests(layerfs: CommandLine, tmp_path: Path) -> None:
    modern = ModernRegistry()
    with serving(modern, "127.0.0.1") as host:
        _over_and_back(layerfs, modern, host, tmp_path)


def _over_and_back(layerfs: CommandLine, modern: ModernRegistry, host: str, tmp_path: Path) -> None:
    index, images = layout(tmp_path / "from")
    copied = layerfs.good("copy", "-q", "--all", f"oci:{tmp_path}/from:1", f"docker://{host}/app:1")
    assert copied.strip() == sha256(index)
    assert f"sha512:{hashlib.sha512(images[0].manifest).hexdigest()}" in modern.manifests
    for place in (f"oci:{tmp_path}/to:1", f"oci-archive:{tmp_path}/to.tar:1"):
        assert layerfs.good("copy", "-q", "--all", f"docker://{host}/app:1", place).strip() == sha256(index)
        assert layerfs.good("inspect", "--raw", place).encode() == index
    layerfs.good("pull", "-q", "--all-platforms", f"{host}/app:1")
    pushed = layerfs.good("push", "-q", "--all-platforms", f"{host}/app:1", f"docker://{host}/app:2")
    assert pushed.strip() == sha256(index)
    layerfs.good("check")


def nested(depth: int, width: int) -> tuple[bytes, dict[str, bytes]]:
    """Make an index of `width` times the same index, and so on, down to one image; and all of its blobs."""
    image = TinyImage(b"deep")
    blobs = {sha256(blob): blob for blob in image.blobs}
    below: dict[str, Any] = {**image.entry(with_platform=True)}
    raw = b""
    for _ in range(depth):
        raw = document({"schemaVersion": 2, "mediaType": INDEX, "manifests": [below] * width})
        blobs[sha256(raw)] = raw
        below = TinyImage.describe(raw, INDEX)
    return raw, blobs


def test_an_index_of_the_same_over_and_over_is_walked_once(layerfs: CommandLine, tmp_path: Path) -> None:
    modern = ModernRegistry()
    raw, blobs = nested(7, 300)
    for blob in blobs.values():
        modern.add(blob)
        if b'"manifests"' in blob or b'"layers"' in blob:
            modern.put(blob, INDEX if b'"manifests"' in blob else MANIFEST)
    modern.put(raw, INDEX, "1")
    with Scripted(modern) as server:
        layerfs.good("copy", "-q", "--all", f"docker://{server.host}/app:1", f"oci:{tmp_path}/to:1")
        layerfs.good("pull", "-q", "--all-platforms", f"{server.host}/app:1")
        assert len(server.asked) < 60


class _Forgetful(ModernRegistry):
    """Forgets a token after some requests, whatever it had said of how long it lasts."""

    def __init__(self) -> None:
        super().__init__()
        self.left: list[int] = []
        self._lock = threading.Lock()

    def __call__(self, asked: Asked) -> bytes:
        if asked.target.startswith("/token"):
            self.left.append(_USES)
            token = {"token": f"t{len(self.left) - 1}", "expires_in": 3600}
            return answer(200, json.dumps(token).encode(), Content_Type="application/json")
        kind, _, number = asked.headers.get("authorization", "").partition(" t")
        with self._lock:
            if kind != "Bearer" or not self.left[int(number)]:
                realm = f'Bearer realm="http://{asked.headers["host"]}/token",service="s"'
                return answer(401, WWW_Authenticate=realm)
            self.left[int(number)] -= 1
        return super().__call__(asked)


def test_tokens_that_end_on_the_way_are_renewed(layerfs: CommandLine, tmp_path: Path) -> None:
    image = TinyImage(*(os.urandom(50_000) for _ in range(12)), os.urandom(2_000_000))
    write_files(tmp_path / "from", layout_files([image.entry(name="1")], image.blobs))
    forgetful = _Forgetful()
    with Scripted(forgetful) as server:
        place = f"docker://{server.host}/app:1"
        for words in ((f"oci:{tmp_path}/from:1", place), (place, f"oci:{tmp_path}/to:1")):
            before = len(forgetful.left)
            assert layerfs.good("copy", "-q", *words).strip() == sha256(image.manifest)
            assert len(forgetful.left) - before > 1
