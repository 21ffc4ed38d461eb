"""A few trials of the crash matrix, and that no failpoint is left out of it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from layerfs import failpoints
from tests.reliability import crash, faults
from tests.support.registries import PROGRAM, installed

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")

# A prime, so that all faults and all operations have their turn.
ONE_OF = 101


@pytest.fixture(scope="module")
def matrix() -> Iterator[crash.Matrix]:
    if not installed():
        pytest.skip(f"{PROGRAM} is not installed")
    with crash.matrix("overlay2") as trials:
        yield trials


def test_every_failpoint_is_reached_by_an_operation_of_the_matrix(matrix: crash.Matrix) -> None:
    reached = {name for operation in matrix.operations() for name in matrix.clean(operation).reached}
    assert set(failpoints.NAMES) - reached == set()


def test_a_store_survives_what_befalls_it_at_steps_of_its_work(matrix: crash.Matrix) -> None:
    cells = list(matrix.cells(kinds=faults.KINDS, every=False))
    failed = {str(cell): problems for cell in cells[::ONE_OF] if (problems := matrix.try_one(cell))}
    assert failed == {}
