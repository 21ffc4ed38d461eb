"""Runs the linter, the formatter's check and the type checker, so that one `pytest` runs everything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"python -m {' '.join(command)}\n{done.stdout}"


def test_ruff_finds_nothing_to_mend() -> None:
    run("ruff", "check", "--quiet", ".")


def test_ruff_would_format_nothing() -> None:
    run("ruff", "format", "--check", "--quiet", ".")


def test_mypy_is_content_with_every_type() -> None:
    run("mypy", "--no-error-summary")
