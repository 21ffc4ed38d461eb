"""What layerfs hands back, its peers read: the same tree, and of what came in the very same blobs."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from layerfs.testing.snapshot import Snapshot, differences, snapshot
from tests.interop import peers
from tests.interop.conftest import BuiltImage
from tests.interop.image import context
from tests.interop.normalise import as_docker_shows, as_podman_shows, without_root_time

COMMITTED = "layerfs-interop/committed"

CHANGES = """\
set -eu; cd /change
rm -r inner; mkdir inner; echo new > inner/new; mv moved_away back; mv echo echo2; echo x > gone/file
chown 1000:10 gone
rm flip/pipe; mkdir flip/pipe; rm -r flip/file flip/link; echo x > flip/file; mkdir emptied/sub
echo 1 > emptied/1
echo x > /top; chmod 4711 /top; rm -r /srv; echo x >> /kinds/links/a; chmod 600 /kinds/links/pipe
mkfifo emptied/pipe
mkdir -p hidden/deep; echo x > hidden/deep/file; ln -sfn c swap; ln linked_now linked_more
ln /kinds/times/zero new_name
mknod device b 7 9; mknod null c 1 3; truncate -s 4M sparse; echo end >> sparse; cp /bin/true cap
setcap cap_chown+ep cap
touch -d '2003-03-03 03:03:03.123456789' file; touch -d '2004-04-04' emptied; chmod 1777 hidden
echo x > /lib/interop/new
touch -- 'a b' "$(printf 'new\\nline')" "$(printf '\\377\\376')"; mkdir /kinds/names/%s
echo deep > /kinds/names/%s/%s
""" % (("n" * 200,) * 3)  # fmt: skip


class Committed:
    """A store with an image that was run, changed and committed; and what its container showed."""

    def __init__(self, layerfs: peers.Layerfs, name: str, tree: Snapshot) -> None:
        self.layerfs = layerfs
        self.name = name
        self.tree = tree


@pytest.fixture(scope="module", params=["overlay2", "fuse", "aufs", "vfs"])
def committed(
    request: pytest.FixtureRequest, built_image: BuiltImage, tmp_path_factory: pytest.TempPathFactory
) -> Committed:
    directory = tmp_path_factory.mktemp("committed")
    layerfs = peers.Layerfs(directory / "store", request.param)
    layerfs("load", "--input", built_image.docker_archive)
    layerfs.run(context.IMAGE_NAME, "work", CHANGES, options=["--user", "0"])
    (directory / "tree").mkdir()
    layerfs("mount", "--read-only", "work", directory / "tree")
    try:
        tree = snapshot(directory / "tree")
    finally:
        layerfs("umount", "work")
    name = f"{COMMITTED}:{request.param}"
    layerfs("commit", "--message", "changed", "work", name)
    return Committed(layerfs, name, tree)


@pytest.fixture(scope="module")
def archive(committed: Committed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "committed.tar"
    committed.layerfs("save", "--output", path, committed.name)
    return path


@pytest.fixture(scope="module")
def layout(committed: Committed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pushed") / "layout"
    committed.layerfs("push", committed.name, f"oci:{path}:committed")
    return path


def test_the_committed_image_shows_what_its_container_showed(committed: Committed, tmp_path: Path) -> None:
    with committed.layerfs.mounted(committed.name, tmp_path / "tree") as tree:
        assert differences(snapshot(tree), committed.tree) == []


def test_docker_loads_and_shows_the_same_tree(
    committed: Committed, archive: Path, docker: peers.Docker, tmp_path: Path
) -> None:
    docker("load", "--input", archive)
    with docker.mounted(committed.name, tmp_path / "tree") as tree:
        found = snapshot(tree)
    expected = as_docker_shows(committed.tree)
    assert differences(without_root_time(found), without_root_time(expected)) == []


def test_docker_runs_it_and_gives_it_the_same_id(
    committed: Committed, archive: Path, docker: peers.Docker
) -> None:
    docker("load", "--input", archive)
    [details] = json.loads(committed.layerfs("inspect", committed.name))
    assert docker.lines("inspect", "--format", "{{.Id}}", committed.name) == [details["id"]]
    container, printed = docker.run(committed.name, "cat /change/inner/new; id -un")
    docker("rm", container)
    assert printed == b"new\napp\n"


def test_podman_loads_and_shows_the_same_tree(
    committed: Committed, archive: Path, podman: peers.Podman
) -> None:
    podman.load(archive)
    with podman.mounted(committed.name) as tree:
        found = snapshot(tree)
    expected = as_podman_shows(committed.tree)
    assert differences(without_root_time(found), without_root_time(expected)) == []


def test_umoci_unpacks_the_same_tree_from_a_pushed_layout(
    committed: Committed, layout: Path, tmp_path: Path
) -> None:
    peers.need("umoci")
    found = snapshot(peers.umoci_unpack(layout, "committed", tmp_path / "bundle"))
    assert differences(found, committed.tree) == []


def test_umoci_unpacks_the_same_tree_from_a_saved_archive(
    committed: Committed, archive: Path, tmp_path: Path
) -> None:
    """Through skopeo, which reads docker's archives and writes layouts."""
    peers.need("umoci", "skopeo")
    peers.skopeo("copy", f"docker-archive:{archive}", f"oci:{tmp_path}/layout:copied")
    found = snapshot(peers.umoci_unpack(tmp_path / "layout", "copied", tmp_path / "bundle"))
    assert differences(found, committed.tree) == []


def test_skopeo_inspects_what_was_saved_and_pushed(committed: Committed, archive: Path, layout: Path) -> None:
    peers.need("skopeo")
    [details] = json.loads(committed.layerfs("inspect", committed.name))
    for place in (f"docker-archive:{archive}", f"oci:{layout}:committed"):
        seen = json.loads(peers.skopeo("inspect", place))
        assert len(seen["Layers"]) == len(details["layers"])
        assert seen["Labels"]["org.example.purpose"] == "interop"
        config = json.loads(peers.skopeo("inspect", "--config", place))
        assert config["rootfs"]["diff_ids"] == details["layers"]
        assert config["history"][-1]["comment"] == "changed"


def test_saving_the_same_image_twice_gives_the_same_bytes(
    committed: Committed, archive: Path, tmp_path: Path
) -> None:
    committed.layerfs("save", "--output", tmp_path / "again.tar", committed.name)
    assert (tmp_path / "again.tar").read_bytes() == archive.read_bytes()


def test_push_hands_back_the_blobs_of_a_pulled_layout(
    layerfs: peers.Layerfs, built_image: BuiltImage, tmp_path: Path
) -> None:
    layerfs("pull", f"oci:{built_image.layout}:{built_image.tag}", "pulled:1")
    layerfs("push", "pulled:1", f"oci:{tmp_path}/layout:{built_image.tag}")
    assert _blobs(tmp_path / "layout") == _blobs(built_image.layout)
    manifest = _manifest(built_image.layout, built_image.tag)
    assert _manifest(tmp_path / "layout", built_image.tag) == manifest


def test_save_hands_back_the_layers_and_the_config_of_a_loaded_archive(
    layerfs: peers.Layerfs, built_image: BuiltImage, tmp_path: Path
) -> None:
    layerfs("load", "--input", built_image.docker_archive)
    layerfs("save", "--output", tmp_path / "saved.tar", context.IMAGE_NAME)
    assert _listed_digests(tmp_path / "saved.tar") == _listed_digests(built_image.docker_archive)


def test_save_hands_back_the_blobs_of_a_pulled_layout(
    layerfs: peers.Layerfs, built_image: BuiltImage, docker: peers.Docker, tmp_path: Path
) -> None:
    layerfs("pull", f"oci:{built_image.layout}:{built_image.tag}", "pulled:2")
    layerfs("save", "--output", tmp_path / "saved.tar", "pulled:2")
    manifest = _manifest(built_image.layout, built_image.tag)
    wanted = [manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])]
    assert _listed_digests(tmp_path / "saved.tar") == wanted
    # Layers are compressed in there, which docker must accept.
    docker("load", "--input", tmp_path / "saved.tar")
    [identity] = docker.lines("inspect", "--format", "{{.Id}}", "pulled:2")
    assert identity == wanted[0]


def test_a_commit_adds_one_layer_and_keeps_the_blobs_below(
    committed: Committed, layout: Path, built_image: BuiltImage
) -> None:
    layers = [layer["digest"] for layer in _manifest(layout, "committed")["layers"]]
    assert layers[:-1] == _listed_digests(built_image.docker_archive)[1:]


def _blobs(layout: Path) -> dict[str, str]:
    """Map the name of each blob to the digest of its bytes."""
    folder = layout / "blobs/sha256"
    found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in os.listdir(folder)}
    assert all(name == digest for name, digest in found.items())
    return found


def _manifest(layout: Path, tag: str) -> dict[str, Any]:
    index = json.loads((layout / "index.json").read_bytes())
    [digest] = [
        entry["digest"]
        for entry in index["manifests"]
        if entry.get("annotations", {}).get("org.opencontainers.image.ref.name") == tag
    ]
    return json.loads((layout / "blobs/sha256" / digest.removeprefix("sha256:")).read_bytes())


def _listed_digests(archive: Path) -> list[str]:
    """Digest the config and the layers that docker's manifest.json lists, in its order."""
    with tarfile.open(archive) as file:
        [manifest] = json.loads(_member(file, "manifest.json"))
        return [
            "sha256:" + hashlib.sha256(_member(file, name)).hexdigest()
            for name in (manifest["Config"], *manifest["Layers"])
        ]


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(name)
    assert member is not None
    return member.read()
