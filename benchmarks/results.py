"""The figures of a run: samples by workload and subject, and the same as JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Final

from benchmarks.clock import Sample

FORMAT: Final = 1


class NotResultsError(Exception):
    """A file does not hold the results of a run."""


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """All counted runs of one workload on one subject; or why there are none, in `failed`."""

    workload: str
    subject: str
    samples: tuple[Sample, ...]
    failed: str = ""

    @property
    def walls(self) -> list[float]:
        """The wall times, in seconds, in the order of the rounds."""
        return [sample.wall for sample in self.samples]


@dataclasses.dataclass(frozen=True, slots=True)
class Results:
    """One run of the harness.

    `facts` are those of the machine, `plan` says how it was run, `images` what the images were. `noise` has
    one entry a round. `about` explains each workload, `sections` says which belong together, `left_out` says
    why a subject or workload was not measured.
    """

    facts: dict[str, Any]
    plan: dict[str, Any]
    images: dict[str, Any]
    noise: list[dict[str, float]]
    about: dict[str, str]
    sections: dict[str, list[str]]
    left_out: dict[str, str]
    results: tuple[Result, ...]

    def find(self, workload: str, subject: str) -> Result | None:
        """Give the result of a workload on a subject, None if it was not run."""
        for result in self.results:
            if (result.workload, result.subject) == (workload, subject):
                return result
        return None

    @property
    def subjects(self) -> list[str]:
        """The subjects that were measured, in order."""
        return list(dict.fromkeys(result.subject for result in self.results))

    @property
    def workloads(self) -> list[str]:
        """The workloads that were measured, in order."""
        return list(dict.fromkeys(result.workload for result in self.results))


def to_json(results: Results) -> str:
    """Give everything as JSON text; times in seconds, sizes in bytes."""
    value = {"layerfs-benchmarks": FORMAT} | {
        field.name: getattr(results, field.name) for field in dataclasses.fields(results)
    }
    value["results"] = [
        {
            "workload": result.workload,
            "subject": result.subject,
            "failed": result.failed,
            "samples": [sample._asdict() for sample in result.samples],
        }
        for result in results.results
    ]
    return json.dumps(value, indent=1) + "\n"


def from_json(path: Path) -> Results:
    """Read what `to_json` gave.

    Raises:
        NotResultsError: it is not that.
    """
    try:
        value = json.loads(path.read_bytes())
        if value.pop("layerfs-benchmarks") != FORMAT:
            raise NotResultsError(f"{path} was written by another version of the harness")
        value["results"] = tuple(
            Result(
                each["workload"],
                each["subject"],
                tuple(Sample(**sample) for sample in each["samples"]),
                each["failed"],
            )
            for each in value["results"]
        )
        return Results(**value)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotResultsError(f"{path} does not hold results of the harness: {error!r}") from error
