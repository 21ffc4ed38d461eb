"""Runs the commands that are measured, and daemons beside them, and adds up what the former have used."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from benchmarks import processes
from benchmarks.processes import Cpu
from benchmarks.sampler import Sampler

# What changes how our own Python runs and no user has set.
_UNSET: Final = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")
# How much of what a failed command said is told, in characters.
_TAIL: Final = 300
# Where `-m benchmarks.NAME` finds the harness's own daemons.
_SOURCES: Final = Path(__file__).parents[1]
_STOP_SECONDS: Final = 20
_START_SECONDS: Final = 60

Words = Sequence[str | Path]


class CommandError(Exception):
    """A command ended with another status than it should have."""


class Commands:
    """Runs commands one at a time through a launcher; a context manager, which ends the launcher.

    Attributes:
        cpu: what all commands so far have used.
        peak: the largest resident memory of one process among them since this was last set to 0, in bytes.
        scenery: processes that are neither of a subject nor work for one, and what they start with them.
        sampler: sees how much memory all of them hold together.
    """

    def __init__(self) -> None:
        self.cpu = Cpu()
        self.peak = 0
        # Children that are there already are somebody else's, to reap and to end.
        self.scenery = processes.children()
        self._waited = set(self.scenery)

    def __enter__(self) -> Commands:
        processes.adopt_orphans()
        self._directory = tempfile.TemporaryDirectory(prefix="layerfs-benchmark-output-")
        launcher: Words = [sys.executable, "-I", "-S", Path(__file__).with_name("launcher.py")]
        self._channel, self._launcher = self._start_helper(launcher)
        channel, self._sampling = self._start_helper([sys.executable, "-m", "benchmarks.sampler"])
        self.scenery.add(self._sampling.pid)
        self.sampler = Sampler(channel, self._launcher.pid)
        return self

    def _start_helper(self, command: Words) -> tuple[socket.socket, subprocess.Popen[bytes]]:
        """Start a part of the harness that answers on a socket, the number of which is its last word."""
        channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            started = self._start([*command, str(other.fileno())], pass_fds=[other.fileno()])
        return channel, started

    def __exit__(self, *exception: object) -> None:
        # Whatever a peer has left running has nobody else to end it.
        for process in self.others():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._channel.close()
        self.sampler.close()
        self._launcher.wait()
        self._sampling.wait()
        self._directory.cleanup()

    def run(
        self,
        command: Words,
        *,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
        stdin: Path | None = None,
        stdout: Path | None = None,
        statuses: Sequence[int] = (0,),
    ) -> bytes:
        """Run a command to its end and give what it printed, which is nothing if `stdout` is given.

        Raises:
            CommandError: it cannot be run, or its status is none of `statuses`.
        """
        words = [str(word) for word in command]
        output, errors = (Path(self._directory.name, name) for name in ("stdout", "stderr"))
        request = {
            "command": words,
            "directory": str(directory or "/"),
            "environment": _environment(environment),
            "stdin": str(stdin or "/dev/null"),
            "stdout": str(stdout or output),
            "stderr": str(errors),
        }
        answer = self._ask(request)
        if "error" in answer:
            raise CommandError(f"{words[0]}: {answer['error']}")
        self.cpu = self.cpu.plus(Cpu(answer["user"], answer["system"]))
        self.peak = max(self.peak, answer["peak"])
        printed = b"" if stdout is not None else output.read_bytes()
        if answer["status"] not in statuses:
            said = (printed[-_TAIL:] + errors.read_bytes()[-_TAIL:]).decode(errors="replace").strip()
            shown = " ".join(words)[-_TAIL:]
            raise CommandError(f"{words[0]} ended with {answer['status']}: {said} (the command: {shown})")
        return printed

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._channel.send(json.dumps(request).encode())
        try:
            answer: dict[str, Any] = json.loads(self._channel.recv(1 << 16))
        except BaseException:
            # Interrupted: what is running ends now, and its answer is not taken for another's.
            for process in processes.descendants(self._launcher.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            self._channel.recv(1 << 16)
            raise
        return answer

    @contextlib.contextmanager
    def daemon(
        self,
        command: Words,
        *,
        log: Path,
        ready: Callable[[], bool],
        environment: Mapping[str, str] | None = None,
        scenery: bool = False,
    ) -> Iterator[int]:
        """Keep a daemon running for the length of a block, which gets its process id.

        What one that is `scenery` uses is not counted. The daemon is asked to end, then made to, and with it
        whatever it leaves behind.

        Raises:
            CommandError: it is not ready after a minute, or has ended.
        """
        with log.open("wb") as written:
            started = self._start(command, environment=environment, output=written)
        if scenery:
            self.scenery.add(started.pid)
        below: set[int] = set()
        try:
            deadline = time.monotonic() + _START_SECONDS
            while not ready():
                if started.poll() is not None or time.monotonic() > deadline:
                    tail = log.read_text(errors="replace")[-1500:]
                    raise CommandError(f"{command[0]} does not start: {tail}")
                time.sleep(0.05)
            yield started.pid
        finally:
            below = processes.descendants(started.pid)
            started.terminate()
            try:
                started.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait()
            for process in below:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            self._waited.discard(started.pid)
            self.scenery.discard(started.pid)

    def _start(
        self,
        command: Words,
        *,
        environment: Mapping[str, str] | None = None,
        output: IO[bytes] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> subprocess.Popen[bytes]:
        started = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *map(str, command)],
            cwd=_SOURCES,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment(environment),
            start_new_session=True,
            pass_fds=pass_fds,
        )
        self._waited.add(started.pid)
        return started

    def others(self) -> set[int]:
        """Give the living processes below this one but the harness's own: daemons, servers of mounts."""
        processes.reap(self._waited)
        return processes.descendants(os.getpid(), self.scenery) - {self._launcher.pid}

    def used(self) -> Cpu:
        """Give what this process, its commands, its daemons and its mounts' servers have used so far."""
        return processes.used_by_self().plus(self.cpu).plus(processes.used_by(self.others()))


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _UNSET}
    return {**kept, **(more or {})}


def missing(*programs: str) -> str:
    """Say which of the programs are not installed, "" if all are."""
    absent = [name for name in programs if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""
