"""Hostile inputs, a few for every reader, and all that were ever found: the campaign `fuzz`, short."""

from __future__ import annotations

import pytest

from tests.reliability import fuzz
from tests.reliability.fuzz_targets import TARGETS


@pytest.mark.parametrize("target", TARGETS)
class TestOnlyTypedErrorsComeOut:
    """Whatever a stranger's bytes say, a reader ends in bounded time and memory, or with a LayerfsError."""

    def test_of_what_is_kept_in_the_corpus(self, target: str) -> None:
        outcome = fuzz.attack(target, inputs=0, seed=0, replay=True)
        assert outcome.inputs == len(fuzz.corpus(target))
        assert [found.how for found in outcome.found] == []

    def test_of_new_inputs(self, target: str) -> None:
        outcome = fuzz.attack(target, inputs=TARGETS[target].rate // 20 + 20, seed=20)
        assert [found.how for found in outcome.found] == []


def test_an_input_that_breaks_a_rule_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(data: bytes) -> None:
        raise KeyError("x") if data else MemoryError

    monkeypatch.setitem(TARGETS, "tar", TARGETS["tar"]._replace(run=broken))
    outcome = fuzz.attack("tar", inputs=5, seed=1)
    assert outcome.found
    assert outcome.found[0].how.startswith(("KeyError", "MemoryError"))
