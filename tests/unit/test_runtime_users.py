"""Users and groups come from the container's own files, and a number is a number."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.errors import BudgetError, InvalidError, ProcessError
from layerfs.runtime.users import User, resolve_user

PASSWD = """\
# a comment
root:x:0:0:root:/root:/bin/sh
app:x:1000:1001::/home/app:
1000:x:7:7::/trap:
short:x:5
wrong:x:abc:5::/:
huge:x:4294967295:5::/:
nohome:x:8:8:::/bin/sh
"""
GROUP = """\
root:x:0:
wheel:x:10:root,app
audio:x:29:app
audio2:x:29:app
1001:x:55:
none:x:56
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    return tmp_path


@pytest.fixture
def root(tree: Path) -> Iterator[int]:
    descriptor = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", User(0, 0, (10,), "/root")),
        ("root", User(0, 0, (10,), "/root")),
        ("app", User(1000, 1001, (10, 29), "/home/app")),
        ("app:", User(1000, 1001, (10, 29), "/home/app")),
        # As a name, 1000 would be user 7; as a group's name, 1001 would be 55.
        ("1000", User(1000, 1001, (10, 29), "/home/app")),
        ("app:1001", User(1000, 1001, (1001,), "/home/app")),
        ("0001000:audio", User(1000, 29, (29,), "/home/app")),
        ("12345", User(12345, 0, (), "/")),
        ("12345:678", User(12345, 678, (678,), "/")),
        (":29", User(0, 29, (29,), "/root")),
        ("nohome", User(8, 8, (), "/")),
        ("4294967294", User(4294967294, 0, (), "/")),
    ],
)
def test_users_are_found_as_docker_finds_them(root: int, text: str, expected: User) -> None:
    assert resolve_user(root, text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nobody", "no user 'nobody'"),
        ("app:nogroup", "no group 'nogroup'"),
        ("-1", "no user '-1'"),
        ("4294967295", "past"),
        ("0:4294967295", "past"),
        ("9" * 5000, "past"),
        ("wrong", "no user"),
        ("huge", "no user"),
        ("\N{SUPERSCRIPT TWO}", "no user"),
    ],
)
def test_what_is_not_there_is_refused(root: int, text: str, words: str) -> None:
    with pytest.raises(ProcessError, match=words) as caught:
        resolve_user(root, text)
    assert caught.value.status == 125


def test_a_tree_without_the_files_knows_numbers_only(root: int, tree: Path) -> None:
    (tree / "etc/passwd").unlink()
    (tree / "etc/group").unlink()
    assert resolve_user(root, "") == User(0, 0, (), "/")
    assert resolve_user(root, "5:6") == User(5, 6, (6,), "/")
    with pytest.raises(ProcessError):
        resolve_user(root, "root")


def test_the_hosts_files_are_never_read(root: int, tree: Path) -> None:
    (tree / "etc/passwd").unlink()
    (tree / "etc/passwd").symlink_to("../../../../../../../../etc/passwd")
    with pytest.raises(OSError):
        resolve_user(root, "root")  # a link to itself
    (tree / "etc/passwd").unlink()
    os.mkfifo(tree / "etc/passwd")
    with pytest.raises(InvalidError):
        resolve_user(root, "root")


def test_a_file_that_never_ends_is_refused(root: int, tree: Path) -> None:
    with open(tree / "etc/passwd", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BudgetError):
        resolve_user(root, "app")
