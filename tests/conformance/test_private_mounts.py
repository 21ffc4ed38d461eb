"""An ordinary user's mounts that only the namespace of `mount --foreground` sees, as others see them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import hosttree
from tests.support.commandline import IMAGE
from tests.support.users import Login, login

_UID = 61235
_NEEDED = ("nsenter", "setpriv", "unshare")

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user"),
    pytest.mark.skipif(not all(map(shutil.which, _NEEDED)), reason="needs nsenter, setpriv and unshare"),
]


@pytest.fixture(scope="module", params=["", "7100000:65536"], ids=["alone", "with ranges"])
def user(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Login]:
    if request.param and not (shutil.which("newuidmap") and shutil.which("newgidmap")):
        pytest.skip("no newuidmap or newgidmap")
    tree = hosttree.build(tmp_path_factory.mktemp("tree") / "root")
    with login(_UID, Path(f"/tmp/layerfs-private-{os.getpid()}"), ranges=request.param) as made:
        made.import_tree(tree, "import", "-c", 'CMD ["true"]', IMAGE)
        yield made


class Foreground:
    """A running `layerfs mount --foreground` of the user."""

    def __init__(self, user: Login, driver: str, name: str, target: Path) -> None:
        self.user = user
        words = ("--driver", driver, "mount", IMAGE, target, "--name", name, "--foreground")
        self.process = subprocess.Popen(
            user.command(*user.layerfs_words(*words)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert line.startswith("mounted at"), line + self.process.stderr.read()
        self.id = int(self.process.stderr.readline().split()[-1])

    def enter(self, *words: object) -> list[str]:
        """Give the command that does something inside, as the printed one does."""
        inside = ("nsenter", "--user", "--mount", "--preserve-credentials", "--target", self.id)
        return self.user.command(*inside, *words)


@pytest.fixture(params=["overlay2", "fuse", "vfs"])
def mounted(request: pytest.FixtureRequest, user: Login) -> Iterator[Foreground]:
    target = user.home / "target"
    user.run("mkdir", target)
    if request.param not in _drivers(user):
        pytest.skip(f"the driver {request.param} does not work here")
    mounted = Foreground(user, request.param, "fg", target)
    yield mounted
    mounted.process.kill()
    mounted.process.communicate()
    # Ending the namespace takes the kernel a moment.
    for _ in range(100):
        if (
            user.layerfs("rm", "fg", check=False).returncode == 0
            or "fg" not in user.layerfs("ps", "-a").stdout
        ):
            break
        time.sleep(0.05)
    user.run("rmdir", target)
    assert "fg" not in user.layerfs("ps", "-a").stdout


def _drivers(user: Login) -> set[str]:
    found = json.loads(user.layerfs("--json", "drivers").stdout)
    return {each["name"] for each in found if each["works"]}


def test_a_mount_in_anothers_namespace_counts_as_one(mounted: Foreground) -> None:
    user = mounted.user
    place = str(user.home / "target")
    assert f"mounted at {place} in the namespace of process {mounted.id}" in user.layerfs("ps").stdout
    (shown,) = json.loads(user.layerfs("--json", "ps").stdout)
    assert (shown["mounts"], shown["private_mounts"]) == ([], [{"target": place, "pid": mounted.id}])
    user.run("mkdir", user.home / "second")
    for words in (
        ("mount", "fg", user.home / "second", "--foreground"),
        ("start", "fg"),
        ("rm", "fg"),
        ("rm", "-f", "fg"),
        ("umount", "fg"),
    ):
        done = user.layerfs(*words, check=False, timeout=30)
        assert done.returncode == 1, words
        assert f"mounted at {place} by process {mounted.id}" in done.stderr, (words, done.stderr)
        assert f"hint: end process {mounted.id}" in done.stderr, (words, done.stderr)
    user.run("rmdir", user.home / "second")
    done = user.layerfs("umount", place, check=False)
    assert (done.returncode, f"hint: process {mounted.id} sees one there" in done.stderr) == (1, True)
    subprocess.run(mounted.enter("sh", "-c", f"echo new > {place}/new"), check=True)
    mounted.process.send_signal(signal.SIGTERM)
    mounted.process.communicate(timeout=30)
    assert "A /new" in user.layerfs("diff", "fg").stdout.splitlines()


def test_a_mount_lives_as_long_as_anybody_is_in_its_namespace(mounted: Foreground) -> None:
    user = mounted.user
    with subprocess.Popen(mounted.enter("sleep", "1000")) as sleeper:
        try:
            while Path(f"/proc/{sleeper.pid}/comm").read_text() != "sleep\n":
                time.sleep(0.01)
            os.kill(mounted.id, signal.SIGKILL)
            mounted.process.communicate(timeout=30)
            assert "in the namespace of process" in user.layerfs("ps").stdout
            done = user.layerfs("rm", "fg", check=False)
            assert done.returncode == 1 and "fg is mounted at" in done.stderr
            assert f"hint: unmount it in the mount namespace of process {sleeper.pid}" in done.stderr
        finally:
            sleeper.kill()


def test_it_ends_with_the_mount_there(mounted: Foreground) -> None:
    subprocess.run(mounted.enter("umount", mounted.user.home / "target"), check=True)
    _, said = mounted.process.communicate(timeout=30)
    assert (mounted.process.returncode, "is not mounted any more" in said) == (0, True)
