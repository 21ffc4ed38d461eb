"""Small root file systems made of this machine's own programs, enough for a shell."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

PROGRAMS = (
    "sh", "cat", "chmod", "chown", "cp", "dd", "echo", "env", "false", "grep", "head", "hostname", "id", "ln",
    "ls", "mkdir", "mkfifo", "mknod", "mv", "pwd", "readlink", "rm", "rmdir", "sleep", "sort", "stat", "stty",
    "tail", "test", "touch", "tr", "true", "truncate", "tty", "wc",
)  # fmt: skip

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/sh
app:x:1000:1000:An application:/home/app:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/bin/sh
"""
GROUP = """\
root:x:0:
daemon:x:1:
wheel:x:10:root,app
audio:x:29:app
app:x:1000:
nogroup:x:65534:
"""
_FOLDERS = (
    "dev",
    "etc",
    "home/app",
    "proc",
    "root",
    "sys",
    "tmp",
    "usr/bin",
    "usr/lib",
    "usr/lib64",
    "var/tmp",
)


def build(root: Path, programs: Sequence[str] = PROGRAMS) -> Path:
    """Make a tree at `root` (which may exist, empty) that a shell can run in, and give `root` back.

    It has the programs with the libraries that they load, /etc/passwd and group, and a merged /usr as
    Debian's; about 10 MB. Owners are 0:0 when root builds it, times are those of the host's files.
    """
    root.mkdir(exist_ok=True)
    root.chmod(0o755)
    for folder in _FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "sbin").symlink_to("usr/bin")
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)
    (root / "root").chmod(0o700)
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text(GROUP)
    (root / "etc/os-release").write_text('ID=host\nNAME="the host\'s own programs"\n')
    if os.geteuid() == 0:
        os.chown(root / "home/app", 1000, 1000)
    sources = [_find(name) for name in programs]
    for name, source in zip(programs, sources, strict=True):
        shutil.copy2(source, root / "usr/bin" / name)
    for library in _libraries(tuple(sources)):
        # The loader's search path and the programs' interpreter name /lib..., which are links into /usr here.
        place = root / "usr" / re.sub(r"^/(usr/)?", "", library)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(library, place)
    return root


def _find(program: str) -> str:
    found = shutil.which(program, path="/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/bin")
    if found is None:
        raise LookupError(f"this machine has no {program}")
    return os.path.realpath(found)


@functools.cache
def _libraries(programs: tuple[str, ...]) -> list[str]:
    """List the absolute paths that the dynamic loader opens for these programs; scripts have none."""
    answer = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False).stdout
    return sorted(set(re.findall(r"^\t(?:\S+ => )?(/\S+) \(", answer, re.MULTILINE)))
