"""The part of the contract that hypothesis searches: any edits at all, on any stack of them."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from layerfs.testing.base import ContractBase, clear
from layerfs.testing.snapshot import Snapshot, differences, snapshot
from layerfs.testing.stack import Stack
from layerfs.testing.trees import Operation, operations, perform
from layerfs.tree.diff import listing

_SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.differing_executors)


class PropertiesContract(ContractBase):
    """Rules that hold for all trees; `examples` is how many of them are tried."""

    examples: ClassVar[int] = 25

    @contextmanager
    def _workspace(self) -> Iterator[Stack]:
        if os.geteuid() != 0:
            pytest.skip("mounting and owning files needs root")
        place = Path(tempfile.mkdtemp(prefix="layerfs-contract-"))
        try:
            for name in ("driver", "mounts"):
                (place / name).mkdir(mode=0o700)
            stack = Stack(type(self).make_driver(place / "driver"), place / "mounts")
            yield stack
            clear(stack.driver)
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def test_applying_the_changes_between_two_trees_to_the_first_gives_the_second(self) -> None:
        """apply(diff(a, b), a) == b, and the changes that the driver tells are those found by comparing."""

        @settings(max_examples=self.examples, deadline=None, suppress_health_check=_SLOW)
        @given(operations, operations, operations)
        def run(first: list[Operation], second: list[Operation], third: list[Operation]) -> None:
            with self._workspace() as stack:
                for steps in (first, second):
                    with stack.edited() as place:
                        perform(os.fsencode(place), steps)
                _edit_and_compare(stack, third)

        run()

    def test_layers_are_made_changed_and_removed_in_any_order(self) -> None:
        """What was seen at the end of an edit is seen ever after, whatever happens to other layers."""
        with self._workspace() as stack:
            run_state_machine_as_test(
                functools.partial(_Machine, stack),  # type: ignore[arg-type]  # any factory will do
                settings=settings(
                    max_examples=max(1, self.examples // 5),
                    stateful_step_count=15,
                    deadline=None,
                    suppress_health_check=_SLOW,
                ),
            )


def _edit_and_compare(stack: Stack, steps: Sequence[Operation]) -> Snapshot:
    """Edit a new layer on a stack, and check the tree, the changes, and the changes applied to the stack."""
    again = stack.fork()
    with stack.edited() as place:
        perform(os.fsencode(place), steps)
        seen = snapshot(place)
    assert differences(stack.tree(), seen) == []
    assert list(listing(stack.changes())) == list(listing(stack.compared()))
    fast, slow = stack.archive(), stack.archive(stack.compared())
    for layer in (fast, slow):
        once_more = again.fork()
        once_more.apply(layer)
        assert differences(once_more.tree(), seen) == []
        stack.driver.remove(once_more.layers[-1])
    if (copy := stack.copied()) is not None:
        assert differences(copy.tree(), seen) == []
        assert copy.archive() == fast
        stack.driver.remove(copy.layers[-1])
    return seen


class _Machine(RuleBasedStateMachine):
    """A forest of layers; the model is what each was seen to hold when it was finished."""

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.empty = stack
        self.known: dict[tuple[str, ...], Snapshot] = {}

    def _pick(self, number: int) -> Stack:
        """Choose one of the stacks, or the empty one."""
        stacks = [(), *self.known]
        chosen = self.empty.fork(0)
        chosen.layers.extend(stacks[number % len(stacks)])
        return chosen

    @rule(number=st.integers(0, 1000), steps=operations)
    def edit(self, number: int, steps: list[Operation]) -> None:
        stack = self._pick(number)
        seen = _edit_and_compare(stack, steps)
        self.known[tuple(stack.layers)] = seen

    @rule(number=st.integers(0, 1000))
    def add_empty(self, number: int) -> None:
        stack = self._pick(number)
        before = stack.tree() if stack.layers else None
        stack.finish(stack.create())
        self.known[tuple(stack.layers)] = stack.tree() if before is None else before

    @precondition(lambda self: self.known)
    @rule(number=st.integers(0, 1000))
    def remove_one_without_children(self, number: int) -> None:
        parents = {layers[:-1] for layers in self.known}
        leaves = [layers for layers in self.known if layers not in parents]
        gone = leaves[number % len(leaves)]
        self.empty.driver.remove(gone[-1])
        del self.known[gone]

    @precondition(lambda self: self.known)
    @rule(number=st.integers(0, 1000))
    def look(self, number: int) -> None:
        layers = list(self.known)[number % len(self.known)]
        stack = self.empty.fork(0)
        stack.layers.extend(layers)
        assert differences(stack.tree(), self.known[layers]) == []

    @invariant()
    def the_list_of_layers_is_exact(self) -> None:
        assert sorted(self.empty.driver.layers()) == sorted({layers[-1] for layers in self.known})

    def teardown(self) -> None:
        clear(self.empty.driver)
