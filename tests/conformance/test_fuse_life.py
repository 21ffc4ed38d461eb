"""How FUSE mounts live and end: their servers, whatever is killed, and what layerfs finds afterwards."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from layerfs_fuse import FuseDriver, process
from layerfs_fuse.changes import Changes
from layerfs_fuse.union import Union

from layerfs import Store, linux, mounting
from layerfs.testing.items import directory, file
from layerfs.testing.stack import Stack
from tests.support import hosttree
from tests.support.commandline import IMAGE, CommandLine
from tests.support.seccomp import refuse_calls
from tests.support.servers import ends, kill_servers, open_files, servers

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a store whose driver is fuse."""
    made = tmp_path_factory.mktemp("fuse")
    hosttree.build(made / "root")
    with Store.open(made / "store", driver="fuse") as store:
        store.import_tree(made / "root", IMAGE, changes=['CMD ["/bin/true"]'])
    return made


@pytest.fixture
def layerfs(home: Path) -> Iterator[CommandLine]:
    yield CommandLine(home / "store")
    left = servers(home)
    assert all(map(ends, left))


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """An empty directory, on which nothing is left mounted whatever fails."""
    place = tmp_path / "target"
    place.mkdir()
    yield place
    left = mounting.mounts_below(tmp_path)
    for info in reversed(left):
        linux.umount(info.target, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)
    assert left == []


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    (tmp_path / "driver").mkdir()
    (tmp_path / "mounts").mkdir()
    made = Stack(FuseDriver(tmp_path / "driver"), tmp_path / "mounts")
    made.apply([directory(b"d"), file(b"d/f", b"x")])
    yield made
    assert all(map(ends, servers(tmp_path)))


# What is killed, and found dead.

NEEDS_IT = {
    "mount": ["mount", "NAME", "TARGET"],
    "mount another": ["mount", IMAGE, "TARGET"],
    "umount the directory": ["umount", "TARGET"],
    "umount the name": ["umount", "NAME"],
    "start": ["start", "--attach", "NAME"],
    "cp": ["cp", "NAME:/new", "COPY"],
    "gc": ["gc"],
    "check": ["check", "--repair"],
    "rm": ["rm", "NAME"],
    "rm by force": ["rm", "--force", "NAME"],
}


@pytest.mark.parametrize("words", NEEDS_IT.values(), ids=NEEDS_IT.keys())
def test_a_mount_whose_server_was_killed_is_cleared_by_whoever_needs_it(
    layerfs: CommandLine, target: Path, tmp_path: Path, words: list[str]
) -> None:
    name = layerfs.good("mount", IMAGE, target).strip()
    (target / "new").write_text("new")
    kill_servers(layerfs.root)
    with pytest.raises(OSError, match=r"not connected|aborted"):
        os.statvfs(target)
    meant = {"NAME": name, "TARGET": str(target), "NAME:/new": f"{name}:/new", "COPY": str(tmp_path / "copy")}
    layerfs.good(*(meant.get(word, word) for word in words))
    mounted = mounting.mounts_below(target)
    if words[0] == "mount":
        assert len(mounted) == 1
        assert (target / "new").exists() == (words[1] == "NAME")
        layerfs.good("umount", target)
    else:
        assert mounted == []
    if words[0] != "rm":
        assert "A /new" in layerfs.good("diff", name).splitlines()


def test_check_tells_of_a_dead_mount(layerfs: CommandLine, target: Path) -> None:
    name = layerfs.good("mount", IMAGE, target).strip()
    kill_servers(layerfs.root)
    done = layerfs.run("check")
    assert done.status == 1
    assert f"mount {target}: the process that served it is gone" in done.out
    layerfs.good("rm", name)


def test_what_was_mounted_over_a_dead_mount_stays(layerfs: CommandLine, target: Path) -> None:
    name = layerfs.good("mount", IMAGE, target).strip()
    linux.mount("above", target, "tmpfs", 0)
    (target / "kept").touch()
    kill_servers(layerfs.root)
    assert layerfs.run("rm", name).status == 1
    assert (target / "kept").exists()
    linux.umount(target)
    layerfs.good("rm", name)


# What is not killed, and ends.


def test_a_mount_in_use_is_not_taken_away(layerfs: CommandLine, target: Path) -> None:
    layerfs.good("mount", IMAGE, target)
    with open(target / "etc/passwd"):
        done = layerfs.run("umount", target)
        assert done.status == 1 and "is in use" in done.err
        assert servers(layerfs.root)
    layerfs.good("umount", target)


def test_the_server_outlives_the_session_that_mounted(layerfs: CommandLine, target: Path) -> None:
    shell = subprocess.Popen(
        ["sh", "-c", '"$@" && sleep 100', "sh", *layerfs.words("mount", IMAGE, target)],
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    with shell:
        assert shell.stdout is not None and shell.stdout.readline()
        os.killpg(shell.pid, signal.SIGHUP)
        os.killpg(shell.pid, signal.SIGKILL)
    (target / "new").touch()
    layerfs.good("umount", target)


def test_the_server_keeps_nothing_of_its_caller(layerfs: CommandLine, target: Path) -> None:
    # That this returns is part of it: whoever reads the output to its end must get there.
    done = subprocess.run(
        ["sh", "-c", '"$@" | cat', "sh", *layerfs.words("mount", IMAGE, target)],
        capture_output=True,
        cwd=target.parent,
        check=True,
    )
    assert done.stdout
    (server,) = servers(layerfs.root)
    opened = open_files(server)
    assert {opened.pop(str(standard)) for standard in range(3)} == {"/dev/null"}
    # What has no path is the server's own, by which it waits; layers are seen through a mount without one.
    layers = {(found.st_dev, found.st_ino) for found in map(os.stat, layerfs.root.glob("drivers/fuse/*/**/"))}
    for number, path in opened.items():
        found = os.stat(f"/proc/{server}/fd/{number}")
        known = path.startswith(("/dev/fuse", "anon_inode:", str(layerfs.root)))
        assert known or (found.st_dev, found.st_ino) in layers, path
    assert not os.readlink(f"/proc/{server}/cwd").startswith(str(target.parent))
    assert os.getsid(server) not in (os.getsid(0), 0)
    # One mount: the root directory of a namespace with nothing in it.
    assert len(mounting.mount_table(server)) == 1
    layerfs.good("umount", target)


def test_descriptors_above_a_limit_that_was_lowered_are_not_kept(stack: Stack) -> None:
    script = """
import os, resource, sys
from pathlib import Path
from layerfs import mounting
from layerfs_fuse import FuseDriver
reading, writing = os.pipe()
os.dup2(writing, 900)
os.close(writing)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
driver = FuseDriver(Path(sys.argv[1]))
mounting.attach(driver.mount(sys.argv[2], sys.argv[3:], read_only=False), Path(sys.argv[1]).parent / "mounts")
os.close(900)
assert os.read(reading, 1) == b""
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (100, 100)
"""
    words = [stack.driver.root, stack.create(), *stack.layers]
    subprocess.run([sys.executable, "-c", script, *words], check=True, timeout=60)
    mounting.detach(stack.directory)


def test_the_server_ends_with_the_mount_namespace(layerfs: CommandLine, target: Path) -> None:
    words = ["unshare", "--mount", "sh", "-c", '"$@" && exec sleep 100', "sh"]
    with subprocess.Popen(
        [*words, *layerfs.words("mount", IMAGE, target)], stdout=subprocess.PIPE, text=True
    ) as inside:
        assert inside.stdout is not None and inside.stdout.readline()
        (server,) = servers(layerfs.root)
        inside.kill()
    assert ends(server)


def test_the_server_ends_with_the_mount_above_it(layerfs: CommandLine, target: Path) -> None:
    linux.mount("above", target, "tmpfs", 0)
    (target / "below").mkdir()
    layerfs.good("mount", IMAGE, target / "below")
    (server,) = servers(layerfs.root)
    linux.umount(target, linux.MNT_DETACH)
    assert ends(server)


def test_a_server_that_may_not_leave_its_mount_namespace_ends_with_the_mount(stack: Stack) -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            refuse_calls(errno.EPERM, "unshare")
            with pytest.raises(PermissionError):
                linux.unshare(linux.CLONE_NEWNS)
            first, second = (_attach(stack, name) for name in ("first", "second"))
            assert os.readlink(f"/proc/{first}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
            mounting.detach(stack.directory / "first")
            assert ends(first) and os.path.exists(f"/proc/{second}")
            mounting.detach(stack.directory / "second")
            assert ends(second)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _attach(stack: Stack, name: str) -> int:
    before = servers(stack.driver.root)
    (stack.directory / name).mkdir()
    mount = stack.driver.mount(stack.create(), stack.layers, read_only=False)
    mounting.attach(mount, stack.directory / name)
    (server,) = servers(stack.driver.root) - before
    return server


def test_a_container_process_is_the_first_of_its_namespace_though_a_server_came_before(
    layerfs: CommandLine,
) -> None:
    script = "echo $$; cat /proc/1/comm; echo /proc/[0-9]*"
    assert layerfs.good("run", "--rm", IMAGE, "sh", "-c", script) == "1\nsh\n/proc/1\n"


def test_a_process_may_have_few_files_open(stack: Stack) -> None:
    for number in range(24):
        stack.apply([file(b"%d/%d/%d/f" % (number % 3, level, number), b"x") for level in range(20)])
    words = ["--nofile=160:160", sys.executable, "-c", FEW, str(stack.driver.root), str(stack.directory)]
    done = subprocess.run(["prlimit", *words, *stack.layers], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{24 * 20 + 1}\n"


FEW = """
import os, sys
from pathlib import Path
from layerfs import mounting
from layerfs_fuse import FuseDriver
root, place, *layers = sys.argv[1:]
mounting.attach(FuseDriver(Path(root)).mount(layers[-1], layers[:-1], read_only=True), Path(place))
try:
    print(sum(len(files) for _, _, files in os.walk(place, onerror=print)))
finally:
    mounting.detach(Path(place))
"""


# What a server writes down.


def test_an_error_of_our_own_is_written_down_and_found_by_check(
    home: Path, layerfs: CommandLine, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: object) -> None:
        raise ZeroDivisionError("a mistake of ours")

    with Store.open(layerfs.root) as store:
        monkeypatch.setattr(Changes, "mkdir", break_down)
        container = store.mount(IMAGE, target)
        with pytest.raises(OSError, match="Input/output error"):
            (target / "new").mkdir()
        assert (target / "etc").is_dir()
        container.unmount()
        done = layerfs.run("check")
        assert done.status == 1
        line = next(line for line in done.out.splitlines() if line.startswith("log "))
        assert "ZeroDivisionError: a mistake of ours" in line
        log = Path(line.split()[1].rstrip(":"))
        assert "break_down" in log.read_text()
        store.containers.remove(container.id)
    assert not log.exists()
    assert "log " not in layerfs.run("check").out


def test_ps_tells_a_dead_mount_from_a_living_one(layerfs: CommandLine, home: Path, target: Path) -> None:
    living = target.with_name("living")
    living.mkdir()
    layerfs.good("mount", IMAGE, target, "--name", "dead")
    kill_servers(home)
    layerfs.good("mount", IMAGE, living, "--name", "lives")
    rows = {line.split()[-1]: line for line in layerfs.good("ps").splitlines()}
    assert f"Created, dead mount at {target}" in rows["dead"]
    assert f"Created, mounted at {living}" in rows["lives"]
    found = {each["name"]: each for each in layerfs.json("ps")}
    assert (found["dead"]["mounts"], found["dead"]["dead_mounts"]) == ([str(target)], [str(target)])
    assert (found["lives"]["mounts"], found["lives"]["dead_mounts"]) == ([str(living)], [])
    layerfs.good("rm", "-f", "dead", "lives")


def test_ps_does_not_wait_for_a_server_that_hangs(layerfs: CommandLine, home: Path, target: Path) -> None:
    layerfs.good("mount", IMAGE, target, "--name", "hangs")
    (server,) = servers(home)
    os.kill(server, signal.SIGSTOP)
    try:
        assert f"mounted at {target}" in layerfs.good("ps")
    finally:
        os.kill(server, signal.SIGCONT)
    layerfs.good("rm", "-f", "hangs")


@pytest.mark.parametrize("logged", [False, True], ids=["no log", "a log"])
def test_a_container_that_loses_its_server_says_why_it_ended(
    layerfs: CommandLine, home: Path, logged: bool
) -> None:
    layerfs.good(
        "create", "--name", "orphan", IMAGE, "sh", "-c", "touch /mine; echo up; read line; ls /etc; exit 7"
    )
    command = layerfs.words("start", "-a", "-i", "orphan")
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as running:
        assert running.stdout is not None and running.stdout.readline() == "up\n"
        (mine,) = (home / "store/drivers/fuse").glob("*/diff/mine")
        log = mine.parents[1] / "server.log"
        if logged:
            log.write_text("a mistake of ours\n")
        kill_servers(home)
        _, said = running.communicate("go on\n", timeout=60)
    assert running.returncode != 0
    assert "warning: the process that served the files of container orphan ended" in said
    assert (f"its log {log} ends with: a mistake of ours\n" in said) is logged
    layerfs.good("rm", "orphan")


def test_a_server_that_breaks_down_writes_that_down(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(*_: object) -> None:
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr("layerfs_fuse.server.Server._answer", break_down)
    layer = stack.create()
    with stack.mounted(layer, stack.layers) as place, pytest.raises(OSError):
        os.listdir(place)
    (log,) = FuseDriver(stack.driver.root).logs()
    assert "a mistake of ours" in log.read_text()


def test_a_log_stays_small(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    log = process.Log(descriptor, "log")
    for number in range(100):
        log.write(f"{number} " + "x" * 3000)
    os.close(descriptor)
    assert (tmp_path / "log").stat().st_size < 80_000
    assert "99 xxx" in (tmp_path / "log").read_text()


def test_a_server_that_cannot_start_is_told_of(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Union, "__init__", refuse)
    layer = stack.create()
    with pytest.raises(OSError, match="No space left") as error, stack.mounted(layer, stack.layers):
        pass
    assert error.value.errno == 28
    monkeypatch.undo()
    shutil.rmtree(stack.directory)
