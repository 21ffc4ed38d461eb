"""Fetches Debian packages and Python wheels with the machine's own clients, each once, into the cache."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.images.layer import TIME, LayerWriter


class UnavailableError(Exception):
    """The packages cannot be had here."""


def debian(names: Sequence[str], directory: Path) -> list[Path]:
    """Fetch Debian packages of whatever version the machine's archive has; what is here already stays.

    Raises:
        UnavailableError: there is no apt-get, or it has not got one of them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if missing := [name for name in names if not list(directory.glob(f"{name}_*.deb"))]:
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise UnavailableError("no apt-get here")
        _fetch(["apt-get", "download", "--quiet", "--quiet", *missing], directory)
    return [sorted(directory.glob(f"{name}_*.deb"))[-1] for name in names]


def wheels(requirements: Sequence[str], directory: Path) -> list[Path]:
    """Fetch pure Python wheels, given as NAME==VERSION.

    Raises:
        UnavailableError: pip cannot have one of them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    found = []
    for requirement in requirements:
        name, _, version = requirement.partition("==")
        pattern = f"{name}-{version}-py*-none-any.whl"
        if not list(directory.glob(pattern)):
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
            _fetch([*pip, "--dest", ".", requirement], directory)
        found.append(next(directory.glob(pattern)))
    return found


def _fetch(command: Sequence[str], directory: Path) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnavailableError(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")


@contextlib.contextmanager
def _opened(package: Path) -> Iterator[tarfile.TarFile]:
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as unpacking:
        assert unpacking.stdout is not None
        with tarfile.open(fileobj=unpacking.stdout, mode="r|") as archive:
            yield archive
            while unpacking.stdout.read(1 << 16):
                pass


def add_debian(writer: LayerWriter, packages: Sequence[Path]) -> None:
    """Put the files of Debian packages into a layer."""
    for package in packages:
        with _opened(package) as archive:
            writer.package(archive)


def add_wheels(writer: LayerWriter, found: Sequence[Path]) -> None:
    """Put the files of wheels where Debian's Python looks for packages."""
    for path in found:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if not member.is_dir():
                    entry = tarfile.TarInfo(f"usr/lib/python3/dist-packages/{member.filename}")
                    entry.size, entry.mode, entry.mtime = member.file_size, 0o644, TIME
                    with archive.open(member) as data:
                        writer.add(entry, data)
