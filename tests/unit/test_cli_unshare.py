"""Tests of `unshare`; as an ordinary user in tests/conformance/test_users.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commandline import CommandLine


@pytest.fixture
def layerfs(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path / "store")


def test_the_command_is_run_with_its_own_words_on_the_same_store(layerfs: CommandLine) -> None:
    done = layerfs.run(
        "--driver", "vfs", "unshare", "sh", "-c", 'echo "$@" $LAYERFS_DRIVER; exit 9', "x", "--json"
    )
    assert (done.status, done.out, done.err) == (9, "--json vfs\n", "")
    script = 'test "$LAYERFS_ROOT" = "$1"'
    assert layerfs.run("unshare", "sh", "-c", script, "x", layerfs.root).status == 0
    # No store is made for that.
    assert not layerfs.root.exists()


def test_wrong_usage_has_the_status_of_a_command_that_was_not_run(layerfs: CommandLine) -> None:
    assert layerfs.run("unshare", "--nonsense").status == 125
    assert layerfs.run("unshare", "no-such-program").status == 127
