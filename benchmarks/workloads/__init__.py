"""Every workload, in the order in which tables show them."""

from __future__ import annotations

from typing import Final

from benchmarks.workloads import mounting, reading, writing
from benchmarks.workloads.base import Workload

SECTIONS: Final[dict[str, tuple[Workload, ...]]] = {
    "mounting": mounting.WORKLOADS,
    "reading": reading.WORKLOADS,
    "writing": writing.WORKLOADS,
}
WORKLOADS: Final[dict[str, Workload]] = {
    workload.name: workload for section in SECTIONS.values() for workload in section
}
