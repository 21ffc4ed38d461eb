"""The programs that layerfs is compared with, each with a root of its own below a temporary directory.

Nothing here touches a daemon, an image or a mount that it did not make.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

START_SECONDS = 60
COMMAND_SECONDS = 300


def need(*programs: str) -> None:
    """Skip what asks for programs that this machine has not, or for root when we are not."""
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("needs root")


def call(
    command: Sequence[str | Path],
    *,
    stdin: bytes | Path | None = None,
    environment: Mapping[str, str] | None = None,
    statuses: Sequence[int] = (0,),
) -> bytes:
    """Run a program to its end and give what it printed; a status other than `statuses` fails the test."""
    done = subprocess.run(
        [str(word) for word in command],
        input=stdin if isinstance(stdin, bytes) else b"",
        capture_output=True,
        env={**os.environ, **(environment or {})},
        timeout=COMMAND_SECONDS,
        check=False,
    )
    if done.returncode not in statuses:
        words = " ".join(str(word) for word in command)
        tail = (done.stdout[-1000:] + b"\n" + done.stderr[-3000:]).decode(errors="replace")
        pytest.fail(f"{words}\nended with {done.returncode}:\n{tail}")
    return done.stdout


@contextlib.contextmanager
def short_directory(name: str) -> Iterator[Path]:
    """Give a new directory with a short path, for sockets; unmounted below and removed at the end."""
    directory = Path(tempfile.mkdtemp(prefix=f"layerfs-{name}-"))
    try:
        yield directory
    finally:
        unmount_below(directory)
        shutil.rmtree(directory)


def unmount_below(directory: Path) -> None:
    """Take away every mount at or below `directory`, the youngest first."""
    with open("/proc/self/mountinfo") as file:
        targets = [line.split()[4].encode().decode("unicode_escape") for line in file]
    for target in reversed(targets):
        if Path(target).is_relative_to(directory):
            subprocess.run(["umount", "--lazy", target], capture_output=True, check=False)


class Docker:
    """A docker daemon of our own, overlay2 below, without networks; and the client that speaks to it."""

    def __init__(self, directory: Path) -> None:
        self._environment = {
            "DOCKER_HOST": f"unix://{directory}/s.sock",
            "DOCKER_CONFIG": str(directory / "config"),
            # The builder that is part of the daemon; the newer one is a plugin that may not be there.
            "DOCKER_BUILDKIT": "0",
        }
        self._log = directory / "log"
        with self._log.open("wb") as log:
            self._daemon = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "TERM", "dockerd", "--storage-driver", "overlay2"),
                    *("--data-root", directory / "data", "--exec-root", directory / "exec"),
                    *("--pidfile", directory / "pid", "-H", self._environment["DOCKER_HOST"]),
                    *("--iptables=false", "--bridge=none"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Wait for the daemon's first answer."""
        deadline = time.monotonic() + START_SECONDS
        while subprocess.run(
            ["docker", "version"],
            env={**os.environ, **self._environment},
            capture_output=True,
            check=False,
        ).returncode:
            if self._daemon.poll() is not None or time.monotonic() > deadline:
                pytest.fail("dockerd does not start:\n" + self._log.read_text(errors="replace")[-3000:])
            time.sleep(0.2)

    def stop(self) -> None:
        """End the daemon and all that it started."""
        if self._daemon.poll() is None:
            with contextlib.suppress(pytest.fail.Exception):
                if containers := self.lines("ps", "--all", "--quiet"):
                    self("rm", "--force", "--volumes", *containers)
        self._daemon.terminate()
        try:
            self._daemon.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self._daemon.pid, signal.SIGKILL)
            self._daemon.wait()

    def __call__(
        self, *arguments: str | Path, stdin: bytes | None = None, statuses: Sequence[int] = (0,)
    ) -> bytes:
        return call(["docker", *arguments], stdin=stdin, environment=self._environment, statuses=statuses)

    def lines(self, *arguments: str | Path) -> list[str]:
        """Give the lines that a docker command prints."""
        return self(*arguments).decode().splitlines()

    def import_tree(self, tree: Path, name: str) -> None:
        """Make an image of one layer."""
        self("import", "-", name, stdin=call(["tar", "-C", tree, "--numeric-owner", "-c", "."]))

    def changes(self, container: str) -> list[str]:
        """Give the lines of a container's diff; bytes that are not UTF-8 are replaced in them."""
        return self.lines("diff", container)

    def build(self, context: Path, name: str) -> None:
        """Build an image, without a network."""
        self("build", "--network", "none", "--tag", name, context)

    def run(self, image: str, *command: str, options: Sequence[str] = ()) -> tuple[str, bytes]:
        """Run a command in a new container that stays; gives its id and what it printed."""
        container = self("create", "--network", "none", *options, image, *command).decode().strip()
        return container, self("start", "--attach", container)

    @contextlib.contextmanager
    def mounted(self, image: str, target: Path) -> Iterator[Path]:
        """Show the tree of an image: docker's own unpacked layers, without those of a container."""
        format_ = "{{.GraphDriver.Data.UpperDir}}:{{.GraphDriver.Data.LowerDir}}"
        layers = self.lines("inspect", "--format", format_, image)[0].removesuffix(":<no value>")
        target.mkdir(exist_ok=True)
        if ":" in layers:
            call(["mount", "-t", "overlay", "-o", f"ro,lowerdir={layers}", "overlay", target])
        else:
            call(["mount", "--bind", layers, target])
        try:
            yield target
        finally:
            call(["umount", target])


class Podman:
    """podman with a storage of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._policy = directory / "policy.json"
        self._policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')

    def __call__(self, *arguments: str | Path) -> bytes:
        return call(
            [
                *("podman", "--root", self._directory / "root", "--runroot", self._directory / "run"),
                *("--tmpdir", self._directory / "tmp", "--storage-driver", "overlay"),
                *("--cgroup-manager", "cgroupfs", "--events-backend", "file", *arguments),
            ]
        )

    def load(self, archive: Path) -> None:
        """Take over what docker save, or layerfs save, wrote."""
        self("load", "--quiet", "--signature-policy", self._policy, "--input", archive)

    def pull(self, name: str) -> None:
        """Pull from a registry of ours, which speaks plain HTTP."""
        self("pull", "--quiet", "--tls-verify=false", "--signature-policy", self._policy, name)

    @contextlib.contextmanager
    def mounted(self, image: str) -> Iterator[Path]:
        """Show the tree of an image."""
        target = self("image", "mount", image).decode().strip()
        try:
            yield Path(target)
        finally:
            self("image", "unmount", image)


def skopeo(*arguments: str | Path) -> bytes:
    """Run skopeo; it keeps nothing of its own but what the arguments name."""
    return call(["skopeo", "--insecure-policy", *arguments])


def umoci_unpack(layout: Path, tag: str, bundle: Path) -> Path:
    """Unpack an image of an OCI layout; gives the root of its tree."""
    call(["umoci", "unpack", "--image", f"{layout}:{tag}", bundle])
    return bundle / "rootfs"


class Layerfs:
    """The command line of layerfs, with a store of its own."""

    def __init__(self, root: Path, driver: str) -> None:
        self.root = root
        self.driver = driver

    def __call__(
        self, *arguments: str | Path, stdin: bytes | None = None, statuses: Sequence[int] = (0,)
    ) -> bytes:
        command = [sys.executable, "-m", "layerfs", "--root", self.root, "--driver", self.driver, *arguments]
        return call(command, stdin=stdin, statuses=statuses)

    def run(self, image: str, name: str, *command: str, options: Sequence[str] = ()) -> bytes:
        """Run a command in a new container that stays."""
        return self("run", "--name", name, *options, image, *command)

    def changes(self, container: str) -> list[str]:
        """Give the lines of a container's diff, unescaped."""
        found = json.loads(self("--json", "diff", container))
        return [f"{change['kind']} {change['path']}" for change in found]

    @contextlib.contextmanager
    def mounted(self, image: str, target: Path) -> Iterator[Path]:
        """Show the tree of an image, read-only."""
        target.mkdir(exist_ok=True)
        container = self("mount", "--read-only", image, target).decode().strip()
        try:
            yield target
        finally:
            self("umount", target)
            self("rm", container)
