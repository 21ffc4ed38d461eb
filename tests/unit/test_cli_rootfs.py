"""Tests of `import` and `export`."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from tests.support.commandline import IMAGE, CommandLine, make_store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture(scope="module")
def layerfs(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    return make_store(tmp_path_factory.mktemp("store"))


def test_a_tree_goes_in_by_directory_file_and_pipe_and_out_again(
    layerfs: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "tree/etc").mkdir(parents=True)
    (tmp_path / "tree/etc/motd").write_text("hello\n")
    layerfs.good("import", "-q", tmp_path / "tree", "tree:1")
    layerfs.good("create", "--name", "tree", "tree:1", "/none")
    layerfs.good("export", "-o", tmp_path / "out.tar", "tree")
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert tar.getnames()[-2:] == ["etc", "etc/motd"]
    assert layerfs.good("export", "tree").encode() == (tmp_path / "out.tar").read_bytes()
    layerfs.good("import", "-q", tmp_path / "out.tar", "tree:2")
    layerfs.good("import", "-q", "-", "tree:3", stdin=(tmp_path / "out.tar").read_bytes())
    second, third = (layerfs.json("inspect", name)[0]["layers"] for name in ("tree:2", "tree:3"))
    assert second == third


@pytest.mark.parametrize("driver", ["overlay2", "fuse", "vfs"])
def test_an_export_of_a_running_container_is_its_layers(
    layerfs: CommandLine, driver: str, tmp_path: Path
) -> None:
    """Not what is mounted on them: /proc has files that cannot be read, a volume is not the container's."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own/f").touch()
    script = "echo new > /new; ln -s x /proc/self/cwd/done; exec sleep 600"
    volume = f"{tmp_path / 'own'}:/volume"
    words = ("--driver", driver, "create", "--name", driver, "-v", volume, IMAGE, "sh", "-c", script)
    layerfs.good(*words)
    layerfs.good("start", driver)
    try:
        waits = "until readlink /done; do sleep 0.05; done"
        layerfs.good("exec", driver, "sh", "-c", waits)
        layerfs.good("export", "-o", tmp_path / "out.tar", driver)
        with tarfile.open(tmp_path / "out.tar") as tar:
            names = set(tar.getnames())
        assert {"new", "done", "etc/passwd", "proc", "volume"} <= names
        assert not any(name.startswith(("proc/", "sys/", "volume/")) for name in names)
    finally:
        layerfs.good("rm", "-f", driver)


def test_an_export_that_fails_leaves_no_file(layerfs: CommandLine, tmp_path: Path) -> None:
    assert layerfs.run("export", "-o", tmp_path / "out.tar", "nothing").status == 1
    assert list(tmp_path.iterdir()) == []


def test_import_sets_the_config_as_a_dockerfile_would(layerfs: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    layerfs.good("import", "-q", "-c", 'CMD ["/x"]', "-c", "ENV A=1", tmp_path / "tree", "config:1")
    config = layerfs.json("inspect", "config:1")[0]["config"]["config"]
    assert (config["Cmd"], config["Env"]) == (["/x"], ["A=1"])
