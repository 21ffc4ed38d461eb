"""A short form of `python -m tests.reliability users`."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.reliability import users

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user"),
    pytest.mark.skipif(
        not os.path.exists("/dev/fuse")
        or not all(map(shutil.which, ("fusermount3", "newuidmap", "setpriv"))),
        reason="needs /dev/fuse, fusermount3, newuidmap and setpriv",
    ),
]


def test_what_the_table_says_of_a_user_holds_for_some_commands() -> None:
    told: list[str] = []
    steps = users.STEPS[2:8]
    (found,) = users.results(["without"], steps, told.append).values()
    assert [cell for cell in found if cell.startswith("FAILS")] == []
    assert found[2].startswith("clear error: '/") and found[3] == "works"
