"""Compares the ledger of mounts with what the kernel shows mounted."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from layerfs import failpoints, liveness, mounting
from layerfs.check.findings import Telling
from layerfs.errors import InUseError, LayerfsError
from layerfs.layers import Layers
from layerfs.ledger import Ledger, Record
from layerfs.mounting import MountInfo

_SOURCE: Final = re.compile("layerfs-([a-z0-9]+)")


class MountsCheck:
    """The check of the mounts of one store, by the layers of each of its drivers."""

    def __init__(self, all_layers: Sequence[Layers], telling: Telling, *, repair: bool) -> None:
        self._all_layers = all_layers
        self._telling = telling
        self._repair = repair

    def run(self) -> None:
        """Look at every record, and at every mount that looks like one of ours."""
        for layers in self._all_layers[:1]:  # the ledger is the same for all of them
            self._check_records(layers, layers.ledger)
        for layers in self._all_layers:
            self._check_unrecorded(layers)

    def _check_records(self, layers: Layers, ledger: Ledger) -> None:
        for record in ledger.all():
            if not ledger.exists(record):
                if liveness.alive(record.owner) and not self._is_stale(layers, record):
                    continue
                what, how = "recorded, but not there", "the record was removed"
                if self._repair:
                    failpoints.reach("check.mount")
                    ledger.forget(record.id)
            elif ledger.dead(record):
                what, how = "the process that served it is gone", "it was unmounted"
                if self._repair:
                    layers.clear([record])
            else:
                continue
            self._tell(os.fsdecode(record.target) or "(private)", what, how)

    def _is_stale(self, layers: Layers, record: Record) -> bool:
        """Say whether a record has no mount, and nobody is about to make or to forget that."""
        row = layers.table.database.row("SELECT driver_id FROM layers WHERE id = ?", record.layer)
        if row is None:
            return False
        try:
            with layers.lock(row[0]):
                return record in layers.ledger.all() and not layers.ledger.exists(record)
        except InUseError:
            return False

    def _check_unrecorded(self, layers: Layers) -> None:
        """Find mounts that are not recorded, so that nothing would keep their layers from being removed."""
        ids = layers.table.own_driver_ids()
        # A record is there before its mount and goes after it: what comes and goes meanwhile is no news.
        known = {record.target for record in layers.ledger.all()}
        table = mounting.mount_table()
        known |= {record.target for record in layers.ledger.all()}
        for info in table:
            driver_id = self._layer_of(layers, info)
            if driver_id not in ids or info.target in known:
                continue
            what = f"it shows layer {driver_id}, and is not recorded"
            if self._repair:
                try:
                    self._record(layers, driver_id, info)
                except LayerfsError as error:
                    self._telling.found("mount", os.fsdecode(info.target), what, hint=str(error))
                    continue
            self._tell(os.fsdecode(info.target), what, "it was recorded")

    def _layer_of(self, layers: Layers, info: MountInfo) -> str:
        if found := _SOURCE.fullmatch(info.source):
            return found[1]
        # A bind mount has the source of what lies below it.
        parts = Path(os.fsdecode(info.root)).parts
        if len(parts) < 3 or parts[-3] != layers.driver.name:
            return ""
        try:
            same = os.path.samefile(layers.driver.root / parts[-2] / parts[-1], info.target)
        except OSError:
            return ""
        return parts[-2] if same else ""

    def _record(self, layers: Layers, driver_id: str, info: MountInfo) -> None:
        row, stack = layers.table.place(driver_id)
        bound = not _SOURCE.fullmatch(info.source)
        read_only = "ro" in info.options
        if not bound and info.fstype == "overlay":
            read_only = not any(option.startswith("upperdir=") for option in info.super_options)
        mount = layers.driver.mount(stack[-1], stack[:-1], read_only=read_only)
        layers.ledger.record(row, info.target, mount, read_only=read_only, held=False)

    def _tell(self, target: str, what: str, how: str) -> None:
        if self._repair:
            self._telling.repaired("mount", target, what, how=how)
        else:
            self._telling.found("mount", target, what)
