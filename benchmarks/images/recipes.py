"""What is in each image: a Debian system in layers, large files, many layers, a layer of very many files."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.images import host_programs, packages
from benchmarks.images.layer import LayerWriter
from benchmarks.scales import MEBIBYTE, Scale

# A tree below /usr/share that some workloads delete, rename and change: it is in every system image.
LOWER_TREE: Final = "usr/share"
LARGE: Final = "large"
MEDIUM: Final = "medium"

# Enough for a shell and the programs that every container is tried with.
_SMALL: Final = (
    *("base-files", "libc6", "dash", "coreutils", "libselinux1", "libpcre2-8-0"),
    *("libacl1", "libattr1", "libgmp10", "libgcc-s1", "gcc-12-base"),
)
_BASE: Final = (*_SMALL, "libc-bin", "bash", "libtinfo6", "libcrypt1", "zlib1g")
_PYTHON: Final = (
    *("libpython3.11-minimal", "python3.11-minimal", "libpython3.11-stdlib", "libexpat1", "libssl3"),
    *("libffi8", "libbz2-1.0", "liblzma5", "libsqlite3-0", "libreadline8", "libncursesw6", "libuuid1"),
)
_COMPILER: Final = (
    *("gcc-12", "cpp-12", "binutils-x86-64-linux-gnu", "libbinutils", "libc6-dev", "libgcc-12-dev"),
    *("libisl23", "libmpfr6", "libmpc3", "make"),
)
_WHEELS: Final = ("Django==5.0.6", "sympy==1.12")


@dataclasses.dataclass(frozen=True, slots=True)
class Debian:
    """One layer of a Debian system: packages, wheels, and what it deletes and replaces below."""

    packages: tuple[str, ...] = ()
    wheels: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()


_SYSTEMS: Final = {
    "quick": (Debian(_SMALL), Debian(("tzdata",)), Debian(deleted=("usr/share/doc/dash",))),
    "tree": (
        Debian((*_BASE, "perl-base")),
        Debian(("perl-modules-5.36",)),
        Debian(_PYTHON),
        Debian(("tzdata",)),
        Debian(("git",)),
        Debian(("linux-libc-dev",)),
        Debian(deleted=("usr/share/doc/bash", "usr/share/perl/5.36.0/CPAN", "usr/include/sound")),
    ),
    "system": (
        Debian((*_BASE, "perl-base")),
        Debian(("perl-modules-5.36", "tzdata")),
        Debian(_PYTHON),
        Debian(_COMPILER),
        Debian(("git", "linux-libc-dev", "vim-runtime")),
        Debian(wheels=_WHEELS),
        Debian(deleted=("usr/share/doc/bash", "usr/share/perl/5.36.0/CPAN", "usr/share/vim/vim90/lang")),
    ),
}

Write = Callable[[LayerWriter], None]


def layers_of(name: str, scale: Scale, cache: Path) -> tuple[str, list[Write]]:
    """Say what an image is made of, and give what writes each of its layers, bottom first.

    Names: "tree", "system", "large", "heavy", "crowd", "few" and "depth-N".

    Raises:
        UnavailableError: the packages that it is made of cannot be had.
    """
    kind, _, number = name.partition("-")
    if kind == "large":
        return f"{scale.large} and {scale.medium} bytes", [lambda writer: _large(writer, scale), _note(1)]
    if kind == "heavy":
        return f"{scale.heavy} random bytes", [lambda writer: _heavy(writer, scale)]
    if kind == "depth":
        return "one small file a layer", [_note(place) for place in range(int(number))]
    if kind in ("crowd", "few"):
        files = scale.crowd if kind == "crowd" else max(scale.crowd // 100, 10)
        return f"{files} files of 64 bytes", [lambda writer: _crowd(writer, files)]
    if scale.name == "tiny":
        return generated()
    return _debian(_SYSTEMS["quick" if scale.name == "quick" else name], cache)


def _debian(system: Sequence[Debian], cache: Path) -> tuple[str, list[Write]]:
    writers: list[Write] = []
    made_of = []
    for place, layer in enumerate(system):
        found = packages.debian(layer.packages, cache / "packages") if layer.packages else []
        wheels = packages.wheels(layer.wheels, cache / "packages") if layer.wheels else []
        made_of += [path.name.rpartition("_")[0] or path.name for path in (*found, *wheels)]
        writers.append(_system_layer(place, layer, found, wheels))
    return "Debian: " + ", ".join(made_of), writers


def _system_layer(place: int, layer: Debian, found: list[Path], wheels: list[Path]) -> Write:
    def write(writer: LayerWriter) -> None:
        if place == 0:
            _skeleton(writer)
        packages.add_debian(writer, found)
        packages.add_wheels(writer, wheels)
        for name in layer.deleted:
            writer.whiteout(name)
        _note(place)(writer)

    return write


def _skeleton(writer: LayerWriter) -> None:
    _folders(writer)
    writer.symlink("usr/bin/sh", "dash")
    writer.symlink("usr/bin/python3", "python3.11")


def _folders(writer: LayerWriter) -> None:
    for name in ("usr", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "dev", "proc", "sys", "etc", "run"):
        writer.directory(name)
    writer.directory("tmp", mode=0o1777)
    for name in ("bin", "sbin", "lib", "lib64"):
        writer.symlink(name, f"usr/{name}")
    writer.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    writer.file("etc/group", b"root:x:0:\n")


def _note(place: int) -> Write:
    """A file that each layer adds, and one that each layer replaces."""

    def write(writer: LayerWriter) -> None:
        writer.directory("etc")
        writer.file(f"etc/layer-{place}", b"%d\n" % place)
        writer.file("etc/layer", b"%d\n" % place)

    return write


def generated() -> tuple[str, list[Write]]:
    """A small tree of the same shape, where packages are not to be had, with this machine's own shell."""
    found = host_programs.find()
    made_of = f"generated files, programs of this machine: {host_programs.describe(found)}"
    return made_of, [_generated_layer(place, found) for place in range(3)]


def _generated_layer(place: int, programs: Mapping[str, Path]) -> Write:
    def write(writer: LayerWriter) -> None:
        if place == 0:
            _folders(writer)
            host_programs.add(writer, programs)
        source = random.Random(place)
        for directory in range(3):
            for number in range(6):
                # Sizes of files in system images: many small, few large.
                data = source.randbytes(int(source.paretovariate(0.9) * 300) % 65536)
                writer.file(f"usr/share/layer{place}/d{directory}/f{number}", data)
        writer.symlink(f"usr/share/layer{place}/link", "d0/f0")
        if place:
            writer.whiteout(f"usr/share/layer{place - 1}/d0/f0")
        _note(place)(writer)

    return write


def _large(writer: LayerWriter, scale: Scale) -> None:
    writer.generated(LARGE, scale.large, _noise(1, scale.large))
    writer.generated(MEDIUM, scale.medium, _noise(2, scale.medium))
    writer.directory("etc")


def _heavy(writer: LayerWriter, scale: Scale) -> None:
    writer.generated(LARGE, scale.heavy, _noise(3, scale.heavy))


def _noise(seed: int, size: int) -> Iterator[bytes]:
    source = random.Random(seed)
    for start in range(0, size, MEBIBYTE):
        yield source.randbytes(min(MEBIBYTE, size - start))


def _crowd(writer: LayerWriter, files: int) -> None:
    for number in range(files):
        writer.file(f"many/{number // 1000:04d}/{number % 1000:03d}", b"%063d\n" % number)
