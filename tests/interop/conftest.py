"""The peers, and the image that they are compared on: each made once a run, and taken away at its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from layerfs.testing.snapshot import Snapshot, snapshot
from tests.interop import peers
from tests.interop.image import context


class BuiltImage(NamedTuple):
    """The image, as the peers wrote it and as they show it."""

    docker_archive: Path
    layout: Path
    tag: str
    docker_tree: Snapshot
    umoci_tree: Snapshot


@pytest.fixture(scope="session")
def docker() -> Iterator[peers.Docker]:
    peers.need("docker", "dockerd", "containerd", "runc", "setpriv")
    with peers.short_directory("docker") as directory:
        daemon = peers.Docker(directory)
        try:
            daemon.wait_until_ready()
            yield daemon
        finally:
            daemon.stop()


@pytest.fixture(scope="session")
def podman() -> Iterator[peers.Podman]:
    peers.need("podman", "runc")
    with peers.short_directory("podman") as directory:
        yield peers.Podman(directory)


@pytest.fixture(scope="session")
def base_image(docker: peers.Docker, tmp_path_factory: pytest.TempPathFactory) -> str:
    peers.need("setcap", "getcap", "setfattr", "setfacl")
    docker.import_tree(context.make_base(tmp_path_factory.mktemp("base")), context.BASE_NAME)
    return context.BASE_NAME


@pytest.fixture(scope="session")
def built_image(
    docker: peers.Docker, base_image: str, tmp_path_factory: pytest.TempPathFactory
) -> BuiltImage:
    peers.need("skopeo", "umoci")
    directory = tmp_path_factory.mktemp("image")
    docker.build(context.make_context(directory / "context"), context.IMAGE_NAME)
    archive, layout, tag = directory / "image.docker.tar", directory / "layout", "built"
    docker("save", "--output", archive, context.IMAGE_NAME)
    peers.skopeo("copy", f"docker-archive:{archive}", f"oci:{layout}:{tag}")
    with docker.mounted(context.IMAGE_NAME, directory / "docker-tree") as tree:
        docker_tree = snapshot(tree)
    umoci_tree = snapshot(peers.umoci_unpack(layout, tag, directory / "umoci"))
    return BuiltImage(archive, layout, tag, docker_tree, umoci_tree)


@pytest.fixture(params=["overlay2", "fuse", "aufs", "vfs"])
def layerfs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[peers.Layerfs]:
    peers.need()
    yield peers.Layerfs(tmp_path / "store", request.param)
    peers.unmount_below(tmp_path)
