"""Who is still alive: boots, processes and mount namespaces, named so that reused numbers never mislead."""

import functools
import os
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


def kill(owner: Owner) -> None:
    """Kill that very process; nothing happens when it is gone.

    Raises:
        PermissionError: it is not ours to kill.
    """
    import signal

    try:
        process = os.pidfd_open(owner.pid)
    except ProcessLookupError:
        return
    try:
        # Only now is it certain that the number cannot pass to another process in between.
        if alive(owner):
            signal.pidfd_send_signal(process, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.close(process)


def process_in_namespace(namespace: int) -> int | None:
    """Find a process that lives in a mount namespace; None when it is gone or out of sight."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if mount_namespace(name) == namespace:
                    return int(name)
            except OSError:
                continue
    return None
