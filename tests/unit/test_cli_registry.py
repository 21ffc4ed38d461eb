"""Tests of what commands do with a real registry: pull, push, copy, tags, delete, inspect, referrers."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.commandline import CommandLine
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.registries import PASSWORD, USER, Registry
from tests.support.terminals import on_terminal, read_until
from tests.support.tiny_images import (
    TinyImage,
    layout_files,
    layout_of_index,
    multi_platform,
    sha256,
    write_files,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture
def layerfs(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path / "store")


@pytest.fixture
def image(tmp_path: Path) -> TinyImage:
    """Make an image of two layers; the second is no small one."""
    image = TinyImage(b"small", os.urandom(2 << 20))
    write_files(tmp_path / "from", layout_files([image.entry(name="1")], image.blobs))
    return image


@pytest.fixture
def put(layerfs: CommandLine, image: TinyImage, tmp_path: Path) -> Callable[[str], str]:
    """Give what puts the image somewhere, and its digest."""

    def put(place: str) -> str:
        return layerfs.good("copy", "-q", f"oci:{tmp_path}/from:1", place).strip()

    return put


class TestPull:
    def test_quiet_prints_the_name_alone(
        self, layerfs: CommandLine, registry: Registry, put: Callable[[str], str]
    ) -> None:
        name = f"{registry.host}/quiet:1"
        put(f"docker://{name}")
        done = layerfs.run("pull", "-q", name)
        assert (done.status, done.out, done.err) == (0, f"{name}\n", "")

    def test_json_says_what_came(
        self, layerfs: CommandLine, registry: Registry, put: Callable[[str], str], image: TinyImage
    ) -> None:
        name = f"{registry.host}/json:1"
        digest = put(name)
        found = layerfs.json("pull", name)
        assert found == {"id": sha256(image.config), "names": [name], "digest": digest}
        assert layerfs.json("push", name)["digest"] == digest

    def test_lines_tell_of_each_layer_once_and_of_those_that_are_there(
        self, layerfs: CommandLine, registry: Registry, put: Callable[[str], str], image: TinyImage
    ) -> None:
        name = f"{registry.host}/lines:1"
        put(name)
        lines = layerfs.run("pull", name).err.splitlines()
        layers = [sha256(layer)[7:19] for layer in image.layers]
        for layer in layers:
            assert sum(layer in line for line in lines) == 1
        again = layerfs.run("pull", name).err.splitlines()
        assert {f"blob {layer}: already exists" for layer in layers} <= set(again)

    def test_by_digest_has_no_name(
        self, layerfs: CommandLine, registry: Registry, put: Callable[[str], str], image: TinyImage
    ) -> None:
        digest = put(f"{registry.host}/digest:1")
        printed = layerfs.good("pull", "-q", f"{registry.host}/digest@{digest}")
        assert printed == f"{sha256(image.config)}\n"
        assert layerfs.json("images")[0]["repository"] is None

    def test_an_artifact_is_no_image(
        self, layerfs: CommandLine, registry: Registry, put: Callable[[str], str], tmp_path: Path
    ) -> None:
        name = f"{registry.host}/artifact"
        put(f"{name}:1")
        digest = layerfs.good(
            "attach", "-q", "--artifact-type", "a/b", f"{name}:1", f"{tmp_path}/from/oci-layout"
        )
        done = layerfs.run("pull", f"{name}@{digest.strip()}")
        assert done.status == 1
        assert "'a/b'" in done.err
        assert layerfs.good("copy", "-q", f"{name}@{digest.strip()}", f"oci:{tmp_path}/to:1") == digest

    def test_a_platform_is_chosen(self, layerfs: CommandLine, registry: Registry, tmp_path: Path) -> None:
        index, images = multi_platform("linux/amd64", "linux/arm64/v8")
        place = layout_of_index(tmp_path / "index", index, images, name="1")
        layerfs.good("copy", "-q", "--all", f"oci:{place}:1", f"{registry.host}/platforms:1")
        layerfs.good("pull", "-q", "--platform", "linux/arm64", f"{registry.host}/platforms:1", "arm:1")
        [one] = layerfs.json("inspect", "arm:1")
        assert one["config"]["architecture"] == "arm64"
        done = layerfs.run("pull", "-q", "--platform", "linux/s390x", f"{registry.host}/platforms:1")
        assert done.status == 1
        assert "linux/arm64/v8" in done.err.splitlines()[-1]

    @pytest.mark.parametrize(
        ("words", "hint"),
        [
            (("--all-tags", "{}/x:1"), "leave it out"),
            (("--all-tags", "{}/x", "name:1"), "NAME"),
            (("--all-tags", "oci:dir"), "docker://"),
            (("--tls-verify=perhaps", "{}/x"), "--help"),
        ],
    )
    def test_what_makes_no_sense_is_said(
        self, layerfs: CommandLine, registry: Registry, words: tuple[str, ...], hint: str
    ) -> None:
        done = layerfs.run("pull", *(word.format(registry.host) for word in words))
        assert done.status == 2
        assert hint in done.err.splitlines()[-1]


class TestOptions:
    def test_credentials_are_given_by_the_line_and_not_told(
        self, layerfs: CommandLine, basic_registry: Registry, put: Callable[[str], str], tmp_path: Path
    ) -> None:
        name = f"{basic_registry.host}/creds:1"
        refused = layerfs.run("copy", "-q", f"oci:{tmp_path}/from:1", name)
        assert refused.status == 1
        assert "layerfs login" in refused.err.splitlines()[-1]
        words = ("copy", "-q", "--dest-creds", f"{USER}:{PASSWORD}", f"oci:{tmp_path}/from:1", name)
        digest = layerfs.good(*words)
        wrong = layerfs.run("pull", "--creds", f"{USER}:not-{PASSWORD}", name)
        assert wrong.status == 1
        assert PASSWORD not in wrong.err
        for command in (("pull", "-q"), ("tags",), ("inspect",)):
            prefix = "docker://" if command[0] == "inspect" else ""
            layerfs.good(*command, "--creds", f"{USER}:{PASSWORD}", f"{prefix}{name}")
        words = ("copy", "-q", "--creds", f"{USER}:{PASSWORD}", name, f"{basic_registry.host}/again:1")
        assert layerfs.good(*words) == digest

    def test_a_password_that_is_left_out_is_asked_for(
        self, layerfs: CommandLine, basic_registry: Registry, put: Callable[[str], str], tmp_path: Path
    ) -> None:
        name = f"{basic_registry.host}/asked:1"
        words = ("copy", "-q", "--creds", USER, f"oci:{tmp_path}/from:1", name)
        done = layerfs.run(*words)
        assert done.status == 2
        assert "no terminal to ask for the password of alice" in done.err
        question = (f"password of {USER}: ", f"{PASSWORD}\n")
        shown = on_terminal(layerfs.words(*words), [question], os.environ)
        assert "sha256:" in shown
        assert PASSWORD not in shown

    def test_tls_is_verified_unless_told_otherwise(
        self, layerfs: CommandLine, tls_registry: Registry, image: TinyImage, tmp_path: Path
    ) -> None:
        name = f"{tls_registry.host}/tls:1"
        words = ("copy", "-q", f"oci:{tmp_path}/from:1", f"docker://{name}")
        refused = layerfs.run(*words)
        assert refused.status == 1
        assert refused.err.splitlines()[-1].startswith("hint: ")
        digest = layerfs.good(*words, "--dest-tls-verify=false")
        assert layerfs.good("pull", "-q", "--tls-verify=false", name) == f"{name}\n"
        assert layerfs.run("pull", "-q", "--tls-verify", name).status == 1
        assert layerfs.good("copy", "-q", "--src-tls-verify=false", name, f"oci:{tmp_path}/to:1") == digest


class TestPush:
    def test_without_a_destination_goes_where_the_name_says(
        self, layerfs: CommandLine, registry: Registry, image: TinyImage, tmp_path: Path
    ) -> None:
        name = f"{registry.host}/own-name:1"
        layerfs.good("pull", "-q", f"oci:{tmp_path}/from:1", name)
        assert layerfs.good("push", "-q", name).strip() == sha256(image.manifest)
        [row] = layerfs.json("images")
        done = layerfs.run("push", "-q", row["id"])
        assert (done.status, done.out) == (2, "")

    def test_layers_that_go_uncompressed_are_told(
        self, layerfs: CommandLine, registry: Registry, put: Callable[[str], str], tmp_path: Path
    ) -> None:
        name = f"{registry.host}/committed:1"
        layerfs.good("pull", "-q", f"oci:{tmp_path}/from:1", "base:1")
        layerfs.good("create", "--name", "box", "base:1", "nothing")
        (tmp_path / "file").write_bytes(bytes(1 << 20))
        layerfs.good("cp", tmp_path / "file", "box:/")
        layerfs.good("commit", "-q", "box", name)
        assert "1 layer goes uncompressed, 1.05MB; --compression" in layerfs.run("push", name).err
        assert "uncompressed" not in layerfs.run("push", "--compression", "gzip", name).err
        layers = json.loads(layerfs.good("inspect", "--raw", f"docker://{name}"))["layers"]
        assert layers[-1]["mediaType"].endswith("+gzip")

    def test_platforms_that_stay_behind_are_told(
        self, layerfs: CommandLine, registry: Registry, tmp_path: Path
    ) -> None:
        index, images = multi_platform("linux/amd64", "linux/arm64/v8")
        place = layout_of_index(tmp_path / "index", index, images, name="1")
        name = f"{registry.host}/index:1"
        layerfs.good("pull", "-q", "--all-platforms", f"oci:{place}:1", name)
        done = layerfs.run("push", "-q", name)
        assert "as one of the 2 images of its index" in done.err
        assert "--all-platforms" in done.err
        done = layerfs.run("push", "-q", "--all-platforms", name)
        assert (done.out.strip(), done.err) == (sha256(index), "")

    def test_an_annotation_is_all_that_changes(
        self, layerfs: CommandLine, registry: Registry, image: TinyImage, tmp_path: Path
    ) -> None:
        name = f"{registry.host}/annotated:1"
        layerfs.good("pull", "-q", f"oci:{tmp_path}/from:1", name)
        digest = layerfs.good("push", "-q", "--annotation", "a=b", name).strip()
        raw = layerfs.good("inspect", "--raw", f"docker://{name}")
        assert sha256(raw.encode()) == digest
        assert json.loads(raw) == {**json.loads(image.manifest), "annotations": {"a": "b"}}


@pytest.mark.parametrize(
    ("words", "problem", "hint"),
    [
        ("pull ''", "is empty", "docker-archive:FILE"),
        ("pull dir:", "no transport dir", "oci:DIR"),
        ("pull docker-daemon:x:1", "no transport docker-daemon", "docker save"),
        ("pull /x.tar", "is a path", "docker-archive:FILE"),
        ("pull https://docker.io/x", "is a URL", "docker://HOST"),
        ("pull app:", "its tag is empty", "TAG"),
        ("pull App:1", ": 'App' cannot be a repository", "lower case"),
        ("pull :1", "it has no repository", "TAG"),
        ("push ''", "is empty", "layerfs images"),
        ("run ''", "is empty", "layerfs images"),
        ("tags localhost:5000", "'localhost:5000' is a registry", "localhost:5000/REPOSITORY"),
        ("tags quay.io", "'quay.io' names no repository", "quay.io/REPOSITORY"),
        ("attach --artifact-type sbom localhost:1/x file", "no artifact type", "application/spdx+json"),
        ("attach --artifact-type a/b localhost:1/x /etc/passwd:a/", "no media type", "TYPE/SUBTYPE"),
        ("attach --artifact-type a/b localhost:1/x nosuch", "nosuch: No such file", "nosuch"),
        ("referrers --artifact-type sbom localhost:1/x", "no artifact type", "application/spdx+json"),
    ],
)
def test_what_names_nothing_is_told_before_anybody_is_asked(
    layerfs: CommandLine, words: str, problem: str, hint: str
) -> None:
    done = layerfs.run(*shlex.split(words))
    assert done.status != 0
    assert problem in done.err
    assert hint in done.err.splitlines()[-1]


@pytest.fixture
def proxy(registry: Registry) -> Iterator[FaultProxy]:
    with FaultProxy(registry.host) as running:
        yield running


def test_control_c_in_a_pull_ends_it_soon_with_the_terminal_in_order(
    layerfs: CommandLine, proxy: FaultProxy, put: Callable[[str], str]
) -> None:
    name = f"{proxy.host}/interrupted:1"
    put(name)
    proxy.clear()
    proxy.add(Fault(r"GET /v2/\S+/blobs/", stall=1 << 20, times=1000, after=1))
    master, slave = pty.openpty()
    child = subprocess.Popen(
        layerfs.words("pull", name), stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    try:
        os.close(slave)
        shown = read_until(master, b"Downloading [")
        os.killpg(child.pid, signal.SIGINT)
        began = time.monotonic()
        shown += read_until(master, b"interrupted")
        assert child.wait(30) == 130
        assert time.monotonic() - began < 20
        assert shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h") > 0
        assert b"Traceback" not in shown
    finally:
        child.kill()
        child.wait()
        os.close(master)
    assert layerfs.json("images") == []
    proxy.clear()
    assert layerfs.good("pull", "-q", name) == f"{name}\n"


def test_a_terminal_shows_the_states_that_docker_shows(
    layerfs: CommandLine, registry: Registry, put: Callable[[str], str], image: TinyImage
) -> None:
    name = f"{registry.host}/states:1"
    put(name)
    for state in (b"Pull complete", b"Already exists"):
        master, slave = pty.openpty()
        child = subprocess.Popen(
            layerfs.words("pull", name), stdin=slave, stdout=slave, stderr=slave,
            env={**os.environ, "TERM": "xterm"},
        )  # fmt: skip
        os.close(slave)
        shown = read_until(master, f"{name}\r\n".encode())
        assert child.wait(30) == 0
        os.close(master)
        for layer in image.layers:
            assert f"{sha256(layer)[7:19]}: ".encode() + state in shown
        assert b"Total: " in shown or state == b"Already exists"


def test_copy_leaves_referrers_behind_which_go_by_their_digests(
    layerfs: CommandLine, registry: Registry, put: Callable[[str], str], tmp_path: Path
) -> None:
    source, target = (f"docker://{registry.host}/{name}" for name in ("with-referrers", "without"))
    put(f"{source}:1")
    (tmp_path / "note").write_text("text")
    digest = layerfs.good("attach", "-q", "--artifact-type", "text/x", f"{source}:1", tmp_path / "note")
    layerfs.good("copy", "-q", "--all", f"{source}:1", f"{target}:1")

    def referrers(name: str) -> list[str]:
        found = json.loads(layerfs.good("--json", "referrers", name))["referrers"]
        return [one["digest"] for one in found]

    assert (referrers(f"{source}:1"), referrers(f"{target}:1")) == ([digest.strip()], [])
    layerfs.good("copy", "-q", f"{source}@{digest.strip()}", f"{target}@{digest.strip()}")
    assert referrers(f"{target}:1") == [digest.strip()]
