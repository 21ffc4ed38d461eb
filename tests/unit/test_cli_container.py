"""Tests of `ps`, `rm`, `diff`, `commit` and `cp`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import Store, mounting
from tests.support.commandline import IMAGE, CommandLine, make_store
from tests.support.servers import ends, servers

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture(scope="module")
def layerfs(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    return make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def box(layerfs: CommandLine) -> Iterator[str]:
    layerfs.good("create", "--name", "box", IMAGE, "/bin/sh", "-c", "echo x > /x; rm /etc/group; exit 3")
    yield "box"
    layerfs.run("rm", "-f", "box")


def test_a_container_is_listed_with_its_state(layerfs: CommandLine, box: str) -> None:
    assert box not in layerfs.good("ps")
    assert "Created" in layerfs.good("ps", "-a")
    assert layerfs.run("start", "-a", box).status == 3
    row = layerfs.good("ps", "-a").splitlines()[1]
    assert "Exited (3)" in row
    assert '"/bin/sh -c echo x >…"' in row
    (found,) = layerfs.json("ps", "-a")
    assert (found["name"], found["status"], found["exit_code"]) == ("box", "exited", 3)
    assert len(layerfs.good("ps", "-aq").strip()) == 12


def test_a_container_is_listed_with_the_name_that_its_image_was_called_by(layerfs: CommandLine) -> None:
    layerfs.good("tag", IMAGE, "aaa:1")
    layerfs.good("create", "--name", "called", IMAGE)
    assert layerfs.json("ps", "-a")[0]["image"] == IMAGE
    layerfs.good("rm", "called")
    layerfs.good("rmi", "aaa:1")


def test_diff_is_dockers(layerfs: CommandLine, box: str) -> None:
    layerfs.run("start", "-a", box)
    assert sorted(layerfs.good("diff", box).splitlines()) == ["A /x", "C /etc", "D /etc/group"]
    assert {"kind": "D", "path": "/etc/group"} in layerfs.json("diff", box)


def test_a_commit_has_one_layer_more(layerfs: CommandLine, box: str) -> None:
    layerfs.run("start", "-a", box)
    printed = layerfs.good(
        "commit", "-q", "-a", "Ada", "-m", "x", "-c", "ENV B=2", box, "committed:1"
    ).strip()
    (image,) = layerfs.json("inspect", "--type", "image", "committed:1")
    assert image["id"] == printed
    assert len(image["layers"]) == 2
    assert image["config"]["author"] == "Ada"
    assert image["config"]["config"]["Env"] == ["GREETING=hello", "B=2"]


def test_a_commit_has_the_annotations_that_it_was_given(layerfs: CommandLine, box: str) -> None:
    layerfs.good("commit", "-q", "--annotation", "a=b=c", "--annotation", "d=", box, "annotated:1")
    (image,) = layerfs.json("inspect", "--type", "image", "annotated:1")
    assert image["manifest"]["annotations"] == {"a": "b=c", "d": ""}
    assert layerfs.run("commit", "--annotation", "none", box, "annotated:2").status == 2


def test_files_are_copied_in_and_out(layerfs: CommandLine, box: str, tmp_path: Path) -> None:
    (tmp_path / "here").write_text("from here")
    layerfs.good("cp", "./here", f"{box}:/srv-file", cwd=tmp_path)
    layerfs.good("cp", f"{box}:/srv-file", tmp_path / "back")
    assert (tmp_path / "back").read_text() == "from here"


@pytest.mark.parametrize("ends", [("a", "b"), ("box:/a", "box:/b")])
def test_a_copy_needs_one_end_in_a_container(layerfs: CommandLine, ends: tuple[str, str]) -> None:
    done = layerfs.run("cp", *ends)
    assert done.status == 2
    assert "CONTAINER:PATH" in done.err


def test_removing_a_container_prints_its_name(layerfs: CommandLine, box: str) -> None:
    assert layerfs.good("rm", box) == "box\n"
    done = layerfs.run("rm", box)
    assert done.status == 1
    assert done.err.splitlines()[-1].startswith("hint: ")


@pytest.mark.parametrize("driver", ["overlay2", "fuse", "aufs", "vfs"])
def test_a_busy_container_is_removed_by_force_and_who_is_in_it_keeps_his_files(
    layerfs: CommandLine, driver: str, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    layerfs.good("--driver", driver, "mount", IMAGE, place, "--name", "busy")
    # Makes files for as long as it can.
    script = (
        "exec 2>/dev/null 9>held 8<etc/passwd && mkdir d && cd d && echo in && read go\n"
        "while mkdir x$((i += 1)); do :; done; echo more >&9 && read line <&8 && echo $line"
    )
    with subprocess.Popen(
        ["sh", "-c", script], cwd=place, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as inside:
        assert inside.stdout is not None and inside.stdout.readline() == "in\n"
        assert layerfs.run("rm", "busy").status == 1
        assert inside.stdin is not None
        print("go", file=inside.stdin, flush=True)
        layerfs.good("rm", "-f", "busy")
        assert mounting.mounted(place) is None
        assert layerfs.good("ps", "-aq") == ""
        assert inside.communicate()[0].startswith("root:")
    assert all(map(ends, servers(layerfs.root)))
    layerfs.good("check")
    assert list(layerfs.root.glob("drivers/*/.*")) == []


def test_a_container_in_use_is_called_by_its_name(layerfs: CommandLine, box: str, tmp_path: Path) -> None:
    place, other = tmp_path / "place", tmp_path / "other"
    place.mkdir()
    other.mkdir()
    layerfs.good("mount", box, place)
    for words in (["mount", box, other], ["rm", box], ["start", "-a", box]):
        said = layerfs.run(*words).err
        # Not by whom: the process that mounted it has ended.
        assert f"layerfs: container {box} is mounted at {place}\n" in said
        assert "layer" not in said.replace("layerfs", "")
    layerfs.good("umount", box)
    with Store.open(layerfs.root) as store, store.containers.get(box).mounted():
        for words in (["mount", box, other], ["rm", "-f", box], ["start", "-a", box]):
            said = layerfs.run(*words).err
            assert f"container {box} is in use by" in said
            assert "layer" not in said.replace("layerfs", "")


def test_inspect_shows_a_container(layerfs: CommandLine, box: str) -> None:
    (found,) = layerfs.json("inspect", box)
    assert (found["name"], found["image"], found["status"]) == ("box", IMAGE, "created")


def test_a_tar_stream_is_refused_by_cp(layerfs: CommandLine, box: str, tmp_path: Path) -> None:
    for words in ((f"{box}:/etc/passwd", "-"), ("-", f"{box}:/")):
        done = layerfs.run("cp", *words, cwd=tmp_path)
        assert done.status == 2
        assert "tar stream" in done.err
    assert list(tmp_path.iterdir()) == []
