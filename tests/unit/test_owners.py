"""Files whose owners have no id in a user namespace become root's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from layerfs.subids import Mapping
from layerfs.tree.entry import Entry, Kind
from layerfs.tree.owners import Owners

ALONE = Owners([Mapping(0, 1000, 1)], [Mapping(0, 1000, 1)])
SEVERAL = Owners(
    [Mapping(0, 1000, 1), Mapping(1, 100000, 100)], [Mapping(0, 1000, 1), Mapping(1, 100000, 50)]
)
HOST = Owners([Mapping(0, 0, (1 << 32) - 1)], [Mapping(0, 0, (1 << 32) - 1)])


def entry(uid: int, gid: int) -> Entry:
    return Entry(b"./d/f", Kind.FILE, 0o4755, uid, gid, 5)


def owner(found: Entry) -> tuple[int, int]:
    assert found._replace(uid=0, gid=0) == entry(0, 0)
    return found.uid, found.gid


def test_what_a_layer_names_and_the_namespace_lacks_is_roots() -> None:
    assert owner(ALONE.adopt(entry(0, 0))) == (0, 0)
    assert owner(ALONE.adopt(entry(1, 2))) == (0, 0)
    assert owner(SEVERAL.adopt(entry(100, 50))) == (100, 50)
    assert owner(SEVERAL.adopt(entry(101, 50))) == (0, 50)
    assert owner(SEVERAL.adopt(entry(100, 51))) == (100, 0)
    assert owner(HOST.adopt(entry(65534, 4_000_000_000))) == (65534, 4_000_000_000)


def test_what_was_adopted_is_told_with_an_example() -> None:
    owners, told = Owners([Mapping(0, 1000, 1)], [Mapping(0, 1000, 1)]), list[str]()
    owners.adopt(entry(0, 0))
    owners.tell(told.append)
    assert told == []
    owners.adopt(entry(7, 8))
    owners.adopt(entry(9, 9))
    owners.tell(told.append)
    assert told == [
        "2 files whose owners have no id here belong to root now, such as '/d/f' of user 7 and group 8"
    ]


def test_what_the_kernel_has_no_id_to_show_for_is_roots() -> None:
    assert owner(ALONE.settle(entry(65534, 65534))) == (0, 0)
    assert owner(SEVERAL.settle(entry(33, 65534))) == (33, 0)
    # On the host itself nobody is a user as any other.
    assert owner(HOST.settle(entry(65534, 65534))) == (65534, 65534)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv")
def test_a_file_system_that_gives_files_to_nobody_is_told_of(tmp_path: Path) -> None:
    """As a server over the network, which does not know a user namespace's ids: here without CAP_CHOWN."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/f").touch()
    os.chown(tmp_path / "tree/f", 7, 8)
    command = [
        *("setpriv", "--bounding-set=-chown", sys.executable, "-m", "layerfs"),
        *("--root", tmp_path / "store", "--driver", "vfs", "import", "-q", tmp_path / "tree", "a:1"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "'/f' cannot be given to user 7 and group 8: Operation not permitted\nhint: " in done.stderr
    assert "(NFS)" in done.stderr
