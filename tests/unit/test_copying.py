"""`layerfs cp`: docker cp's rules for every pair of ends, and confinement while a container is at work."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfs.copying import copy_path
from layerfs.errors import InvalidError, LayerfsError, NotFoundError

Copy = Callable[[str, str], None]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What a copy is taken from; links in it lead out of it, as far as it is not taken for the root."""
    root = tmp_path / "source"
    (root / "d/sub").mkdir(parents=True)
    (root / "d/f").write_text("f")
    (root / "d/f").chmod(0o4755)
    (root / "d/sub/g").write_text("g")
    (root / "d/lsub").symlink_to("sub")
    (root / "d/lf").symlink_to("f")
    (root / "d/dang").symlink_to("nowhere")
    (root / "d/out").symlink_to("../../../../../../../d")
    (root / "abs").symlink_to("/d")
    return root


@pytest.fixture
def target(tmp_path: Path) -> Path:
    root = tmp_path / "target"
    (root / "exist").mkdir(parents=True)
    (root / "old").write_text("old")
    (root / "lexist").symlink_to("/exist")
    (root / "lold").symlink_to("old")
    (root / "ldang").symlink_to("new")
    return root


@pytest.fixture
def copy(source: Path, target: Path) -> Iterator[Copy]:
    ends = [os.open(root, os.O_RDONLY | os.O_DIRECTORY) for root in (source, target)]
    warnings: list[str] = []

    def copy(one: str, other: str) -> None:
        copy_path(ends[0], one.encode(), ends[1], other.encode(), warn=warnings.append)

    yield copy
    for end in ends:
        os.close(end)
    assert warnings == []


BEFORE = {"exist/", "old", "lexist@/exist", "lold@old", "ldang@new"}
D = ("/", "/f", "/sub/", "/sub/g", "/lsub@sub", "/lf@f", "/dang@nowhere", "/out@../../../../../../../d")


def tree_of(root: Path) -> set[str]:
    found = set()
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if path.is_symlink():
            name += f"@{os.readlink(path)}"
        elif path.is_dir():
            name += "/"
        found.add(name)
    return found


def below(name: str) -> set[str]:
    return {name + path for path in D}


# What docker cp (20.10 and its client 28.2) does, tried; its refusal of links like d/out left aside.
@pytest.mark.parametrize(
    ("one", "other", "new"),
    [
        ("/d", "/new", below("new")),
        ("/d", "/new/", below("new")),
        ("/d/.", "/new", below("new")),
        ("/d", "/exist", below("exist/d")),
        ("/d/", "/exist/.", below("exist/d")),
        ("/d/.", "/exist", below("exist") - {"exist/"}),
        ("/d", "/lexist", below("exist/d")),
        ("/d/sub", "/ldang", {"new/", "new/g"}),
        ("/d/f", "/new", {"new"}),
        ("d/f", "new", {"new"}),
        ("/d/../d/f", "/x", {"x"}),
        ("/d/f", "/exist", {"exist/f"}),
        ("/d/f", "/exist/", {"exist/f"}),
        ("/d/f", "/lexist", {"exist/f"}),
        ("/d/f", "/lold", set()),
        ("/d/f", "/ldang", {"new"}),
        ("/d/f", "/", {"f"}),
        ("/d/lf", "/x", {"x@f"}),
        ("/d/lsub", "/x", {"x@sub"}),
        ("/d/lsub/", "/x", {"x/", "x/g"}),
        ("/d/lsub/.", "/x", {"x/", "x/g"}),
        ("/d/lsub", "/exist", {"exist/lsub@sub"}),
        ("/d/lsub/", "/exist", {"exist/lsub/", "exist/lsub/g"}),
        ("/d/dang", "/x", {"x@nowhere"}),
        ("/abs", "/x", {"x@/d"}),
        ("/abs/f", "/x", {"x"}),
        ("/d/out/f", "/x", {"x"}),
        ("/d/sub/..", "/exist", below("exist/d")),
    ],
)
def test_paths_mean_what_they_mean_to_docker(
    copy: Copy, target: Path, one: str, other: str, new: set[str]
) -> None:
    copy(one, other)
    assert tree_of(target) == BEFORE | new


@pytest.mark.parametrize(
    ("one", "other", "error"),
    [
        ("/d", "/old", InvalidError),
        ("/d/.", "/lold", InvalidError),
        ("/d/f", "/newd/", NotFoundError),
        ("/d/f", "/no/such", NotFoundError),
        ("/d/f", "/old/", NotFoundError),
        ("/d/f", "/old/below", NotFoundError),
        ("/d", "/no/such", NotFoundError),
        ("/d/f/", "/x", NotFoundError),
        ("/d/f/.", "/x", NotFoundError),
        ("/nosuch", "/x", NotFoundError),
        ("/d/dang/", "/x", NotFoundError),
    ],
)
def test_what_docker_refuses_is_refused(
    copy: Copy, target: Path, one: str, other: str, error: type[LayerfsError]
) -> None:
    with pytest.raises(error):
        copy(one, other)
    assert tree_of(target) == BEFORE


def test_a_whole_tree_is_copied_into_another(copy: Copy, target: Path) -> None:
    copy("/", "/exist")
    assert tree_of(target) == BEFORE | below("exist/d") | {"exist/abs@/d"}


def test_what_is_there_is_merged_or_replaced(copy: Copy, target: Path) -> None:
    (target / "exist/d/sub").mkdir(parents=True)
    (target / "exist/d/f").symlink_to("/old")
    (target / "exist/d/sub/kept").write_text("kept")
    (target / "exist/d/sub/g").write_text("longer than before")
    copy("/d", "/exist")
    assert tree_of(target) == BEFORE | below("exist/d") | {"exist/d/sub/kept"}
    assert (target / "exist/d/sub/g").read_text() == "g"
    assert (target / "old").read_text() == "old"


@pytest.mark.parametrize("kind", ["f", "sub"])
def test_a_directory_and_a_file_never_replace_each_other(copy: Copy, target: Path, kind: str) -> None:
    (target / "exist/d").mkdir()
    if kind == "f":
        (target / "exist/d/f").mkdir()
    else:
        (target / "exist/d/sub").symlink_to("/exist")
    with pytest.raises(InvalidError):
        copy("/d", "/exist")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_every_attribute_comes_along(copy: Copy, source: Path, target: Path) -> None:
    d = source / "d"
    os.link(d / "f", d / "zlink")
    os.mkfifo(d / "fifo")
    os.mknod(d / "null", stat.S_IFCHR | 0o640, os.makedev(1, 3))
    with open(d / "sparse", "wb") as file:
        file.truncate(8 << 20)
        file.seek(4 << 20)
        file.write(b"data")
    os.setxattr(d / "f", "user.test", b"v")
    for number, path in enumerate(sorted([d, *d.rglob("*")])):
        os.chown(path, 1000 + number, 2000 + number, follow_symlinks=False)
    (d / "f").chmod(0o4755)
    (d / "sub").chmod(0o2570)
    for number, path in enumerate(sorted([*d.rglob("*"), d], reverse=True)):
        os.utime(path, ns=(0, 1_600_000_000_000_000_001 + number), follow_symlinks=False)
    copy("/d", "/new")
    assert {p.relative_to(target / "new") for p in (target / "new").rglob("*")} == {
        p.relative_to(d) for p in d.rglob("*")
    }
    for path in [d, *d.rglob("*")]:
        one, other = path.lstat(), (target / "new" / path.relative_to(d)).lstat()
        for name in ("st_mode", "st_uid", "st_gid", "st_size", "st_rdev", "st_mtime_ns"):
            assert getattr(one, name) == getattr(other, name), (path, name)
    assert os.path.samefile(target / "new/f", target / "new/zlink")
    assert os.getxattr(target / "new/f", "user.test") == b"v"
    assert (target / "new/sparse").stat().st_blocks * 512 < 1 << 20


def test_a_process_that_swaps_directories_for_links_leads_nowhere(tmp_path: Path, source: Path) -> None:
    victim = tmp_path / "victim"
    (victim / "sub").mkdir(parents=True)
    root = tmp_path / "container"
    (root / "real/d/sub").mkdir(parents=True)
    (root / "evil").symlink_to(victim)
    (root / "away").symlink_to(f"../../../../../../../..{victim}")
    done = threading.Event()

    def swap() -> None:
        place = root / "place"
        while not done.is_set():
            for content in ("real", str(victim), "evil", "away"):
                (root / "next").symlink_to(content)
                os.replace(root / "next", place)
            for inner in (root / "real/d", root / "real/d/sub"):
                try:
                    os.rename(inner, root / "aside")
                    inner.symlink_to(victim)
                    inner.unlink()
                    os.rename(root / "aside", inner)
                except OSError:
                    continue

    (root / "place").symlink_to("real")
    thread = threading.Thread(target=swap)
    thread.start()
    host, inside = (os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (source, root))
    try:
        for _ in range(150):
            try:
                copy_path(host, b"/d", inside, b"/place", warn=lambda _: None)
            except (LayerfsError, OSError):
                continue
    finally:
        done.set()
        thread.join()
        os.close(host)
        os.close(inside)
    assert tree_of(victim) == {"sub/"}
