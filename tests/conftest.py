"""Holds the suite to its word: with CI=true a skip that nobody announced fails the run."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

EXPECTED = Path(__file__).with_name("expected_skips.txt")


def expected_skips(text: str) -> list[tuple[str, str]]:
    """Read lines of ``NODE-PATTERN REASON-PATTERN`` (fnmatch; no reason: any); # begins a comment."""
    pairs = []
    for line in text.splitlines():
        node, _, reason = line.partition("#")[0].strip().partition(" ")
        if node:
            pairs.append((node, reason.strip() or "*"))
    return pairs


class SkipWatch:
    """Collects what was skipped and was not expected to be."""

    def __init__(self, expected: list[tuple[str, str]]) -> None:
        self.expected = expected
        self.unexpected: list[str] = []

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not any(
            fnmatch.fnmatchcase(report.nodeid, node) and fnmatch.fnmatchcase(reason, why)
            for node, why in self.expected
        ):
            self.unexpected.append(f"{report.nodeid}: {reason}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        yield
        if self.unexpected and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.unexpected:
            terminalreporter.section("skips that tests/expected_skips.txt does not announce", red=True)
            for line in self.unexpected:
                terminalreporter.line(line)


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("CI") == "true":
        config.pluginmanager.register(SkipWatch(expected_skips(EXPECTED.read_text())), "layerfs-skip-watch")
