"""Jobs beside their caller."""

from __future__ import annotations

import threading

import pytest

from layerfs.transports.lanes import Lanes, Stopped


def test_results_are_had_by_key_whatever_the_order() -> None:
    lanes: Lanes[int] = Lanes(3)
    for number in range(20):
        lanes.begin(number, lambda number=number: number * number)  # type: ignore[misc]
    assert [lanes.wait(number) for number in reversed(range(20))] == [n * n for n in reversed(range(20))]
    assert lanes.has(3) and not lanes.has(20)
    with pytest.raises(KeyError):
        lanes.wait(20)
    lanes.close()


def test_no_more_than_so_many_run_at_once() -> None:
    lanes: Lanes[None] = Lanes(2)
    gate, lock, running, most = threading.Event(), threading.Lock(), 0, 0

    def job() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        gate.wait(10)
        with lock:
            running -= 1

    for number in range(6):
        lanes.begin(number, job)
    gate.set()
    lanes.finish()
    assert most <= 2


def test_a_failure_is_raised_by_every_later_call_and_ends_the_rest() -> None:
    lanes: Lanes[None] = Lanes(1)
    done: list[int] = []

    def fail() -> None:
        raise ValueError("no")

    lanes.begin("bad", fail)
    with pytest.raises(ValueError, match="no"):
        lanes.wait("bad")
    for call in (
        lanes.finish,
        lambda: lanes.wait("bad"),
        lambda: lanes.begin("late", lambda: done.append(1)),
    ):
        with pytest.raises(ValueError, match="no"):
            call()
    lanes.close()
    assert done == []


def test_closing_tells_the_jobs_and_begins_no_other() -> None:
    lanes: Lanes[None] = Lanes(1)
    begun, ended = threading.Event(), threading.Event()

    def job() -> None:
        begun.set()
        while not lanes.stopped:
            threading.Event().wait(0.001)
        ended.set()
        raise Stopped

    lanes.begin("one", job)
    lanes.begin("two", lambda: pytest.fail("it began"))
    begun.wait(10)
    lanes.close()
    assert ended.is_set()
