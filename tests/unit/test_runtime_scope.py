"""A stranger's tree: whatever its links say, everything is found, made and read inside of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.errors import BudgetError, InvalidError
from layerfs.runtime.scope import find_place, make_directory, make_file, open_inside, read_file


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("secret")
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/file").write_text("inside")
    return root


@pytest.fixture
def root(tree: Path) -> Iterator[int]:
    descriptor = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def path_of(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("target", ["/etc", "../../../../etc", "etc", "/../etc/../etc/."])
def test_links_are_resolved_with_the_tree_as_root(tree: Path, root: int, target: str) -> None:
    (tree / "link").symlink_to(target)
    assert path_of(open_inside(root, b"/link/file", os.O_PATH)) == f"{tree}/etc/file"
    assert path_of(make_directory(root, b"/link/new/deep")) == f"{tree}/etc/new/deep"
    assert path_of(make_file(root, b"link/new/file")) == f"{tree}/etc/new/file"
    place = find_place(root, b"/link/file")
    os.close(place.directory)
    assert (place.path, place.name) == (b"/etc/file", b"file")
    with pytest.raises(OSError) as caught:
        open_inside(root, b"/link/file", os.O_PATH, symlinks=False)
    assert caught.value.errno == errno.ELOOP


def test_what_a_dangling_link_points_to_is_made_inside(tree: Path, root: int) -> None:
    (tree / "dangling").symlink_to("/run/made/here")
    assert path_of(make_file(root, b"/dangling")) == f"{tree}/run/made/here"
    (tree / "up").symlink_to("../../outside/new")
    assert path_of(make_directory(root, b"/up")) == f"{tree}/outside/new"
    assert not (tree.parent / "outside/new").exists()


def test_a_circle_of_links_ends(tree: Path, root: int) -> None:
    (tree / "a").symlink_to("b")
    (tree / "b").symlink_to("a")
    for work in (
        lambda: make_directory(root, b"/a/x"),
        lambda: make_file(root, b"/a"),
        lambda: find_place(root, b"/a"),
    ):
        with pytest.raises(OSError) as caught:
            work()
        assert caught.value.errno == errno.ELOOP


def test_a_file_in_the_way_is_told(root: int) -> None:
    with pytest.raises(NotADirectoryError):
        make_directory(root, b"/etc/file")
    with pytest.raises(NotADirectoryError):
        make_directory(root, b"/etc/file/below")


def test_a_place_need_not_exist_but_its_directory_must(tree: Path, root: int) -> None:
    place = find_place(root, b"/etc/nothing")
    os.close(place.directory)
    assert place.status is None
    with pytest.raises(FileNotFoundError):
        find_place(root, b"/nothing/file")
    for path in (b"/", b"", b".", b"etc/.."):
        place = find_place(root, path)
        assert os.path.samestat(os.fstat(place.directory), os.stat(tree))
        os.close(place.directory)
        assert (place.name, place.path) == (b".", b"/")


def test_the_last_link_is_left_alone_when_asked(tree: Path, root: int) -> None:
    (tree / "link").symlink_to("etc")
    place = find_place(root, b"/link", follow=False)
    os.close(place.directory)
    assert place.name == b"link"


def test_only_regular_files_are_read_and_only_so_much(tree: Path, root: int) -> None:
    assert read_file(root, b"/etc/file", limit=6) == b"inside"
    assert read_file(root, b"/etc/none", limit=6) is None
    assert read_file(root, b"/etc/file/none", limit=6) is None
    with pytest.raises(BudgetError):
        read_file(root, b"/etc/file", limit=5)
    os.mkfifo(tree / "fifo")
    (tree / "null").symlink_to("/dev/null")
    (tree / "passwd").symlink_to(tree.parent / "outside/secret")
    for path in (b"/fifo", b"/etc"):
        with pytest.raises(InvalidError, match="not a regular file"):
            read_file(root, path, limit=100)
    assert read_file(root, b"/passwd", limit=100) is None
    assert read_file(root, b"/null", limit=100) is None
