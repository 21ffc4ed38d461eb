"""One of many processes that use a store at once: `python -m tests.reliability.crowd SETTINGS NUMBER`.

Each thread works on images and containers of its own, whose state it writes into its journal, and on shared
ones that others remove meanwhile.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import random
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from layerfs.containers import Container
from layerfs.errors import ExistsError, InUseError, LayerfsError, NotFoundError
from layerfs.store import Store
from tests.reliability import journal

# Has a worker write the stacks of its threads; no part of layerfs uses or forwards it.
SHOW_STACKS = signal.SIGXCPU
MARK, BOX = "mark", "box"
DRIVERS = ("overlay2", "fuse", "aufs", "vfs")
_MOST_IMAGES, _MOST_BOXES = 4, 4


class Wrong(Exception):
    """Something is not as the worker left it."""


class Worker:
    """One thread of one process."""

    def __init__(
        self, settings: dict[str, Any], number: str, open_store: Callable[[], Store], *, own: bool
    ) -> None:
        self.settings = settings
        self.number = number
        self.directory = Path(settings["directory"])
        self.random = random.Random(f"{settings['seed']} {number} {os.getpid()}")
        self._open_store = open_store
        self._own_store = own
        self.store = open_store()
        path = self.directory / f"journal-{number}"
        known = journal.things(path)
        self.journal = journal.Journal(path)
        self._counter = 0
        self.images: dict[str, str] = {}
        self.boxes: dict[str, str] = {}
        # Containers into which this process has written.
        self.changed: set[str] = set()
        self.actions = self._actions()
        for (kind, name), thing in known.items():
            self._attempt("adopt", lambda kind=kind, name=name, thing=thing: self._adopt(kind, name, thing))

    def run(self, deadline: float) -> None:
        names = [name for name, (weight, _) in self.actions.items() for _ in range(weight)]
        while time.monotonic() < deadline:
            name = self.random.choice(names)
            self._attempt(name, self.actions[name][1])
            if self._own_store and self.random.random() < 0.2:
                self._attempt("open", self._reopen)

    def _attempt(self, name: str, action: Callable[[], object]) -> None:
        begun = time.monotonic()
        error: BaseException | None = None
        try:
            action()
        except (NotFoundError, InUseError, ExistsError, LayerfsError, OSError, Exception) as caught:
            error = caught
        seconds = round(time.monotonic() - begun, 4)
        if error is None:
            self.journal.note("done", name, seconds=seconds)
            return
        typed = isinstance(error, LayerfsError)
        where = "" if typed else "".join(traceback.format_exception(error))[-3000:]
        self.journal.note(
            "error", name, type(error).__name__, plain(str(error)), typed=typed, where=where, seconds=seconds,
            hint=getattr(error, "hint", None),
        )  # fmt: skip

    # -- what may be done; a name with "shared" is about things that others remove

    def _actions(self) -> dict[str, tuple[int, Callable[[], object]]]:
        found: dict[str, tuple[int, Callable[[], object]]] = {
            "pull": (3, self._pull),
            "pull shared": (2, self._pull_shared),
            "load shared": (2, self._load),
            "import": (2, self._import),
            "create": (5, self._create),
            "create shared": (2, self._create_shared),
            "write": (4, self._write),
            "mount": (2, self._mount),
            "diff": (2, self._diff),
            "commit": (3, self._commit),
            "tag": (1, self._tag),
            "tag shared": (1, self._tag_shared),
            "remove image": (3, self._remove_image),
            "remove shared image": (2, self._remove_shared),
            "remove container": (3, self._remove_box),
            "list": (2, self._list),
            "du": (1, lambda: self.store.disk_usage()),
            "collect": (2, lambda: self.store.collect(grace=0)),
            "push": (1, self._push),
        }
        if self.settings["run"]:
            found["run"] = (2, self._run)
        if self.settings["convert"]:
            found["convert"] = (2, self._convert)
            found["convert shared"] = (1, self._convert_shared)
        if self.settings["registry"]:
            found["pull from registry"] = (3, self._pull_registry)
        if self.settings["check"]:
            found["check"] = (1, self._check)
        return found

    def _pull(self) -> None:
        image = self.random.choice(self.settings["images"])
        self._make_image(f"{image['mark']}|", lambda name: self.store.pull(image["layout"], name))

    def _pull_registry(self) -> None:
        image = self.random.choice(self.settings["images"])
        self._make_image(f"{image['mark']}|", lambda name: self.store.pull(image["registry"], name))

    def _pull_shared(self) -> None:
        image = self.random.choice(self.settings["images"])
        self.store.pull(image["layout"], f"shared:{image['mark']}")

    def _load(self) -> None:
        self.store.load(self.random.choice(self.settings["images"])["archive"])

    def _import(self) -> None:
        value = self._name("v")
        tree = self.directory / f"tree-{self.number}"
        tree.mkdir(exist_ok=True)
        (tree / MARK).write_text(value)
        (tree / "more").write_bytes(os.urandom(1 << 16))
        self._make_image(f"{value}|", lambda name: self.store.import_tree(tree, name))

    def _make_image(self, value: str, make: Callable[[str], object]) -> None:
        if len(self.images) >= _MOST_IMAGES:
            self._remove_image()
        name = f"{self._name('own')}:1"
        self.journal.note("begin", "image", name, value)
        make(name)
        self.journal.note("have", "image", name, value)
        self.images[name] = value

    def _create(self) -> None:
        if not self.images:
            return
        image = self.random.choice(sorted(self.images))
        self._make_box(image, self.images[image])

    def _create_shared(self) -> None:
        image = self.random.choice(self.settings["images"])
        self._make_box(f"shared:{image['mark']}", f"{image['mark']}|")

    def _make_box(self, image: str, value: str) -> None:
        if len(self.boxes) >= _MOST_BOXES:
            self._remove_box()
        name = self._name("box")
        self.journal.note("begin", "container", name, value)
        self.store.containers.create(image, name=name, command=["/bin/sh", "-c", "echo ran > /ran"])
        self.journal.note("have", "container", name, value)
        self.boxes[name] = value

    def _box(self) -> tuple[str, Container] | None:
        if not self.boxes:
            return None
        name = self.random.choice(sorted(self.boxes))
        return name, self.store.containers.get(name)

    def _write(self) -> None:
        if found := self._box():
            name, box = found
            with box.mounted() as tree:
                self._change(name, tree)

    def _mount(self) -> None:
        if found := self._box():
            name, box = found
            target = self.directory / f"mount-{self.number}"
            target.mkdir(exist_ok=True)
            box.mount(target)
            try:
                self._change(name, target)
            finally:
                box.unmount()

    def _change(self, name: str, tree: Path) -> None:
        look(tree, [self.boxes[name]])
        value = f"{self.boxes[name].partition('|')[0]}|{self._name('v')}"
        self.journal.note("begin", "container", name, value)
        (tree / "new").write_text(value.partition("|")[2])
        (tree / "new").rename(tree / BOX)
        self.boxes[name] = value
        self.changed.add(name)
        self.journal.note("have", "container", name, value)

    def _run(self) -> None:
        found = self._box()
        # What was imported has no shell.
        if found is not None and self.boxes[found[0]].startswith("image"):
            _, box = found
            if status := box.start():
                raise Wrong(f"the process ended with {status}")
            with box.mounted(read_only=True) as tree:
                if (tree / "ran").read_text() != "ran\n":
                    raise Wrong("the process left nothing")

    def _diff(self) -> None:
        if found := self._box():
            name, box = found
            paths = {path for _, path in box.diff()}
            if name in self.changed and b"/box" not in paths:
                raise Wrong(f"diff shows {sorted(paths)}")

    def _commit(self) -> None:
        if found := self._box():
            name, box = found
            self._make_image(self.boxes[name], lambda image: box.commit(image))

    def _tag(self) -> None:
        if len(self.images) >= _MOST_IMAGES:
            self._remove_image()
        if self.images:
            image = self.random.choice(sorted(self.images))
            self._make_image(self.images[image], lambda name: self.store.images.tag(image, name))

    def _tag_shared(self) -> None:
        one, other = self.random.choices(self.settings["images"], k=2)
        self.store.images.tag(f"shared:{one['mark']}", f"again:{other['mark']}")

    def _remove_image(self) -> None:
        if not self.images:
            return
        name = self.random.choice(sorted(self.images))
        self.journal.note("leave", "image", name)
        self.store.images.remove(name, force=True)
        del self.images[name]
        self.journal.note("gone", "image", name)

    def _remove_shared(self) -> None:
        name = self.random.choice(("shared", "again"))
        self.store.images.remove(f"{name}:{self.random.choice(self.settings['images'])['mark']}")

    def _remove_box(self) -> None:
        if not self.boxes:
            return
        name = self.random.choice(sorted(self.boxes))
        self.journal.note("leave", "container", name)
        self.store.containers.remove(name)
        del self.boxes[name]
        self.journal.note("gone", "container", name)

    def _list(self) -> None:
        names = {name for image in self.store.images.list() for name in image.names}
        if missing := self.images.keys() - names:
            raise Wrong(f"images does not list {missing}")
        boxes = {box.name for box in self.store.containers.list()}
        if missing := self.boxes.keys() - boxes:
            raise Wrong(f"ps does not list {missing}")
        self.store.info()

    def _push(self) -> None:
        if self.images:
            layout = self.directory / f"pushed-{self.number}"
            self.store.push(self.random.choice(sorted(self.images)), f"oci:{layout}:1")

    def _convert(self) -> None:
        if found := self._box():
            self.store.convert(found[0], self.random.choice(DRIVERS))

    def _convert_shared(self) -> None:
        image = self.random.choice(self.settings["images"])
        self.store.convert(f"shared:{image['mark']}", self.random.choice(DRIVERS))

    def _check(self) -> None:
        for problem in self.store.check().problems:
            self.journal.note("problem", problem.kind, plain(problem.subject), plain(problem.what))

    # -- the rest

    def _reopen(self) -> None:
        self.store.close()
        self.store = self._open_store()

    def _adopt(self, kind: str, name: str, thing: journal.Thing) -> None:
        """Go on with what a killed worker had; where it was at work the store says how far it came."""
        if kind == "image":
            try:
                self.store.images.get(name)
            except NotFoundError:
                if thing.certain:
                    raise Wrong(f"image {name} is lost") from None
                self.journal.note("gone", kind, name)
                return
            self.images[name] = thing.values[-1]
            # An image's value is what its name was given for.
            self.journal.note("have", kind, name, thing.values[-1])
            return
        box = self.store.containers.find(name)
        if box is None:
            if thing.certain:
                raise Wrong(f"container {name} is lost")
            self.journal.note("gone", kind, name)
            return
        if box.mounts():
            box.unmount()
        with box.mounted(read_only=True) as tree:
            value = look(tree, thing.values)
        self.boxes[name] = value
        self.journal.note("have", kind, name, value)

    def _name(self, prefix: str) -> str:
        self._counter += 1
        return f"{prefix}{self.number}-{os.getpid()}-{self._counter}"


def look(tree: Path, values: list[str] | tuple[str, ...]) -> str:
    """Compare a container's tree with what it may hold; give which it was."""
    mark = (tree / MARK).read_text()
    box = (tree / BOX).read_text() if (tree / BOX).exists() else ""
    for value in values:
        if value == f"{mark}|{box}":
            return value
    raise Wrong(f"the tree holds {mark!r} and {box!r}, not one of {values}")


def plain(text: str) -> str:
    """Take out of a message what differs each time."""
    text = re.sub(r"sha256:[0-9a-f]{6,}|\b[0-9a-f]{12,}\b", "#", text)
    text = re.sub(r"\d+", "N", text)
    return re.sub(r"(own[N:tn-]+)(?:, own[N:tn-]+)+", r"\1, ...", text)


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    number = sys.argv[2]
    faulthandler.register(SHOW_STACKS, all_threads=True)
    deadline = settings["deadline"]

    def opened() -> Store:
        return Store.open(settings["root"], driver=settings["driver"])

    if settings["threads"] == 1:
        Worker(settings, number, opened, own=True).run(deadline)
        return
    store = opened()

    def work(thread: int) -> None:
        Worker(settings, f"{number}t{thread}", lambda: store, own=False).run(deadline)

    threads = [threading.Thread(target=work, args=[each]) for each in range(settings["threads"])]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    with contextlib.suppress(Exception):
        store.close()


if __name__ == "__main__":
    main()
