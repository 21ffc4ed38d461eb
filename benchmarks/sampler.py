"""A process beside the harness that samples the memory of everything that works, all of it at one moment.

It is asked over a socket to begin, takes a sample at once and then one every 50 ms, and gives the largest
when it is asked to end. In the harness itself it would take turns with what is measured there.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks import processes

_SECONDS: Final = 0.05


class Memory(NamedTuple):
    """Sums over processes at one moment, in bytes: when it began, and the largest."""

    resting: int = 0
    peak: int = 0


class Sampler:
    """The end of the harness: begins and ends the sampling.

    Args:
        channel: leads to the process that runs `serve`.
        launcher: the process that starts the commands, and is none of them.
    """

    def __init__(self, channel: socket.socket, launcher: int) -> None:
        self._channel = channel
        self._launcher = launcher

    def begin(self, spared: Iterable[int]) -> None:
        """Sample from now on all processes below this one but those spared and what they start."""
        self._ask({"root": os.getpid(), "spared": sorted(spared), "launcher": self._launcher})

    def end(self) -> Memory:
        """Stop and give what was found."""
        return Memory(*self._ask({}))

    def close(self) -> None:
        """End the process."""
        self._channel.close()

    def _ask(self, request: dict[str, object]) -> Sequence[int]:
        self._channel.send(json.dumps(request).encode())
        answer: Sequence[int] = json.loads(self._channel.recv(1 << 16))
        return answer


def serve(channel: socket.socket) -> None:
    """Answer requests until the other end closes."""
    while message := channel.recv(1 << 20):
        request = json.loads(message)
        resting = peak = _together(**request)
        channel.send(json.dumps(Memory(resting, peak)).encode())
        while not select.select([channel], [], [], _SECONDS)[0]:
            peak = max(peak, _together(**request))
        if not channel.recv(1 << 20):
            return
        channel.send(json.dumps(Memory(resting, peak)).encode())


def _together(root: int, spared: Sequence[int], launcher: int) -> int:
    """Add up proportional set sizes: what several processes share counts once; proc_pid_smaps(5)."""
    total = 0
    for process in processes.descendants(root, {*spared, os.getpid()}) - {launcher}:
        # It may end at any moment, and a kernel thread has none.
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
