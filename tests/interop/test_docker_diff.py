"""`layerfs diff` prints what `docker diff` prints after the same commands, and what docker is blind to.

docker (dockerd 20.10, overlay2) compares the two merged trees: mode, owner, device, capability, and of what
is not a directory size and time. Siblings come in a random order, so lines are compared sorted.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop import changes, peers
from tests.interop.changes import CASES, Case
from tests.interop.conftest import BuiltImage
from tests.interop.image import context

CASES_IMAGE = "layerfs-interop/changes:1"
BARE_IMAGE = "layerfs-interop/bare:1"

ON_THE_BUILT_IMAGE = """\
set -eu; cd /change
chmod 700 /; rm -r inner; mkdir inner; echo new > inner/new; mv moved_away back; mv echo echo2
echo x > gone/file
rm flip/pipe; mkdir flip/pipe; rm -r flip/file flip/link; echo x > flip/file; mkdir emptied/sub
echo 1 > emptied/1
echo x > /top; mkdir /newdir; rm -r /srv; echo x >> /kinds/modes/f0644; chmod 600 /kinds/links/pipe
rm /kinds/sparse/hole
mkdir -p hidden/deep; echo x > hidden/deep/file; ln -sfn c swap; ln linked_now linked_more
echo x > /lib/interop/new
touch -h /kinds/links/self; rm -r /kinds/names/[!a-z]*; echo x > /home/app/file; touch /tmp
rm /etc/os-release
"""

# How a container is run, and what it does: options, script.
RUNS = {
    "nothing": ([], "true"),
    "workdir": (["--workdir", "/new/wd"], "true"),
    "hostname": (["--hostname", "here"], "true"),
    "mounts": ([], "echo x >> /dev/shm/x; mknod /dev/x c 1 3; echo x > /dev/y"),
    "top": ([], "mkdir /opt; echo x > /opt/new"),
}


@pytest.fixture(scope="module", params=["overlay2", "fuse", "aufs", "vfs"])
def ours(
    request: pytest.FixtureRequest,
    docker: peers.Docker,
    cases_image: Path,
    built_image: BuiltImage,
    tmp_path_factory: pytest.TempPathFactory,
) -> peers.Layerfs:
    directory = tmp_path_factory.mktemp("ours")
    layerfs = peers.Layerfs(directory / "store", request.param)
    docker("save", "--output", directory / "archive.tar", CASES_IMAGE, BARE_IMAGE)
    layerfs("load", "--input", directory / "archive.tar")
    layerfs("load", "--input", built_image.docker_archive)
    return layerfs


@pytest.fixture(scope="module")
def cases_image(docker: peers.Docker, base_image: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("changes")
    (directory / "lower").write_text(changes.lower_script())
    (directory / "middle").write_text(changes.middle_script())
    (directory / "Dockerfile").write_text(
        f"FROM {base_image}\nCOPY lower middle /scripts/\nRUN sh /scripts/lower\nRUN sh /scripts/middle\n"
    )
    docker.build(directory, CASES_IMAGE)
    bare = context.make_base(tmp_path_factory.mktemp("bare"))
    peers.call(["rm", "-r", *(bare / name for name in ("dev", "etc", "proc", "sys", "tmp"))])
    docker.import_tree(bare, BARE_IMAGE)
    return CASES_IMAGE


@pytest.fixture(scope="module")
def docker_lines(docker: peers.Docker, cases_image: str) -> list[str]:
    container, printed = docker.run(cases_image, "sh", "-c", changes.change_script())
    assert printed == b""
    return docker.changes(container)


@pytest.fixture(scope="module")
def our_lines(ours: peers.Layerfs, cases_image: str) -> list[str]:
    assert ours.run(cases_image, "cases", "sh", "-c", changes.change_script()) == b""
    return ours.changes("cases")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_kind_of_change_is_listed_as_docker_lists_it(
    case: Case, ours: peers.Layerfs, docker_lines: list[str], our_lines: list[str]
) -> None:
    expected = {*changes.lines_of(case, docker_lines), *case.ours}
    if ours.driver == "vfs":
        expected |= set(case.with_links)
    assert changes.lines_of(case, our_lines) == sorted(expected)


@pytest.mark.parametrize("case", [case for case in CASES if case.ours], ids=lambda case: case.name)
def test_docker_is_still_blind_where_we_say_so(case: Case, docker_lines: list[str]) -> None:
    assert not set(case.ours) <= set(changes.lines_of(case, docker_lines)), case.why


def test_no_line_lies_outside_of_the_changed_directories(our_lines: list[str]) -> None:
    changed = tuple(changes.folder(case) for case in CASES)
    assert [line for line in our_lines if line != "C /c" and not line[2:].startswith(changed)] == []


def test_a_directory_comes_before_what_is_in_it(our_lines: list[str]) -> None:
    seen = {""}
    for line in our_lines:
        path = line[2:]
        assert path.rpartition("/")[0] in seen, line
        seen.add(path)


def test_the_printed_lines_are_those_of_json(ours: peers.Layerfs, our_lines: list[str]) -> None:
    printed = ours("diff", "cases").decode().splitlines()
    odd = changes.folder(next(case for case in CASES if case.name == "odd names"))
    assert [line for line in printed if odd not in line] == [line for line in our_lines if odd not in line]


def test_changes_over_many_layers_are_listed_as_docker_lists_them(
    ours: peers.Layerfs, docker: peers.Docker
) -> None:
    options = ["--user", "0"]
    container, printed = docker.run(context.IMAGE_NAME, ON_THE_BUILT_IMAGE, options=options)
    assert ours.run(context.IMAGE_NAME, "many", ON_THE_BUILT_IMAGE, options=options) == printed == b""
    found = [line.encode(errors="surrogateescape").decode(errors="replace") for line in ours.changes("many")]
    assert sorted(found) == sorted(docker.changes(container))


@pytest.mark.parametrize("image", [CASES_IMAGE, BARE_IMAGE], ids=["changes", "bare"])
@pytest.mark.parametrize("run", RUNS)
def test_what_run_itself_needs_is_listed_as_docker_lists_it(
    ours: peers.Layerfs, docker: peers.Docker, image: str, run: str
) -> None:
    options, script = RUNS[run]
    container, _ = docker.run(image, "sh", "-c", script, options=options)
    name = f"{run}-on-{'bare' if image == BARE_IMAGE else 'changes'}"
    ours.run(image, name, "sh", "-c", script, options=options)
    assert sorted(ours.changes(name)) == sorted(docker.changes(container))


def test_a_directory_that_only_docker_makes_is_added_where_docker_says_changed(
    ours: peers.Layerfs, docker: peers.Docker
) -> None:
    """dockerd puts a layer of its own, with /etc in it, between the image and the container; we do not."""
    script = "mkdir -p /etc/new"
    container, _ = docker.run(BARE_IMAGE, "sh", "-c", script)
    ours.run(BARE_IMAGE, "etc", "sh", "-c", script)
    assert sorted(docker.changes(container)) == ["A /etc/new", "C /etc"]
    assert ours.changes("etc") == ["A /etc", "A /etc/new"]


def test_the_targets_of_volumes_are_listed_as_docker_lists_them(
    ours: peers.Layerfs, docker: peers.Docker, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("shown\n")
    volumes = [f"{tmp_path}:/volume/new:ro", f"{tmp_path}/file:/etc/shown:ro", f"{tmp_path}:/var"]
    options = [word for volume in volumes for word in ("--volume", volume)]
    container, printed = docker.run(CASES_IMAGE, "cat", "/etc/shown", "/var/file", options=options)
    assert ours.run(CASES_IMAGE, "volumes", "cat", "/etc/shown", "/var/file", options=options) == printed
    assert sorted(ours.changes("volumes")) == sorted(docker.changes(container))
