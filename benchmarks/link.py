"""A slow network link: two network namespaces with a round trip and a rate for each connection between them.

It carries IP packets between two TUN devices, so that the protocols on both sides are the kernel's own: TCP
shakes hands over the whole distance, and begins slowly. Nothing is lost, and a packet waits only for others
of its own connection. tc-netem(8) would do for the delay, but not every kernel has it.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import itertools
import json
import os
import select
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.commands import Commands, Words, missing
from layerfs import linux

ROUND_TRIP: Final = 0.050
# Of each connection in each direction: 100 Mbit/s, in bytes a second.
RATE: Final = 100e6 / 8

# Addresses are of this network, which is for benchmarks (RFC 2544).
NETWORK: Final = "198.18.0.0/15"
# From linux/if_tun.h and linux/sched.h.
_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_IFF_TUN_NO_PI_VNET_HDR: Final = 0x0001 | 0x1000 | 0x4000
# Checksums and segments are left to the other end: packets come in up to 64 KiB.
_CHECKSUM_TSO4: Final = 0x01 | 0x02
_CLONE_NEWNET: Final = 0x40000000
_HEADER: Final = 10
_LARGEST: Final = 1 << 17
_AT_ONCE: Final = 64


class Link:
    """One such link, made by `slow`.

    Attributes:
        inside: what a command begins with that is to run at its far end.
        address: that end's address; reached from here as any other host's.
    """

    def __init__(self, process: int, address: str, interface: str) -> None:
        self.inside = ["nsenter", f"--net=/proc/{process}/ns/net"]
        self.address = address
        self._counter = Path(f"/sys/class/net/{interface}/statistics/rx_bytes")

    def received(self) -> int:
        """Give how many bytes have come from the far end so far, headers of packets included."""
        return int(self._counter.read_text())


@contextlib.contextmanager
def slow(commands: Commands) -> Iterator[Link]:
    """Have a link for the length of a block."""
    with tempfile.TemporaryDirectory(prefix="layerfs-benchmark-link-") as place:
        ready = Path(place, "ready")
        command: Words = [sys.executable, "-m", "benchmarks.link", ready]
        log = Path(place, "log")
        with commands.daemon(command, log=log, ready=ready.exists, scenery=True) as process:
            yield Link(process, *json.loads(ready.read_text()))


def why_not() -> str:
    """Say what is missing for such a link, "" if nothing is."""
    if os.geteuid():
        return "needs root"
    return missing("ip", "nsenter") or ("" if Path("/dev/net/tun").exists() else "there is no /dev/net/tun")


def _serve(ready: Path) -> None:
    near, far = _addresses(os.getpid())
    here, interface = _device(near)
    linux.unshare(_CLONE_NEWNET)
    there, _ = _device(far)
    part = ready.with_name("part")
    part.write_text(json.dumps([far, interface]))
    part.rename(ready)
    _carry(here, there)


def _addresses(number: int) -> tuple[str, str]:
    """Give two addresses of four addresses in `NETWORK`."""
    base = (198 << 24 | 18 << 16) + number % (1 << 15) * 4
    near, far = (".".join(str(byte) for byte in (base + last).to_bytes(4, "big")) for last in (1, 2))
    return near, far


def _device(address: str) -> tuple[int, str]:
    """Make a TUN device in the present network namespace; give its descriptor and name."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    request = struct.pack("16sH14x", b"slowlink%d", _IFF_TUN_NO_PI_VNET_HDR)
    name = fcntl.ioctl(device, _TUNSETIFF, request)[:16].rstrip(b"\0").decode()
    fcntl.ioctl(device, _TUNSETOFFLOAD, _CHECKSUM_TSO4)
    subprocess.run(["ip", "address", "add", f"{address}/30", "dev", name], check=True)
    subprocess.run(["ip", "link", "set", name, "up"], check=True)
    return device, name


def _carry(here: int, there: int) -> None:
    """Carry packets both ways, each after its time."""
    other = {here: there, there: here}
    waiting: list[tuple[float, int, int, bytes]] = []
    free: dict[tuple[int, bytes], float] = {}
    order = itertools.count()
    while True:
        pause = max(waiting[0][0] - time.monotonic(), 0.0) if waiting else None
        for source in select.select(list(other), [], [], pause)[0]:
            for packet in _packets(source):
                flow = (source, _ports(packet))
                sent = max(free.get(flow, 0.0), time.monotonic()) + (len(packet) - _HEADER) / RATE
                free[flow] = sent
                heapq.heappush(waiting, (sent + ROUND_TRIP / 2, next(order), other[source], packet))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, target, packet = heapq.heappop(waiting)
            # As any link does with what its end does not take.
            with contextlib.suppress(OSError):
                os.write(target, packet)


def _packets(source: int) -> Iterator[bytes]:
    with contextlib.suppress(BlockingIOError):
        for _ in range(_AT_ONCE):
            yield os.read(source, _LARGEST)


def _ports(packet: bytes) -> bytes:
    """Give both ports of a packet of IPv4 and TCP, which tell connections between two hosts apart."""
    begin = _HEADER + (packet[_HEADER] & 15) * 4
    return packet[begin : begin + 4]


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
