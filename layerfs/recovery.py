"""What is done when a store is opened after a crash, or for the first time since the machine was started."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from layerfs import failpoints, leases, liveness
from layerfs.database import Database
from layerfs.errors import InUseError, NotFoundError

if TYPE_CHECKING:
    from layerfs.check.checking import Check
    from layerfs.containers import Containers
    from layerfs.layers import Layers

# What a crash may have left: records of mounts, running containers, drafts or half-removed layers, and layers
# on their way from one driver to another.
_TRACES: Final = (
    "SELECT EXISTS (SELECT 1 FROM mounts WHERE held = 1 OR boot <> ?),"
    " EXISTS (SELECT 1 FROM containers WHERE status = 'running'),"
    " EXISTS (SELECT 1 FROM layers WHERE state IN ('draft', 'removing')),"
    " EXISTS (SELECT 1 FROM meta WHERE key GLOB 'relocating:*')"
)


class Recovery:
    """Clears away what crashes left in one store; nothing of it is made before there is need.

    Args:
        layers_of: gives the layers of a driver by its name.
        all_layers: gives the layers of every driver.
        any_layers: gives layers for what is the same with every driver.
        containers: gives the containers.
        check: gives a check that repairs, and reads every file.
        warn: told what is gone.
    """

    def __init__(
        self,
        root: Path,
        database: Database,
        *,
        layers_of: Callable[[str], Layers],
        all_layers: Callable[[], Sequence[Layers]],
        any_layers: Callable[[], Layers],
        containers: Callable[[], Containers],
        check: Callable[[], Check],
        warn: Callable[[str], None],
    ) -> None:
        self._root = root
        self._database = database
        self._layers_of = layers_of
        self._all_layers = all_layers
        self._any_layers = any_layers
        self._containers = containers
        self._check = check
        self._warn = warn

    def run(self) -> None:
        """Clear away what a crash left; one query says whether there is anything to do."""
        boot = liveness.boot_id()
        traces = self._database.row(_TRACES, boot)
        assert traces is not None
        mounts, running, unfinished, moving = traces
        if any((mounts, running, unfinished, moving)):
            failpoints.reach("store.recover")
        if moving:
            from layerfs import relocating

            relocating.recover(self._database, self._root, self._layers_of)
        if mounts:
            self._any_layers().recover()
        if running:
            self._containers().recover()
        if unfinished:
            from layerfs.driver import Sweeps

            leases.expire(self._database)
            for layers in self._all_layers():
                # First the files, then the rows that tell of them.
                if isinstance(layers.driver, Sweeps):
                    layers.driver.sweep()
                layers.finish()
        if self._database.get("boot") != boot:
            with self._database.transaction() as connection:
                # They are not synced: the last of them may be as they were before.
                self._database.records.renew(connection)
            self._settle(boot)
            self._database.set("boot", boot)

    def _settle(self, boot: str) -> None:
        """After a reboot, look at what was committed without having been synced, and forget what is lost."""
        if self._database.row("SELECT 1 FROM layers WHERE state = 'active' LIMIT 1") is not None:
            self._forget_lost()
        query = "SELECT 1 FROM layers WHERE state = 'committed' AND durable = 0 AND boot <> ? LIMIT 1"
        if self._database.row(query, boot) is None:
            return
        check = self._check()
        for layers in self._all_layers():
            check.settle(layers, boot)
        for problem in check.problems:
            done = "repaired" if problem.repaired else f"not repaired: {problem.hint}"
            self._warn(f"layer {problem.subject} did not survive the last stop: {problem.what} ({done})")

    def _forget_lost(self) -> None:
        """Remove the containers without files: neither their making nor their end is synced."""
        leases.expire(self._database)
        for layers in self._all_layers():
            for layer in layers.lost():
                with contextlib.suppress(NotFoundError, InUseError):
                    called = layers.table.called(layer)
                    layers.remove(layer)
                    self._warn(f"{called} did not survive the last stop")
