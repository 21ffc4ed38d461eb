"""A small process that starts the commands that are measured, and says what each has used.

The kernel counts a child's peak memory from its parent's on, so a large parent would hide what a small
program needs. This one stays small: ``python -I -S launcher.py DESCRIPTOR`` imports nothing of the harness. A
request is one JSON message on the socket, and so is its answer.
"""

from __future__ import annotations

import json
import os
import socket
import sys


def serve(channel: socket.socket) -> None:
    """Answer requests until the other end closes."""
    while message := channel.recv(1 << 20):
        channel.send(json.dumps(_run(json.loads(message))).encode())


def _run(request: dict[str, object]) -> dict[str, object]:
    opened = [(os.POSIX_SPAWN_OPEN, number, path, flags, 0o600) for number, path, flags in _streams(request)]
    try:
        os.chdir(str(request["directory"]))
        child = os.posix_spawnp(
            request["command"][0],  # type: ignore[index]
            request["command"],  # type: ignore[arg-type]
            request["environment"],  # type: ignore[arg-type]
            file_actions=opened,
            setsid=True,
        )
    except OSError as error:
        return {"error": str(error)}
    finally:
        os.chdir("/")
    _, status, usage = os.wait4(child, 0)
    return {
        "status": os.waitstatus_to_exitcode(status),
        "user": usage.ru_utime,
        "system": usage.ru_stime,
        "peak": usage.ru_maxrss * 1024,
    }


def _streams(request: dict[str, object]) -> list[tuple[int, str, int]]:
    made = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    return [
        (0, str(request["stdin"]), os.O_RDONLY),
        (1, str(request["stdout"]), made),
        (2, str(request["stderr"]), made),
    ]


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
