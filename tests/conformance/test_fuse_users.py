"""FUSE mounts of ordinary users: made by fusermount3, seen by all that the user runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import Store, mounting
from tests.support import hosttree
from tests.support.commandline import IMAGE
from tests.support.servers import ends, kill_servers, servers
from tests.support.users import Login, login

_UID = 61234
_RANGES = "7000000:65536"
_NEEDED = ("fusermount3", "nsenter", "setpriv", "unshare")

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user"),
    pytest.mark.skipif(
        not os.path.exists("/dev/fuse") or not all(map(shutil.which, _NEEDED)),
        reason="needs /dev/fuse, fusermount3, nsenter, setpriv and unshare",
    ),
]


# For what is the same for every user.
alone = pytest.mark.parametrize("user", [""], ids=["alone"], indirect=True)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hosttree.build(tmp_path_factory.mktemp("tree") / "root")


@pytest.fixture(scope="module", params=["", _RANGES], ids=["alone", "with ranges"])
def user(request: pytest.FixtureRequest, tree: Path) -> Iterator[Login]:
    """A user with a store that has an image, of whose files one is not his if he has ids for that."""
    if request.param and not (shutil.which("newuidmap") and shutil.which("newgidmap")):
        pytest.skip("no newuidmap or newgidmap")
    with login(_UID, Path(f"/tmp/layerfs-test-{os.getpid()}"), ranges=request.param) as made:
        made.import_tree(tree, "--driver", "fuse", "import", IMAGE, squash=not request.param)
        yield made


@pytest.fixture
def target(user: Login) -> Iterator[Path]:
    """An empty directory of the user's, on which nothing is left."""
    place = user.home / "target"
    user.run("mkdir", place)
    yield place
    left = user.mounts()
    for info in left:
        user.run("fusermount3", "-u", "-z", os.fsdecode(info.target))
    # A test that failed leaves its container.
    for container in user.layerfs("ps", "-aq").stdout.split():
        user.layerfs("rm", container)
    assert left == []
    assert all(map(ends, servers(user.home)))
    user.run("rmdir", place)


def has_ranges(user: Login) -> bool:
    return bool(user.run("cat", "/etc/subuid").stdout.strip())


def test_a_mount_is_there_when_the_command_returns_and_goes_with_umount(user: Login, target: Path) -> None:
    assert user.layerfs("mount", "--name", "edit", IMAGE, target).stdout == "edit\n"
    (info,) = user.mounts()
    assert info.target == os.fsencode(target) and "nosuid" in info.options
    (server,) = servers(user.home)
    assert os.readlink(f"/proc/{server}/ns/user") != os.readlink("/proc/self/ns/user")
    assert os.stat(f"/proc/{server}").st_uid in (0, _UID)
    assert len(mounting.mount_table(server)) == 1
    user.run(
        "sh", "-c", f"cd {target} && echo new > new && echo more >> etc/passwd && mv etc/group etc/moved"
    )
    assert f"mounted at {target}" in user.layerfs("ps").stdout
    user.layerfs("umount", target)
    assert ends(server)
    changes = user.layerfs("diff", "edit").stdout.splitlines()
    assert changes == ["C /etc", "D /etc/group", "A /etc/moved", "C /etc/passwd", "A /new"]
    user.layerfs("mount", "edit", target)
    assert user.run("cat", target / "new").stdout == "new\n"
    user.layerfs("umount", "edit")
    user.layerfs("rm", "edit")


def test_owners_are_those_of_the_host(user: Login, target: Path) -> None:
    user.layerfs("mount", "--name", "edit", IMAGE, target)
    app = _UID if not has_ranges(user) else 7000999
    assert user.run("stat", "-c", "%u:%g", target / "home/app").stdout == f"{app}:{app}\n"
    # Out of a listing too.
    listed = user.run("find", target, "-maxdepth", "2", "-printf", "%u %P\\n").stdout.splitlines()
    assert "tester etc" in listed and (f"{app} home/app" in listed or app == _UID)
    user.run(
        "sh", "-c", f"cd {target} && mkdir made && ln -s x made/link && mkfifo made/fifo && touch made/f"
    )
    user.run("chown", "-h", f"{_UID}:{_UID}", target / "made/link", target / "etc/passwd")
    owners = user.run(
        "stat", "-c", "%u:%g", *(target / "made" / name for name in ("link", "fifo", "f"))
    ).stdout
    assert owners == f"{_UID}:{_UID}\n" * 3
    assert user.run("chown", "1:1", target / "made/f", check=False).returncode == 1
    user.layerfs("umount", target)
    (diff,) = (each for each in user.home.glob("store/drivers/fuse/*/diff") if (each / "made").exists())
    assert {os.lstat(path).st_uid for path in (diff / "made").iterdir()} == {_UID}
    user.layerfs("rm", "edit")


@pytest.mark.parametrize("user", [_RANGES], ids=["with ranges"], indirect=True)
def test_who_has_ranges_gives_files_to_their_ids(user: Login, target: Path) -> None:
    user.layerfs("mount", "--name", "edit", IMAGE, target)
    inside = ["unshare", "--user", "--map-root-user", "--map-auto"]
    if user.run(*inside, "true", check=False).returncode:
        user.layerfs("rm", "-f", "edit")
        pytest.skip("this unshare maps no ranges")
    user.run(*inside, "chown", "33:34", target / "etc/passwd")
    assert user.run("stat", "-c", "%u:%g", target / "etc/passwd").stdout == "7000032:7000033\n"
    user.run(*inside, "touch", target / "home/app/new")
    user.layerfs("umount", target)
    # In the layer they are as the container sees them.
    script = "stat -c %u:%g /etc/passwd /home/app/new"
    user.layerfs("commit", "edit", "given:1")
    assert user.layerfs("run", "--rm", "given:1", "sh", "-c", script).stdout == "33:34\n0:0\n"
    user.layerfs("rm", "edit")


def test_commands_reach_into_a_mounted_container(user: Login, target: Path) -> None:
    user.layerfs("mount", "--name", "edit", IMAGE, target)
    user.run("sh", "-c", f"echo here > {target}/new; echo there > other")
    user.layerfs("cp", "edit:/new", "copy")
    assert user.run("cat", "copy").stdout == "here\n"
    user.layerfs("cp", "other", "edit:/etc/other")
    assert user.run("cat", target / "etc/other").stdout == "there\n"
    user.layerfs("rm", "--force", "edit")
    user.run("rm", "copy", "other")


@alone
@pytest.mark.parametrize("words", [["mount", "edit", "TARGET"], ["umount", "TARGET"], ["umount", "edit"],
                                   ["check", "--repair"], ["gc"], ["rm", "edit"]], ids=" ".join)  # fmt: skip
def test_a_mount_whose_server_was_killed_is_cleared(user: Login, target: Path, words: list[str]) -> None:
    user.layerfs("mount", "--name", "edit", IMAGE, target)
    user.run("touch", target / "new")
    kill_servers(user.home)
    user.layerfs(*(str(target) if word == "TARGET" else word for word in words))
    if words[0] == "mount":
        user.run("test", "-e", target / "new")
        user.layerfs("umount", target)
    assert user.mounts() == []
    if words[0] != "rm":
        assert "A /new" in user.layerfs("diff", "edit").stdout
        user.layerfs("rm", "edit")


@alone
def test_a_mount_in_use_is_taken_away_only_by_force(user: Login, target: Path) -> None:
    user.layerfs("mount", "--name", "edit", IMAGE, target)
    with subprocess.Popen(
        user.command("sh", "-c", f"cd {target} && echo there && exec sleep 100"), stdout=subprocess.PIPE
    ) as inside:
        assert inside.stdout is not None and inside.stdout.readline()
        done = user.layerfs("umount", target, check=False)
        assert done.returncode == 1 and "is in use" in done.stderr
        user.layerfs("rm", "--force", "edit")
        assert user.mounts() == []
        inside.kill()


@alone
def test_of_two_mounts_each_ends_by_itself(user: Login, target: Path) -> None:
    second = user.home / "second"
    user.run("mkdir", second)
    user.layerfs("mount", "--name", "one", IMAGE, target)
    (server,) = servers(user.home)
    user.layerfs("mount", "--read-only", "--name", "two", IMAGE, second)
    user.layerfs("umount", target)
    assert ends(server)
    user.layerfs("umount", second)
    user.layerfs("rm", "one", "two")
    user.run("rmdir", second)


def test_options_are_those_of_fusermount_and_of_the_driver(user: Login, target: Path) -> None:
    words = ["-o", "ro,noexec", "-o", f"squash_to_uid={_UID}", "-o", f"squash_to_gid={_UID}"]
    user.layerfs("mount", *words, "--name", "edit", IMAGE, target)
    (info,) = user.mounts()
    assert {"ro", "noexec", "nosuid", "nodev"} <= set(info.options)
    assert user.run("stat", "-c", "%u:%g", target / "home/app").stdout == f"{_UID}:{_UID}\n"
    user.layerfs("rm", "--force", "edit")


@alone
def test_others_are_let_in_only_where_the_host_allows_it(user: Login, target: Path) -> None:
    done = user.layerfs("mount", "-o", "allow_other", IMAGE, target, check=False)
    assert done.returncode == 1
    assert "hint: write a line user_allow_other into /etc/fuse.conf" in done.stderr
    assert servers(user.home) == set()


@alone
def test_without_fusermount_the_error_says_what_to_install(user: Login, target: Path) -> None:
    words = user.layerfs_words("mount", IMAGE, target)
    done = user.run("env", "PATH=/nonexistent", *words, check=False)
    assert done.returncode == 1
    assert "there is no fusermount3" in done.stderr and "hint: install fuse3" in done.stderr
    assert user.layerfs("ps", "-aq").stdout == ""


@alone
def test_a_directory_of_somebody_else_is_refused(user: Login, target: Path) -> None:
    done = user.layerfs("mount", IMAGE, "/usr", check=False)
    assert done.returncode == 1 and "hint: the directory must be yours" in done.stderr


@alone
def test_with_a_driver_of_the_kernel_the_error_names_this_one(user: Login, target: Path) -> None:
    done = user.layerfs("--driver", "vfs", "mount", IMAGE, target, check=False)
    assert done.returncode == 1 and "hint: use --driver fuse" in done.stderr


@alone
@pytest.mark.parametrize("words", [["import", "own.tar", "own:1"], ["load", "-i", "image.tar"],
                                   ["pull", "docker-archive:image.tar"], ["pull", "oci:layout:1"]],
                         ids=" ".join)  # fmt: skip
def test_a_file_whose_owner_has_no_id_here_is_named_and_leaves_no_image(
    user: Login, tmp_path: Path, words: list[str]
) -> None:
    (tmp_path / "own/d").mkdir(parents=True)
    (tmp_path / "own/d/f").touch()
    os.chown(tmp_path / "own/d/f", 1042, 43)
    subprocess.run(["tar", "-C", str(tmp_path / "own"), "-cf", str(user.home / "own.tar"), "."], check=True)
    with Store.open(tmp_path / "store") as store:
        store.import_tree(tmp_path / "own", "own:1")
        store.save(["own:1"], user.home / "image.tar")
        store.push("own:1", f"oci:{user.home}/layout:1")
    for name in ("own.tar", "image.tar", "layout"):
        subprocess.run(["chmod", "-R", "a+rX", str(user.home / name)], check=True)
    before = user.layerfs("images", "-q").stdout
    done = user.layerfs(*words, check=False)
    assert done.returncode == 1
    assert "'/d/f' belongs to user 1042 and group 43" in done.stderr
    assert "/etc/subuid" in done.stderr.splitlines()[-1]
    assert user.layerfs("images", "-q").stdout == before
    user.layerfs("check")


def test_a_container_runs_on_a_mount_of_the_user_namespace(user: Login) -> None:
    script = "echo $$; cat /proc/1/comm; id -u; echo x > /new; cat /new"
    assert user.layerfs("run", "--rm", IMAGE, "sh", "-c", script).stdout == "1\nsh\n0\nx\n"
    assert all(map(ends, servers(user.home)))


def test_a_running_container_is_entered_and_stopped(user: Login) -> None:
    script = "trap 'exit 4' TERM; while :; do sleep 0.05; done"
    user.layerfs("create", "--name", "up", IMAGE, "sh", "-c", script)
    user.layerfs("start", "up")
    try:
        script = "echo $$; id -u; cat /proc/1/comm; echo x > /made"
        number, *rest = user.layerfs("exec", "up", "sh", "-c", script).stdout.split()
        assert int(number) > 1
        assert rest == ["0", "sh"]
        assert user.layerfs("exec", "up", "sh", "-c", "exit 6", check=False).returncode == 6
        assert user.layerfs("stop", "up").stdout == "up\n"
        (found,) = json.loads(user.layerfs("--json", "ps", "-a").stdout)
        assert (found["status"], found["exit_code"]) == ("exited", 4)
        assert user.layerfs("diff", "up").stdout == "A /made\n"
    finally:
        user.layerfs("rm", "-f", "up")


@alone
def test_in_the_foreground_the_mount_is_the_commands_own(user: Login, target: Path) -> None:
    command = user.command(*user.layerfs_words("mount", "--foreground", "--name", "edit", IMAGE, target))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "Ctrl-C" in process.stderr.readline()
        assert "nsenter" in process.stderr.readline()
        assert user.mounts() == []
        assert any(info.target == os.fsencode(target) for info in mounting.mount_table(process.pid))
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    user.layerfs("rm", "edit")


@alone
def test_a_user_without_a_user_namespace_mounts_too(user: Login, target: Path) -> None:
    done = user.run(sys.executable, "-c", PLAIN, user.home / "driver", target)
    assert done.stdout == "0\n"
    assert servers(user.home) == set()


PLAIN = """
import os, sys
from pathlib import Path
from layerfs import mounting
from layerfs_fuse import FuseDriver
root, place = map(Path, sys.argv[1:])
root.mkdir()
FuseDriver.check(root)
driver = FuseDriver(root)
driver.create("lower", [])
(root / "lower/diff/f").write_text("old")
driver.create("upper", ["lower"])
mounting.attach(driver.mount("upper", ["lower"], read_only=False), place)
(place / "f").write_text("new")
os.unlink(place / "f")
mounting.detach(place)
print(len(os.listdir(place)))
whiteout = os.lstat(root / "upper/diff/f")
assert whiteout.st_rdev == 0
"""


def test_what_the_host_allows_and_forbids_is_told(tree: Path) -> None:
    conf = "user_allow_other\nmount_max = 1\n"
    with login(_UID, Path(f"/tmp/layerfs-test-{os.getpid()}-2"), fuse_conf=conf) as user:
        user.run("mkdir", "one", "two")
        user.import_tree(tree, "--driver", "fuse", "import", IMAGE)
        user.layerfs("mount", "-o", "allow_other", "--name", "edit", IMAGE, user.home / "one")
        (info,) = user.mounts()
        assert "allow_other" in info.super_options
        assert os.listdir(f"/proc/{user.holder}/root{user.home}/one")
        done = user.layerfs("mount", IMAGE, user.home / "two", check=False)
        assert done.returncode == 1 and "raise mount_max in /etc/fuse.conf" in done.stderr
        user.layerfs("rm", "-f", "edit")
        assert all(map(ends, servers(user.home)))


@pytest.mark.parametrize("front", ["kernel", "fusepy"])
def test_a_device_that_only_root_may_open_is_told_of(front: str) -> None:
    with login(_UID, Path(f"/tmp/layerfs-test-{os.getpid()}-3"), device=0o600) as user:
        words = user.layerfs_words("--driver", "fuse", "images")
        done = user.run("env", f"LAYERFS_FUSE_FRONT={front}", *words, check=False)
        if "cannot make a user namespace" in done.stderr or "libfuse 2 cannot be" in done.stderr:
            pytest.skip(done.stderr)
        assert done.returncode == 1
        assert "cannot open /dev/fuse: Permission denied" in done.stderr and "chmod 666" in done.stderr


@alone
def test_a_mount_of_the_user_counts_for_one_in_a_namespace_of_its_own(user: Login, target: Path) -> None:
    user.layerfs("--driver", "fuse", "mount", "--name", "twice", IMAGE, target)
    try:
        second = user.home / "second"
        user.run("mkdir", second)
        done = user.layerfs("mount", "--foreground", "twice", second, check=False, timeout=60)
        assert done.returncode == 1
        assert f"container twice is mounted at {target}, in another mount namespace\n" in done.stderr
        # Not by a process that has nothing to do with it, nor by the one that has ended.
        assert "end process" not in done.stderr
    finally:
        user.layerfs("umount", target)
        user.run("rmdir", second)
