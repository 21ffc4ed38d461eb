"""A process on a tree: what it sees, what it may, how it ends, and that nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from layerfs.errors import MountError, NotFoundError, ProcessError
from layerfs.mount import Bind, Overlay
from layerfs.runtime.launch import run
from tests.support import hosttree
from tests.support.boxes import Box, mounts_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hosttree.build(tmp_path_factory.mktemp("host") / "tree")


@pytest.fixture
def box(tree: Path, tmp_path: Path) -> Box:
    return Box(tree, tmp_path)


def output(box: Box, capfd: Capture, script: str, **settings: object) -> str:
    assert box.sh(script, **settings) == 0
    return capfd.readouterr().out


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 77", 77), ("sh -c 'kill -TERM $$'; exit $?", 143), ("kill -KILL $$; exit 3", 3)],
)
def test_the_exit_status_is_the_processs(box: Box, script: str, status: int) -> None:
    assert box.sh(script) == status


def test_a_signal_that_ends_it_gives_128_and_its_number(box: Box) -> None:
    assert box.run("sleep", "60", on_start=lambda pid: os.kill(pid, signal.SIGKILL)) == 137


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        (("nosuch",), 127, "executable file not found in $PATH"),
        (("",), 127, "not found"),
        (("/nosuch",), 127, "no such file"),
        (("./etc/nosuch",), 127, "no such file"),
        (("/etc/passwd",), 126, "permission denied"),
        (("/etc",), 126, "permission denied"),
        (("/bad",), 127, "no such file"),
        (("/format",), 126, "exec format error"),
    ],
)
def test_a_program_that_cannot_be_executed_has_dockers_status(
    box: Box, command: tuple[str, ...], status: int, words: str
) -> None:
    for name, content in (("bad", "#!/no/interpreter\n"), ("format", "\0nothing")):
        (box.upper / name).write_text(content)
        (box.upper / name).chmod(0o755)
    with pytest.raises(ProcessError) as caught:
        box.run(*command)
    assert caught.value.status == status
    assert words in str(caught.value)


def test_a_process_that_never_ran_was_never_started(box: Box) -> None:
    with pytest.raises(ProcessError):
        box.run("nosuch", on_start=lambda pid: pytest.fail("started"))


def test_it_is_process_1_of_namespaces_of_its_own(box: Box, capfd: Capture) -> None:
    seen = output(box, capfd, "echo $$; hostname; readlink /proc/1/ns/pid; ls /sys/class/net")
    number, hostname, namespace, network = seen.split()
    assert (number, hostname, network) == ("1", "box", "lo")
    assert namespace != os.readlink("/proc/self/ns/pid")
    assert os.uname().nodename != "box"


def test_loopback_is_up(box: Box, capfd: Capture) -> None:
    assert output(box, capfd, "cat /sys/class/net/lo/flags").strip() == "0x9"


def test_the_hosts_network_is_there_when_asked(box: Box, capfd: Capture) -> None:
    seen = output(box, capfd, "readlink /proc/self/ns/net; cat /etc/hosts", network="host")
    assert seen.startswith(os.readlink("/proc/self/ns/net"))
    assert seen.endswith(Path("/etc/hosts").read_text())


def test_the_environment_is_only_what_the_rules_say(box: Box, capfd: Capture) -> None:
    seen = output(box, capfd, "env", env=("A=1 2",), user="app")
    variables = dict(line.split("=", 1) for line in seen.splitlines())
    variables.pop("PWD")
    variables.pop("_", None)
    assert variables == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOSTNAME": "box", "A": "1 2", "HOME": "/home/app",
    }  # fmt: skip


def test_users_capabilities_and_signals_are_dockers(box: Box, capfd: Capture) -> None:
    script = "id -u; id -G; grep -E '^(Cap|NoNew|SigBlk|SigIgn|Umask)' /proc/self/status"
    root = output(box, capfd, script).split()
    assert root[:3] == ["0", "0", "10"]
    assert dict(zip(root[3::2], root[4::2], strict=True)) == {
        "Umask:": "0022", "SigBlk:": "0" * 16, "SigIgn:": "0" * 16, "NoNewPrivs:": "0",
        "CapInh:": "0" * 16, "CapPrm:": "00000000a80425fb", "CapEff:": "00000000a80425fb",
        "CapBnd:": "00000000a80425fb", "CapAmb:": "0" * 16,
    }  # fmt: skip
    user = output(box, capfd, script, user="app", no_new_privileges=True).split()
    assert user[:4] == ["1000", "1000", "10", "29"]
    rest = dict(zip(user[4::2], user[5::2], strict=True))
    assert (rest["CapPrm:"], rest["CapEff:"], rest["CapBnd:"]) == ("0" * 16, "0" * 16, "00000000a80425fb")
    assert rest["NoNewPrivs:"] == "1"


def test_no_descriptor_of_ours_reaches_it(box: Box, tmp_path: Path, capfd: Capture) -> None:
    leaked = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(leaked, True)
    try:
        assert output(box, capfd, "ls /proc/1/fd; true").split() == ["0", "1", "2"]
    finally:
        os.close(leaked)


def test_devices_are_dockers(box: Box, capfd: Capture) -> None:
    names = output(box, capfd, "echo /dev/*").replace("/dev/", "").strip()
    assert names == "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    script = """
    set -e
    echo x > /dev/null; echo x > /dev/shm/file
    head -c 3 /dev/urandom | wc -c; head -c 2 /dev/zero | tr '\\0' z
    echo y | cat /dev/stdin; stat -c %a%F /dev/null /dev/shm /dev/pts/ptmx
    """
    assert output(box, capfd, script).split("\n")[:2] == ["3", "zzy"]


def test_no_device_that_it_makes_can_be_opened(box: Box, tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "volume").mkdir()
    script = """
    for directory in / /tmp /dev /dev/shm /volume; do
        mknod $directory/node c 1 5 && head -c 1 $directory/node 2>/dev/null && echo opened $directory/node
        rm $directory/node
    done
    echo end
    """
    assert output(box, capfd, script, volumes=(f"{tmp_path}/volume:/volume",)).strip() == "end"


def test_dangerous_parts_of_proc_and_sys_are_hidden_or_fixed(box: Box, capfd: Capture) -> None:
    script = """
    for file in /proc/sys/kernel/domainname /proc/irq/x /sys/x /proc/sysrq-trigger; do
        (echo x > $file) 2>/dev/null && echo wrote $file
    done
    for hidden in /proc/kcore /proc/keys /proc/timer_list; do test -s $hidden && head -c 1 $hidden; done
    ls /sys/firmware /proc/acpi /proc/scsi 2>/dev/null | grep -v :
    echo end
    """
    assert output(box, capfd, script).strip() == "end"


def test_only_the_containers_mounts_are_visible(box: Box, capfd: Capture) -> None:
    table = output(box, capfd, "cat /proc/self/mountinfo").splitlines()
    assert f" / / rw,nodev,relatime - overlay {box.mount.source} " in table[0]
    assert len(table) < 32
    assert all(
        line.split()[4] == "/" or line.split()[4].startswith(("/proc", "/sys", "/dev", "/etc"))
        for line in table
    )
    assert output(box, capfd, "ls /.. /proc/1/root").split().count("usr") == 2


def test_a_run_that_changes_nothing_leaves_no_difference(box: Box) -> None:
    assert box.run("true") == 0
    assert box.diff() == []


def test_a_tree_without_anything_gets_its_mount_points_for_the_run_only(tmp_path: Path) -> None:
    lower = hosttree.build(tmp_path / "tree", ["true", "sh", "cat"])
    for name in ("proc", "sys", "dev"):
        (lower / name).rmdir()
    for path in ("etc/passwd", "etc/group", "etc/os-release"):
        (lower / path).unlink()
    (lower / "etc").rmdir()
    os.utime(lower, ns=(0, 1_500_000_000_123_456_789))
    box = Box(lower, tmp_path)
    os.utime(box.upper, ns=(0, 1_500_000_000_123_456_789))
    assert box.sh("cat /etc/hosts >/dev/null && cat /proc/self/stat") == 0
    assert os.listdir(box.upper) == []
    assert box.upper.stat().st_mtime_ns == 1_500_000_000_123_456_789
    assert box.sh("echo > /etc/mine") == 0
    assert box.diff() == ["A /etc", "A /etc/mine"]


def test_changes_stay_in_the_layer(box: Box) -> None:
    assert box.sh("echo new > /etc/new; rm /etc/group; echo >> /etc/hosts; mkdir /a") == 0
    assert box.diff() == ["A /a", "C /etc", "D /etc/group", "A /etc/new"]


@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
@pytest.mark.parametrize("target", ["/etc", "/tmp", "nowhere"])
def test_a_symlink_in_the_place_of_a_kernel_directory_is_refused(box: Box, name: str, target: str) -> None:
    (box.upper / name).symlink_to(target)
    with pytest.raises(ProcessError, match=f"/{name} of the container is not a directory"):
        box.run("true")


def test_links_in_the_place_of_etc_files_stay_inside(box: Box, capfd: Capture, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    etc = box.upper / "etc"
    etc.mkdir()
    (etc / "resolv.conf").symlink_to(victim)
    (etc / "hosts").symlink_to("hosts")
    (etc / "hostname").symlink_to("../../../../../../run/name")
    seen = output(box, capfd, f"cat /etc/hostname; echo x > {victim}; readlink /etc/resolv.conf")
    assert seen == f"box\n{victim}\n"
    assert victim.read_text() == "untouched"


def test_the_working_directory_is_made_inside(box: Box, capfd: Capture, tmp_path: Path) -> None:
    box.upper.joinpath("link").symlink_to("/srv")
    box.upper.joinpath("out").symlink_to(f"../../../../..{tmp_path}")
    assert (
        output(box, capfd, "pwd -P; stat -c %u:%g:%a .", working_dir="/link/a/b", user="app")
        == "/srv/a/b\n0:0:755\n"
    )
    assert output(box, capfd, "pwd -P", working_dir="/out/made") == f"{tmp_path}/made\n"
    assert not (tmp_path / "made").exists()
    with pytest.raises(ProcessError, match="working directory") as caught:
        box.run("true", working_dir="/etc/passwd")
    assert caught.value.status == 125


def test_volumes_show_the_hosts_files(box: Box, capfd: Capture, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "file").write_text("host")
    script = "cat /a/b/file /c; echo new > /a/b/new; (echo x > /c) 2>/dev/null || echo refused"
    seen = output(box, capfd, script, volumes=(f"{shared}:/a/b", f"{shared}/file:/c:ro"))
    assert seen == "hosthostrefused\n"
    assert (shared / "new").read_text() == "new\n"
    # Docker shows the mount points of volumes too.
    assert box.diff() == ["A /a", "A /a/b", "A /c"]


def test_a_volumes_target_is_made_inside(box: Box, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    victim = tmp_path / "victim"
    box.upper.joinpath("link").symlink_to(victim)
    assert box.sh("echo x > /link/file", volumes=(f"{shared}:/link",)) == 0
    assert (shared / "file").exists()
    assert not victim.exists()


@pytest.mark.parametrize(
    ("volume", "error", "words"),
    [
        ("/nosuch/here:/x", NotFoundError, "does not exist"),
        ("/tmp:/proc/sys", ProcessError, "would lie in /proc"),
        ("/tmp:/proc", ProcessError, "would lie in /proc"),
        ("/tmp:/etc/passwd", ProcessError, "cannot make"),
        ("/etc/passwd:/etc", ProcessError, "one is a directory"),
        ("/tmp:/root/self", ProcessError, "hide the whole container"),
    ],
)
def test_volumes_that_cannot_be_shown_are_refused(
    box: Box, volume: str, error: type[Exception], words: str
) -> None:
    (box.upper / "root").mkdir()
    (box.upper / "root/self").symlink_to("..")
    with pytest.raises(error, match=words):
        box.run("true", volumes=(volume,))


def test_a_read_only_tree_refuses_writes_but_has_its_mount_points(box: Box, capfd: Capture) -> None:
    script = "(echo > /x) 2>/dev/null || echo refused; cat /etc/hostname; echo > /dev/shm/x; rm -r /tmp 2>&1"
    assert box.sh(script, read_only=True) == 1
    assert capfd.readouterr().out.startswith("refused\nbox\nrm: ")
    assert box.diff() == []


def test_standard_input_comes_only_when_interactive(box: Box, capfd: Capture) -> None:
    saved = os.dup(0)
    try:
        for interactive, expected in ((True, "words"), (False, "")):
            read, write = os.pipe()
            os.write(write, b"words")
            os.close(write)
            os.dup2(read, 0)
            os.close(read)
            assert output(box, capfd, "cat", interactive=interactive) == expected
    finally:
        os.dup2(saved, 0)
        os.close(saved)


def test_signals_are_forwarded_and_ours_stay_as_they_were(box: Box, capfd: Capture) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    script = "trap 'echo got; exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    timer = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGTERM))
    assert box.sh(script, on_start=lambda pid: timer.start()) == 9
    assert capfd.readouterr().out == "ready\ngot\n"
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_signals_that_another_thread_gets_are_forwarded_too(box: Box, capfd: Capture) -> None:
    before = signal.getsignal(signal.SIGTERM)
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        script = "trap 'echo got; exit 9' TERM; echo ready; while :; do sleep 0.05; done"
        timer = threading.Timer(0.7, signal.pthread_kill, (other.ident, signal.SIGTERM))
        assert box.sh(script, on_start=lambda pid: timer.start()) == 9
    finally:
        done.set()
        other.join()
    assert capfd.readouterr().out == "ready\ngot\n"
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_orphans_end_with_it(box: Box, tmp_path: Path) -> None:
    marker = f"{time.time()}"
    assert box.sh(f"env MARK={marker} sleep 86399 & exit 4") == 4
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            assert f"MARK={marker}".encode() not in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue


def test_nothing_is_mounted_anywhere_during_or_after(box: Box) -> None:
    during: list[str] = []

    def look(pid: int) -> None:
        table = Path("/proc/self/mountinfo").read_text()
        during.extend(line for line in table.splitlines() if box.mount.source in line)
        assert box.mount.source in Path(f"/proc/{pid}/mountinfo").read_text()
        os.kill(pid, signal.SIGKILL)

    assert box.run("sleep", "60", on_start=look) == 137
    assert during == []
    assert mounts_of(box.mount.source) == []


def test_an_error_of_the_caller_ends_the_container(box: Box) -> None:
    pids: list[int] = []

    def fail(pid: int) -> None:
        pids.append(pid)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        box.run("sleep", "60", on_start=fail)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
    assert mounts_of(box.mount.source) == []


def test_an_error_of_the_same_class_from_the_caller_ends_it_too(box: Box) -> None:
    def fail(pid: int) -> None:
        raise ProcessError("mine")

    with pytest.raises(ProcessError, match="mine"):
        box.run("sleep", "60", on_start=fail)


def test_a_plain_directory_runs_too(tree: Path, tmp_path: Path, box: Box) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", tree, copy], check=True)
    before = sorted(os.listdir(copy / "etc"))
    assert run(Bind("x", copy, False), box.spec("sh", "-c", "echo > /made")) == 0
    assert (copy / "made").exists()
    assert sorted(os.listdir(copy / "etc")) == before


def test_a_tree_that_cannot_be_mounted_is_told_as_such(box: Box, tmp_path: Path) -> None:
    broken = Overlay("layerfs-broken", (tmp_path / "nosuch",), box.upper, tmp_path / "work")
    with pytest.raises(MountError, match="layerfs-broken"):
        run(broken, box.spec("true"))


def test_many_runs_leave_no_descriptor(box: Box) -> None:
    box.run("true")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        box.run("true")
        with pytest.raises(ProcessError):
            box.run("nosuch")
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_third_request_to_end_kills_a_process_that_does_not_heed_them(box: Box) -> None:
    def ask(pid: int) -> None:
        for number in range(3):
            threading.Timer(0.2 * (number + 1), os.kill, (os.getpid(), signal.SIGINT)).start()

    began = time.monotonic()
    assert box.run("sleep", "60", on_start=ask) == 137
    assert time.monotonic() - began < 30
