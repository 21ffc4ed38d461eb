"""Who is still alive: boots, processes and mount namespaces, named so that reused numbers never mislead."""

import functools
import os
from collections.abc import Iterator
from typing import NamedTuple


class Owner(NamedTuple):
    """One process of one boot; `start` is when it began, in clock ticks since boot (proc(5), stat)."""

    pid: int
    start: int
    boot: str


@functools.cache
def boot_id() -> str:
    """Give the kernel's random name of this boot (proc(5), /proc/sys/kernel/random/boot_id)."""
    with open("/proc/sys/kernel/random/boot_id", "rb", buffering=0) as file:
        return file.read(64).decode().strip()


def this_process() -> Owner:
    """Name the calling process; never cached, since a fork changes it."""
    pid = os.getpid()
    start = start_time(pid)
    return Owner(pid, 0 if start is None else start, boot_id())


def start_time(pid: int) -> int | None:
    """Give a process's start time in clock ticks since boot; None when there is no such living process."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            text = file.read(4096)
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold anything, blanks and parentheses too.
    fields = text[text.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def alive(owner: Owner) -> bool:
    """Say whether that very process still runs; a zombie does not."""
    return owner.boot == boot_id() and start_time(owner.pid) == owner.start


def mount_namespace(pid: int | str = "self") -> int:
    """Give the inode number of a process's mount namespace (namespaces(7)).

    Raises:
        OSError: the process is gone, or is not ours to look at.
    """
    return os.stat(f"/proc/{pid}/ns/mnt").st_ino


def processes_in_namespace(namespace: int) -> Iterator[int]:
    """Give the processes that live in a mount namespace, and those of which nobody tells us where they live.

    These are other users', and an ordinary user's own in a user namespace beside ours (ptrace(2), "Ptrace
    access mode checking"). What each of them sees mounted, /proc/PID/mountinfo, is no secret.
    """
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if mount_namespace(name) != namespace:
                    continue
            except PermissionError:
                pass
            except OSError:
                continue
            yield int(name)
