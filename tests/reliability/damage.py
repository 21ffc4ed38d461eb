"""Every kind of damage, done to a real store: what a check says, what repairs it, what comes of it."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from layerfs import mounting
from layerfs.check.findings import Findings
from layerfs.errors import StoreError
from layerfs.registry.settings import Options
from layerfs.store import Store
from layerfs.testing.snapshot import Snapshot, differences, snapshot
from tests.reliability.report import Section
from tests.support import damages
from tests.support.damages import Damage, Setting
from tests.support.registries import Registry

HELP = "damage of every kind, found and repaired"
_BOXES = ("app-box", "plain-box")
_HOW = """\
 Each is done to a store with two images and two containers with files of their own. Then `layerfs check` (for
content alone with `--deep`) has to name it, `layerfs check --repair --from-registry` to mend it, and a last
`layerfs check --deep` to find nothing; and the trees of both containers have to be what they were, file by
file. "whole" means all of that.""".replace("\n", " ")


class Outcome(NamedTuple):
    """What came of one damage; `problems` is empty if all went as it should."""

    found: str
    source: str
    result: str
    problems: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this campaign."""
    parser.add_argument("--driver", default="overlay2", help="the driver whose layers are damaged")
    parser.add_argument("--only", default="", help="do only those damages in whose name this stands")
    parser.add_argument("--directory", type=Path, help="where the stores are made")


def run(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Section:
    """Do them all, one after the other, each to a store of its own."""
    rows = []
    failed = 0
    with (
        tempfile.TemporaryDirectory(dir=arguments.directory, prefix="damage-") as place,
        Registry(Path(place) / "registry") as registry,
    ):
        for number, damage in enumerate(damages.damages()):
            if arguments.only not in damage.name:
                continue
            outcome = survive(damage, Path(place) / str(number), arguments.driver, registry.host)
            tell(f"{damage.name}: {outcome.result}")
            failed += bool(outcome.problems)
            rows.append((damage.name, outcome.found, outcome.source, outcome.result))
    return Section(
        f"Damage and repair ({arguments.driver})",
        f"python -m tests.reliability damage --driver {arguments.driver}",
        ("damage", "found as", "repaired from", "result"),
        tuple(rows),
        (f"{len(rows) - failed} of {len(rows)} kinds of damage were found and ended as they should.{_HOW}",),
    )


def survive(damage: Damage, place: Path, driver: str, registry: str) -> Outcome:
    """Do one damage to a new store below `place`, let it be found and repaired, and compare."""
    place.mkdir(parents=True)
    setting = damages.fill(place, driver, registry)
    try:
        return _survive(damage, setting)
    finally:
        for info in reversed(mounting.mounts_below(place)):
            mounting.detach(Path(os.fsdecode(info.target)), lazy=True)
        shutil.rmtree(place)


def _survive(damage: Damage, setting: Setting) -> Outcome:
    before = _trees(setting)
    damage.do(setting)
    problems: list[str] = []
    found = _first(damage, setting, problems)
    if damage.registry:
        with Store.open(setting.root) as store:
            if store.check(repair=False, contents=damage.deep).sound:
                problems.append("a check of a damaged store was content")
    with Store.open(setting.root, rebuild=True) as store:
        findings = store.check(
            repair=True, contents=damage.deep, registry=Options() if setting.registry else None
        )
    source = _source(damage, findings, setting)
    if damage.source not in source:
        problems.append(f"repaired from {source!r}, not {damage.source!r}: {findings}")
    damages.unmount(setting)
    with Store.open(setting.root) as store:
        store.check(repair=True)
        last = store.check(contents=True)
    problems += [f"{one.kind} {one.subject}: {one.what}" for one in last.problems]
    problems += [f"left behind: {one}" for one in last.leftovers]
    if damage.lost:
        if not any(
            path.read_text() == "not to be lost" for path in (setting.root / "quarantine").rglob("mine")
        ):
            problems.append("a container's file is nowhere")
        result = f"whole, but for {damage.lost}"
    else:
        result = "whole"
        problems += _changes(before, setting)
    return Outcome(
        found, source, "; ".join(["not whole", *problems]) if problems else result, tuple(problems)
    )


def _first(damage: Damage, setting: Setting, problems: list[str]) -> str:
    """Have the damage found, and say how a check calls it."""
    kind, words = damage.found
    try:
        with Store.open(setting.root) as store:
            findings = store.check(contents=damage.deep)
    except StoreError as error:
        text = f"the store does not open: {error}"
        if kind in ("database", "store"):
            return _plain(text, setting)
        problems.append(text)
        return _plain(text, setting)
    if not kind:
        problems += [f"{one.kind}: {one.what}" for one in findings.problems]
        return f"nothing: {words}"
    if kind == "leftover":
        for one in findings.leftovers:
            if one.kind == words:
                return f"left behind, {words} {_plain(one.name, setting)}"
    if findings.sound and kind != "leftover":
        problems.append("nothing was found")
    for problem in findings.problems:
        if problem.kind == kind and words in problem.what:
            return _plain(f"{problem.kind}: {problem.what}", setting)
    problems.append(f"{kind} {words!r} was not found: {findings}")
    return ""


def _source(damage: Damage, findings: Findings, setting: Setting) -> str:
    if damage.found[0] == "leftover":
        gone = not any(
            one.kind == damage.found[1] and (setting.root / one.name).exists() for one in findings.leftovers
        )
        return "nothing: it is removed" if gone else "it stays"
    if damage.found[0] == "store" and not findings.problems:
        return "nothing: it is written anew"
    hows = dict.fromkeys(_plain(one.how, setting) for one in findings.problems if one.repaired)
    return "; ".join(hows)


def _trees(setting: Setting) -> dict[str, Snapshot]:
    found = {}
    with Store.open(setting.root) as store:
        for name in _BOXES:
            with store.containers.get(name).mounted(read_only=True) as tree:
                found[name] = snapshot(tree)
    return found


def _changes(before: dict[str, Snapshot], setting: Setting) -> Iterator[str]:
    with contextlib.suppress(LookupError):
        after = _trees(setting)
        for name, tree in before.items():
            for difference in differences(tree, after[name]):
                yield f"{name}: {difference}"
        with Store.open(setting.root) as store:
            names = {name for image in store.images.list() for name in image.names}
        for image in ("app", "plain"):
            if setting.name(image) not in names:
                yield f"image {setting.name(image)} has lost its name"
        return
    yield "a container is not there any more"


def _plain(text: str, setting: Setting) -> str:
    """Shorten digests, ids and paths, which are others each time."""
    import re

    text = text.replace(str(setting.root), "ROOT")
    if setting.registry:
        text = text.replace(setting.registry, "REGISTRY")
    text = re.sub(r"sha256([:-])([0-9a-f]{6})[0-9a-f]{58}", r"sha256\1\2...", text)
    return re.sub(r"\b([0-9a-f]{6})[0-9a-f]{10}\b", r"\1...", text)
