"""`python -m tests.reliability.fuzz_guided TARGET RUNS CORPUS ARTIFACTS`: chosen by the code reached.

A process of its own, for the campaign `fuzz --guided`: atheris (of PyPI, not needed otherwise) counts what of
layerfs each input reaches, which has to be prepared before layerfs is imported, and ends the process itself.
"""

from __future__ import annotations

import contextlib
import importlib
import random
import sys
from typing import Any


def main(target: str, runs: str, corpus: str, artifacts: str) -> None:
    """Fuzz a target; an input that breaks a rule is left among the artifacts, and ends the process."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["layerfs"]):
        targets = importlib.import_module("tests.reliability.fuzz_targets")
        errors = importlib.import_module("layerfs.errors")
    run, mutate, _ = targets.TARGETS[target]

    def one(data: bytes) -> None:
        with contextlib.suppress(errors.LayerfsError):
            run(data)

    def change(data: bytes, maximum: int, seed: int) -> bytes:
        rng = random.Random(seed)
        changed = mutate(rng, data, ()) if rng.random() < 0.7 else atheris.Mutate(data, maximum)
        return bytes(changed[:maximum])

    options = [
        f"-runs={runs}", "-max_len=65536", "-timeout=60", "-rss_limit_mb=1024",
        f"-artifact_prefix={artifacts}/",
        "-print_final_stats=1",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, corpus], one, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
