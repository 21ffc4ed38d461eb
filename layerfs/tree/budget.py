"""How much a stranger's layer may ask for before it is refused."""

from __future__ import annotations

from layerfs.value import frozen


@frozen
class Budget:
    """Limits on one layer; every one is on by default, and settable with `dataclasses.replace`.

    `bytes` counts data written, holes not included. `depth` counts path components.
    `pax_bytes` bounds one extended header, `name_bytes` one GNU long name. `ratio` is unpacked
    bytes per compressed byte, and applies only after `ratio_floor` unpacked bytes: small layers
    of zeros compress beyond any ratio and harm nobody. `toc_bytes` bounds the table of contents that a
    layer carries itself, compressed and not.
    """

    bytes: int = 1 << 40
    entries: int = 20_000_000
    depth: int = 2048
    pax_bytes: int = 1 << 20
    name_bytes: int = 1 << 16
    segments: int = 65_536
    ratio: float = 2000.0
    ratio_floor: int = 1 << 30
    toc_bytes: int = 256 << 20


DEFAULT_BUDGET = Budget()
