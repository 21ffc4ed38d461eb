"""`cat`, `ls` and `find` print what the tools of these names print of a mount, and end as they do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.cli.reading import split_place
from tests.support.commandline import IMAGE, CommandLine, make_store
from tests.support.tiny_images import TinyImage, layout_files, write_files
from tests.support.users import login

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture(scope="module")
def layerfs(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    return make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def tree(layerfs: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("tree")
    layerfs.good("mount", IMAGE, place, "--name", "edit")
    (place / "odd").mkdir()
    (place / "odd/.hidden").write_text("hidden\n")
    (place / "odd/two words").write_bytes(bytes(range(256)) * 40)
    os.symlink("../etc", place / "odd/link")
    os.symlink("nowhere", place / "odd/dangling")
    os.link(place / "odd/two words", place / "odd/same")
    os.mkfifo(place / "odd/fifo", 0o600)
    os.mknod(place / "odd/null", 0o20666, os.makedev(1, 3))
    os.chmod(place / "odd", 0o1777)
    os.chown(place / "odd/.hidden", 1234, 4321)
    os.utime(place / "odd/.hidden", (0, 1_000_000_000))
    (place / "odd/empty").mkdir()
    layerfs.good("commit", "edit", "odd:1")
    yield place
    layerfs.good("umount", place)


def tool(tree: Path, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        words, cwd=tree, capture_output=True, env={**os.environ, "LC_ALL": "C"}, check=False
    )
    return done.returncode, done.stdout.decode(errors="surrogateescape")


def test_cat_prints_files_one_after_the_other(layerfs: CommandLine, tree: Path) -> None:
    done = subprocess.run(
        layerfs.words("cat", "odd:1:/odd/two words", "odd:1:odd/.hidden"), capture_output=True, check=True
    )
    assert done.stdout == bytes(range(256)) * 40 + b"hidden\n"


def test_cat_goes_on_after_what_it_cannot_read(layerfs: CommandLine, tree: Path) -> None:
    done = layerfs.run(
        "cat", "odd:1:/nope", "odd:1:/odd", "odd:1:/odd/.hidden", "nope:1:/x", "odd:1:/odd/link/../x"
    )
    assert done.status == 1
    assert done.out == "hidden\n"
    lines = [line for line in done.err.splitlines() if not line.startswith("hint:")]
    assert lines == [
        "layerfs: cat: /nope: No such file or directory",
        "layerfs: cat: /odd: Is a directory",
        "layerfs: cat: there is no image nope:1",
        "layerfs: cat: /odd/link/../x: No such file or directory",
    ]


def without_sizes_of_directories(text: str) -> str:
    text = re.sub(r"(?m)^total .*\n", "", text)
    # overlayfs says 1 for the links of a directory that it merges.
    text = re.sub(r"(?m)^(d\S+) +\d+( +\S+ +\S+) +\d+", r"\1\2", text)
    return re.sub(r" +", " ", text)


@pytest.mark.parametrize(
    "options", [["-ln"], ["-lnA"], ["-A"], [], ["-lnd"], ["-d"], ["-lnR"], ["-RA"], ["-a"]]
)
@pytest.mark.parametrize("place", ["odd", "odd/two words", "odd/link", "odd/link/", "."])
def test_ls_prints_what_ls_prints(layerfs: CommandLine, tree: Path, options: list[str], place: str) -> None:
    status, wanted = tool(tree, "ls", *options, place)
    found = layerfs.run("ls", *options, f"odd:1:{place}")
    assert (found.status, without_sizes_of_directories(found.out)) == (
        status, without_sizes_of_directories(wanted)
    )  # fmt: skip


def test_ls_names_owners_as_the_image_does(layerfs: CommandLine, tree: Path) -> None:
    assert re.search(r"(?m)^\S+ +\d+ root +root +\d+ .* passwd$", layerfs.good("ls", "-l", "odd:1:/etc"))
    assert " 1234 4321 " in layerfs.good("ls", "-lA", "odd:1:/odd")


def test_ls_ends_with_2_when_there_is_no_such_file(layerfs: CommandLine, tree: Path) -> None:
    done = layerfs.run("ls", "odd:1:/nope", "odd:1:/odd/empty")
    assert (done.status, done.out) == (2, "/odd/empty:\n")
    assert done.err == "layerfs: ls: /nope: No such file or directory\n"
    assert tool(tree, "ls", "nope")[0] == 2


def test_ls_lists_as_json(layerfs: CommandLine, tree: Path) -> None:
    rows = {row["path"]: row for row in layerfs.json("ls", "-A", "odd:1:/odd")}
    assert rows["/odd/.hidden"] | {"sha256": ""} == {
        "path": "/odd/.hidden", "type": "file", "mode": "0644", "links": 1, "uid": 1234, "gid": 4321,
        "size": 7, "mtime_ns": 1_000_000_000_000_000_000, "sha256": "",
    }  # fmt: skip
    assert rows["/odd/null"]["device"] == [1, 3]
    assert rows["/odd/dangling"]["target"] == "nowhere"
    assert rows["/odd/same"]["links"] == 2


@pytest.mark.parametrize(
    "tests",
    [
        [], ["-name", "*w*"], ["-iname", "*W*"], ["-path", "*/etc/*"], ["-type", "d"], ["-type", "f,l"],
        ["-type", "p"], ["-type", "c"], ["-type", "f", "-size", "+2k"],
        ["-type", "f", "-size", "-8"], ["-size", "7c"], ["-type", "f", "-size", "0"],
        ["-perm", "1777"], ["-perm", "-1000"], ["-perm", "/111"], ["-uid", "1234"], ["-uid", "+1000"],
        ["-gid", "-5"], ["-links", "2"], ["-empty"], ["-maxdepth", "1"], ["-mindepth", "2", "-maxdepth", "2"],
        ["-type", "f", "-name", "*s", "-perm", "-444"], ["-name", ".hidden"],
        ["-name", "two words", "-print0"],
    ],
    ids=" ".join,
)  # fmt: skip
@pytest.mark.parametrize("place", ["odd", "."])
def test_find_finds_what_find_finds(layerfs: CommandLine, tree: Path, tests: list[str], place: str) -> None:
    _, wanted = tool(tree, "find", place, *tests)
    found = layerfs.good("find", f"odd:1:{place}", *tests)
    assert sorted(found.replace("\0", "\n").split("\n")) == sorted(wanted.replace("\0", "\n").split("\n"))


def test_find_tells_what_it_cannot_take(layerfs: CommandLine, tree: Path) -> None:
    assert layerfs.run("find", "odd:1:/nope").status == 1
    for words in (["-type", "x"], ["-size", "big"], ["-perm", "9"], ["-regex", "("], ["-uid", "root"]):
        done = layerfs.run("find", "odd:1", *words)
        assert done.status == 2, words
        assert "hint:" in done.err
    assert layerfs.good("find", "odd:1:/etc", "-regex", ".*/pass.*").splitlines() == ["/etc/passwd"]


def test_whoever_stops_reading_stops_it(layerfs: CommandLine, tree: Path) -> None:
    words = " ".join(f"'{word}'" for word in layerfs.words("find", "odd:1"))
    done = subprocess.run(
        ["bash", "-c", f"{words} | head -1; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True
    )
    assert done.stdout.splitlines()[0] == "/"
    assert done.stdout.splitlines()[1] in ("0", "141")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "parted"),
    [
        ("app:1:/etc/x", ("app:1", b"/etc/x")),
        ("app:1", ("app:1", b"/")),
        ("app", ("app", b"/")),
        ("app:1:etc", ("app:1", b"etc")),
        ("app:etc:x", ("app", b"etc:x")),
        ("host:5000/app:2:x", ("host:5000/app:2", b"x")),
        ("host:5000/app:2:/x:/y", ("host:5000/app:2:/x", b"/y")),
        ("oci:dir:1:/x", ("oci:dir:1", b"/x")),
        ("oci:dir:1", ("oci:dir:1", b"/")),
        ("oci:/dir:1", ("oci:/dir:1", b"/")),
        ("oci:/dir:1:/x", ("oci:/dir:1", b"/x")),
        ("oci:/dir:/x", ("oci:/dir", b"/x")),
        ("docker://host:5000/app:1:/x", ("docker://host:5000/app:1", b"/x")),
        ("docker://host:5000/app:1", ("docker://host:5000/app:1", b"/")),
        ("docker://host/app@sha256:ab:/x", ("docker://host/app@sha256:ab", b"/x")),
        ("nope:x", ("nope:x", b"/")),
    ],
)
def test_an_image_and_a_path_are_parted(text: str, parted: tuple[str, bytes]) -> None:
    known = {"app", "app:1", "host:5000/app:2"}
    assert split_place(text, known.__contains__) == parted


@pytest.mark.skipif(
    not all(map(shutil.which, ("nsenter", "setpriv", "unshare"))), reason="needs nsenter, setpriv and unshare"
)
def test_an_ordinary_user_reads_images(tmp_path: Path) -> None:
    with login(61_377, Path(f"/tmp/layerfs-reading-{os.getpid()}")) as user:
        tree = tmp_path / "image"
        (tree / "etc").mkdir(parents=True)
        (tree / "etc/motd").write_text("hello\n")
        user.import_tree(tree, "import", "app:1")
        assert user.layerfs("cat", "app:1:/etc/motd").stdout == "hello\n"
        assert user.layerfs("ls", "app:1:/etc").stdout == "motd\n"
        user.layerfs("push", "app:1", f"oci:{user.home}/layout:1")
        assert user.layerfs("cat", f"oci:{user.home}/layout:1:/etc/motd").stdout == "hello\n"


def test_a_place_is_read_without_a_store(tmp_path: Path) -> None:
    image = TinyImage(b"text")
    write_files(tmp_path / "from", layout_files([image.entry(name="1")], image.blobs))
    layerfs = CommandLine(tmp_path / "store")
    assert layerfs.good("cat", f"oci:{tmp_path}/from:1:/file0") == "text"
    assert layerfs.good("ls", f"oci:{tmp_path}/from:1") == "file0\n"
    assert layerfs.good("find", f"oci:{tmp_path}/from:1", "-type", "f") == "/file0\n"
    assert not layerfs.root.exists()
