"""The layers that are measured: generated, the same bytes every time, shaped like those of real images."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from layerfs.tree.entry import Entry, Kind
from layerfs.tree.tar_writer import TarWriter

_TIME: Final = 1_700_000_000_000_000_000
_MEBIBYTE: Final = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Scale:
    """How much there is of everything."""

    files: int
    large: int
    layers: int

    @property
    def changed(self) -> int:
        """How many files a workload creates or changes."""
        return max(self.files // 4, 1)


TINY: Final = Scale(files=40, large=_MEBIBYTE, layers=3)
QUICK: Final = Scale(files=2_000, large=32 * _MEBIBYTE, layers=4)
FULL: Final = Scale(files=13_000, large=200 * _MEBIBYTE, layers=7)


def write_layers(directory: Path, scale: Scale) -> list[Path]:
    """Write the sample image's layers as plain tars, bottom first."""
    paths = []
    for number in range(scale.layers):
        path = directory / f"layer-{number}.tar"
        with path.open("wb") as file:
            writer = TarWriter(file.write)
            _write_layer(writer, number, scale)
            writer.close()
        paths.append(path)
    return paths


def _write_layer(writer: TarWriter, number: int, scale: Scale) -> None:
    source = random.Random(number)
    top = b"layer%d" % number
    writer.add(Entry(top, Kind.DIRECTORY, 0o755, mtime_ns=_TIME))
    for parent, names in _directories(scale.files // scale.layers):
        path = top + b"/" + parent
        writer.add(Entry(path, Kind.DIRECTORY, 0o755, mtime_ns=_TIME))
        for name in names:
            # Sizes of files in system images: many small, few large.
            data = source.randbytes(int(source.paretovariate(0.9) * 300) % 65536)
            writer.add(Entry(path + b"/" + name, Kind.FILE, 0o644, 0, 0, _TIME, len(data)), [data])
        writer.add(Entry(path + b"/link", Kind.SYMLINK, 0o777, mtime_ns=_TIME, target=names[0]))
    if number == 0:
        pieces = (source.randbytes(_MEBIBYTE) for _ in range(scale.large // _MEBIBYTE))
        writer.add(Entry(top + b"/large", Kind.FILE, 0o644, 0, 0, _TIME, scale.large), pieces)
    else:
        # Each layer deletes and replaces something of the one before it.
        below = b"layer%d" % (number - 1)
        writer.add(Entry(below + b"/d0/.wh.f0", Kind.FILE))
        writer.add(Entry(below + b"/d0/f1", Kind.FILE, 0o600, 0, 0, _TIME, 4), [b"new\n"])


def _directories(files: int) -> Iterator[tuple[bytes, list[bytes]]]:
    for number in range(max(files // 20, 1)):
        yield b"d%d" % number, [b"f%d" % name for name in range(20)]
