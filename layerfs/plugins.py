"""Drivers by name: which there are, which of them work here, and which is the best.

A driver is a class named by the entry-point group ``layerfs.drivers``. Those that come with layerfs are
resolved without asking the packages' metadata, which costs more than starting Python does.

`root` is everywhere the directory that holds one directory per driver (ROOT/drivers).
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from layerfs.driver import Driver, FallsBack
from layerfs.errors import NotFoundError, UnsupportedError
from layerfs.value import frozen

GROUP: Final = "layerfs.drivers"

BUILT_IN: Final[Mapping[str, str]] = {
    "overlay2": "layerfs_overlay2:Overlay2Driver",
    "aufs": "layerfs_aufs:AufsDriver",
    "fuse": "layerfs_fuse:FuseDriver",
    "vfs": "layerfs_vfs:VfsDriver",
}


class Rank(NamedTuple):
    """A driver by its name, in its first way or, with `falls_back`, in its second (`driver.FallsBack`)."""

    name: str
    falls_back: bool = False


# Best first. A driver of another name is used only when it is asked for.
PREFERENCE: Final = (
    Rank("overlay2"),
    Rank("aufs"),
    Rank("btrfs"),
    Rank("zfs"),
    Rank("fuse"),
    Rank("aufs", falls_back=True),
    Rank("vfs"),
)


@frozen
class Plugin:
    """Where a driver's class is found: ``module:Class``. Nothing is imported before `load`."""

    name: str
    value: str

    def load(self) -> type[Driver]:
        """Import the driver's class.

        Raises:
            UnsupportedError: it cannot be imported, or is no driver.
        """
        module, _, attribute = self.value.partition(":")
        try:
            found = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise UnsupportedError(
                f"the driver {self.name!r} ({self.value}) cannot be imported: {error}",
                hint="install again, or uninstall, the package that it came with",
            ) from error
        if not (isinstance(found, type) and issubclass(found, Driver)):
            raise UnsupportedError(
                f"the driver {self.name!r} ({self.value}) is not a subclass of layerfs.Driver"
            )
        return found


@frozen
class Candidate:
    """What one driver can do here.

    `reason` says why it does not work, `note` how it does, `hint` what would help; "" where there is nothing
    to say.
    """

    name: str
    works: bool
    reason: str = ""
    hint: str = ""
    note: str = ""


def available() -> dict[str, Plugin]:
    """Find every installed driver, best first, then those of other packages by name."""
    from importlib.metadata import entry_points

    found = {point.name: Plugin(point.name, point.value) for point in entry_points(group=GROUP)}
    found.update({name: Plugin(name, value) for name, value in BUILT_IN.items()})
    return {name: found[name] for name in sorted(found, key=lambda name: _place(Rank(name)))}


def _place(rank: Rank) -> tuple[int, str]:
    return (PREFERENCE.index(rank) if rank in PREFERENCE else len(PREFERENCE), rank.name)


def _fallback(driver: type[Driver], root: Path) -> str | None:
    return driver.fallback(root) if issubclass(driver, FallsBack) else None


def find(name: str) -> Plugin:
    """Find one driver by its name.

    Raises:
        NotFoundError: no installed package has it.
    """
    if name in BUILT_IN:
        return Plugin(name, BUILT_IN[name])
    installed = available()
    if name not in installed:
        raise NotFoundError(
            f"there is no driver {name!r}",
            hint=f"installed are {', '.join(installed)}; `layerfs drivers` explains each",
        )
    return installed[name]


def load(name: str, root: Path) -> Driver:
    """Open the driver `name` on its directory below `root`, which is made where it is missing.

    Does not check whether the driver works: a store that exists was made by one that did.

    Raises:
        NotFoundError: no installed package has it.
        UnsupportedError: it cannot be imported.
    """
    driver = find(name).load()
    directory = root / name
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return driver(directory)


def choose(root: Path, preferred: str | None = None) -> Driver:
    """Open the best driver that works here, or the preferred one and no other.

    Where drivers have left layers, the best is the best of those.

    Args:
        root: an existing directory on the file system that will hold the layers.
        preferred: the name of a driver.

    Raises:
        NotFoundError: there is no driver of the preferred name.
        UnsupportedError: the preferred driver does not work here, or none does.
    """
    if preferred is not None:
        find(preferred).load().check(root)
        return load(preferred, root)
    held = _held(root)
    ranks = [rank for rank in PREFERENCE if not held or rank.name in held]
    ranks += [Rank(name) for name in held if Rank(name) not in PREFERENCE]
    reasons: dict[str, str] = {}
    for name, falls_back in ranks:
        try:
            driver = find(name).load()
            if (_fallback(driver, root) is not None) is not falls_back:
                continue
            driver.check(root)
        except NotFoundError:
            continue
        except UnsupportedError as error:
            # One that ranks twice may fail twice.
            reasons[name] = f"{name}: {error}"
            continue
        return load(name, root)
    if held:
        raise UnsupportedError(
            f"{root} holds layers of {', '.join(held)}, which does not work here: "
            f"{'; '.join(reasons.values()) or 'it is not installed'}",
            hint="name a driver to use another one beside them (--driver)",
        )
    raise UnsupportedError(
        f"no driver works in {root}: {'; '.join(reasons.values()) or 'none is installed'}",
        hint="`layerfs drivers` explains each",
    )


def _held(root: Path) -> list[str]:
    """Name the drivers that have left something in their directories; those of probes are none."""
    drivers = (each for each in root.iterdir() if not each.name.startswith("."))
    return sorted(each.name for each in drivers if each.is_dir() and any(each.iterdir()))


def explain(root: Path) -> list[Candidate]:
    """Try every installed driver and say what it found; best first."""
    found = []
    for name, plugin in available().items():
        note = None
        try:
            driver = plugin.load()
            note = _fallback(driver, root)
            driver.check(root)
        except UnsupportedError as error:
            candidate = Candidate(name, False, reason=str(error), hint=error.hint or "")
        else:
            candidate = Candidate(name, True, note=note or "")
        found.append((_place(Rank(name, note is not None)), candidate))
    return [candidate for _, candidate in sorted(found)]
