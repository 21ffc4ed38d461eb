"""How much a stranger's layer may ask for before it is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from layerfs.errors import BudgetError, InvalidError
from layerfs.value import fields, frozen, replace

_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@frozen
class Budget:
    """Limits on one layer; every one is on by default, and settable with `dataclasses.replace`.

    `bytes` counts data written, holes not included. `depth` counts path components.
    `pax_bytes` bounds one extended header, `name_bytes` one GNU long name. `ratio` is unpacked
    bytes per compressed byte, and applies only after `ratio_floor` unpacked bytes: small layers
    of zeros compress beyond any ratio and harm nobody. `members` counts gzip members, and zstd frames with
    those that are skipped; `window` bounds what a zstd frame has its reader keep in memory, in bytes.
    `toc_bytes` bounds the table of contents that a layer carries itself, compressed and not. `links` counts
    hard links that are remembered while a layer is unpacked: to what comes later, or lies in older layers.
    """

    bytes: int = 1 << 40
    entries: int = 20_000_000
    depth: int = 2048
    links: int = 1 << 20
    pax_bytes: int = 1 << 20
    name_bytes: int = 1 << 16
    segments: int = 65_536
    ratio: float = 1000.0
    ratio_floor: int = 1 << 30
    members: int = 1 << 22
    window: int = 32 << 20
    toc_bytes: int = 256 << 20

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``NAME=NUMBER,...``, such as ``bytes=10G,entries=1M``; what is not named keeps its default.

        k, M, G and T stand for powers of 1024.

        Raises:
            InvalidError: another form, or a name that there is not.
        """
        import re

        kinds: Mapping[str, Callable[[str], float]] = {
            each.name: float if isinstance(each.default, float) else int for each in fields(cls)
        }
        given: dict[str, float] = {}
        for part in filter(None, text.split(",")):
            name, _, value = part.partition("=")
            if name not in kinds:
                raise InvalidError(f"{name!r} is no limit", hint=f"there are {', '.join(kinds)}")
            match = re.fullmatch(r"([0-9]{1,18})([kmgt]?)", value.lower(), re.ASCII)
            if match is None:
                raise InvalidError(f"{part!r} limits nothing", hint=f"write {name}=NUMBER, with k, M, G or T")
            given[name] = kinds[name](match[1]) * _UNITS[match[2]]
        return replace(cls(), **given)


DEFAULT_BUDGET = Budget()


def exceeded(problem: str, name: str) -> BudgetError:
    """Make the error for a limit that was passed, of the budget's attribute `name`."""
    return BudgetError(
        problem, hint=f"raise Budget.{name} (--budget {name}=N) if this image is known to be harmless"
    )
