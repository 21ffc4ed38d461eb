"""Every workload, in the order in which tables show them."""

from __future__ import annotations

from typing import Final

from benchmarks.workloads import (
    containers,
    growth,
    mounting,
    programs,
    reading,
    registries,
    transfer,
    writing,
)
from benchmarks.workloads.base import Workload

SECTIONS: Final[dict[str, tuple[Workload, ...]]] = {
    "images": transfer.WORKLOADS,
    "registries": registries.WORKLOADS,
    "containers": containers.WORKLOADS,
    "mounting": mounting.WORKLOADS,
    "reading": reading.WORKLOADS,
    "writing": writing.WORKLOADS,
    "programs": programs.WORKLOADS,
    "growth": growth.WORKLOADS,
}
WORKLOADS: Final[dict[str, Workload]] = {
    workload.name: workload for section in SECTIONS.values() for workload in section
}
