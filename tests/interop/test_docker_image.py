"""An image that a real dockerd built shows, under every driver, what docker and umoci show of it."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from pathlib import Path

import pytest

from layerfs.testing.snapshot import differences, snapshot
from tests.interop import peers
from tests.interop.conftest import BuiltImage
from tests.interop.image import context
from tests.interop.normalise import as_docker_shows, without_root_time


@pytest.fixture(params=["docker-archive", "oci-gzip"])
def loaded(layerfs: peers.Layerfs, built_image: BuiltImage, request: pytest.FixtureRequest) -> peers.Layerfs:
    if request.param == "docker-archive":
        layerfs("load", "--input", built_image.docker_archive)
    else:
        layerfs("pull", f"oci:{built_image.layout}:{built_image.tag}", context.IMAGE_NAME)
    return layerfs


def test_the_image_holds_what_is_to_be_proved(built_image: BuiltImage) -> None:
    manifest, config = _documents(built_image.docker_archive)
    assert len(manifest["Layers"]) >= 6
    assert any(step.get("empty_layer") for step in config["history"])
    names = [name for layer in _layers(built_image.docker_archive) for name in layer]
    assert "change/.wh.gone_file" in names
    assert "change/opaque/.wh..wh..opq" in names
    tree = built_image.umoci_tree
    assert {facts.type for facts in tree.values()} >= {
        *("file", "directory", "symlink", "fifo", "character", "block"),
    }
    assert any(facts.mode & 0o4000 for facts in tree.values())
    assert any(b"security.capability" in facts.xattrs for facts in tree.values())
    assert tree[b"change/linked_now"].links
    assert not any(path.startswith((b"change/moved/", b"change/opaque/old/")) for path in tree)


def test_umoci_and_docker_show_the_same_tree(built_image: BuiltImage) -> None:
    """What two peers agree on is what ours is held to."""
    expected = without_root_time(as_docker_shows(built_image.umoci_tree))
    assert differences(without_root_time(built_image.docker_tree), expected) == []


def test_a_read_only_mount_shows_what_umoci_unpacks(
    loaded: peers.Layerfs, built_image: BuiltImage, tmp_path: Path
) -> None:
    with loaded.mounted(context.IMAGE_NAME, tmp_path / "tree") as tree:
        assert differences(snapshot(tree), built_image.umoci_tree) == []


def test_a_writable_mount_shows_what_docker_shows(
    loaded: peers.Layerfs, built_image: BuiltImage, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    loaded("mount", "--name", "writable", context.IMAGE_NAME, tree)
    ours = snapshot(tree)
    loaded("umount", "writable")
    assert (
        differences(without_root_time(as_docker_shows(ours)), without_root_time(built_image.docker_tree))
        == []
    )
    assert loaded("diff", "writable") == b""


def test_the_image_has_the_id_and_the_config_that_docker_gave_it(
    layerfs: peers.Layerfs, built_image: BuiltImage, docker: peers.Docker
) -> None:
    layerfs("load", "--input", built_image.docker_archive)
    [details] = json.loads(layerfs("inspect", context.IMAGE_NAME))
    assert details["id"] == docker.lines("inspect", "--format", "{{.Id}}", context.IMAGE_NAME)[0]
    assert details["config"] == _documents(built_image.docker_archive)[1]


def test_run_without_a_command_does_what_docker_run_does(loaded: peers.Layerfs, docker: peers.Docker) -> None:
    container, printed = docker.run(context.IMAGE_NAME)
    docker("rm", container)
    assert printed == b"hello from the image from app in /home/app\n"
    assert loaded("run", "--rm", context.IMAGE_NAME) == printed


def test_a_layer_with_xattrs_and_exact_times_shows_what_umoci_unpacks(
    layerfs: peers.Layerfs, built_image: BuiltImage, tmp_path: Path
) -> None:
    """docker leaves user xattrs and fractions of seconds out of the layers that it makes, but reads them."""
    layout = tmp_path / "layout"
    peers.skopeo("copy", f"oci:{built_image.layout}:{built_image.tag}", f"oci:{layout}:exact")
    _write_exact_layer(tmp_path / "exact.tar", tmp_path / "source")
    peers.call(["umoci", "raw", "add-layer", "--image", f"{layout}:exact", tmp_path / "exact.tar"])
    expected = snapshot(peers.umoci_unpack(layout, "exact", tmp_path / "bundle"))
    assert len(expected[b"xattrs/file"].xattrs) == 3
    assert expected[b"xattrs"].mtime_ns == 987_654_321_000_000_001
    layerfs("pull", f"oci:{layout}:exact", "exact:1")
    with layerfs.mounted("exact:1", tmp_path / "tree") as tree:
        assert differences(snapshot(tree), expected) == []


def _write_exact_layer(archive: Path, source: Path) -> None:
    """Write a tar of a folder and two files; the peers cannot carry empty values, so there are none."""
    folder = source / "xattrs"
    folder.mkdir(parents=True)
    (folder / "file").write_text("file\n")
    (folder / "old").write_text("old\n")
    os.setxattr(folder, "user.text", b"=\n")
    os.setxattr(folder / "file", "user.binary", bytes(range(256)))
    os.setxattr(folder / "file", "trusted.layerfs", b"kept")
    peers.call(["setfacl", "-m", "u:1000:rw,g:29:r", folder / "file"])
    peers.call(["setfacl", "-d", "-m", "u:1000:rwx", folder])
    os.utime(folder / "file", ns=(1, 1_234_567_890_123_456_789))
    os.utime(folder / "old", ns=(1, -1_500_000_001))
    os.utime(folder, ns=(1, 987_654_321_000_000_001))
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as file:
        for path in (folder, folder / "file", folder / "old"):
            member = file.gettarinfo(path, str(path.relative_to(source)))
            seconds, nanoseconds = divmod(abs(path.stat().st_mtime_ns), 10**9)
            sign = "-" if path.stat().st_mtime_ns < 0 else ""
            member.pax_headers["mtime"] = f"{sign}{seconds}.{nanoseconds:09}"
            for name in os.listxattr(path):
                value = os.getxattr(path, name).decode(errors="surrogateescape")
                member.pax_headers[f"SCHILY.xattr.{name}"] = value
            file.addfile(member, path.open("rb") if path.is_file() else None)


def _documents(archive: Path) -> tuple[dict[str, list[str]], dict[str, list[dict[str, object]]]]:
    with tarfile.open(archive) as file:
        [manifest] = json.loads(_member(file, "manifest.json"))
        config = _member(file, manifest["Config"])
    assert manifest["Config"].startswith(hashlib.sha256(config).hexdigest())
    return manifest, json.loads(config)


def _layers(archive: Path) -> list[list[str]]:
    """List the names in each layer of what docker saved."""
    found = []
    with tarfile.open(archive) as file:
        [manifest] = json.loads(_member(file, "manifest.json"))
        for name in manifest["Layers"]:
            with tarfile.open(fileobj=file.extractfile(name)) as layer:
                found.append(layer.getnames())
    return found


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(name)
    assert member is not None
    return member.read()
