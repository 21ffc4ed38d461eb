"""docker with a daemon of its own: overlay2 below, no networks, everything in the subject's directory."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import processes
from benchmarks.commands import CommandError, Commands, missing
from benchmarks.link import NETWORK
from benchmarks.subjects.base import Candidate, Subject
from benchmarks.subjects.engine import Engine


class Docker(Engine):
    """The daemon's client."""

    def __init__(self, place: Path, commands: Commands, sockets: Path) -> None:
        super().__init__(place, commands)
        self._environment = {
            "DOCKER_HOST": f"unix://{sockets}/docker.sock",
            "DOCKER_CONFIG": str(place / "config"),
        }
        self._sockets = sockets
        self._daemon = 0

    @classmethod
    @contextlib.contextmanager
    def opened(cls, place: Path, commands: Commands) -> Iterator[Subject]:
        """Keep the daemon running for the length of a block."""
        # The path of a socket has 107 bytes at most, and the daemon's own are deep.
        with tempfile.TemporaryDirectory(prefix="layerfs-docker-") as sockets:
            docker = cls(place, commands, Path(sockets))
            with commands.daemon(
                [
                    *("dockerd", "--storage-driver", "overlay2", "--iptables=false", "--bridge=none"),
                    *("--data-root", place / "data", "--exec-root", Path(sockets, "exec")),
                    *("--insecure-registry", NETWORK),
                    *("--pidfile", place / "pid", "-H", docker._environment["DOCKER_HOST"]),
                ],
                log=place / "log",
                ready=docker._answers,
            ) as process:
                docker._daemon = process
                yield docker

    def call(self, *words: str | Path) -> bytes:
        """Run the client."""
        return self.commands.run(["docker", *words], environment=self._environment)

    def daemons(self) -> set[int]:
        """Give the daemon and what it has started."""
        return {self._daemon, *processes.descendants(self._daemon)}

    def _answers(self) -> bool:
        if not (self._sockets / "docker.sock").exists():
            return False
        try:
            self.call("version")
        except CommandError:
            return False
        return True


def candidates() -> list[Candidate]:
    """Give the one subject."""
    reason = "needs root" if os.geteuid() else missing("docker", "dockerd", "containerd", "runc")
    return [Candidate("docker", reason, Docker.opened)]
