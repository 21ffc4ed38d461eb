"""Runs workloads over subjects in interleaved rounds, each round on fresh file systems."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.clock import Sample, StopWatch
from benchmarks.commands import CommandError, Commands
from benchmarks.filesystem import fresh
from benchmarks.images.cache import Images
from benchmarks.results import Result, Results
from benchmarks.scales import QUICK, Scale
from benchmarks.subjects.base import Candidate, Subject, UnsupportedError
from benchmarks.workloads import SECTIONS
from benchmarks.workloads.base import Bench, UnsuitedError, Workload

# What fails on one subject is told, and the others go on.
_FAILURES = (CommandError, OSError)


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What to run: `rounds` counted ones, after `warm_up` that do not count.

    `where` holds the file systems' images; None is the system's temporary directory.
    """

    subjects: Sequence[Candidate]
    workloads: Sequence[Workload]
    scale: Scale
    rounds: int
    warm_up: int
    filesystem: str
    where: Path | None

    def describe(self) -> dict[str, Any]:
        """Give what a reader of figures wants to know."""
        return {
            "scale": dataclasses.asdict(self.scale),
            "rounds": self.rounds,
            "warm_up": self.warm_up,
            "filesystem": self.filesystem,
            "subjects": [candidate.name for candidate in self.subjects],
        }


@dataclasses.dataclass(slots=True)
class _Opened:
    """A subject on its file system, for one round."""

    subject: Subject
    bench: Bench


class Rounds:
    """One run of a plan.

    Args:
        told: hears one line before each workload of a round.
    """

    def __init__(
        self, plan: Plan, images: Images, commands: Commands, *, told: Callable[[str], None]
    ) -> None:
        self._plan = plan
        self._images = images
        self._commands = commands
        self._told = told
        self._samples: dict[tuple[str, str], list[Sample]] = {}
        self._failed: dict[tuple[str, str], str] = {}

    def run(
        self, left_out: dict[str, str], *, keep: Callable[[Results], None] = lambda results: None
    ) -> Results:
        """Run every round and give what was measured; `left_out` are the subjects that could not be.

        `keep` gets what there is after each counted round: a run takes hours, and may be interrupted.
        """
        plan = self._plan
        self._left_out = left_out
        noise: list[dict[str, float]] = []
        for number in range(-plan.warm_up, plan.rounds):
            around = machine.Noise()
            name = "warm-up" if number < 0 else f"round {number + 1} of {plan.rounds}"
            self._round(name, counted=number >= 0, first=number == 0, backwards=bool(number % 2))
            if number >= 0:
                noise.append(around.measure())
                keep(self._gathered(noise))
        return self._gathered(noise)

    def _gathered(self, noise: list[dict[str, float]]) -> Results:
        plan = self._plan
        return Results(
            machine.facts(),
            plan.describe(),
            {name: image.describe() for name, image in self._images.used().items()},
            noise,
            {workload.name: _explain(workload) for workload in plan.workloads},
            self._sections(),
            self._left_out,
            tuple(self._results()),
        )

    def _results(self) -> Iterator[Result]:
        for workload in self._plan.workloads:
            for subject in self._plan.subjects:
                pair = (workload.name, subject.name)
                if pair in self._samples:
                    yield Result(*pair, tuple(self._samples[pair]), self._failed.get(pair, ""))

    def _sections(self) -> dict[str, list[str]]:
        chosen = {workload.name for workload in self._plan.workloads}
        return {
            title: names
            for title, workloads in SECTIONS.items()
            if (names := [workload.name for workload in workloads if workload.name in chosen])
        }

    def _round(self, name: str, *, counted: bool, first: bool, backwards: bool) -> None:
        plan = self._plan
        with contextlib.ExitStack() as stack:
            opened: dict[str, _Opened] = {}
            for candidate in plan.subjects:
                self._told(f"{name}: opening {candidate.name}")
                opened[candidate.name] = self._open(candidate, stack)
            # A B A B, and B A B A in the next round: what slows the machine down for a while, slows all down.
            order = list(reversed(opened.items())) if backwards else list(opened.items())
            for place, workload in enumerate(plan.workloads, 1):
                if workload.once and not first:
                    continue
                for subject, one in order:
                    if isinstance(one.subject, workload.needs) and not self._spared(workload, subject):
                        self._told(f"{name}: {workload.name} ({place} of {len(plan.workloads)}) {subject}")
                        with self._place_for(workload, subject, one) as chosen:
                            self._measure(workload, subject, chosen, counted=counted)

    def _spared(self, workload: Workload, subject: str) -> bool:
        """Say whether a quick run can do without this pair."""
        if self._plan.scale is not QUICK or workload.storage:
            return False
        candidates = {each.name: each for each in self._plan.subjects}
        return candidates[subject].variant_of in candidates

    @contextlib.contextmanager
    def _place_for(self, workload: Workload, subject: str, opened: _Opened) -> Iterator[_Opened]:
        if not workload.alone:
            yield opened
            return
        candidate = next(each for each in self._plan.subjects if each.name == subject)
        with contextlib.ExitStack() as stack:
            yield self._open(candidate, stack)

    def _open(self, candidate: Candidate, stack: contextlib.ExitStack) -> _Opened:
        plan = self._plan
        place = stack.enter_context(fresh(plan.filesystem, size=plan.scale.room, where=plan.where))
        for name in ("subject", "scratch"):
            (place / name).mkdir()
        subject = stack.enter_context(candidate.open(place / "subject", self._commands))
        return _Opened(subject, Bench(plan.scale, self._images, self._commands, place / "scratch"))

    def _measure(self, workload: Workload, name: str, opened: _Opened, *, counted: bool) -> None:
        commands, pair = self._commands, (workload.name, name)
        if pair in self._failed:
            return
        # Those of other subjects, which are at rest.
        others = commands.others() - opened.subject.daemons()
        watch = StopWatch(commands, others)
        opened.bench.settle()
        try:
            workload.run(opened.subject, opened.bench, watch)
        except UnsuitedError:
            return
        except UnsupportedError as error:
            self._left_out[f"{workload.name} on {name}"] = str(error)
            return
        except _FAILURES as error:
            self._samples.setdefault(pair, [])
            self._failed[pair] = str(error)
            self._told(f"{workload.name} failed on {name}: {error}")
            return
        assert watch.sample is not None, f"{workload.name} has not started the clock"
        if counted:
            self._samples.setdefault(pair, []).append(watch.sample)


def _explain(workload: Workload) -> str:
    return f"{workload.about} ({workload.state.value})" if workload.state.value else workload.about
