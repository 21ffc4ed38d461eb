"""A program that does nothing but execute another one: all that is left of layerfs in a process at last.

An image may name as its program, or as a script's interpreter, ``/proc/self/exe``, or something that leads
there: then that of the process that asks, on the host, where it is Python's (CVE-2019-5736: with the image's
libraries in it, and open to be written from there). No look at the name beforehand is safe while other
processes of the container can change what stands there. So the process first becomes this program, which is
a sealed file in memory, and that executes the container's: its own ``/proc/self/exe`` is all that can be had.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Final

_MFD_EXEC: Final = 0x10  # of Linux 6.3; without it the sysctl vm.memfd_noexec may forbid to execute
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_BASE: Final = 0x400000
_HEADERS: Final = 64 + 56
_EM_X86_64: Final = 62
_EM_AARCH64: Final = 183


def make(report: int) -> int | None:
    """Make the program; gives a descriptor to execute, None where this machine or its rules have no way.

    Its arguments are the path to execute, and then those of that program, from the name that it is
    called by on; the environment is handed on as it is. It makes `report` close-on-exec, and when it
    fails it writes a record there: 0, 5, ``E`` and the number of the error, little-endian in 4 bytes.

    Args:
        report: the descriptor, which must be inherited.
    """
    program = _program(os.uname().machine, report)
    if program is None:
        return None
    try:
        try:
            file = os.memfd_create("layerfs", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | _MFD_EXEC)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            file = os.memfd_create("layerfs", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError:
        return None
    os.write(file, program)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
    return file


def _program(machine: str, report: int) -> bytes | None:
    """Write the program for a machine, None for one that is not known here."""
    if struct.calcsize("P") != 8 or report >= 1 << 16:
        return None
    if machine == "x86_64":
        return _elf(_EM_X86_64, _x86_64(report))
    if machine == "aarch64":
        return _elf(_EM_AARCH64, _aarch64(report))
    return None


def _elf(machine: int, code: bytes) -> bytes:
    """Write a static program (elf(5)) of one segment that is read and executed."""
    size = _HEADERS + len(code)
    identity = b"\x7fELF\2\1\1" + bytes(9)
    header = struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return identity + header + segment + code


def _x86_64(report: int) -> bytes:
    return b"".join(
        (
            b"\xbb" + struct.pack("<I", report),  # mov ebx, report
            b"\xb8\x48\0\0\0\x89\xdf\xbe\2\0\0\0\xba\1\0\0\0\x0f\x05",  # fcntl(ebx, F_SETFD, FD_CLOEXEC)
            b"\x85\xc0\x78\x37",  # if it failed: exit, somebody else has executed this
            b"\x48\x8b\x0c\x24",  # mov rcx, [rsp]              the number of arguments
            b"\x48\x8b\x7c\x24\x08",  # mov rdi, [rsp+8]        the path
            b"\x48\x8d\x74\x24\x10",  # lea rsi, [rsp+16]       the arguments after it
            b"\x48\x8d\x14\xce",  # lea rdx, [rsi+8*rcx]        the environment
            b"\xb8\x3b\0\0\0\x0f\x05",  # execve(rdi, rsi, rdx)
            b"\xf7\xd8\x48\xc1\xe0\x18",  # neg eax; shl rax, 24
            b"\x48\x0d\0\5\x45\0\x50",  # or rax, 'E' 5 0; push rax
            b"\x89\xdf\x48\x89\xe6\xba\7\0\0\0\xb8\1\0\0\0\x0f\x05",  # write(ebx, rsp, 7)
            b"\xbf\x7f\0\0\0\xb8\xe7\0\0\0\x0f\x05",  # exit_group(127)
        )
    )


def _aarch64(report: int) -> bytes:
    return struct.pack(
        "<26I",
        0x52800013 | report << 5,  # mov w19, report
        0x2A1303E0, 0x52800041, 0x52800022, 0x52800328, 0xD4000001,  # fcntl(w19, F_SETFD, FD_CLOEXEC)
        0x37F80220,  # if it failed: exit, somebody else has executed this
        0xF94003E9,  # ldr x9, [sp]              the number of arguments
        0xF94007E0,  # ldr x0, [sp, 8]           the path
        0x910043E1,  # add x1, sp, 16            the arguments after it
        0x8B090C22,  # add x2, x1, x9, lsl 3     the environment
        0x52801BA8, 0xD4000001,  # execve(x0, x1, x2)
        0x4B0003E0,  # neg w0, w0
        0x5280A009, 0x72A008A9,  # mov w9, 'E' 5 0
        0xAA006120,  # orr x0, x9, x0, lsl 24
        0xF81F0FE0,  # str x0, [sp, -16]!
        0x2A1303E0, 0x910003E1, 0x528000E2, 0x52800808, 0xD4000001,  # write(w19, sp, 7)
        0x52800FE0, 0x52800BC8, 0xD4000001,  # exit_group(127)
    )  # fmt: skip
