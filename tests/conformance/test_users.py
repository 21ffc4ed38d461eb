"""Every command as an ordinary user of the machine: one with ranges of ids, and one without."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import Store
from tests.support import hosttree
from tests.support.commandline import IMAGE
from tests.support.users import ROOT, Login, login

_UID = 61236
_RANGES = "7200000:65536"
_NEEDED = ("nsenter", "setpriv", "unshare", "newuidmap", "newgidmap")

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user"),
    pytest.mark.skipif(
        not all(map(shutil.which, _NEEDED)), reason="needs nsenter, setpriv, unshare, newuidmap and newgidmap"
    ),
]

alone = pytest.mark.parametrize("user", [""], ids=["alone"], indirect=True)
with_ranges = pytest.mark.parametrize("user", [_RANGES], ids=["with ranges"], indirect=True)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hosttree.build(tmp_path_factory.mktemp("tree") / "root")


@pytest.fixture(scope="module")
def archive(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What docker save writes of an image with a file of user 1042 and group 43."""
    directory = tmp_path_factory.mktemp("archive")
    own = directory / "own"
    (own / "d").mkdir(parents=True)
    (own / "d/f").write_text("of somebody\n")
    os.chown(own / "d/f", 1042, 43)
    shutil.copytree(tree / "bin", own / "bin", symlinks=True)
    for name in ("lib", "lib64", "usr"):
        if (tree / name).is_dir():
            shutil.copytree(tree / name, own / name, symlinks=True)
    with Store.open(directory / "store") as store:
        store.import_tree(own, "somebody:1")
        store.save(["somebody:1"], directory / "image.tar")
    return directory / "image.tar"


@pytest.fixture(scope="module", params=["", _RANGES], ids=["alone", "with ranges"])
def user(request: pytest.FixtureRequest, tree: Path, archive: Path) -> Iterator[Login]:
    with login(_UID, Path(f"/tmp/layerfs-users-{os.getpid()}"), ranges=request.param) as made:
        made.import_tree(tree, "import", "-q", IMAGE, squash=not request.param)
        shutil.copy(archive, made.home / "image.tar")
        (made.home / "image.tar").chmod(0o644)
        yield made


@pytest.fixture
def running(user: Login) -> Iterator[str]:
    """A running container, whose process is another user's where there are ids for one."""
    who = ["--user", "app"] if user.has_ranges else []
    user.layerfs("create", "--name", "up", *who, IMAGE, "sh", "-c", "while :; do sleep 0.1; done")
    user.layerfs("start", "up")
    yield "up"
    user.layerfs("rm", "-f", "up", check=False)


def nested(*words: object) -> list[object]:
    """Write a command of layerfs that finds its store by itself."""
    return [sys.executable, "-m", "layerfs", *words]


def test_unshare_makes_the_user_root_of_his_ids(user: Login) -> None:
    lines = [
        line.split() for line in user.layerfs("unshare", "cat", "/proc/self/uid_map").stdout.splitlines()
    ]
    assert lines[0] == ["0", str(_UID), "1"]
    assert lines[1:] == ([["1", *_RANGES.split(":")]] if user.has_ranges else [])
    assert user.layerfs("unshare", "id", "-u").stdout == "0\n"


@alone
def test_unshare_passes_everything_on(user: Login) -> None:
    script = 'echo "$0" "$1"; cat; exit 7'
    done = user.layerfs("unshare", "sh", "-c", script, "-x", "--json", check=False, input="given\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, "-x --json\ngiven\n", "")
    # As a shell would start it: what Python ignores kills again, and there is no child that is not its own.
    done = user.layerfs("unshare", "sh", "-c", "ps -o comm= --ppid $$; kill -PIPE $$", check=False)
    assert (done.returncode, done.stdout) == (-13, "ps\n")
    for program, status in (("no-such-program", 127), ("/etc", 126)):
        done = user.layerfs("unshare", program, check=False)
        assert done.returncode == status and program in done.stderr


@alone
def test_unshare_is_a_shell_when_nothing_else_is_asked_for(user: Login) -> None:
    words = user.layerfs_words("unshare")
    done = user.run("env", "SHELL=/bin/sh", *words, input="echo $(id -u) $LAYERFS_ROOT")
    assert done.stdout == f"0 {user.home}/store\n"
    assert user.run("env", "SHELL=/bin/false", *words, check=False).returncode == 1


def test_what_unshare_mounts_is_seen_in_there(user: Login) -> None:
    layerfs = " ".join(map(str, nested()))
    script = f"mkdir -p m && {layerfs} mount --name edit {IMAGE} m && stat -c %u m/home/app && touch m/new"
    try:
        found = user.layerfs("--driver", "overlay2", "unshare", "sh", "-c", script).stdout.split()
        assert found == ["edit", "1000" if user.has_ranges else "0"]
        # It went with the shell, and nothing thinks that it is still there.
        assert user.layerfs("ps", "-q").stdout == ""
        assert user.layerfs("diff", "edit").stdout == "A /new\n"
    finally:
        user.layerfs("rm", "-f", "edit")


@alone
def test_a_mount_is_seen_with_no_driver_named(user: Login) -> None:
    if not os.path.exists("/dev/fuse") or not shutil.which("fusermount3"):
        pytest.skip("needs /dev/fuse and fusermount3")
    user.run("mkdir", "-p", "m")
    user.layerfs("mount", "--name", "edit", IMAGE, "m")
    try:
        (info,) = user.mounts()
        assert {"nosuid", "nodev"} <= set(info.options)
        user.run("touch", "m/new")
        user.layerfs("umount", "m")
        assert user.layerfs("diff", "edit").stdout == "A /new\n"
        (found,) = json.loads(user.layerfs("--json", "inspect", "edit").stdout)
        assert found["driver"] == "fuse"
        assert "Driver:       overlay2" in user.layerfs("info").stdout
    finally:
        user.layerfs("rm", "-f", "edit")


@alone
def test_a_container_of_another_driver_says_how_it_is_mounted(user: Login) -> None:
    user.layerfs("create", "--name", "edit", IMAGE)
    user.run("mkdir", "-p", "m")
    try:
        done = user.layerfs("mount", "edit", "m", check=False)
        assert done.returncode == 1 and "layerfs unshare" in done.stderr.splitlines()[-1]
    finally:
        user.layerfs("rm", "edit")


def test_files_go_into_and_out_of_a_running_container(user: Login, running: str) -> None:
    user.run("sh", "-c", "echo here > mine")
    user.layerfs("cp", "mine", f"{running}:/new")
    assert (
        user.layerfs("exec", "-u", "0", running, "sh", "-c", "cat /new && stat -c %u /new").stdout
        == "here\n0\n"
    )
    user.layerfs("cp", f"{running}:/etc/passwd", "out")
    assert "An application" in user.run("cat", "out").stdout
    user.layerfs("export", "-o", "out.tar", running)
    names = user.run("tar", "-tf", "out.tar").stdout.splitlines()
    assert "new" in names and "etc/passwd" in names
    assert not any(name.startswith("proc/") and name != "proc/" for name in names)
    assert "A /new" in user.layerfs("diff", running).stdout.splitlines()


@with_ranges
@pytest.mark.parametrize("words", [["rm", "-f"], ["stop", "-t", "0"]], ids=" ".join)
def test_a_process_of_another_id_is_ended(user: Login, running: str, words: list[str]) -> None:
    # In a namespace beside that of the container it may not be, and that is said.
    for inside in (["stop", "-t", "0", running], ["exec", running, "true"]):
        done = user.layerfs("unshare", *nested(*inside), check=False)
        assert done.returncode and "outside of `layerfs unshare`" in done.stderr
    assert user.layerfs(*words, running).stdout == f"{running}\n"
    assert user.layerfs("ps", "-q").stdout == ""


def test_files_of_the_hosts_other_users_become_roots(user: Login) -> None:
    given = user.home / "given"
    given.mkdir()
    (given / "f").write_text("x")
    user.layerfs("create", "--name", "edit", IMAGE)
    try:
        for source, target in (("given", "/given"), ("/etc/hosts", "/h")):
            user.layerfs("cp", source, f"edit:{target}")
        user.layerfs("export", "-o", "out.tar", "edit")
        listed = user.run("tar", "--numeric-owner", "-tvf", "out.tar", "given", "h").stdout.splitlines()
        assert [line.split()[1] for line in listed] == ["0/0"] * 3
        user.layerfs("import", "-q", "given", "given:2")
        found = user.layerfs("ls", "-l", "given:2:/f").stdout.split()
        assert found[2:4] == ["0", "0"]
    finally:
        user.layerfs("rm", "edit")


@alone
def test_who_has_one_id_may_have_all_files_be_roots(user: Login, tmp_path: Path) -> None:
    done = user.layerfs("load", "-q", "-i", "image.tar", check=False)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].endswith("--squash-owners")
    other = ["--root", user.home / "squashed"]

    def run(*words: object) -> str:
        done = user.run(*nested(*other, *words))
        assert "files whose owners have no id here" in done.stderr or words[0] != "load"
        return done.stdout

    run("load", "-q", "--squash-owners", "-i", "image.tar")
    script = "stat -c %u:%g /d/f && cat /d/f"
    assert run("run", "--rm", "somebody:1", "sh", "-c", script) == "0:0\nof somebody\n"
    # The store keeps to it, with every driver and when it repairs; what goes out has the image's own owners.
    assert run("--driver", "vfs", "run", "--rm", "somebody:1", "sh", "-c", script) == "0:0\nof somebody\n"
    (broken,) = (user.home / "squashed/drivers/overlay2").glob("*/diff/d/f")
    broken.write_text("altered\n")
    run("check", "--repair", "--contents")
    assert run("run", "--rm", "somebody:1", "sh", "-c", script) == "0:0\nof somebody\n"
    run("save", "-q", "-o", "again.tar", "somebody:1")
    with Store.open(tmp_path / "store") as store:
        (image,) = store.load(user.home / "again.tar")
        (first,) = store.load(user.home / "image.tar")
        assert (image.id, image.digest) == (first.id, first.digest)
    user.run("rm", "-rf", "squashed", "again.tar")


@with_ranges
def test_a_store_with_files_of_several_ids_is_removed_as_a_whole(user: Login) -> None:
    other = ["--root", user.home / "other"]
    user.run(*nested(*other, "load", "-q", "-i", "image.tar"))
    script = "mkdir /full && touch /full/f && chown -R 1042 /full"
    user.run(*nested(*other, "run", "somebody:1", "sh", "-c", script))
    assert user.run("rm", "-rf", "other", check=False).returncode != 0
    user.layerfs("unshare", "rm", "-rf", "other")
    assert not (user.home / "other").exists()


@with_ranges
def test_tools_without_power_are_told_of(user: Login) -> None:
    user.run("sh", "-c", "mkdir -p tools half && cp $(command -v newuidmap) $(command -v newgidmap) tools")
    user.run("cp", "tools/newgidmap", "half")
    words = user.layerfs_words("load", "-q", "-i", "image.tar")
    for before, told, advice in (
        (
            ["env", f"PATH={user.home}/tools:{os.environ['PATH']}"],
            "has neither the setuid bit",
            "reinstall it",
        ),
        (
            ["env", f"PATH={user.home}/half:{os.environ['PATH']}"],
            "newgidmap has neither",
            "newgidmap has neither",
        ),
        (["setpriv", "--no-new-privs"], "no_new_privs is set here", "no_new_privs is set here"),
        (["env", "PATH=/nonexistent"], "", "install newuidmap and newgidmap (Debian's uidmap)"),
    ):
        done = user.run(*before, *words, check=False)
        first, *_, last = done.stderr.splitlines()
        assert done.returncode == 1
        assert not told or (
            first.startswith("warning: only this user's own id can be used") and told in first
        )
        assert advice in last


@with_ranges
def test_a_store_whose_ids_were_lost_is_not_repaired(user: Login) -> None:
    other = ["--root", user.home / "other"]
    user.run(*nested(*other, "load", "-q", "-i", "image.tar"))
    words = ["env", "PATH=/nonexistent", *nested(*other, "check", "--repair")]
    done = user.run(*words, check=False)
    assert done.returncode == 1
    first, *_, last = done.stderr.splitlines()
    assert first.startswith("warning: the store was used with ids that this user namespace has not")
    assert "the ranges of before" in last
    assert "warning" not in user.run(*nested(*other, "check")).stderr
    user.layerfs("unshare", "rm", "-rf", "other")


@alone
def test_a_home_mounted_without_programs_and_devices_will_do(user: Login) -> None:
    place = user.home / "poor"
    options = f"noexec,nodev,nosuid,mode=755,uid={_UID},gid={_UID}"
    enter = ["nsenter", f"--mount=/proc/{user.holder}/ns/mnt"]
    user.run("mkdir", place)
    subprocess.run([*enter, "mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
    try:
        done = user.run(*nested("--root", place / "s", "import", "-q", "tree.tar", IMAGE))
        script = "rm /etc/passwd && touch /new && echo done"
        run = nested("--root", place / "s", "run", "--name", "c", IMAGE, "sh", "-c", script)
        assert user.run(*run).stdout == "done\n"
        done = user.run(*nested("--root", place / "s", "diff", "c"))
        assert done.stdout.splitlines() == ["C /etc", "D /etc/passwd", "A /new"]
        done = user.run(*nested("--root", place / "s", "--driver", "vfs", "run", IMAGE, "true"), check=False)
        assert done.returncode == 126 and "noexec" in done.stderr.splitlines()[-1]
    finally:
        subprocess.run([*enter, "umount", "-l", place], check=True)
        user.run("rmdir", place)


def test_root_needs_no_namespace(tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "layerfs",
        "--root",
        str(tmp_path / "s"),
        "unshare",
        "readlink",
        "/proc/self/ns/user",
    ]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == os.readlink("/proc/self/ns/user")
