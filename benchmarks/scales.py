"""How large everything is: the same workloads at three sizes."""

from __future__ import annotations

import dataclasses
from typing import Final

KIBIBYTE: Final = 1 << 10
MEBIBYTE: Final = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Scale:
    """How much there is of everything; sizes are in bytes.

    `large` is the file that is read, `heavy` the one layer that comes over a slow link, `medium` the file
    that is copied up, `written` what is written in blocks. `created` files are made and deleted, `changed`
    ones before a commit. `depths` are numbers of layers, `containers` how many there are over one image.
    `crowd` is the files of the one very large layer.
    """

    name: str
    large: int
    heavy: int
    medium: int
    written: int
    created: int
    changed: int
    random_reads: int
    statements: int
    sources: int
    depths: tuple[int, ...]
    containers: tuple[int, ...]
    crowd: int
    rounds: int
    warm_up: int
    room: int


TINY: Final = Scale(
    name="tiny",
    large=2 * MEBIBYTE,
    heavy=MEBIBYTE,
    medium=MEBIBYTE,
    written=MEBIBYTE,
    created=20,
    changed=10,
    random_reads=50,
    statements=20,
    sources=2,
    depths=(1, 3),
    containers=(1, 2),
    crowd=100,
    rounds=1,
    warm_up=0,
    room=2 << 30,
)
QUICK: Final = Scale(
    name="quick",
    large=32 * MEBIBYTE,
    heavy=20 * MEBIBYTE,
    medium=8 * MEBIBYTE,
    written=32 * MEBIBYTE,
    created=1_000,
    changed=300,
    random_reads=10_000,
    statements=300,
    sources=12,
    depths=(1, 10),
    containers=(1, 10),
    crowd=10_000,
    rounds=1,
    warm_up=0,
    room=6 << 30,
)
FULL: Final = Scale(
    name="full",
    large=512 * MEBIBYTE,
    heavy=200 * 1000 * 1000,
    medium=100 * MEBIBYTE,
    written=256 * MEBIBYTE,
    created=5_000,
    changed=2_000,
    random_reads=100_000,
    statements=2_000,
    sources=60,
    depths=(1, 10, 100, 500),
    containers=(1, 10, 100, 1000, 10_000),
    crowd=1_000_000,
    rounds=5,
    warm_up=1,
    room=32 << 30,
)
SCALES: Final = {scale.name: scale for scale in (TINY, QUICK, FULL)}
