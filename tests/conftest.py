"""Holds the suite to its word: with CI=true a skip that nobody announced fails the run."""

from __future__ import annotations

import fnmatch
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.authority import Authority
from tests.support.registries import PROGRAM, Registry, htpasswd, installed
from tests.support.token_server import TokenServer

EXPECTED = Path(__file__).with_name("expected_skips.txt")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell leaves it to what it starts in the background; the tests interrupt programs that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
        # Where several processes test the group stands behind.
        names = {report.nodeid, report.nodeid.rpartition("@")[0]}
        if not any(
            any(fnmatch.fnmatchcase(name, node) for name in names) and fnmatch.fnmatchcase(reason, why)
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together what shares a fixture when several processes test: modules, what needs dockerd."""
    for item in items:
        shared = "docker" if "docker" in getattr(item, "fixturenames", ()) else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(shared))


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("CI") == "true":
        config.pluginmanager.register(SkipWatch(expected_skips(EXPECTED.read_text())), "layerfs-skip-watch")


@pytest.fixture(scope="session")
def registries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the directory below which registries of the whole run live; skip where there can be none."""
    if not installed():
        pytest.skip(f"{PROGRAM} is not installed")
    return tmp_path_factory.mktemp("registries")


@pytest.fixture(scope="session")
def registry(registries: Path) -> Iterator[Registry]:
    """Run a registry that lets everybody do everything by plain HTTP; each test has its repositories."""
    with Registry(registries / "plain") as started:
        yield started


@pytest.fixture(scope="session")
def basic_registry(registries: Path) -> Iterator[Registry]:
    """Run a registry that lets in who knows the password of `tests.support.registries.USER`."""
    with Registry(registries / "basic", auth=htpasswd(registries / "basic")) as started:
        yield started


@pytest.fixture(scope="session")
def token_server(registries: Path) -> Iterator[TokenServer]:
    with TokenServer(registries / "tokens") as started:
        yield started


@pytest.fixture(scope="session")
def token_registry(registries: Path, token_server: TokenServer) -> Iterator[Registry]:
    """Run a registry that lets in whom `token_server` gave a token."""
    with Registry(registries / "token", auth=token_server.settings()) as started:
        yield started


@pytest.fixture(scope="session")
def authority(registries: Path) -> Authority:
    """Make the authority of `tls_registry`, which nothing on this machine knows."""
    return Authority(registries / "authority")


@pytest.fixture(scope="session")
def tls_registry(registries: Path, authority: Authority) -> Iterator[Registry]:
    """Run a registry that speaks TLS, as localhost and 127.0.0.1."""
    with Registry(registries / "tls", tls=authority.issue("localhost", "127.0.0.1")) as started:
        yield started
