"""Inputs that nobody sane would write, for every reader of strangers' bytes: only typed errors may come out.

Each target works in a process of its own, whose memory is bounded, and so is its time for one input. An input
that breaks a rule is kept in the corpus, tests/corpus/TARGET/, which the tests replay.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import os
import pickle
import random
import resource
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple

from layerfs.errors import LayerfsError
from tests.reliability.fuzz_targets import TARGETS
from tests.reliability.report import Section

HELP = "feed damaged and hostile inputs to every reader"

CORPUS: Final = Path(__file__).parent.parent / "corpus"
SECONDS: Final = 5.0
"""How long one input may take."""
MEMORY: Final = 512 << 20
"""Bytes of address space that a target may take besides what it began with."""
_TOLD: Final = 10


class Found(NamedTuple):
    """An input that broke a rule, and how."""

    target: str
    data: bytes
    how: str


class Outcome(NamedTuple):
    """What one target did; `refused` inputs ended with a typed error."""

    target: str
    inputs: int
    refused: int
    seconds: float
    slowest: float
    memory: int
    found: tuple[Found, ...]


class TooSlow(Exception):
    """An input took longer than it may."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", choices=sorted(TARGETS), action="append", help="only this one")
    parser.add_argument("--inputs", type=int, help="inputs for each target")
    parser.add_argument(
        "--seconds", type=int, default=20, help="or about so long for each, on an idle machine (20)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the random choices")
    parser.add_argument("--keep", action="store_true", help="add what is found to tests/corpus")


def run(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Section:
    rows = []
    total = 0
    for name in arguments.target or TARGETS:
        inputs = arguments.inputs or TARGETS[name].rate * arguments.seconds
        outcome = attack(name, inputs=inputs, seed=arguments.seed)
        total += outcome.inputs
        for found in outcome.found:
            tell(f"{name}: {found.how}\n  {found.data[:200]!r}")
            if arguments.keep:
                keep(found)
        rows.append(
            (
                name, f"{outcome.inputs:,}", f"{outcome.refused:,}", f"{outcome.seconds:.0f}",
                f"{outcome.slowest * 1000:.0f}", f"{outcome.memory >> 20}", str(len(outcome.found)),
            )
        )  # fmt: skip
        tell(" | ".join(rows[-1]))
    return Section(
        "Hostile input",
        "python -m tests.reliability fuzz",
        ("target", "inputs", "refused", "seconds", "slowest, ms", "memory, MiB", "broke a rule"),
        tuple(rows),
        (
            f"{total:,} inputs in all, made of a corpus by changes that know the formats;"
            f" seed {arguments.seed}. Refused: ended with a typed error. The memory is what a target's"
            f" process took at most beside what it began with; more than {MEMORY >> 20} MiB of address space,"
            f" more than {SECONDS:.0f} seconds for an input, and any exception that is no LayerfsError would"
            " be a broken rule.",
        ),
    )


def corpus(target: str) -> list[bytes]:
    """Read the kept inputs of a target, always in the same order."""
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


def keep(found: Found) -> Path:
    """Add an input to the corpus."""
    digest = hashlib.sha256(found.data).hexdigest()[:12]
    path = CORPUS / found.target / f"found-{digest}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(found.data)
    return path


def attack(target: str, *, inputs: int, seed: int, replay: bool = False) -> Outcome:
    """Feed a target in a process of its own; with `replay` the corpus as it is, and nothing else."""
    read, write = os.pipe()
    current = os.memfd_create("current")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read)
            outcome = _Work(target, current).run(inputs, seed, replay=replay)
            with open(write, "wb") as pipe:
                pipe.write(pickle.dumps(outcome))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write)
    with open(read, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if answer:
        outcome = pickle.loads(answer)
        assert isinstance(outcome, Outcome)
        os.close(current)
        return outcome
    # Killed, by a signal or for its memory: what it was at work on is in the file.
    data = os.pread(current, os.fstat(current).st_size, 0)
    os.close(current)
    found = Found(target, data, f"its process ended with status {os.waitstatus_to_exitcode(status)}")
    return Outcome(target, 0, 0, 0.0, 0.0, 0, (found,))


class _Work:
    """The fuzzing of one target, in its own process."""

    def __init__(self, target: str, current: int) -> None:
        self._target = target
        self._reader = TARGETS[target].run
        self._current = current
        self._found: dict[str, Found] = {}
        self._refused = 0
        self._slowest = 0.0

    def run(self, inputs: int, seed: int, *, replay: bool) -> Outcome:
        known = corpus(self._target)
        gc.collect()
        begun_with = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        _bound_memory(MEMORY)
        signal.signal(signal.SIGALRM, _too_slow)
        begin = time.monotonic()
        if replay:
            for data in known:
                self._feed(data)
            inputs = len(known)
        else:
            self._mutate(known, inputs, seed)
        return Outcome(
            self._target, inputs, self._refused, time.monotonic() - begin, self._slowest,
            (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begun_with) << 10,
            tuple(self._found.values()),
        )  # fmt: skip

    def _mutate(self, known: Sequence[bytes], inputs: int, seed: int) -> None:
        # Of the target's name, too: targets of one format would get the same changes.
        rng = random.Random(f"{self._target}:{seed}")
        mutate = TARGETS[self._target].mutate
        data = b""
        for count in range(inputs):
            # Some changes are heaped upon others.
            if count % 4 == 0 or len(data) > 1 << 16:
                data = rng.choice(known)
            data = mutate(rng, data, known)
            self._feed(data)

    def _feed(self, data: bytes) -> None:
        os.ftruncate(self._current, 0)
        os.pwrite(self._current, data, 0)
        begin = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            self._reader(data)
        except LayerfsError as error:
            self._refused += 1
            if "\n" in str(error):
                self._note(data, error, "a message of several lines")
        except BaseException as error:
            self._note(data, error, "")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        self._slowest = max(self._slowest, time.monotonic() - begin)

    def _note(self, data: bytes, error: BaseException, what: str) -> None:
        place = traceback.extract_tb(error.__traceback__)[-1]
        # One of each kind is enough.
        kind = f"{type(error).__name__} {os.path.basename(place.filename)}:{place.lineno} {what}"
        if kind not in self._found and len(self._found) < _TOLD:
            lines = "".join(traceback.format_exception(error)[-6:])
            self._found[kind] = Found(self._target, data, f"{kind}: {str(error)[:300]}\n{lines}")


def _bound_memory(more: int) -> None:
    with open("/proc/self/statm", "rb") as file:
        pages = int(file.read().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise TooSlow(f"more than {SECONDS:.0f} seconds")
